"""What a demo runs: command lines of `interlace` in two lanes, each carried out by a child process.

The child's arguments are the folder and the lane. Finished jobs are skipped and others go on where
they were. The child ends with the process that started it: its standard input is a pipe, which
closes when that process is gone.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interlace import huge_pages
from interlace.errors import RunError
from interlace.files import alone, is_complete, locate
from interlace.jsonl import read_object

WIDTHS = (1, 2, 4, 8, 16)
SAMPLES = 16  # rows of a problem at every width
HELD_OUT, QUICK_PROBLEMS = 395, 200
PLAN, METRICS, RECORDS = "plan.json", "metrics.jsonl", "records.jsonl"
# Arms, in the order of the tables.
RLVR, SFT, BRIDGE = "rlvr", "sft", "bridge"
LABELS = {"base": "base", "rlvr": "RLVR-only", "pmatch": "P-Match", "sft": "SFT on the same texts",
          "bridge": "Bridge"}  # fmt: skip
RESPONSES = "responses/0-of-1.jsonl"  # of a warm-up: spliced groups
SFT_RATE = 3.0e-4  # of all weights: RLVR's
SECONDS_BETWEEN_LOOKS = 0.5
ORPHANED = 3


@dataclass(frozen=True)
class Settings:
    """What decides a demo's outcome.

    Args:
        quick: Ask packaged arms instead of training.
        seed: Seed of training and sampling.
        steps: Number of optimizer steps of each training.
        problems: Number of held-out problems; by default all 395, with --quick 200.
        warmup_problems: Number of problems whose responses are learned from.
    """

    quick: bool = False
    seed: int = 0
    steps: int = 150
    problems: int | None = None
    warmup_problems: int = 1000

    @property
    def asked(self) -> int:
        """Number of held-out problems."""
        return self.problems or (QUICK_PROBLEMS if self.quick else HELD_OUT)

    @property
    def arms(self) -> list[str]:
        """Keys of the arms that are evaluated; Bridge is the last."""
        return ["base", RLVR, "pmatch", BRIDGE] if self.quick else [RLVR, SFT, BRIDGE]


@dataclass(frozen=True)
class Job:
    """A training, or an evaluation at some widths; jobs of a lane run one after the other."""

    title: str  # arm and work in a few words
    place: Path  # folder that it writes
    total: int  # lines that its files hold in the end
    words: tuple[str, ...]  # arguments of `interlace` that do it
    after: Path | None = None  # file that has to be there before it can begin

    def is_done(self) -> bool:
        """Whether the whole outcome is there."""
        return is_complete(self.place / "model") or locate(self.place, "result.json").exists()

    def reached(self) -> int:
        """How many of all lines there are."""
        if self.is_done():
            return self.total
        paths = [self.place / name for name in (RESPONSES, METRICS, RECORDS)]
        counts = [path.read_bytes().count(b"\n") for path in paths if path.exists()]
        return min(sum(counts), self.total)


def lanes(folder: Path, settings: Settings) -> list[list[Job]]:
    """Jobs of both processes. Every width of Bridge is a run of its own, so they share them."""
    first, second = [], []
    if not settings.quick:
        first.append(_training(folder, settings, BRIDGE))
    for arm in settings.arms[:-1]:
        if arm == SFT:
            second.append(_training(folder, settings, arm))
        second.append(_evaluation(folder, settings, arm))
    given = (2,) if settings.quick else (2, 4)
    kept = tuple(width for width in WIDTHS if width not in given)
    first.append(_evaluation(folder, settings, BRIDGE, kept))
    # The first lane's evaluation begins when its training has put the whole model in place.
    after = None if settings.quick else first[-1].place / "config.json"
    second.append(_evaluation(folder, settings, BRIDGE, given, after))
    return [first, second]


def runs_of(folder: Path, settings: Settings, arm: str) -> list[Path]:
    """Folders of an arm's evaluations."""
    jobs = [job for lane in lanes(folder, settings) for job in lane]
    return [job.place for job in jobs if job.title.startswith(f"{LABELS[arm]}, eval")]


def _training(folder: Path, settings: Settings, arm: str) -> Job:
    """The recipe blocks-last, or an SFT of all weights on the same texts, once these are there."""
    texts, after, total = folder / BRIDGE / "warmup", None, settings.steps
    options: dict[str, Any] = {
        "output_dir": folder / arm,
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
    if arm == SFT:
        options |= {"attach": "none", "warmup.train": "all", "warmup.learning_rate": SFT_RATE,
                    "warmup.data": texts / RESPONSES, "warmup.splice": 0}  # fmt: skip
        after = texts / METRICS  # written at the first step
    else:
        total += settings.warmup_problems
    told = [f"{key}={value}" for key, value in options.items()]
    words = ("train", "warmup", "blocks-last", *told)
    return Job(f"{LABELS[arm]}, training", folder / arm / "warmup", total, words, after)


def _evaluation(
    folder: Path,
    settings: Settings,
    arm: str,
    widths: tuple[int, ...] = WIDTHS,
    after: Path | None = None,
) -> Job:
    is_ours = not settings.quick and arm != RLVR
    packaged = "tiny" if arm == "base" else f"tiny-{arm}"
    listed, is_all = ",".join(map(str, widths)), widths == WIDTHS
    place = folder / "evaluation" / (arm if is_all else f"{arm}-{listed.replace(',', '-')}")
    options = {
        "model": folder / arm / "warmup" / "model" if is_ours else packaged,
        "task": "tiny-countdown",
        "widths": listed,
        "limit": settings.asked,
        "samples": SAMPLES,
        "max-new-tokens": 40,
        "seed": 1000 + settings.seed,
        "arm": LABELS[arm],
        "timed": 0,  # arms that run at different moments have no seconds to compare
        "batch-rows": 512,
        "output": place,
        "figures": "none",
    } | ({"training-seed": settings.seed} if is_ours else {})
    words = ("eval", *(f"--{name}={value}" for name, value in options.items()))
    sampled = widths if arm == BRIDGE else widths[-1:]
    groups = settings.asked * sum(SAMPLES // width for width in sampled)
    shown = f"{WIDTHS[0]} to {WIDTHS[-1]}" if is_all else listed
    return Job(f"{LABELS[arm]}, eval W={shown}", place, groups, words, after)


def main() -> None:
    """Carry out one lane."""
    huge_pages.restart()
    folder, lane = Path(sys.argv[1]), int(sys.argv[2])
    threading.Thread(target=_end_with_parent, daemon=True).start()
    lock = folder / f".lane-{lane}.lock"
    lock.touch()
    with alone(lock):  # once the child of an earlier start, killed a moment ago, is gone
        from interlace.cli.main import main as interlace

        plan = read_object(folder / PLAN, RunError, "--restart begins anew.")
        for job in lanes(folder, Settings(**plan["settings"]))[lane]:
            if job.is_done():
                continue
            while job.after is not None and not job.after.exists():
                time.sleep(SECONDS_BETWEEN_LOOKS)
            if status := interlace(job.words):
                sys.exit(status)


def _end_with_parent() -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os._exit(ORPHANED)  # whatever is going on: jobs survive a kill
