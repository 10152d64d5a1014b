"""What a demo does: jobs in two lanes, one process each, and the files by which they are followed.

<output>/plan.json               what was asked for; another demo is refused
<output>/<arm>/warmup, /grpo     runs of `interlace train`, which go on after a kill
<output>/evaluation/<name>       runs of `interlace.evaluate`, which do so too
<output>/group.json              the group that is shown, and how finds spread in all groups
<output>/usage/                  seconds and memory of every start of every job
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
from interlace.errors import ConfigError
from interlace.files import is_complete, locate

WIDTHS = (1, 2, 4, 8, 16)
SHOWN_WIDTH = 8
MAX_NEW_TOKENS = 40  # four tries of ten tokens
COUPLED = "bridge"  # the arm whose rows see each other: it is run at every width
CONTROL = "pmatch"  # the arm that the short demo leaves out
LABELS = {"base": "base", "rlvr": "RLVR-only", "pmatch": "P-Match", "bridge": "Bridge"}
PLAN, GROUP, USAGE = "plan.json", "group.json", "usage"
# As in interlace.models.source, which loads torch: the process that only looks on does without.
PACKAGED = Path(interlace.__file__).parent / "models" / "packaged"
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
            whole = f"{WIDTHS[0]} to {WIDTHS[-1]}"
            listed = ",".join(map(str, self.widths))
            return f"eval W={whole if self.widths == WIDTHS else listed}"
        return {"warmup": "warm-up", "grpo": "GRPO", "spread": "one group"}[self.kind]


@dataclass(frozen=True)
class Plan:
    """A demo in a folder."""

    folder: Path
    settings: Settings

    @property
    def arms(self) -> list[str]:
        """The arms that are evaluated."""
        return list(LABELS) if self.settings.quick else [a for a in LABELS if a != CONTROL]

    @property
    def lanes(self) -> list[list[Job]]:
        """Jobs of the two processes; what is trained first is evaluated while the other trains."""
        first = [] if self.settings.quick else [self._warmup(), self._grpo(COUPLED)]
        second = [] if self.settings.quick else [self._grpo("rlvr")]
        second += [self._evaluate(arm, WIDTHS, arm) for arm in self.arms if arm != COUPLED]
        # Every width of Bridge is a run of its own, so two processes can share them. The widths of
        # the group that is shown come before it.
        given = (2,) if self.settings.quick else (2, 4, 16)
        kept = tuple(width for width in WIDTHS if width not in given)
        first += [self._evaluate(COUPLED, kept, "bridge-1"), self._spread()]
        second += [self._evaluate(COUPLED, given, "bridge-2")]
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
        return is_complete(self.folder / job.arm / job.kind / "model")

    def _warmup(self) -> Job:
        s = self.settings
        stage = "bridge/warmup"
        responses = Part(f"{stage}/responses/0-of-1.jsonl", s.warmup_problems, 0.06)
        steps = Part(f"{stage}/metrics.jsonl", s.warmup_steps, 0.17, "step")
        return Job("warmup", COUPLED, "warmup", (responses, steps))

    def _grpo(self, arm: str) -> Job:
        guess = 2.65 if arm == COUPLED else 2.1
        part = Part(f"{arm}/grpo/metrics.jsonl", self.settings.rollouts, guess, "rollout")
        return Job("grpo", arm, "grpo", (part,))

    def _evaluate(self, arm: str, widths: tuple[int, ...], name: str) -> Job:
        path = f"evaluation/{name}/records.jsonl"
        problems, samples = self.settings.problems, self.settings.samples
        sampled = widths if arm == COUPLED else widths[-1:]
        groups = problems * sum(samples // width for width in sampled)
        seconds = problems * samples * len(sampled) * 0.0025
        return Job("evaluate", arm, name, (Part(path, groups, seconds / groups),), widths)

    def _spread(self) -> Job:
        return Job("spread", COUPLED, "group", (Part(GROUP, 1, 3.0),))


def check_packaged(plan: Plan) -> None:
    """Raise if the package lacks a model that the plan needs.

    Raises:
        ConfigError: naming it.
    """
    arms = plan.arms if plan.settings.quick else ["base"]
    missing = [name for name in map(plan.model_of, arms) if not is_complete(PACKAGED / name)]
    if not missing:
        return
    raise ConfigError(
        f"This build of Interlace has no packaged {', '.join(missing)}, which "
        f"{'--quick needs' if plan.settings.quick else 'the demo starts from'}. "
        + (
            "Run `interlace demo` without --quick: it trains its arms itself, in minutes."
            if plan.settings.quick
            else "Install it anew: the file of 2 MB belongs to the package."
        )
    )


def read_plan(folder: Path) -> Plan:
    """The plan in a demo's folder."""
    values = json.loads((folder / PLAN).read_text(encoding="utf-8"))
    return Plan(folder, Settings(**values["settings"]))


def as_json(plan: Plan) -> dict[str, object]:
    """What plan.json holds: all that decides the outcome."""
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
