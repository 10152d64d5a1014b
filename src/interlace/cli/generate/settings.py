"""The options of `interlace generate`: their defaults, their help, and how they come together.

An option comes from the command line, else from the YAML file of `--config`, else from `Settings`.
The parser therefore has no defaults of its own: what it does not find, it does not set.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from interlace.cli.config_file import MODELS
from interlace.errors import ConfigError

if TYPE_CHECKING:
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
  A reward function of your own picks the best of 16:
    interlace generate --model out/ --width 16 --aggregate best-of-n --scorer my.py:reward "..."
  Into other programs:
    interlace generate --model out/ --json "Name a prime." | jq .aggregate.answer
"""


@dataclass(frozen=True)
class Settings:
    """All options of one run, by name; `build_parser` explains them."""

    model: str = ""
    prompt: str | None = None
    input: str | None = None
    output: str | None = None
    width: int = 8
    max_new_tokens: int = 256
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    seed: int = 0
    top_logprobs: int = 0
    consensus: bool = False
    aggregate: str = "majority"
    scorer: str | None = None
    system: str | None = None
    raw: bool = False
    field: str = "prompt"
    skip_bad: bool = False
    overwrite: bool = False
    batch_size: int = 64
    memory: float | None = None
    json: bool = False
    base: str | None = None
    revision: str | None = None
    gguf_file: str | None = None
    dtype: str | None = None
    device: str | None = None
    trust_remote_code: bool = False

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
            if name not in _NOT_IN_LINES
        }


