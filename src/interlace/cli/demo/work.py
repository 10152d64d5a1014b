"""What a demo runs: jobs in two lanes, and the child process that carries out one lane.

Its arguments are the folder and the lane. Finished jobs are skipped and others go on where they
were. The child ends with the process that started it: its standard input is a pipe, which closes
when that process is gone.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from interlace import huge_pages
from interlace.files import alone, is_complete, locate, settled

WIDTHS = (1, 2, 4, 8, 16)
SAMPLES = 16  # rows of a problem at every width
PLAN, METRICS, RECORDS = "plan.json", "metrics.jsonl", "records.jsonl"
BRIDGE_RUNS = ("bridge-1", "bridge-2")
# In the order of the tables. P-Match is shown by --quick alone.
BRIDGE, PMATCH = "bridge", "pmatch"  # arms, which have the names of their blocks
LABELS = {"base": "base", "rlvr": "RLVR-only", "pmatch": "P-Match", "bridge": "Bridge"}
STEPS = 4  # optimizer steps on a rollout
MAX_NEW_TOKENS, BATCH_ROWS = 40, 512
SECONDS_BETWEEN_LOOKS = 0.5
ORPHANED = 3


@dataclass(frozen=True)
class Settings:
    """What decides a demo's outcome.

    Attributes:
        quick: Whether packaged arms are asked instead of training.
        seed: Seed of training and of sampling.
        rollouts: Number of GRPO's rollouts for each arm.
        problems: Number of held-out problems.
        warmup_problems: Number of problems whose responses the warm-up learns from.
        warmup_steps: Number of its optimizer steps.
        prompts: Number of prompts of a rollout.
    """

    quick: bool = False
    seed: int = 0
    rollouts: int = 60
    problems: int = 395
    warmup_problems: int = 600
    warmup_steps: int = 150
    prompts: int = 64

    @property
    def arms(self) -> list[str]:
        """The arms that are evaluated, by their keys."""
        return [arm for arm in LABELS if self.quick or arm != PMATCH]


@dataclass(frozen=True)
class Job:
    """A piece of work; those of a lane run one after the other.

    Attributes:
        kind: Kind of the job.
        arm: Key of the arm in `LABELS`.
        name: Folder that it writes, in the demo's.
        files: Files there that grow by lines.
        total: Number of their lines in the end.
        widths: Widths of an evaluation.
    """

    kind: Literal["warmup", "grpo", "evaluate"]
    arm: str
    name: str
    files: tuple[str, ...]
    total: int
    widths: tuple[int, ...] = ()

    @property
    def title(self) -> str:
        """Arm and work in a few words."""
        widths = f"{WIDTHS[0]} to {WIDTHS[-1]}"
        if self.widths != WIDTHS:
            widths = ",".join(map(str, self.widths))
        what = {"warmup": "warm-up", "grpo": "GRPO"}.get(self.kind, f"eval W={widths}")
        return f"{LABELS[self.arm]}, {what}"

    def is_done(self, folder: Path) -> bool:
        """Whether the outcome is there whole."""
        if self.kind == "evaluate":
            return locate(folder / self.name, "result.json").exists()
        return is_complete(folder / self.name / "model")

    def reached(self, folder: Path) -> int:
        """How many lines of the total there are."""
        if self.is_done(folder):
            return self.total
        paths = [folder / self.name / name for name in self.files]
        counts = [path.read_bytes().count(b"\n") for path in paths if path.exists()]
        return min(sum(counts), self.total)


def lanes(settings: Settings) -> list[list[Job]]:
    """Jobs of both processes; what is trained first is asked while the other still trains."""

    def grpo(arm: str) -> Job:
        return Job("grpo", arm, f"{arm}/grpo", (METRICS,), STEPS * settings.rollouts)

    def evaluate(arm: str, widths: tuple[int, ...], name: str) -> Job:
        sampled = widths if arm == BRIDGE else widths[-1:]
        groups = settings.problems * sum(SAMPLES // width for width in sampled)
        return Job("evaluate", arm, f"evaluation/{name}", (RECORDS,), groups, widths)

    first, second = [], []
    if not settings.quick:
        files = ("responses/0-of-1.jsonl", METRICS)
        lines = settings.warmup_problems + settings.warmup_steps
        first += [Job("warmup", "bridge", "bridge/warmup", files, lines), grpo("bridge")]
        second += [grpo("rlvr")]
    second += [evaluate(arm, WIDTHS, arm) for arm in settings.arms if arm != BRIDGE]
    # Every width of Bridge is a run of its own, so the processes can share them.
    given = (2,) if settings.quick else (2, 4, 16)
    kept = tuple(width for width in WIDTHS if width not in given)
    first.append(evaluate("bridge", kept, BRIDGE_RUNS[0]))
    second.append(evaluate("bridge", given, BRIDGE_RUNS[1]))
    return [first, second]


def model_of(folder: Path, settings: Settings, arm: str) -> str:
    """What `interlace.load` takes for an arm."""
    if arm == "base":
        return "tiny"
    return f"tiny-{arm}" if settings.quick else str(folder / arm / "grpo" / "model")


def train(folder: Path, settings: Settings, job: Job) -> None:
    """Run `interlace train` with the recipe tiny, shortened."""
    from interlace.cli.main import main

    options = [
        f"output_dir={folder / job.arm}",
        f"seed={settings.seed}",
        f"warmup.problems={settings.warmup_problems}",
        f"warmup.max_steps={settings.warmup_steps}",
        f"grpo.prompts_per_rollout={settings.prompts}",
        f"grpo.mini_batches={STEPS}",
        f"grpo.max_steps={STEPS * settings.rollouts}",
        "grpo.log_completions=0",
        *(["attach=none"] if job.arm == "rlvr" else []),
    ]
    for name in ("save_steps=20", "save_total_limit=1", "report_to=none", "disable_tqdm=true"):
        options += [f"warmup.{name}", f"grpo.{name}"]
    status = main(["train", job.kind, "tiny", *options])
    if status:
        sys.exit(status)


def evaluate(folder: Path, settings: Settings, job: Job) -> None:
    """Ask the held-out problems."""
    import interlace
    from interlace.tasks import get_task

    trained = model_of(folder, settings, job.arm)
    if trained.startswith(str(folder)):
        while not is_complete(Path(trained)):
            time.sleep(SECONDS_BETWEEN_LOOKS)  # the other lane still trains it
        settled(Path(trained))  # and may still be putting its files in place
    model, tokenizer = interlace.load(trained)
    interlace.evaluate(
        interlace.Engine(model, tokenizer),
        get_task("tiny-countdown"),
        job.widths,
        limit=settings.problems,
        samples=SAMPLES,
        params=interlace.SamplingParams(max_new_tokens=MAX_NEW_TOKENS, seed=1000 + settings.seed),
        arm=LABELS[job.arm],
        training_seed=None if job.arm == "base" or settings.quick else settings.seed,
        timed=0,  # arms that run at different moments have no seconds to compare
        batch_rows=BATCH_ROWS,
        output=folder / job.name,
        figures=(),
    )


def main() -> None:
    """Carry out one lane."""
    huge_pages.restart()
    folder, lane = Path(sys.argv[1]), int(sys.argv[2])
    threading.Thread(target=_end_with_parent, daemon=True).start()
    lock = folder / f".lane-{lane}.lock"
    lock.touch()
    with alone(lock):  # once the child of an earlier start, killed a moment ago, is gone
        import torch
        from transformers.utils import logging

        logging.disable_progress_bar()
        torch.set_num_threads(1)
        plan = json.loads((folder / PLAN).read_text(encoding="utf-8"))
        settings = Settings(**plan["settings"])
        for job in lanes(settings)[lane]:
            if not job.is_done(folder):
                (evaluate if job.kind == "evaluate" else train)(folder, settings, job)


def _end_with_parent() -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os._exit(ORPHANED)  # whatever is going on: jobs survive a kill
