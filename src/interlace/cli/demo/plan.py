"""What a demo does: jobs in two lanes, one process each, and the files by which they are followed.

<output>/plan.json               what was asked for; another demo is refused
<output>/<arm>/warmup, /grpo     runs of `interlace train`, which go on after a kill
<output>/evaluation/<name>       runs of `interlace.evaluate`, which do so too
<output>/group.json              the group in which a find spreads
<output>/usage.jsonl             seconds and memory of every finished job
<output>/report.md, figure.png   the outcome
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import interlace
from interlace.cli.demo.options import Settings
from interlace.errors import ConfigError, RunError
from interlace.files import locate

WIDTHS = (1, 2, 4, 8, 16)
SHOWN_WIDTH = 8
MAX_NEW_TOKENS = 40  # four tries of ten tokens
ISOLATED_PROBLEMS = 40
LABELS = {"base": "base", "rlvr": "RLVR-only", "pmatch": "P-Match", "bridge": "Bridge"}
PLAN, GROUP, USAGE = "plan.json", "group.json", "usage.jsonl"
# As in interlace.models.source and interlace.bridge.manifest, which load torch: the process that
# only looks on does without.
PACKAGED = Path(interlace.__file__).parent / "models" / "packaged"
MANIFEST = "interlace.json"
Kind = Literal["warmup", "grpo", "evaluate", "spread"]


@dataclass(frozen=True)
class Part:
    """A file that grows while a job runs.

    Attributes:
        path: the file, relative to the output folder.
        total: what is counted, in the end.
        guess: seconds that one takes on a free core.
        counts: lines; the optimizer step of the last line; or lines of a rollout.
    """

    path: str
    total: int
    guess: float
    counts: Literal["line", "step", "rollout"] = "line"


@dataclass(frozen=True)
class Job:
    """One piece of work; jobs of a lane run one after the other.

    Attributes:
        kind: what it is.
        arm: whose it is, a key of `LABELS`.
        name: the folder of an evaluation.
        parts: the files that show how far it is.
        widths: of an evaluation.
    """

    kind: Kind
    arm: str
    name: str
    parts: tuple[Part, ...]
    widths: tuple[int, ...] = ()

    @property
    def title(self) -> str:
        """In a few words."""
        if self.kind == "evaluate":
            first, last = self.widths[0], self.widths[-1]
            return f"eval, W = {first}" + (f" to {last}" if last > first else "")
        return {"warmup": "warm-up", "grpo": "GRPO", "spread": "one group"}[self.kind]


@dataclass(frozen=True)
class Plan:
    """A demo in a folder."""

    folder: Path
    settings: Settings

    @property
    def arms(self) -> list[str]:
        """The arms that are evaluated."""
        return list(LABELS) if self.settings.quick else [a for a in LABELS if a != "pmatch"]

    @property
    def lanes(self) -> list[list[Job]]:
        """Jobs of the two processes; what is trained first is evaluated while the other trains."""
        first = [] if self.settings.quick else [self._warmup(), self._grpo("bridge")]
        second = [] if self.settings.quick else [self._grpo("rlvr")]
        second += [self._evaluate(arm, WIDTHS, arm) for arm in self.arms if arm != "bridge"]
        # Every width of Bridge is a run of its own, so two processes can share them.
        narrow = [width for width in WIDTHS if width < WIDTHS[-1]]
        wide, shared = "bridge-wide", "bridge-narrow"
        if self.settings.quick:
            first += [self._evaluate("bridge", WIDTHS[-1:], wide)]
            first += [self._evaluate("bridge", narrow, shared), self._spread()]
        else:
            second += [self._evaluate("bridge", WIDTHS[-1:], wide)]
            first += [self._evaluate("bridge", narrow, shared), self._spread()]
        return [first, second]

    def model_of(self, arm: str) -> str:
        """What `interlace.load` takes for an arm."""
        if arm == "base":
            return "tiny"
        return f"tiny-{arm}" if self.settings.quick else str(self.trained(arm))

    def trained(self, arm: str) -> Path:
        """The folder of a model that this demo trains."""
        return self.folder / arm / "grpo" / "model"

    def evaluations(self, arm: str, width: int | None = None) -> list[Path]:
        """The run folders of an arm's evaluation, or those of a width."""
        jobs = [job for lane in self.lanes for job in lane]
        mine = [job for job in jobs if job.kind == "evaluate" and job.arm == arm]
        return [
            self.folder / "evaluation" / job.name
            for job in mine
            if width is None or width in job.widths
        ]

    def is_done(self, job: Job) -> bool:
        """Whether a job's outcome is there whole."""
        if job.kind == "evaluate":
            return locate(self.folder / "evaluation" / job.name, "result.json").exists()
        if job.kind == "spread":
            return (self.folder / GROUP).exists()
        return is_model(self.folder / job.arm / job.kind / "model")

    def _warmup(self) -> Job:
        s = self.settings
        stage = "bridge/warmup"
        responses = Part(f"{stage}/responses/0-of-1.jsonl", s.warmup_problems, 0.06)
        steps = Part(f"{stage}/metrics.jsonl", s.warmup_steps, 0.17, "step")
        return Job("warmup", "bridge", "warmup", (responses, steps))

    def _grpo(self, arm: str) -> Job:
        guess = 2.65 if arm == "bridge" else 2.1
        part = Part(f"{arm}/grpo/metrics.jsonl", self.settings.rollouts, guess, "rollout")
        return Job("grpo", arm, "grpo", (part,))

    def _evaluate(self, arm: str, widths: list[int] | tuple[int, ...], name: str) -> Job:
        path = f"evaluation/{name}/records.jsonl"
        sampled = widths if arm == "bridge" else widths[-1:]
        groups = len(sampled) * self.settings.problems
        seconds = sum(sampled) * self.settings.problems * 0.0025
        return Job("evaluate", arm, name, (Part(path, groups, seconds / groups),), tuple(widths))

    def _spread(self) -> Job:
        return Job("spread", "bridge", "group", (Part(GROUP, 1, 3.0),))


