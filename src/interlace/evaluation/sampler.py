"""The part of an evaluation that uses the engine: groups are sampled, judged and recorded.

The unit of work is a call of the engine with a fixed set of groups. In low precision the tokens of
a group depend, by rounding, on which groups share its passes; so a run that goes on after a kill
samples an unfinished call again as a whole and keeps what was missing of it: the records are those
of an unbroken run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from interlace.answers.choose import Scorer, best_of_n
from interlace.engine.prompts import encode
from interlace.errors import ConfigError, InterlaceError, RecordError
from interlace.evaluation.provenance import environment
from interlace.evaluation.records import GroupRecord, Timing
from interlace.evaluation.run import RecordedGroups
from interlace.tasks import Example, Task

if TYPE_CHECKING:
    from interlace.engine.engine import Engine
    from interlace.engine.types import EngineStats, GroupOutput, SamplingParams


@dataclass(frozen=True)
class Job:
    """One group to sample."""

    example: Example
    width: int
    group: int

    @property
    def sample_id(self) -> str:
        """What tells the groups of a problem apart for their seeds, in any run."""
        return f"{self.example.id}/{self.group}"


def groups_by_width(
    widths: Sequence[int], *, coupled: bool, groups_per_problem: int, samples: int | None
) -> dict[int, int]:
    """M for every width that is sampled, ascending.

    Args:
        widths: The widths asked for.
        coupled: Whether rows see each other.
        groups_per_problem: M at every width, unless `samples` is given.
        samples: n at every width, whatever its M is then.

    Raises:
        ConfigError: for widths below 1, given twice, or that do not divide `samples`.
    """
    ordered = sorted(widths)
    if not ordered or ordered[0] < 1 or len(set(ordered)) < len(ordered):
        raise ConfigError(
            f"widths are different whole numbers of at least 1; got {list(widths)!r}."
        )
    if groups_per_problem < 1:
        raise ConfigError(f"groups_per_problem is at least 1; got {groups_per_problem}.")
    sampled = ordered if coupled else ordered[-1:]
    if samples is None:
        return dict.fromkeys(sampled, groups_per_problem)
    if groups_per_problem != 1:
        raise ConfigError(
            f"samples ({samples}) says how many rows each problem gets, and groups_per_problem "
            f"({groups_per_problem}) says it too. Give one of them."
        )
    uneven = [width for width in sampled if samples < 1 or samples % width]
    if uneven:
        raise ConfigError(
            f"samples is a multiple of every width that is sampled ({sampled}), so that whole "
            f"groups make it up; {samples} is none of {uneven}."
        )
    return {width: samples // width for width in sampled}


def batches(
    examples: Sequence[Example], groups: dict[int, int], batch_rows: int
) -> list[list[Job]]:
    """All jobs, divided into calls of the engine of at most `batch_rows` rows and one width.

    The division depends on nothing but these arguments: a run that goes on after a kill finds the
    same calls again.

    Raises:
        ConfigError: for `batch_rows` below 1.
    """
    if batch_rows < 1:
        raise ConfigError(f"batch_rows is at least 1; got {batch_rows}.")
    found = []
    for width, count in groups.items():
        jobs = [Job(example, width, group) for example in examples for group in range(count)]
        size = max(1, batch_rows // width)
        found += [jobs[start : start + size] for start in range(0, len(jobs), size)]
    return found


def time_groups(
    engine: Engine,
    jobs: Sequence[tuple[Job, list[int]]],
    params: SamplingParams,
    done: Callable[[Timing], None],
) -> None:
    """Sample each group alone.

    Args:
        engine: Samples.
        jobs: Groups with their prompts' token ids.
        params: How; the width is the job's.
        done: Called with each timing.
    """
    on_cpu = next(engine.model.parameters()).device.type == "cpu"
    clock = time.process_time if on_cpu else time.perf_counter
    warm: set[int] = set()
    for job, prompt in jobs:
        own = params.replace(width=job.width)
        if job.width not in warm:  # the first passes at a width also allocate
            engine.generate([prompt], own.replace(max_new_tokens=2))
            warm.add(job.width)
        began = clock()
        engine.generate([prompt], own, sample_ids=[job.sample_id])
        done(Timing(job.example.id, job.width, clock() - began))


@dataclass
class Tally:
    """How far an evaluation is.

    Attributes:
        all_groups: Groups in all.
        all_rows: Their rows.
        stage: "sampling", then "timing".
        width: The width at work.
        groups: Groups that are recorded, those of earlier starts included.
        rows: Their rows.
        resumed_rows: Rows that were recorded when this start began.
        correct: Correct rows among those recorded.
        tokens: Tokens sampled since this start, those of unfinished groups included.
        recorded_tokens: Tokens of the rows that were recorded since.
        notes: What went other than expected, each remark once.
        started: When this start began, by the monotonic clock.
        ended: When its sampling ended and timing began; None before.
    """

    all_groups: int
    all_rows: int
    stage: str = "sampling"
    width: int = 0
    groups: int = 0
    rows: int = 0
    resumed_rows: int = 0
    correct: int = 0
    tokens: int = 0
    recorded_tokens: int = 0
    notes: list[str] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)
    ended: float | None = None

    @property
    def seconds(self) -> float:
        """That sampling took since this start."""
        return (self.ended or time.monotonic()) - self.started

    @property
    def tokens_per_second(self) -> float:
        """Of this start's sampling."""
        return self.tokens / self.seconds if self.tokens else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Until all rows are sampled, if the others get as long as those recorded since this start;
        None before there are any."""
        new = self.rows - self.resumed_rows
        if not new or not self.tokens:
            return None
        expected = self.recorded_tokens / new * (self.all_rows - self.resumed_rows)
        return max(expected - self.tokens, 0.0) / self.tokens_per_second

    def note(self, remark: str) -> None:
        """Keep a remark, once."""
        if remark not in self.notes:
            self.notes.append(remark)

    def count(self, record: GroupRecord) -> None:
        """One more group is recorded."""
        self.groups += 1
        self.rows += record.width
        self.correct += sum(record.correct)


Progress = Callable[[Tally], None]


class Sampler:
    """Samples and judges the groups of a run.

    Args:
        engine: Samples.
        task: Judges.
        examples: The problems.
        params: How to sample, with the seed; the width is each job's.
        coupled: Whether the rows of a group see each other.
        scorers: See `interlace.evaluate`.
        progress: Called after every step of the engine and every record.

    Raises:
        GenerationError: for a prompt that the tokenizer cannot take; before anything is sampled.
    """

    def __init__(
        self,
        engine: Engine,
        task: Task,
        examples: Sequence[Example],
        params: SamplingParams,
        *,
        coupled: bool,
        scorers: Mapping[str, Scorer],
        progress: Progress | None,
    ) -> None:
        self._engine = engine
        self._task = task
        self._params = params
        self._coupled = coupled
        self._scorers = scorers
        self._progress = progress or (lambda tally: None)
        self._prompts = {
            example.id: encode(task.prompt(example), index, engine.tokenizer)
            for index, example in enumerate(examples)
        }

    def sample(self, store: RecordedGroups, work: Sequence[Sequence[Job]]) -> Tally:
        """Sample all groups that are not recorded yet, call by call.

        Args:
            store: Has the groups of earlier starts, and gets the new ones.
            work: The calls.
        """
        tally = Tally(sum(map(len, work)), sum(job.width for jobs in work for job in jobs))
        for record in store.records.values():
            tally.count(record)
        tally.resumed_rows = tally.rows
        for jobs in work:
            if any(self._key(job) not in store.records for job in jobs):
                store.note_environment(environment(self._engine.model))
                self._call(store, jobs, tally)
        return tally

    def _call(self, store: RecordedGroups, jobs: Sequence[Job], tally: Tally) -> None:
        before, tally.width = tally.tokens, jobs[0].width

        def follow(stats: EngineStats) -> None:
            tally.tokens = before + stats.sampled_tokens
            self._progress(tally)

        prompts = [self._prompts[job.example.id] for job in jobs]
        params = self._params.replace(width=jobs[0].width)
        ids = [job.sample_id for job in jobs]
        for index, group in self._engine.as_completed(
            prompts, params, sample_ids=ids, progress=follow
        ):
            record = self._record(jobs[index], group)
            known = store.records.get(record.key)
            if known is None:
                store.append(record)
                tally.count(record)
                tally.recorded_tokens += sum(record.tokens)
                self._progress(tally)
            elif (known.texts, known.tokens) != (record.texts, record.tokens):
                tally.note(
                    "A call of the engine that an earlier start left unfinished was sampled again, "
                    "and gave other tokens than were recorded: this is not the same machine or "
                    "software. What was recorded is kept."
                )
        for remark in self._engine.stats.notes:
            tally.note(remark)

    def time(self, store: RecordedGroups, jobs: Sequence[Job], tally: Tally) -> None:
        """Time those groups, each alone, that are not timed yet."""
        done = {(timing.example_id, timing.width) for timing in store.timings}
        left = [job for job in jobs if (job.example.id, job.width) not in done]
        if not left:
            return
        store.note_environment(environment(self._engine.model))
        tally.stage, tally.ended = "timing", time.monotonic()

        def keep(timing: Timing) -> None:
            store.append_timing(timing)
            tally.width = timing.width
            self._progress(tally)

        pairs = [(job, self._prompts[job.example.id]) for job in left]
        time_groups(self._engine, pairs, self._params, keep)

    def _key(self, job: Job) -> tuple[str, str, int, int]:
        return (self._task.name, job.example.id, job.width, job.group)

    def _record(self, job: Job, group: GroupOutput) -> GroupRecord:
        verdicts = [self._task.verify(job.example, text) for text in group.texts]
        return GroupRecord(
            task=self._task.name,
            example_id=job.example.id,
            width=job.width,
            group=job.group,
            seed=self._params.seed,
            coupled=self._coupled,
            answers=tuple(verdict.answer for verdict in verdicts),
            correct=tuple(verdict.correct for verdict in verdicts),
            scores=tuple(verdict.score for verdict in verdicts),
            tokens=tuple(len(row.token_ids) for row in group.completions),
            logprob_sums=tuple(row.cumulative_logprob for row in group.completions),
            texts=tuple(group.texts),
            finish_reasons=tuple(row.finish_reason for row in group.completions),
            scorers={
                name: self._scores(name, scorer, job.example, group.texts)
                for name, scorer in self._scorers.items()
            },
            seconds=group.seconds,
        )

    def _scores(
        self, name: str, scorer: Scorer, example: Example, texts: Sequence[str]
    ) -> tuple[float, ...]:
        columns = {"question": example.question}  # and not its answer
        try:
            scores = best_of_n(
                texts, scorer, prompt=self._task.prompt(example), columns=columns
            ).scores
        except InterlaceError:
            raise
        except Exception as error:  # a user's function raises what it likes
            raise ConfigError(
                f"The scorer {name!r} failed on the responses to {example.id}: "
                f"{type(error).__name__}: {error}"
            ) from error
        given = tuple(score for score in scores if score is not None)
        if len(given) < len(scores):
            raise RecordError(
                f"In an evaluation a scorer gives every row a number of at least 0; {name!r} left "
                f"out {len(scores) - len(given)} of the {len(scores)} responses to {example.id}. "
                "Return 0 for those."
            )
        return given
