"""What `interlace generate` does: load, sample one prompt or a file, show what came of it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interlace.cli.generate.settings import Settings, settle
from interlace.cli.running import INTERRUPTED, Bar, load_engine, summary
from interlace.errors import ConfigError, GenerationError, GenerationInterrupted
from interlace.terminal import say

if TYPE_CHECKING:
    import argparse

    from rich.console import Console

    from interlace.answers import Aggregate, Responses
    from interlace.cli.generate.lines import Record
    from interlace.cli.generate.outcome import Aggregation
    from interlace.cli.generate.view import Columns
    from interlace.engine.engine import Engine
    from interlace.engine.types import Prompt
    from interlace.remote import RemoteEngine


def run(arguments: argparse.Namespace) -> int:
    """Sample as asked; the exit status is 130 after Ctrl-C, with what was finished kept."""
    from rich.console import Console

    settings = settle(arguments)
    settings.sampling()  # mistakes show before a model is loaded
    notes = Console(stderr=True)
    engine = _load(settings, notes)
    if settings.input is not None:
        return _run_file(settings, engine, notes)
    prompt = sys.stdin.read() if settings.prompt == "-" else settings.prompt
    if settings.json:
        return _print_json(settings, engine, prompt)
    return _show(settings, engine, prompt)


def _load(settings: Settings, notes: Console) -> Engine | RemoteEngine:
    engine = load_engine(settings, notes)
    if settings.system is not None and not engine.chats:
        raise ConfigError(
            f"--system needs a chat template, and the tokenizer of {settings.model} has none. Put "
            "the instruction into the prompt."
        )
    return engine


def _framed(settings: Settings, prompt: Any) -> Any:
    """The prompt with the template around it; of messages, around the last user's."""
    from interlace.tasks.base import in_last_message, is_message

    template = settings.template
    if template is None:
        return prompt
    if isinstance(prompt, str):
        return template.replace("{question}", prompt)
    if isinstance(prompt, list) and all(is_message(item) for item in prompt):
        return in_last_message(prompt, lambda text: template.replace("{question}", text))
    raise GenerationError("--template goes around a text or messages; prompt 0 is neither.")


def _as_prompt(settings: Settings, engine: Engine | RemoteEngine, prompt: Any) -> Any:
    """A text becomes a user's message where there is a chat template; all else stays."""
    if not isinstance(prompt, str) or settings.raw or not engine.chats:
        return prompt
    system = [] if settings.system is None else [{"role": "system", "content": settings.system}]
    return [*system, {"role": "user", "content": prompt}]


def _aggregation(settings: Settings, engine: Engine | RemoteEngine) -> Aggregation:
    from interlace.cli.generate.outcome import Aggregation

    return Aggregation(settings, engine, lambda text: _as_prompt(settings, engine, text))


# One prompt -------------------------------------------------------------------------------------


def _print_json(settings: Settings, engine: Engine | RemoteEngine, prompt: Any) -> int:
    """The group as one line; after Ctrl-C as far as it went, without an outcome."""
    from interlace.cli.generate.outcome import line_of, responses_of
    from interlace.jsonl import as_line

    aggregation = _aggregation(settings, engine)
    interrupted = False
    try:
        group = engine.generate(
            [_as_prompt(settings, engine, _framed(settings, prompt))], settings.sampling()
        )[0]
        outcome = aggregation([responses_of(group, prompt)])[0]
    except GenerationInterrupted as stopped:
        if not stopped.groups:
            raise
        group, outcome, interrupted = stopped.groups[0], None, True
    sys.stdout.write(as_line(line_of(0, prompt, group, outcome)))
    return INTERRUPTED if interrupted else 0


def _show(settings: Settings, engine: Engine | RemoteEngine, prompt: Any) -> int:
    """Columns that grow, then the whole rows and what came of them."""
    from rich.console import Console

    from interlace.cli.generate.outcome import responses_of
    from interlace.cli.generate.view import Columns, LiveColumns

    aggregation = _aggregation(settings, engine)
    console = Console()
    columns = Columns(settings.width, Path(settings.model).name)
    interrupted = False
    stream = engine.stream(
        _as_prompt(settings, engine, _framed(settings, prompt)), settings.sampling()
    )
    display = LiveColumns(console, columns) if console.is_terminal else None
    try:
        with display or contextlib.nullcontext():
            for step in stream:
                (display or columns).take(step)
    except KeyboardInterrupt:
        interrupted = True
        stream.close()
    columns.end()
    group = stream.group
    if group is None:  # not even a first token
        outcome = None
    elif interrupted:
        outcome = _early_vote(settings, aggregation, responses_of(group, prompt), columns)
    else:
        outcome = aggregation([responses_of(group, prompt)])[0]
    _print_outcome(console, columns, outcome)
    return INTERRUPTED if interrupted else 0


