"""`interlace generate`: W responses side by side, then one; or for every line of a file."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interlace.cli.shared import (
    INTERRUPTED,
    Bar,
    DeviceOptions,
    ModelOptions,
    SamplingOptions,
    check_loading,
    load_engine,
    summary,
)
from interlace.configuration import Parser
from interlace.errors import ConfigError, GenerationError, GenerationInterrupted, nearest
from interlace.terminal import say

if TYPE_CHECKING:
    from argparse import Namespace

    from rich.console import Console

    from interlace.answers import Aggregate, Responses
    from interlace.cli.generate.outcome import Aggregation
    from interlace.cli.generate.view import Columns
    from interlace.engine.engine import Engine
    from interlace.engine.types import GroupOutput, Prompt, SamplingParams
    from interlace.remote import RemoteEngine

AGGREGATES = ("majority", "weighted", "best-of-n", "medoid", "synthesize", "none")
# These say where lines come from and go to, and nothing about what is in them.
_NOT_IN_LINES = frozenset(
    {"prompt", "input", "output", "skip_bad", "overwrite", "json"}
    | {"attention", "attention_layer", "attention_png"}
)

EXAMPLES = """\
examples:
  One prompt, eight responses that see each other, then a vote:
    interlace generate --model out/ --width 8 "What is 17 + 25?"
  The same for a file, one JSON object a line, such as {"id": "a1", "prompt": "What is 17 + 25?"}:
    interlace generate --model out/ --input prompts.jsonl --output out.jsonl
  Run that again after a kill and it goes on where it stopped. Options can stand in a YAML file:
    interlace generate --config run.yaml --seed 1
  The prompt as a task puts it, with its instruction below (`interlace tasks gsm8k` shows it):
    interlace generate --model out/ --template "{question}

    Reason step by step, and put your final answer within \\boxed{}." "What is 17 + 25?"
  A reward function of your own picks the best of 16:
    interlace generate --model out/ --width 16 --aggregate best-of-n --scorer my.py:reward "..."
  Who listens to whom, in the terminal and as a figure:
    interlace generate --model tiny-bridge --attention --attention-png who.png "3 5 7 -> 56 :"
  Into other programs:
    interlace generate --model out/ --json "Name a prime." | jq .aggregate.answer
