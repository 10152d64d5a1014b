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
    ISOLATED_PROBLEMS,
    LABELS,
    MAX_NEW_TOKENS,
    SHOWN_WIDTH,
    USAGE,
    Job,
    Plan,
    is_model,
    read_plan,
)

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
    if plan.settings.quick or job.arm == "base" or job.kind not in ("evaluate", "spread"):
        return
    while not is_model(plan.trained(job.arm)):
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _carry_out(plan: Plan, job: Job) -> None:
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.set_num_threads(1)
    started, spent = time.monotonic(), time.process_time()
    {"warmup": _train, "grpo": _train, "evaluate": _evaluate, "spread": _spread}[job.kind](
        plan, job
    )
    usage = {
        "job": f"{job.arm} {job.kind} {job.name}",
        "arm": job.arm,
        "kind": job.kind,
        "seconds": round(time.monotonic() - started, 2),
        "cpu_seconds": round(time.process_time() - spent, 2),
        "process": os.getpid(),
        "peak_bytes": peak_bytes(),
    }
    with (plan.folder / USAGE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(usage) + "\n")


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
        params=interlace.SamplingParams(max_new_tokens=MAX_NEW_TOKENS, seed=1000 + seed),
        arm=LABELS[job.arm],
        training_seed=None if job.arm == "base" or plan.settings.quick else seed,
        timed=plan.settings.timed,
        batch_rows=BATCH_ROWS,
        output=plan.folder / "evaluation" / job.name,
        figures=(),
    )


def _spread(plan: Plan, job: Job) -> None:
    """Choose the group to show, and sample the same prompt with every row alone."""
    import interlace
    from interlace.cli.demo.spread import Found, choose, following
    from interlace.evaluation.records import read_records
    from interlace.tasks import get_task

    task = get_task("tiny-countdown")
    by_id = {example.id: example for example in list(task)[: plan.settings.problems]}
    texts = {
        record.example_id: list(record.texts or ())
        for folder in plan.evaluations("bridge", SHOWN_WIDTH)
        for record in read_records(folder / "records.jsonl")
        if record.width == SHOWN_WIDTH
    }
    groups = {name: Found(task, by_id[name], texts[name]) for name in sorted(texts)}
    name = choose(groups)
    asked = list(dict.fromkeys([name, *list(by_id)[:ISOLATED_PROBLEMS]]))
    model, tokenizer = interlace.load(plan.model_of("bridge"))
    rows = interlace.Engine(model, tokenizer).generate(
        [task.prompt(by_id[n]) for n in asked for _ in range(SHOWN_WIDTH)],
        interlace.SamplingParams(
            width=1, max_new_tokens=MAX_NEW_TOKENS, seed=2000 + plan.settings.seed
        ),
    )
    alone = {
        n: [row.texts[0] for row in rows[i * SHOWN_WIDTH : (i + 1) * SHOWN_WIDTH]]
        for i, n in enumerate(asked)
    }
    outcome = {
        "example": name,
        "prompt": task.prompt(by_id[name]),
        "question": by_id[name].question,
        "together": texts[name],
        "alone": alone[name],
        "groups": len(groups),
        "following_together": following(groups.values()),
        "following_alone": following(Found(task, by_id[n], alone[n]) for n in asked),
    }
    partial = plan.folder / f".{GROUP}.tmp"
    partial.write_text(json.dumps(outcome) + "\n", encoding="utf-8")
    partial.replace(plan.folder / GROUP)


def peak_bytes() -> int | None:
    """The most memory this process has had; None where the system does not tell."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    main()