def build_parser(prog: str) -> argparse.ArgumentParser:
    """The options of `interlace generate`."""
    default = Settings()
    parser = argparse.ArgumentParser(
        prog=prog,
        usage=f"{prog} --model MODEL [options] PROMPT\n"
        f"       {prog} --model MODEL [options] --input JSONL [--output JSONL]",
        description="Sample W responses to a prompt in lockstep, show them side by side, and "
        "make one of them; or do\nso for every line of a file.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("prompt", nargs="?", metavar="PROMPT", help="the prompt; - reads it from standard input")
    add("--model", help=f"{MODELS} (required)")
    add("--config", metavar="FILE", help="YAML file of these options, such as 'width: 8'")
    add("--json", action="store_true", help="print the group as one JSON line, nothing live")

    sampling = parser.add_argument_group("sampling").add_argument
    sampling(
        "--width",
        type=int,
        metavar="N",
        help=f"W, the responses of a group (default: {default.width})",
    )
    sampling(
        "--max-new-tokens",
        type=int,
        metavar="N",
        help=f"of each row (default: {default.max_new_tokens})",
    )
    sampling("--temperature", type=float, metavar="X", help="0 is greedy (default: 1.0)")
    sampling("--top-k", type=int, metavar="N", help="keep the k most likely tokens (default: all)")
    sampling(
        "--top-p", type=float, metavar="X", help="keep this share of probability (default: 1.0)"
    )
    sampling(
        "--min-p", type=float, metavar="X", help="drop below this share of the best (default: 0.0)"
    )
    sampling(
        "--repetition-penalty", type=float, metavar="X", help="above 1 repeats less (default: 1.0)"
    )
    sampling("--stop", action="append", metavar="TEXT", help="ends a row; may be repeated")
    sampling("--ignore-eos", action="store_true", help="go on past the model's end tokens")
    sampling(
        "--seed", type=int, metavar="N", help="the same seed gives the same responses (default: 0)"
    )
    sampling("--top-logprobs", type=int, metavar="K", help="report K alternatives a token")
    sampling("--consensus", action="store_true", help="end a group once its majority is settled")

    one = parser.add_argument_group("from W responses to one").add_argument
    one(
        "--aggregate",
        metavar="HOW",
        help="majority: most frequent final answer. weighted: rows weigh by log-probability or "
        "--scorer. best-of-n: highest mean log-probability or --scorer. medoid: most central "
        "text. synthesize: the model reads all and writes one. none. my.py:NAME: an aggregator of "
        "your own, a function from interlace.Responses to interlace.Aggregate (default: majority)",
    )
    one(
        "--scorer",
        metavar="WHERE:NAME",
        help="a function of a module or .py file: text -> number, or a reward function with TRL's "
        "signature, which also gets the line's other fields",
    )

    prompts = parser.add_argument_group("prompts").add_argument
    prompts("--system", metavar="TEXT", help="system prompt, for the chat template")
    prompts(
        "--raw",
        action="store_true",
        help="feed texts as they are (default: as a user's message if there is a chat template)",
    )

    files = parser.add_argument_group("files").add_argument
    files("--input", metavar="JSONL", help="a JSON object a line, with a prompt and maybe an id")
    files("--output", metavar="JSONL", help="where lines go; without it, standard output")
    files(
        "--field",
        help="the field that holds the prompt: a text, a list of messages, or token ids "
        "(default: prompt, else messages)",
    )
    files("--skip-bad", action="store_true", help="leave out input lines that cannot be used")
    files("--overwrite", action="store_true", help="begin the output file anew")
    files(
        "--batch-size",
        type=int,
        metavar="N",
        help=f"prompts in one call of the engine (default: {default.batch_size}); a resumed run "
        "samples the unfinished call again, so that its lines are those of an unbroken run",
    )
    files("--memory", type=float, metavar="GIB", help="for keys and values (default: what fits)")

    model = parser.add_argument_group("model").add_argument
    model("--base", help="base model of saved blocks, if not where they say")
    model("--revision", help="branch, tag or commit of a hub id")
    model("--gguf-file", help="which file, where a folder or repository holds GGUF files")
    model("--dtype", help="of the weights, such as bfloat16 (default: the checkpoint's)")
    model("--device", help="such as cuda (default: a GPU if there is one)")
    model("--trust-remote-code", action="store_true", help="run code that comes with the model")
    return parser


def settle(arguments: argparse.Namespace) -> Settings:
    """The settings of a run, from its command line, its YAML file and the defaults.

    Raises:
        ConfigError: for a missing or contradictory option, or a YAML file that cannot be used.
    """
    given = dict(vars(arguments))
    path = given.pop("config", None)
    values = (_from_yaml(Path(path)) if path is not None else {}) | given
    if "stop" in values:
        values["stop"] = tuple(values["stop"])
    settings = Settings(**values)
    _check(settings)
    return settings


def _from_yaml(path: Path) -> dict[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"The configuration {path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(
            f"A configuration holds options by name, such as `width: 8`; {path} holds "
            f"{type(content).__name__}."
        )
    return _parsed(path, {str(name).replace("-", "_"): value for name, value in content.items()})


def _parsed(path: Path, options: dict[str, Any]) -> dict[str, Any]:
    """The file's values, checked and converted as the command line would."""
    known = [f.name for f in dataclasses.fields(Settings)]
    verbatim: dict[str, Any] = {}  # the parser has no option for one, and "--" ends options
    if options.get("prompt") is not None:
        verbatim["prompt"] = str(options["prompt"])
    if options.get("stop") is not None:
        stop = options["stop"]
        verbatim["stop"] = [str(text) for text in (stop if isinstance(stop, list) else [stop])]
    arguments: list[str] = []
    for name, value in options.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise ConfigError(
                f"{path} has {name!r}, which is no option."
                + (f" Did you mean {near[0]!r}?" if near else " --help lists the options.")
            )
        option = "--" + name.replace("_", "-")
        if value is True:
            arguments.append(option)
        elif value not in (None, False) and name not in verbatim:
            listed = value if isinstance(value, list) else [value]
            arguments += [f"{option}={item}" for item in listed]
    parser = build_parser("configuration")

    def refuse(message: str) -> NoReturn:
        raise ConfigError(f"{path}: {message}")

    parser.error = refuse  # type: ignore[assignment, method-assign]
    values = vars(parser.parse_args(arguments))
    return values | verbatim


def _check(settings: Settings) -> None:
    if not settings.model:
        raise ConfigError("Say which model: --model Qwen/Qwen2.5-1.5B-Instruct, or a folder.")
    if settings.prompt is not None and settings.input is not None:
        raise ConfigError("There is a PROMPT and an --input file; give one of them.")
    if settings.prompt is None and settings.input is None:
        raise ConfigError(
            "There is nothing to respond to. Give a PROMPT, - to read one from standard input, or "
            "--input prompts.jsonl."
        )
    if settings.output is not None and settings.input is None:
        raise ConfigError("--output goes with --input; for one prompt use --json > file.")
    if settings.aggregate not in AGGREGATES and ":" not in settings.aggregate:
        near = difflib.get_close_matches(settings.aggregate, AGGREGATES, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(
            f"--aggregate is one of {', '.join(AGGREGATES)}, or WHERE:NAME of your own, such as "
            f"my.py:longest; got {settings.aggregate!r}.{hint}"
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
