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

from interlace import huge_pages
from interlace.files import alone, is_complete, locate, settled

WIDTHS = (1, 2, 4, 8, 16)
SAMPLES = 16  # rows of a problem at every width
PLAN, METRICS, RECORDS = "plan.json", "metrics.jsonl", "records.jsonl"
BRIDGE_RUNS = ("bridge-1", "bridge-2")
# Arms, in the order of the tables.
RLVR, SFT, BRIDGE = "rlvr", "sft", "bridge"
LABELS = {"base": "base", "rlvr": "RLVR-only", "pmatch": "P-Match", "sft": "SFT on the same texts",
          "bridge": "Bridge"}  # fmt: skip
RESPONSES = "responses/0-of-1.jsonl"  # of a warm-up: spliced groups
SFT_RATE = 3.0e-4  # of all weights: RLVR's
MAX_NEW_TOKENS, BATCH_ROWS = 40, 512
SECONDS_BETWEEN_LOOKS = 0.5
ORPHANED = 3


@dataclass(frozen=True)
class Settings:
    """What decides a demo's outcome.

    Attributes:
        quick: Whether packaged arms are asked instead of training.
        seed: Seed of training and of sampling.
        steps: Number of optimizer steps of each training.
        problems: Number of held-out problems.
        warmup_problems: Number of problems whose responses are learned from.
    """

    quick: bool = False
    seed: int = 0
    steps: int = 150
    problems: int = 395
    warmup_problems: int = 1000

    @property
    def arms(self) -> list[str]:
        """Keys of the arms that are evaluated; Bridge is the last."""
        return ["base", RLVR, "pmatch", BRIDGE] if self.quick else [RLVR, SFT, BRIDGE]


@dataclass(frozen=True)
class Job:
    """A training, or an evaluation at some widths; jobs of a lane run one after the other.

    Attributes:
        arm: Key of the arm in `LABELS`.
        name: Folder that it writes, in the demo's.
        total: Number of lines that its files hold in the end.
        widths: Widths of an evaluation; a training has none.
    """

    arm: str
    name: str
    total: int
    widths: tuple[int, ...] = ()

    @property
    def title(self) -> str:
        """Arm and work in a few words."""
        widths = ",".join(map(str, self.widths))
        if self.widths == WIDTHS:
            widths = f"{WIDTHS[0]} to {WIDTHS[-1]}"
        return f"{LABELS[self.arm]}, {f'eval W={widths}' if widths else 'training'}"

    def is_done(self, folder: Path) -> bool:
        """Whether the whole outcome is there."""
        if self.widths:
            return locate(folder / self.name, "result.json").exists()
        return is_complete(folder / self.name / "model")

    def reached(self, folder: Path) -> int:
        """How many of all lines there are."""
        if self.is_done(folder):
            return self.total
        paths = [folder / self.name / name for name in (RESPONSES, METRICS, RECORDS)]
        counts = [path.read_bytes().count(b"\n") for path in paths if path.exists()]
        return min(sum(counts), self.total)


def lanes(settings: Settings) -> list[list[Job]]:
    """Jobs of both processes; the SFT begins once the blocks' texts are sampled and spliced."""

    def evaluation(arm: str, name: str, widths: tuple[int, ...] = WIDTHS) -> Job:
        sampled = widths if arm == BRIDGE else widths[-1:]
        groups = settings.problems * sum(SAMPLES // width for width in sampled)
        return Job(arm, f"evaluation/{name}", groups, widths)

    first, second = [], []
    if not settings.quick:
        first.append(Job(BRIDGE, "bridge/warmup", settings.warmup_problems + settings.steps))
    for arm in settings.arms[:-1]:
        if arm == SFT:
            second.append(Job(arm, "sft/warmup", settings.steps))
        second.append(evaluation(arm, arm))
    # Every width of Bridge is a run of its own, so the processes can share them.
    given = (2,) if settings.quick else (2, 4)
    kept = tuple(width for width in WIDTHS if width not in given)
    first.append(evaluation(BRIDGE, BRIDGE_RUNS[0], kept))
    second.append(evaluation(BRIDGE, BRIDGE_RUNS[1], given))
    return [first, second]


def train(folder: Path, settings: Settings, job: Job) -> None:
    """Run `interlace train warmup` with the recipe blocks-last, or an SFT of all weights on the
    same texts."""
    from interlace.cli.main import main

    options = {
        "output_dir": folder / job.arm,
        "seed": settings.seed,
        "warmup.problems": settings.warmup_problems,
        "warmup.max_steps": settings.steps,
        "warmup.save_steps": 50,
        "warmup.save_total_limit": 1,
        "warmup.report_to": "none",
        "warmup.disable_tqdm": "true",
        "warmup.eval_strategy": "no",
        "warmup.eval_on_start": "false",
    }
    if job.arm == SFT:
        texts = folder / BRIDGE / "warmup"
        while not (texts / METRICS).exists():  # its first step: all texts are there
            time.sleep(SECONDS_BETWEEN_LOOKS)
        options |= {"attach": "none", "warmup.train": "all", "warmup.learning_rate": SFT_RATE,
                    "warmup.data": texts / RESPONSES, "warmup.splice": 0}  # fmt: skip
    told = [f"{key}={value}" for key, value in options.items()]
    status = main(["train", "warmup", "blocks-last", *told])
    if status:
        sys.exit(status)


def evaluate(folder: Path, settings: Settings, job: Job) -> None:
    """Ask the held-out problems."""
    import interlace
    from interlace.tasks import get_task

    source = "tiny" if job.arm == "base" else f"tiny-{job.arm}"
    trained = folder / job.arm / "warmup" / "model"
    is_ours = not settings.quick and job.arm != RLVR
    if is_ours:
        while not is_complete(trained):
            time.sleep(SECONDS_BETWEEN_LOOKS)  # the other lane still trains it
        settled(trained)  # and may still be putting its files in place
    model, tokenizer = interlace.load(trained if is_ours else source)
    interlace.evaluate(
        interlace.Engine(model, tokenizer),
        get_task("tiny-countdown"),
        job.widths,
        limit=settings.problems,
        samples=SAMPLES,
        params=interlace.SamplingParams(max_new_tokens=MAX_NEW_TOKENS, seed=1000 + settings.seed),
        arm=LABELS[job.arm],
        training_seed=settings.seed if is_ours else None,
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
                (evaluate if job.widths else train)(folder, settings, job)


def _end_with_parent() -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os._exit(ORPHANED)  # whatever is going on: jobs survive a kill