"""


@dataclass(frozen=True)
class _Sampling(SamplingOptions):
    """Sampling.

    Args:
        width: Number of responses of a group, W.
        repetition_penalty: Penalty of repetition; above 1 repeats less.
        ignore_eos: Go on past the model's end tokens.
        top_logprobs: Number of alternatives that are reported for a token.
        consensus: End a group once its majority is settled.
    """

    width: int = 8
    repetition_penalty: float = 1.0
    ignore_eos: bool = False
    top_logprobs: int = 0
    consensus: bool = False


@dataclass(frozen=True)
class _Files:
    """Files.

    Args:
        input: Path of a file with a JSON object a line, each with a prompt and maybe an id.
        output: Path of the file that lines go to; by default standard output.
        field: Field that holds the prompt: a text, a list of messages, or token ids.
        skip_bad: Leave out input lines that cannot be used.
        overwrite: Begin the output file anew.
        batch_size: Number of prompts in one call of the engine. A resumed run samples the
            unfinished call again, so that its lines are those of an unbroken run.
    """

    input: str | None = None
    output: str | None = None
    field: str = "prompt"
    skip_bad: bool = False
    overwrite: bool = False
    batch_size: int = 64


@dataclass(frozen=True)
class Settings(ModelOptions, _Sampling, _Files, DeviceOptions):
    """Prompt and result.

    Args:
        prompt: Prompt; - reads it from standard input.
        template: Text around each prompt, with {question} where it goes, such as the one that
            `interlace tasks NAME` shows: what a model was trained on.
        system: System prompt, for the chat template.
        raw: Feed texts as they are; by default as a user's message if there is a chat template.
        json: Print the group as one JSON line, nothing live.
        aggregate: Way from W responses to one. majority: most frequent final answer. weighted: rows
            weigh by log-probability or --scorer. best-of-n: highest mean log-probability or
            --scorer. medoid: most central text. synthesize: the model reads all and writes one.
            none. my.py:NAME: an aggregator of your own, a function from interlace.Responses to
            interlace.Aggregate.
        scorer: Function of a module or .py file, as WHERE:NAME: from a text to a number, or a
            reward function with TRL's signature, which also gets the line's other fields.
        attention: Show who listened to whom: a heat map of rows against rows.
        attention_layer: Number of a layer with a block, from 1, for a map of its own; by default
            the mean over all. The flag may be repeated.
        attention_png: Path of a PNG that the maps are drawn into, too.
    """

    prompt: str | None = None
    template: str | None = None
    system: str | None = None
    raw: bool = False
    json: bool = False
    aggregate: str = "majority"
    scorer: str | None = None
    attention: bool = False
    attention_layer: tuple[int, ...] = ()
    attention_png: str | None = None

    @property
    def listens(self) -> bool:
        """Whether to record who listens to whom."""
        return bool(self.attention or self.attention_layer or self.attention_png)

    def sampling(self, **changes: Any) -> SamplingParams:
        """As in any command; final answers tell when a group has its consensus."""
        from interlace.answers import extract_answer

        changes = {"record_attention": "layers" if self.listens else None} | changes
        return super().sampling(consensus=extract_answer if self.consensus else None, **changes)

    def in_lines(self) -> dict[str, Any]:
        """What the lines of an output file depend on, besides the prompts."""
        values = dataclasses.asdict(self)
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
            if name not in _NOT_IN_LINES and (name, value) != ("template", None)
        }


def build_parser(prog: str) -> Parser:
    """The options of `interlace generate`."""
    parser = Parser(
        prog,
        usage="--model MODEL [options] PROMPT\n"
        "--model MODEL [options] --input JSONL [--output JSONL]",
        description="Sample W responses to a prompt in lockstep, show them side by side, and make\n"
        "one of them; or do so for every line of a file.",
        examples=EXAMPLES,
        config="width: 8",
    )
    parser.add_options(Settings, words=["prompt"])
    return parser


def settle(arguments: Namespace) -> Settings:
    """The settings of a command line."""
    settings = Settings(**vars(arguments))
    check_loading(settings)
    if settings.prompt is not None and settings.input is not None:
        raise ConfigError("There is a PROMPT and an --input file; give one of them.")
    if settings.prompt is None and settings.input is None:
        raise ConfigError(
            "There is nothing to respond to. Give a PROMPT, - to read one from standard input, or "
            "--input prompts.jsonl."
        )
    if settings.template is not None and "{question}" not in settings.template:
        raise ConfigError(
            "--template says with {question} where the prompt goes; got "
            f"{settings.template!r:.80}. `interlace tasks NAME` shows a task's."
        )
    if settings.output is not None and settings.input is None:
        raise ConfigError("--output goes with --input; for one prompt use --json > file.")
    if settings.aggregate not in AGGREGATES and ":" not in settings.aggregate:
        raise ConfigError(
            f"--aggregate is one of {', '.join(AGGREGATES)}, or WHERE:NAME of your own, such as "
            f"my.py:longest; got {settings.aggregate!r}.{nearest(settings.aggregate, AGGREGATES)}"
        )
    if settings.scorer is not None and settings.aggregate not in ("weighted", "best-of-n"):
        raise ConfigError(
            f"--scorer goes with --aggregate weighted or best-of-n; got {settings.aggregate!r}."
        )
    if settings.listens and (settings.json or settings.input is not None):
        raise ConfigError(
            "--attention shows one PROMPT's rows, beside their texts; leave out --json and --input."
        )
    if settings.batch_size < 1:
        raise ConfigError(f"--batch-size is at least 1; got {settings.batch_size}.")
    if settings.raw and settings.system is not None:
        raise ConfigError("--system needs the chat template, and --raw leaves it out; drop one.")
    return settings


# What it does -----------------------------------------------------------------------------------


def run(arguments: Namespace) -> int:
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
    engine = load_engine(settings, notes, chat=False if settings.raw else None)
    if settings.system is not None and not engine.chats:
        raise ConfigError(
            f"--system needs a chat template, and the tokenizer of {settings.model} has none. Put "
            "the instruction into the prompt."
        )
    return engine


def _framed(settings: Settings, prompt: Any) -> Any:
    """The prompt in its template; in messages, the template goes around the last user's."""
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
    from interlace.cli.generate.view import Columns

    aggregation = _aggregation(settings, engine)
    console = Console()
    columns = Columns(settings.width, Path(settings.model).name)
    interrupted = False
    stream = engine.stream(
        _as_prompt(settings, engine, _framed(settings, prompt)), settings.sampling()
    )
    try:
        with columns.live(console) if console.is_terminal else contextlib.nullcontext():
            for step in stream:
                columns.take(step)
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
    if group is not None and settings.listens:
        _print_attention(console, settings, group)
    return INTERRUPTED if interrupted else 0


def _print_attention(console: Console, settings: Settings, group: GroupOutput) -> None:
    from interlace.cli.generate import listening

    maps = listening.maps_of(group, settings.attention_layer)
    console.print(listening.view(maps, group.texts, console))
    if settings.attention_png is not None:
        listening.write_png(maps, group.texts, Path(settings.attention_png))


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
    from interlace.batch import Tally, run_groups
    from interlace.cli.generate.lines import Lines, Results, calls_of, read_records

    assert settings.input is not None
    source = Path(settings.input)
    if settings.output is not None and Path(settings.output).resolve() == source.resolve():
        raise ConfigError(f"--input and --output are the same file, {source}.")
    aggregation = _aggregation(settings, engine)
    encode = _encoder(settings, engine)
    records, bad = read_records(source, settings.field, encode, settings.skip_bad)
    for complaint in bad:
        say(notes, f"Left out {source} {complaint}", "yellow")
    params = settings.sampling()
    calls = calls_of(records, params.width, settings.batch_size)
    tally = Tally(len(records), len(records) * params.width)
    interrupted = False
    with contextlib.ExitStack() as opened:
        write, done = _to_stdout, 0
        if settings.output is not None:
            ids = [record.id for record in records]
            lines = settings.in_lines()
            results = Results(Path(settings.output), ids, lines, settings.overwrite)
            opened.enter_context(results)
            write, done = results.append, results.done
        # A bar would be drawn over lines that go to the same terminal.
        bar = Bar(notes, settings.output is not None or not sys.stdout.isatty())
        try:
            with bar:
                run_groups(
                    engine, calls, params, Lines(write, done, aggregation, tally), tally, bar
                )
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


def _encoder(settings: Settings, engine: Engine | RemoteEngine) -> Callable[[Any], Prompt]:
    """Turns a prompt of a file into token ids, which the engine checks before hours of work."""

    def encode(prompt: Any) -> Prompt:
        try:
            ids = engine.encode(_as_prompt(settings, engine, _framed(settings, prompt)))
            engine.as_completed([ids])  # checks at once, and samples only if it is read
        except GenerationError as error:
            raise GenerationError(str(error).replace("Prompt 0", "its prompt", 1)) from error
        return ids

    return encode
