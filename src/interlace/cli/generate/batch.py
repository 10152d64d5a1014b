"""A file of prompts to a file of groups: window by window, line by line, resumable.

A window is what goes into one call of the engine. In low precision the tokens of a group depend, by
rounding, on which groups share its passes; so a run that goes on after a kill samples the whole
window again and appends the lines that are missing: they are those of an unbroken run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from interlace.cli.generate.outcome import Aggregation, line_of, responses_of
from interlace.cli.generate.records import Record, windows
from interlace.errors import GenerationError

if TYPE_CHECKING:
    from interlace.engine.engine import Engine
    from interlace.engine.types import EngineStats, GroupOutput, SamplingParams


@dataclass
class Tally:
    """What a run has done so far.

    Attributes:
        prompts: lines written, those of earlier runs included.
        resumed: lines that were there when the run began.
        tokens: tokens sampled by this run.
        computed_row_steps: rows of all forward passes of one token.
        alive_row_steps: those that fed an unfinished row's token.
        seconds: since sampling began.
        notes: what the engine remarked, each remark once.
    """

    prompts: int = 0
    resumed: int = 0
    tokens: int = 0
    computed_row_steps: int = 0
    alive_row_steps: int = 0
    notes: list[str] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.tokens else 0.0


Report = Callable[[Tally], None]


def run_windows(
    engine: Engine,
    records: Sequence[Record],
    params: SamplingParams,
    aggregation: Aggregation,
    write: Callable[[dict[str, Any]], None],
    tally: Tally,
    *,
    size: int,
    report: Report,
) -> None:
    """Sample all records whose lines are not there yet, and write the lines in order.

    Args:
        engine: samples.
        records: all records of the file.
        params: how to sample each group.
        aggregation: makes one response of each group.
        write: takes one line.
        tally: says how many lines are there already, and is kept up to date.
        size: records in a window.
        report: called after every step of the engine and after every line.

    Raises:
        GenerationError: for what the engine cannot carry out; lines before it are written.
    """
    report(tally)
    done = tally.resumed
    for start, window in windows(records, size):
        if start + len(window) <= done:
            continue
        before = (tally.tokens, tally.computed_row_steps, tally.alive_row_steps)

        def progress(stats: EngineStats, before: tuple[int, int, int] = before) -> None:
            tally.tokens = before[0] + stats.sampled_tokens
            tally.computed_row_steps = before[1] + stats.computed_row_steps
            tally.alive_row_steps = before[2] + stats.alive_row_steps
            report(tally)

        try:
            for index, line in _lines(engine, window, params, aggregation, progress, tally):
                if start + index >= done:
                    write(line)
                    tally.prompts += 1
                    report(tally)
        except GenerationError as error:
            raise GenerationError(
                f"Sampling for the lines {window[0].line} to {window[-1].line} failed, which are "
                f"prompts 0 to {len(window) - 1} here: {error}"
            ) from error


def _lines(
    engine: Engine,
    window: Sequence[Record],
    params: SamplingParams,
    aggregation: Aggregation,
    progress: Callable[[EngineStats], None],
    tally: Tally,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The window's lines, each as soon as those before it are there."""
    waiting: dict[int, GroupOutput] = {}
    following = 0
    prompts = [record.token_ids for record in window]
    ids = [record.sample_id for record in window]
    for index, group in engine.as_completed(prompts, params, sample_ids=ids, progress=progress):
        waiting[index] = group
        # Syntheses need the engine, which is busy until the window's last group is there.
        while following in waiting and not aggregation.writes:
            yield from _finished({following: waiting.pop(following)}, window, aggregation)
            following += 1
    tally.notes += [note for note in engine.stats.notes if note not in tally.notes]
    if waiting:
        yield from _finished(dict(sorted(waiting.items())), window, aggregation)


def _finished(
    groups: dict[int, GroupOutput], window: Sequence[Record], aggregation: Aggregation
) -> Iterator[tuple[int, dict[str, Any]]]:
    outcomes = aggregation(
        [
            responses_of(group, as_text(window[index].prompt), window[index].columns)
            for index, group in groups.items()
        ]
    )
    for (index, group), outcome in zip(groups.items(), outcomes, strict=True):
        record = window[index]
        yield index, line_of(record.id, record.prompt, group, outcome)


def as_text(prompt: Any) -> str:
    """A prompt as text to read: of messages what the last user said."""
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, list) and prompt and isinstance(prompt[-1], dict):
        said = [m.get("content") for m in prompt if m.get("role") == "user"] or [prompt[-1]]
        return str(said[-1])
    return str(prompt)
