"""Many groups in calls of the engine, resumable: `generate --input` and `evaluate` are this loop.

A call is a fixed set of groups. In low precision the tokens of a group depend, by rounding, on
which groups share its passes; so a run that goes on after a kill samples an unfinished call again
as a whole, and the store keeps what is missing of it: what it ends with is that of an unbroken run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from interlace.errors import GenerationError

if TYPE_CHECKING:
    from interlace.engine.types import EngineStats, GroupOutput, Prompt, SamplingParams


@dataclass(frozen=True)
class Job:
    """One group to sample.

    Attributes:
        name: Words that name it in an error, such as `line 5`.
        key: Hashable key by which the store knows it.
        width: W, rows of the group.
        prompt: Prompt as `encode` of the engine made it.
        sample_id: Text or number that tells the groups of one prompt apart for their seeds.
        subject: Origin of the job, for the store: an example, a line of a file.
    """

    name: str
    key: Any
    width: int
    prompt: Prompt
    sample_id: int | str
    subject: Any


@runtime_checkable
class GroupStore(Protocol):
    """Keeps groups, and knows those of earlier starts."""

    def has(self, job: Job) -> bool:
        """Whether the group is kept already."""
        ...

    def take(self, job: Job, group: GroupOutput) -> None:
        """Keep a group, unless it is there; groups of a call come in the order they end."""
        ...

    def end_call(self) -> None:
        """Keep what waited for the end of a call, when the engine is free."""
        ...


@dataclass
class Tally:
    """How far a run is.

    Attributes:
        all_groups: Number of groups in all.
        all_rows: Number of their rows.
        stage: "sampling", then perhaps "timing".
        width: Width at work.
        groups: Number of groups that are kept, those of earlier starts included.
        rows: Number of their rows.
        resumed_groups: Number of groups that were kept when this start began.
        resumed_rows: Number of their rows.
        correct: Number of correct rows among those kept; None where nothing is judged.
        tokens: Number of tokens sampled since this start, those of unfinished groups included.
        kept_tokens: Number of tokens of the rows that were kept since.
        computed_row_steps: Rows of all forward passes of one token.
        alive_row_steps: Rows of them that fed an unfinished row's token.
        notes: Remarks on what went other than expected, each once.
        started: Time when this start began, by the monotonic clock.
        ended: Time when its sampling ended; None before.
    """

    all_groups: int
    all_rows: int
    stage: str = "sampling"
    width: int = 0
    groups: int = 0
    rows: int = 0
    resumed_groups: int = 0
    resumed_rows: int = 0
    correct: int | None = None
    tokens: int = 0
    kept_tokens: int = 0
    computed_row_steps: int = 0
    alive_row_steps: int = 0
    notes: list[str] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)
    ended: float | None = None

    @property
    def seconds(self) -> float:
        """Seconds that sampling took since this start."""
        return (self.ended or time.monotonic()) - self.started

    @property
    def tokens_per_second(self) -> float:
        """Speed of this start's sampling."""
        return self.tokens / self.seconds if self.tokens else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Seconds until all rows are sampled, if the others get as long as those kept since this
        start; None before there are any."""
        new = self.rows - self.resumed_rows
        if not new or not self.tokens:
            return None
        expected = self.kept_tokens / new * (self.all_rows - self.resumed_rows)
        return max(expected - self.tokens, 0.0) / self.tokens_per_second

    def note(self, remark: str) -> None:
        """Keep a remark, once."""
        if remark not in self.notes:
            self.notes.append(remark)

    def resume(self, jobs: Sequence[Job]) -> None:
        """Count groups that are kept from earlier starts."""
        self.groups = self.resumed_groups = len(jobs)
        self.rows = self.resumed_rows = sum(job.width for job in jobs)

    def keep(self, width: int, tokens: int) -> None:
        """Count a group that is kept now."""
        self.groups += 1
        self.rows += width
        self.kept_tokens += tokens


Progress = Callable[[Tally], None]


def run_groups(
    engine: Any,
    calls: Sequence[Sequence[Job]],
    params: SamplingParams,
    store: GroupStore,
    tally: Tally,
    progress: Progress,
) -> None:
    """Sample all groups that are not kept yet, call by call, each of jobs of one width.

    The engine has `as_completed` and `stats`; `progress` is called after every step of it and every
    group.

    Raises:
        GenerationError: for what the engine cannot carry out; groups before it are kept.
    """
    tally.resume([job for jobs in calls for job in jobs if store.has(job)])
    for jobs in calls:
        if not all(map(store.has, jobs)):
            try:
                _run_call(engine, jobs, params, store, tally, progress)
            except GenerationError as error:
                raise GenerationError(
                    f"Sampling for {jobs[0].name} to {jobs[-1].name} (prompts 0 to "
                    f"{len(jobs) - 1} of the call) failed: {error}"
                ) from error


def _run_call(
    engine: Any,
    jobs: Sequence[Job],
    params: SamplingParams,
    store: GroupStore,
    tally: Tally,
    progress: Progress,
) -> None:
    tally.width = jobs[0].width
    before = (tally.tokens, tally.computed_row_steps, tally.alive_row_steps)

    def follow(stats: EngineStats) -> None:
        tally.tokens = before[0] + stats.sampled_tokens
        tally.computed_row_steps = before[1] + stats.computed_row_steps
        tally.alive_row_steps = before[2] + stats.alive_row_steps
        progress(tally)

    groups = engine.as_completed(
        [job.prompt for job in jobs],
        params.replace(width=tally.width),
        sample_ids=[job.sample_id for job in jobs],
        progress=follow,
    )
    for index, group in groups:
        store.take(jobs[index], group)
        progress(tally)
    for remark in engine.stats.notes:
        tally.note(remark)
    store.end_call()
    progress(tally)
