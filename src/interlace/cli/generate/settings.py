"""The options of `interlace generate`: their defaults, their help, and what contradicts what."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from interlace.cli.options import DeviceOptions, ModelOptions, SamplingOptions
from interlace.configuration import Parser
from interlace.errors import ConfigError, nearest

if TYPE_CHECKING:
    from argparse import Namespace

    from interlace.engine.types import SamplingParams

AGGREGATES = ("majority", "weighted", "best-of-n", "medoid", "synthesize", "none")
# These say where lines come from and go to, and nothing about what is in them.
_NOT_IN_LINES = frozenset({"prompt", "input", "output", "skip_bad", "overwrite", "json"})

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
    """

    prompt: str | None = None
    template: str | None = None
    system: str | None = None
    raw: bool = False
    json: bool = False
    aggregate: str = "majority"
    scorer: str | None = None

    def sampling(self) -> SamplingParams:
        """How to sample one group.

        Raises:
            GenerationError: for a value out of its range.
        """
        from interlace.answers import extract_answer
        from interlace.engine.types import SamplingParams

        shared = {f.name for f in dataclasses.fields(SamplingParams)} - {"consensus"}
        values = {name: value for name, value in vars(self).items() if name in shared}
        return SamplingParams(**values, consensus=extract_answer if self.consensus else None)

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
    """The settings of a command line.

    Raises:
        ConfigError: for a missing or contradictory option.
    """
    settings = Settings(**vars(arguments))
    if not settings.model:
        raise ConfigError("Say which model: --model Qwen/Qwen2.5-1.5B-Instruct, or a folder.")
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
    if settings.batch_size < 1:
        raise ConfigError(f"--batch-size is at least 1; got {settings.batch_size}.")
    if settings.memory is not None and not settings.memory > 0:
        raise ConfigError(f"--memory is a number of GiB above 0; got {settings.memory}.")
    if settings.raw and settings.system is not None:
        raise ConfigError("--system needs the chat template, and --raw leaves it out; drop one.")
    return settings
