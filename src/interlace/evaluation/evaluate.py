"""`interlace.evaluate`: sample a task at every width, judge the rows, measure, write it all down.

Letters: W width, M groups of a problem, n = M W rows of a problem. Rows of a coupled model depend
on their siblings, so every width is a generation run of its own; rows of an independent model are
exchangeable, so it is sampled once at the largest width and every k is derived (METHOD.md).

In a batch, seconds say how full the batch was; the first problems of a run are sampled once more
for their time, with the same seeds, alone, at every width. On a CPU seconds are those of the
processor, all threads together; a GPU's are on the wall.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interlace.answers.choose import Scorer, best_of_n
from interlace.batch import Job, Progress, Tally, run_groups
from interlace.coupling.registry import coupling_class
from interlace.errors import ConfigError, DataFileError
from interlace.evaluation.figures import FORMATS
from interlace.evaluation.provenance import (
    as_json,
    describe_engine,
    describe_sampling,
    describe_task,
    environment,
    qualified_name,
    runs_on_cpu,
)
from interlace.evaluation.records import GroupRecord, Timing
from interlace.evaluation.results import ArmResult
from interlace.evaluation.run import RunFolder, report_of, result_of, write_report
from interlace.tasks import Example, Task
from interlace.user_code import blame

if TYPE_CHECKING:
    from interlace.engine.engine import Engine
    from interlace.engine.types import GroupOutput, Prompt, SamplingParams
    from interlace.evaluation.responses import RecordedResponses
    from interlace.remote import RemoteEngine

WIDTHS = (1, 2, 4, 8, 16)
BATCH_ROWS = 256
TIMED = 4
MAX_NEW_TOKENS = 512
BASE_ARM = "base"


def evaluate(
    engine: Engine | RemoteEngine | RecordedResponses,
    task: Task,
    widths: Sequence[int] = WIDTHS,
    *,
    limit: int | None = None,
    groups_per_problem: int = 1,
    samples: int | None = None,
    params: SamplingParams | None = None,
    seed: int | None = None,
    arm: str | None = None,
    training_seed: int | None = None,
    scorers: Mapping[str, Scorer] | None = None,
    symbolic_votes: bool = False,
    timed: int = TIMED,
    batch_rows: int = BATCH_ROWS,
    output: str | Path | None = None,
    overwrite: bool = False,
    figures: Sequence[str] = FORMATS,
    progress: Progress | None = None,
    notes: Mapping[str, Any] | None = None,
) -> ArmResult:
    """Sample a task at every width and measure pass@1, votes, G-Pass@k, diversity, tokens, seconds.

    Args:
        engine: Engine with the model, attached or not; a server, or responses made elsewhere.
        task: Task with the problems; `interlace.tasks.get_task` builds one.
        widths: Widths to measure. A model whose rows see each other (Bridge) runs each of them. Any
            other runs the largest, and every k up to it follows.
        limit: Number of problems, from the first on; None for all.
        groups_per_problem: Number of groups of each problem at every width, M.
        samples: Number of rows of each problem at every width, n, instead of M, so that means over
            rows rest on equally many; a multiple of every width.
        params: Parameters of sampling; their width does not count. By default temperature 1 and up
            to 512 tokens.
        seed: Seed instead of that of `params`.
        arm: Name of the arm; by default "base", or the title of what is attached, such as "Bridge".
        training_seed: Seed the model was trained with; None for one that was not trained here.
        scorers: Functions by name that score rows without knowing the right answer, for weighted
            and best-of-n votes: `f(text) -> float`, or with TRL's signature `f(prompts,
            completions, question, **columns) -> list[float]`. Scores are at least 0.
        symbolic_votes: Whether answers that math-verify finds equal are one vote (extra `math`).
        timed: Number of problems of which a group is sampled once more, alone, at every width, for
            its seconds (of the processor on a CPU); with 0 there are no seconds.
        batch_rows: Number of rows in one call of the engine; after a kill at most so many are
            sampled again.
        output: Folder for the raw generations, the result, a report and figures. If it holds an
            unfinished run of the same configuration, that run goes on.
        overwrite: Whether to begin the folder anew.
        figures: File types of the figures; none draws none.
        progress: Function called after every step of the engine.
        notes: Facts to keep with the result, as JSON values; they have to be the same when a run
            goes on.

    Returns:
        The result, with an interval for every number.

    Raises:
        ConfigError: for arguments that are out of range or contradict each other.
        RunError: if `output` holds another run.
        GenerationError: for prompts that the engine cannot carry out.
        GenerationInterrupted: on Ctrl-C; what was recorded in `output` is kept.

    ```
    result = interlace.evaluate(engine, task, widths=[1, 2, 4, 8, 16], output="runs/bridge")
    result.get("maj", 8).estimate
    ```
    """
    chosen = _params(params, seed)
    model = describe_engine(engine)
    coupling = coupling_class(model["blocks"]["kind"]) if model["blocks"] else None
    coupled = getattr(engine, "coupled", coupling is not None and coupling.couples)
    if (limit is not None and limit < 1) or timed < 0:
        raise ConfigError(f"limit is at least 1 and timed at least 0; got {limit} and {timed}.")
    examples = list(task)[:limit]
    groups = _groups_by_width(widths, coupled, groups_per_problem, samples)
    settings = as_json(
        {
            "arm": arm or (coupling.title if coupling else BASE_ARM),
            "training_seed": training_seed,
            "coupled": coupled,
            "widths": sorted(widths),
            "groups": groups,
            "seed": chosen.seed,
            "sampling": getattr(engine, "sampling", None) or describe_sampling(chosen),
            "batch_rows": batch_rows,
            "timed": timed,
            "scorers": {name: qualified_name(scorer) for name, scorer in (scorers or {}).items()},
            "symbolic_votes": symbolic_votes,
            "model": model,
            "task": describe_task(task, examples),
            "notes": notes or {},
        }
    )
    asked = [(one, engine.encode(task.prompt(one), n)) for n, one in enumerate(examples)]
    calls = _calls(task, asked, groups, batch_rows)
    # Each problem at all widths in turn: a slow machine slows down all of them.
    alone = [_job(task, one, width, 0) for one in asked[:timed] for width in sorted(widths)]
    tally = Tally(sum(map(len, calls)), sum(job.width for call in calls for job in call))
    progress = progress or (lambda tally: None)
    with RunFolder(output, settings, overwrite=overwrite) as kept:
        recorder = Recorder(engine, task, chosen, coupled, scorers or {}, kept, tally)
        run_groups(engine, calls, chosen, recorder, tally, progress)
        recorder.time(alone, progress)
        result = result_of(settings, kept.environments, kept.records.values(), kept.timings)
        if output is not None:
            write_report(Path(output), report_of(result), figures)
    return result


def _params(params: SamplingParams | None, seed: int | None) -> SamplingParams:
    from interlace.engine.types import SamplingParams

    chosen = params or SamplingParams(max_new_tokens=MAX_NEW_TOKENS)
    return chosen if seed is None else chosen.replace(seed=seed)


def _groups_by_width(
    widths: Sequence[int], coupled: bool, groups_per_problem: int, samples: int | None
) -> dict[int, int]:
    """M for every width that is sampled, ascending."""
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


Asked = tuple[Example, "Prompt"]  # a problem, and what the engine's `encode` made of its prompt


def _calls(
    task: Task, asked: Sequence[Asked], groups: Mapping[int, int], batch_rows: int
) -> list[list[Job]]:
    """All groups, divided into calls of the engine of at most `batch_rows` rows and one width.

    The division depends on nothing but the arguments: a run that goes on after a kill finds the
    same calls again.
    """
    if batch_rows < 1:
        raise ConfigError(f"batch_rows is at least 1; got {batch_rows}.")
    found = []
    for width, count in groups.items():
        jobs = [_job(task, one, width, group) for one in asked for group in range(count)]
        size = max(1, batch_rows // width)
        found += [jobs[start : start + size] for start in range(0, len(jobs), size)]
    return found


def _job(task: Task, asked: Asked, width: int, group: int) -> Job:
    example, prompt = asked
    key, sample_id = (task.name, example.id, width, group), f"{example.id}/{group}"
    return Job(example.id, key, width, prompt, sample_id, subject=example)


@dataclass(eq=False)
class Recorder:
    """Judges groups and records them in `kept`; a `GroupStore` for `run_groups`."""

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
