"""The part of an evaluation that uses the engine: which groups are sampled, judged, and timed.

Letters: W width, M groups of a problem, n = M W rows of a problem. A coupled model runs every width
on its own; rows of an independent one are exchangeable, so it runs once, at the largest width.

In a batch, seconds say how full the batch was; the first problems of a run are sampled once more
for their time, with the same seeds, alone, at every width. On a CPU seconds are those of the
processor, all threads together; a GPU's are on the wall.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from interlace.answers.choose import Scorer, best_of_n
from interlace.batch import Job, Progress, Tally
from interlace.errors import ConfigError, DataFileError
from interlace.evaluation.provenance import environment, runs_on_cpu
from interlace.evaluation.records import GroupRecord, Timing
from interlace.evaluation.run import RunFolder
from interlace.tasks import Example, Task
from interlace.user_code import blame

if TYPE_CHECKING:
    from interlace.engine.engine import Engine
    from interlace.engine.types import GroupOutput, Prompt, SamplingParams
    from interlace.evaluation.responses import RecordedResponses
    from interlace.remote import RemoteEngine


def groups_by_width(
    widths: Sequence[int], *, coupled: bool, groups_per_problem: int, samples: int | None
) -> dict[int, int]:
    """M for every width that is sampled, ascending.

    Args:
        widths: Widths that were asked for.
        coupled: Whether rows see each other.
        groups_per_problem: Number of groups at every width, M, unless `samples` is given.
        samples: Number of rows at every width, n, whatever M is then.

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


@dataclass(frozen=True)
class Jobs:
    """The groups of an evaluation.

    Args:
        task: Task that asks.
        examples: Problems of the task.
        prompts: What the engine's `encode` made of each problem's prompt.
    """

    task: Task
    examples: Sequence[Example]
    prompts: Sequence[Prompt]

    def calls(self, groups: Mapping[int, int], batch_rows: int) -> list[list[Job]]:
        """All groups, divided into calls of the engine of at most `batch_rows` rows and one width.

        The division depends on nothing but the arguments: a run that goes on after a kill finds the
        same calls again.

        Raises:
            ConfigError: for `batch_rows` below 1.
        """
        if batch_rows < 1:
            raise ConfigError(f"batch_rows is at least 1; got {batch_rows}.")
        found = []
        for width, count in groups.items():
            jobs = [
                self._job(place, width, group)
                for place in range(len(self.examples))
                for group in range(count)
            ]
            size = max(1, batch_rows // width)
            found += [jobs[start : start + size] for start in range(0, len(jobs), size)]
        return found

    def timed(self, count: int, widths: Sequence[int]) -> list[Job]:
        """The first problems, each at all widths in turn: a slow machine slows down all widths."""
        places = range(min(count, len(self.examples)))
        return [self._job(place, width, 0) for place in places for width in sorted(widths)]

    def _job(self, place: int, width: int, group: int) -> Job:
        example = self.examples[place]
        return Job(
            name=example.id,
            key=(self.task.name, example.id, width, group),
            width=width,
            prompt=self.prompts[place],
            sample_id=f"{example.id}/{group}",
            subject=example,
        )


@dataclass(eq=False)
class Recorder:
    """Judges groups and records them; a `GroupStore` for `run_groups`.

    Args:
        engine: Engine that samples.
        task: Task that judges.
        params: Parameters of sampling.
        coupled: Whether the rows of a group see each other.
        scorers: Scorers, as in `interlace.evaluate`.
        kept: Groups that are recorded.
        tally: Tally, kept up to date.
    """

    engine: Engine | RemoteEngine | RecordedResponses
    task: Task
    params: SamplingParams
    coupled: bool
    scorers: Mapping[str, Scorer]
    kept: RunFolder
    tally: Tally
    _noted: bool = False

    def __post_init__(self) -> None:
        self.tally.correct = sum(sum(record.correct) for record in self.kept.records.values())

    def has(self, job: Job) -> bool:
        """Whether the group is recorded."""
        return job.key in self.kept.records

    def take(self, job: Job, group: GroupOutput) -> None:
        """Judge a group and record it, or compare it with what is recorded."""
        record, tally = self._record(job, group), self.tally
        known = self.kept.records.get(record.key)
        if known is None:
            self._note_environment()
            self.kept.append(record)
            tally.keep(record.width, sum(record.tokens))
            tally.correct = (tally.correct or 0) + sum(record.correct)
        elif (known.texts, known.tokens) != (record.texts, record.tokens):
            tally.note(
                "An earlier start left a call of the engine unfinished. Sampled again, it gave "
                "other tokens than were recorded, so the machine or the software has changed. "
                "The recorded groups are kept."
            )

    def end_call(self) -> None:
        """Nothing waits for the end of a call."""

    def time(self, jobs: Sequence[Job], progress: Progress) -> None:
        """Time those groups, each alone, that are not timed yet."""
        done = {(timing.example_id, timing.width) for timing in self.kept.timings}
        left = [job for job in jobs if (job.subject.id, job.width) not in done]
        if not left:
            return
        self._note_environment()
        self.tally.stage, self.tally.ended = "timing", time.monotonic()
        clock = time.process_time if runs_on_cpu(self.engine) else time.perf_counter
        warm: set[int] = set()
        for job in left:
            params = self.params.replace(width=job.width)
            if job.width not in warm:  # the first passes at a width also allocate
                self.engine.generate([job.prompt], params.replace(max_new_tokens=2))
                warm.add(job.width)
            began = clock()
            self.engine.generate([job.prompt], params, sample_ids=[job.sample_id])
            self.kept.append_timing(Timing(job.subject.id, job.width, clock() - began))
            self.tally.width = job.width
            progress(self.tally)

    def _note_environment(self) -> None:
        if not self._noted:
            self.kept.note_environment(environment(self.engine))
            self._noted = True

    def _record(self, job: Job, group: GroupOutput) -> GroupRecord:
        *_, number = job.key
        verdicts = [self.task.verify(job.subject, text) for text in group.texts]
        rows = group.completions
        told = all(row.logprobs or not row.text for row in rows)  # some servers and files do not
        return GroupRecord(
            task=self.task.name,
            example_id=job.subject.id,
            width=job.width,
            group=number,
            seed=self.params.seed,
            coupled=self.coupled,
            answers=tuple(verdict.answer for verdict in verdicts),
            correct=tuple(verdict.correct for verdict in verdicts),
            scores=tuple(verdict.score for verdict in verdicts),
            tokens=tuple(len(row.token_ids) for row in rows),
            logprob_sums=tuple(row.cumulative_logprob for row in rows) if told else None,
            texts=tuple(group.texts),
            finish_reasons=tuple(row.finish_reason for row in rows),
            scorers={
                name: self._scores(name, scorer, job.subject, group.texts)
                for name, scorer in self.scorers.items()
            },
            seconds=group.seconds,
        )

    def _scores(
        self, name: str, scorer: Scorer, example: Example, texts: Sequence[str]
    ) -> tuple[float, ...]:
        columns = {"question": example.question}  # and not its answer
        prompt = self.task.prompt(example)
        where = f"On the responses to {example.id} the scorer {name!r}"
        try:
            scores = best_of_n(texts, scorer, prompt=prompt, columns=columns).scores
        except BaseException as error:
            blame(error, where, ConfigError, scorer)
        given = tuple(score for score in scores if score is not None)
        if len(given) < len(scores):
            raise DataFileError(
                f"In an evaluation a scorer gives every row a number of at least 0; {name!r} left "
                f"out {len(scores) - len(given)} of the {len(scores)} responses to {example.id}. "
                "Return 0 for those."
            )
        return given
