"""What jobs cost: a file for each, with an entry for every start, kept up to date while it runs.

A kill so loses next to nothing of what a start took, and no half-written line is left behind.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from interlace.cli.demo.plan import USAGE, Job, Plan

SECONDS_BETWEEN_NOTES = 2.0


@dataclass(frozen=True)
class Start:
    """What one start of a job took.

    Attributes:
        seconds: wall-clock time.
        cpu_seconds: processor time.
        process: its id.
        peak_bytes: the most memory that the process had; None where the system does not tell.
    """

    seconds: float
    cpu_seconds: float
    process: int
    peak_bytes: int | None


def starts_of(plan: Plan, job: Job) -> list[Start]:
    """A job's starts; none if they were not written down, or the file is damaged."""
    try:
        values = json.loads(_path(plan, job).read_text(encoding="utf-8"))
        return [Start(**one) for one in values]
    except (OSError, ValueError, TypeError):
        return []


@contextmanager
def metered(plan: Plan, job: Job) -> Iterator[None]:
    """Write down what the work inside takes, while it goes on and at its end."""
    path, before = _path(plan, job), starts_of(plan, job)
    path.parent.mkdir(exist_ok=True)
    began, spent = time.monotonic(), time.process_time()
    ended = threading.Event()

    def note() -> None:
        now = Start(
            seconds=round(time.monotonic() - began, 2),
            cpu_seconds=round(time.process_time() - spent, 2),
            process=os.getpid(),
            peak_bytes=peak_bytes(),
        )
        partial = path.with_suffix(".tmp")
        text = json.dumps([dataclasses.asdict(one) for one in (*before, now)])
        partial.write_text(text + "\n", encoding="utf-8")
        partial.replace(path)

    def keep_noting() -> None:
        while not ended.wait(SECONDS_BETWEEN_NOTES):
            with contextlib.suppress(OSError):  # the job itself will say that the disk is full
                note()

    note()
    notes = threading.Thread(target=keep_noting, daemon=True)
    notes.start()
    try:
        yield
    finally:
        ended.set()
        notes.join()
        note()


def peak_bytes() -> int | None:
    """The most memory this process has had; None where the system does not tell."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _path(plan: Plan, job: Job) -> Path:
    return plan.folder / USAGE / f"{job.arm}-{job.kind}-{job.name}.json"
