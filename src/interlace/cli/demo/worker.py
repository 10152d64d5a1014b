"""`python -m interlace.cli.demo.worker FOLDER LANE`: the jobs of one lane, one after the other.

Finished jobs are skipped; unfinished ones go on where they were. The process ends with the one
that started it: its standard input is a pipe, which closes when that process is gone.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from interlace.cli.demo.plan import (
    GROUP,
    LABELS,
    MAX_NEW_TOKENS,
    SHOWN_WIDTH,
    Job,
    Plan,
    read_plan,
)
from interlace.cli.demo.usage import metered
from interlace.files import is_complete

BATCH_ROWS = 512
SECONDS_BETWEEN_LOOKS = 0.5
ORPHANED = 3


def main() -> None:
    """Carry out one lane."""
    folder, lane = Path(sys.argv[1]), int(sys.argv[2])
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with _alone(folder / f".lane-{lane}.lock"):
        plan = read_plan(folder)
        for job in plan.lanes[lane]:
            if not plan.is_done(job):
                _wait_for_model(plan, job)
                _carry_out(plan, job)


def _end_with_parent() -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os._exit(ORPHANED)  # whatever is going on: jobs survive a kill


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Wait until the process of an earlier start, killed a moment ago, is gone."""
    try:
        import fcntl
    except ImportError:  # Windows: there such a process is gone with its pipe, or soon
        yield
        return
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _wait_for_model(plan: Plan, job: Job) -> None:
    """Another lane may still be training what this job evaluates."""
    if plan.settings.quick or job.arm == "base" or job.kind != "evaluate":
        return
    while not is_complete(plan.trained(job.arm)):
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _carry_out(plan: Plan, job: Job) -> None:
    work = {"warmup": _train, "grpo": _train, "evaluate": _evaluate, "spread": _spread}[job.kind]
    with metered(plan, job):
        import torch
        from transformers.utils import logging

        logging.disable_progress_bar()
        torch.set_num_threads(1)
        work(plan, job)


def _train(plan: Plan, job: Job) -> None:
    from interlace.cli.demo.training import recipe_of
    from interlace.training.run import train

    assert job.kind in ("warmup", "grpo")
    train(recipe_of(plan, job.arm), job.kind)


def _evaluate(plan: Plan, job: Job) -> None:
    import interlace
    from interlace.tasks import get_task

    seed = plan.settings.seed
    model, tokenizer = interlace.load(plan.model_of(job.arm))
    interlace.evaluate(
        interlace.Engine(model, tokenizer),
        get_task("tiny-countdown"),
        job.widths,
        limit=plan.settings.problems,
        samples=plan.settings.samples,
        params=interlace.SamplingParams(max_new_tokens=MAX_NEW_TOKENS, seed=1000 + seed),
        arm=LABELS[job.arm],
        training_seed=None if job.arm == "base" or plan.settings.quick else seed,
        timed=plan.settings.timed,
        batch_rows=BATCH_ROWS,
        output=plan.folder / "evaluation" / job.name,
        figures=(),
    )


def _spread(plan: Plan, job: Job) -> None:
    """Choose the group to show, and count over all groups how finds spread."""
    from interlace.cli.demo.sharing import outcome_of
    from interlace.tasks import get_task

    texts = [_texts(plan, width) for width in (SHOWN_WIDTH, 1)]
    outcome = outcome_of(get_task("tiny-countdown"), *texts)
    partial = plan.folder / f".{GROUP}.tmp"
    partial.write_text(json.dumps(outcome) + "\n", encoding="utf-8")
    partial.replace(plan.folder / GROUP)


def _texts(plan: Plan, width: int) -> dict[str, list[str]]:
    """Bridge's rows at a width, by problem, group after group."""
    from interlace.evaluation.records import read_records

    found: dict[str, list[str]] = {}
    for folder in plan.evaluations("bridge", width):
        for record in read_records(folder / "records.jsonl"):
            if record.width == width:
                found.setdefault(record.example_id, []).extend(record.texts or ())
    return found


if __name__ == "__main__":
    main()