def is_model(folder: Path) -> bool:
    """Whether a folder holds a trained model that was written to its end."""
    if locate(folder, MANIFEST).exists():
        return True
    return (folder / "config.json").exists() and any(folder.glob("*.safetensors"))


def begin(plan: Plan, restart: bool = False) -> bool:
    """Make the folder this plan's, and say whether it was before.

    Raises:
        ConfigError: for --quick in a build without packaged arms.
        RunError: if the folder holds something else.
    """
    arms = plan.arms if plan.settings.quick else ["base"]
    missing = [name for name in map(plan.model_of, arms) if not is_model(PACKAGED / name)]
    if missing:
        raise ConfigError(
            f"This build of Interlace has no packaged {', '.join(missing)}, which "
            f"{'--quick needs' if plan.settings.quick else 'the demo starts from'}. "
            + (
                "Run `interlace demo` without --quick: it trains its arms itself, in minutes."
                if plan.settings.quick
                else "Install it anew: the file of 2 MB belongs to the package."
            )
        )
    folder = plan.folder
    if restart and folder.exists():
        _move_aside(folder)
    now = _as_json(plan)
    path = folder / PLAN
    if path.exists():
        _check_same(path, now)
        return True
    if folder.exists() and any(folder.iterdir()):
        raise RunError(
            f"{folder} is not empty and holds no demo. Choose another folder with --output, or "
            "--restart, which moves this one aside."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".tmp")
        partial.write_text(json.dumps(now, indent=1) + "\n", encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise RunError(f"The demo's folder {folder} cannot be written: {error}") from error
    return False


def read_plan(folder: Path) -> Plan:
    """The plan in a demo's folder."""
    values = json.loads((folder / PLAN).read_text(encoding="utf-8"))
    return Plan(folder, Settings(**values["settings"]))


def _as_json(plan: Plan) -> dict[str, object]:
    names = map(plan.model_of, plan.arms) if plan.settings.quick else ["tiny"]
    weights = {
        name: {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:16]
            for path in sorted((PACKAGED / name).rglob("*.safetensors"))
        }
        for name in names
    }
    settings = dataclasses.asdict(plan.settings)
    return {"settings": settings, "weights": weights, "interlace": interlace.__version__}


def _check_same(path: Path, now: dict[str, object]) -> None:
    from interlace.evaluation.provenance import differences

    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read: {error}. --restart begins anew.") from error
    changed = differences(before, now)
    if changed:
        raise RunError(
            f"{path.parent} holds another demo: {'; '.join(changed)}. Give the old options to go "
            "on with it, another --output, or --restart, which moves it aside."
        )


def _move_aside(folder: Path) -> None:
    number = 1
    while (target := folder.with_name(f"{folder.name}.before-{number}")).exists():
        number += 1
    folder.rename(target)