def _early_vote(
    settings: Settings, aggregation: Aggregation, responses: Responses, columns: Columns
) -> Aggregate | None:
    """After Ctrl-C: a vote of the rows that had ended; other outcomes need all rows."""
    if settings.aggregate not in ("majority", "weighted"):
        return None
    ended = [
        text if row.finish_reason != "interrupted" else ""
        for text, row in zip(responses.texts, columns.rows, strict=True)
    ]
    return aggregation([replace(responses, texts=ended)])[0]


def _print_outcome(console: Console, columns: Columns, outcome: Aggregate | None) -> None:
    from interlace.cli.generate.view import class_styles, outcome_view, plain

    if not console.is_terminal:
        sys.stdout.write(plain(columns, outcome) + "\n")
        return
    styles = class_styles(outcome, columns.width)
    answers = outcome.details.get("answers", ()) if outcome is not None else ()
    console.print(columns.final(console, styles, answers))
    view = outcome_view(outcome, styles)
    if view is not None:
        console.print(view)


# A file -----------------------------------------------------------------------------------------


def _run_file(settings: Settings, engine: Engine | RemoteEngine, notes: Console) -> int:
    from interlace.cli.generate.lines import Results, read_records

    assert settings.input is not None
    source = Path(settings.input)
    if settings.output is not None and Path(settings.output).resolve() == source.resolve():
        raise ConfigError(f"--input and --output are the same file, {source}.")
    aggregation = _aggregation(settings, engine)
    records, bad = read_records(
        source, settings.field, _Encoder(settings, engine), settings.skip_bad
    )
    for complaint in bad:
        say(notes, f"Left out {source} {complaint}", "yellow")
    if settings.output is None:
        return _sample(settings, engine, aggregation, records, _to_stdout, 0, notes)
    ids = [record.id for record in records]
    with Results(Path(settings.output), ids, settings.in_lines(), settings.overwrite) as results:
        write, done = results.append, results.done
        return _sample(settings, engine, aggregation, records, write, done, notes)


def _sample(
    settings: Settings,
    engine: Engine | RemoteEngine,
    aggregation: Aggregation,
    records: Sequence[Record],
    write: Callable[[dict[str, Any]], None],
    done: int,
    notes: Console,
) -> int:
    from interlace.batch import Tally, run_groups
    from interlace.cli.generate.lines import Lines, calls_of

    params = settings.sampling()
    calls = calls_of(records, params.width, settings.batch_size)
    tally = Tally(len(records), len(records) * params.width)
    lines = Lines(write, done, aggregation, tally)
    interrupted = False
    try:
        # A bar would be drawn over lines that go to the same terminal.
        with Bar(notes, settings.output is not None or not sys.stdout.isatty()) as bar:
            run_groups(engine, calls, params, lines, tally, bar)
    except KeyboardInterrupt:
        interrupted = True
    for line in summary(tally):
        say(notes, line)
    if interrupted:
        again = "" if settings.output is None else " Run the same command again to go on."
        say(notes, f"Interrupted: {tally.groups:,} of {len(records):,} lines are written.{again}",
            "yellow")  # fmt: skip
    return INTERRUPTED if interrupted else 0


def _to_stdout(line: dict[str, Any]) -> None:
    from interlace.jsonl import as_line

    sys.stdout.write(as_line(line))
    sys.stdout.flush()


class _Encoder:
    """A prompt of a file to its token ids, checked by the engine before hours of work."""

    def __init__(self, settings: Settings, engine: Engine | RemoteEngine) -> None:
        self._settings = settings
        self._engine = engine

    def __call__(self, prompt: Any) -> Prompt:
        try:
            prompt = _as_prompt(self._settings, self._engine, _framed(self._settings, prompt))
            ids = self._engine.encode(prompt)
            self._engine.as_completed([ids])  # checks at once, and samples only if it is read
        except GenerationError as error:
            raise GenerationError(str(error).replace("Prompt 0", "its prompt", 1)) from error
        return ids
