"""A file of prompts to lines in the order of the file; a `GroupStore` for `run_groups`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from interlace.batch import Job, Tally
from interlace.cli.generate.outcome import Aggregation, line_of, responses_of
from interlace.cli.generate.records import Record

if TYPE_CHECKING:
    from interlace.engine.types import GroupOutput


def calls_of(records: Sequence[Record], width: int, size: int) -> list[list[Job]]:
    """The records as jobs, `size` of them in a call; their keys count from 0."""
    jobs = [
        Job(f"line {record.line}", place, width, record.token_ids, record.sample_id, record)
        for place, record in enumerate(records)
    ]
    return [jobs[start : start + size] for start in range(0, len(jobs), size)]


class Lines:
    """Writes a line for each group, as soon as those before it are there.

    Args:
        write: Function that takes a line.
        done: Number of lines that are there.
        aggregation: Aggregation that makes one response of each group.
        tally: Tally, kept up to date.
    """

    def __init__(
        self,
        write: Callable[[dict[str, Any]], None],
        done: int,
        aggregation: Aggregation,
        tally: Tally,
    ) -> None:
        self._write, self._done = write, done
        self._aggregation, self._tally = aggregation, tally
        self._waiting: dict[int, tuple[Job, GroupOutput]] = {}

    def has(self, job: Job) -> bool:
        """Whether the line is there."""
        return bool(job.key < self._done)

    def take(self, job: Job, group: GroupOutput) -> None:
        """Write the lines whose turn it is."""
        if self.has(job):
            return
        self._waiting[job.key] = job, group
        # Syntheses need the engine, which is busy until the call's last group is there.
        while self._done in self._waiting and not self._aggregation.writes:
            self._finish([self._waiting.pop(self._done)])

    def end_call(self) -> None:
        """Write what waited for the engine."""
        waiting = [self._waiting.pop(key) for key in sorted(self._waiting)]
        if waiting:
            self._finish(waiting)

    def _finish(self, pairs: Sequence[tuple[Job, GroupOutput]]) -> None:
        outcomes = self._aggregation(
            [
                responses_of(group, as_text(job.subject.prompt), job.subject.columns)
                for job, group in pairs
            ]
        )
        for (job, group), outcome in zip(pairs, outcomes, strict=True):
            self._write(line_of(job.subject.id, job.subject.prompt, group, outcome))
            self._done += 1
            self._tally.keep(job.width, group.num_tokens)


def as_text(prompt: Any) -> str:
    """A prompt as text to read: of messages what the last user said."""
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, list) and prompt and isinstance(prompt[-1], dict):
        said = [m.get("content") for m in prompt if m.get("role") == "user"] or [prompt[-1]]
        return str(said[-1])
    return str(prompt)
