"""The options of `interlace eval`: their defaults, their help, and what contradicts what."""

from __future__ import annotations

import argparse
import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interlace.cli.config_file import MODELS, KeyValues, Parser
from interlace.errors import ConfigError

if TYPE_CHECKING:
    from interlace.engine.types import SamplingParams

EXAMPLES = """\
examples:
  The model that comes with the package, in seconds:
    interlace eval --model tiny --task tiny-countdown --widths 1,8 --limit 100
  Every width a run of its own for a model with Bridge blocks; any other is sampled once:
    interlace eval --model out/ --task countdown --widths 1,2,4,8,16
  The same command again goes on after a kill. The folder holds raw generations, result, figures:
    interlace eval --model out/ --task countdown --output runs/bridge --arm Bridge
  A task's own options, its problems from a file, and the first 20 only:
    interlace eval --model smollm2-135m --task chain-arithmetic --task-options digits=2 steps=3
    interlace eval --model smollm2-135m --task gsm8k --data path/to/gsm8k/train.jsonl --limit 20
  32 rows of each problem at every width, and votes by a scorer of your own:
    interlace eval --model out/ --task math500 --samples 32 --scorer judge=my.py:score
  Options in a YAML file, some of them overridden:
    interlace eval --config eval.yaml --temperature 0.6 --task-options.digits 1
  Metrics anew from the raw generations, without sampling, here at 90 %:
    interlace eval --from runs/bridge --level 0.9
  Arms over the same problems: interlace compare --help
"""


@dataclass(frozen=True)
class Settings:
    """All options of one run, by name; `build_parser` explains them."""

    model: str = ""
    task: str = ""
    widths: tuple[int, ...] = (1, 2, 4, 8, 16)
    task_options: dict[str, Any] = field(default_factory=dict)
    data: str | None = None
    split: str | None = None
    limit: int | None = None
    groups_per_problem: int = 1
    samples: int | None = None
    arm: str | None = None
    training_seed: int | None = None
    max_new_tokens: int = 512
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    stop: tuple[str, ...] = ()
    seed: int = 0
    scorer: dict[str, str] = field(default_factory=dict)
    symbolic_votes: bool = False
    timed: int = 4
    output: str | None = None
    overwrite: bool = False
    figures: tuple[str, ...] = ("pdf", "svg", "png")
    json: bool = False
    from_run: str | None = None
    ks: tuple[int, ...] | None = None
    level: float | None = None
    batch_rows: int = 256
    memory: float | None = None
    base: str | None = None
    revision: str | None = None
    gguf_file: str | None = None
    dtype: str | None = None
    device: str | None = None
    trust_remote_code: bool = False

    def sampling(self) -> SamplingParams:
        """How to sample, without the width.

        Raises:
            GenerationError: for a value out of its range.
        """
        from interlace.engine.types import SamplingParams

        names = {f.name for f in dataclasses.fields(SamplingParams)}
        return SamplingParams(**{n: value for n, value in vars(self).items() if n in names})

    def folder(self) -> Path:
        """Where the run is kept."""
        if self.output is not None:
            return Path(self.output)
        name = "-".join([self.task, Path(self.model).name, *([self.arm] if self.arm else [])])
        return Path("runs") / re.sub(r"[^\w.-]+", "-", name)


def build_parser(prog: str) -> argparse.ArgumentParser:
    """The options of `interlace eval`."""
    default = Settings()
    parser = Parser(
        prog=prog,
        usage=f"{prog} --model MODEL --task TASK [options]\n       {prog} --from RUN [options]",
        description="Sample a task at several widths and measure pass@1, majority votes, "
        "G-Pass@k,\ncoverage, diversity, tokens and seconds, each with its interval. Prints the "
        "tables; keeps\nraw generations, result and figures in a folder, and goes on there after "
        "a kill.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    add = parser.add_argument
    add("--model", help=MODELS)
    add(
        "--task",
        help="a task's name, rg:NAME, jsonl:PATH or FILE.py:CLASS; `interlace tasks` lists them",
    )
    add("--widths", type=numbers, action="extend", metavar="W,W,...", help="(default: 1,2,4,8,16)")
    add("--config", metavar="FILE", help="YAML file of these options, such as 'limit: 100'")
    add("--output", metavar="FOLDER", help="of the run (default: runs/TASK-MODEL[-ARM])")
    add("--overwrite", action="store_true", help="begin that folder anew")
    add("--json", action="store_true", help="print the result as JSON instead of tables")
    _task_options(parser)
    _sampling(parser, default)
    _measuring(parser, default)
    _model(parser, default)
    return parser


def _task_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("problems").add_argument
    add("--limit", type=int, metavar="N", help="only the first N problems")
    add("--data", metavar="JSONL", help="a file, or another hub id, to read the problems from")
    add("--split", choices=("train", "test", "all"), help="(default: the task's own)")
    add(
        "--task-options",
        action=KeyValues,
        nargs="+",
        metavar="K=V",
        help="options of the task, such as digits=2; or --task-options.digits 2",
    )


def _sampling(parser: argparse.ArgumentParser, default: Settings) -> None:
    add = parser.add_argument_group("sampling").add_argument
    add("--groups-per-problem", type=int, metavar="M", help="groups at every width (default: 1)")
    add("--samples", type=int, metavar="N", help="instead: rows of each problem at every width")
    add("--max-new-tokens", type=int, help=f"of each row (default: {default.max_new_tokens})")
    add("--temperature", type=float, help=f"0 is greedy (default: {default.temperature})")
    add("--top-k", type=int, help="keep the k most likely tokens (default: all)")
    add("--top-p", type=float, help=f"keep this share of probability (default: {default.top_p})")
    add("--min-p", type=float, help="drop below this share of the best (default: 0.0)")
    add("--stop", action="append", metavar="TEXT", help="ends a row; may be repeated")
    add("--seed", type=int, help="the same seed gives the same rows (default: 0)")
    add("--batch-rows", type=int, help=f"in one call of the engine (default: {default.batch_rows})")


def _measuring(parser: argparse.ArgumentParser, default: Settings) -> None:
    add = parser.add_argument_group("measuring").add_argument
    add("--arm", help="name in tables (default: base, Bridge or P-Match, as the model is)")
    add("--training-seed", type=int, help="the seed the model was trained with")
    add(
        "--scorer",
        action=KeyValues,
        nargs="+",
        metavar="NAME=WHERE:FUNCTION",
        help="a function of a module or .py file that scores rows for weighted and best-of-n votes",
    )
    add("--symbolic-votes", action="store_true", help="equal formulas are one vote (extra math)")
    add(
        "--timed",
        type=int,
        metavar="N",
        help="problems whose group is sampled once more, alone, at every width, for the latency "
        f"(default: {default.timed}; 0: no seconds)",
    )
    add("--from", "--from-run", dest="from_run", metavar="RUN", help="measure this folder's rows")
    add("--ks", type=numbers, action="extend", metavar="K,K,...", help="with --from: set sizes")
    add("--level", type=float, help="with --from: coverage of the intervals (default: 0.95)")
    add(
        "--figures",
        type=names,
        action="extend",
        metavar="TYPES",
        help="file types of the figures, or none (default: pdf,svg,png)",
    )


def _model(parser: argparse.ArgumentParser, default: Settings) -> None:
    add = parser.add_argument_group("model").add_argument
    add("--memory", type=float, metavar="GIB", help="for keys and values (default: what fits)")
    add("--base", help="base model of saved blocks, if not where they say")
    add("--revision", help="branch, tag or commit of a hub id")
    add("--gguf-file", help="which file, where a folder or repository holds GGUF files")
    add("--dtype", help="of the weights, such as bfloat16 (default: the checkpoint's)")
    add("--device", help="such as cuda (default: a GPU if there is one)")
    add("--trust-remote-code", action="store_true", help="run code that comes with the model")


def numbers(text: str) -> list[int]:
    """Whole numbers between commas.

    >>> numbers("1,2, 4")
    [1, 2, 4]
    """
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"takes whole numbers between commas, such as 1,2,4; got {text!r}"
        ) from None


def names(text: str) -> list[str]:
    """Names between commas; "none" is none at all.

    >>> names("png,svg"), names("none")
    (['png', 'svg'], [])
    """
    return [] if text == "none" else [part.strip() for part in text.split(",")]


def check(settings: Settings) -> Settings:
    """The same settings, if they make sense together.

    Raises:
        ConfigError: for a missing or contradictory option.
    """
    if settings.from_run is not None:
        given = [f"--{name}" for name in ("model", "task", "output") if getattr(settings, name)]
        if given:
            raise ConfigError(
                f"--from measures what {settings.from_run} holds and samples nothing; leave out "
                f"{' and '.join(given)}."
            )
        return settings
    if settings.ks is not None or settings.level is not None:
        raise ConfigError(
            "--ks and --level go with --from RUN, which measures again; a run keeps all it takes."
        )
    if not settings.model:
        raise ConfigError("Say which model: --model Qwen/Qwen2.5-1.5B-Instruct, or a folder.")
    if not settings.task:
        raise ConfigError("Say which task: --task countdown; `interlace tasks` lists them.")
    if settings.memory is not None and not settings.memory > 0:
        raise ConfigError(f"--memory is a number of GiB above 0; got {settings.memory}.")
    known = {"pdf", "svg", "png"}
    if set(settings.figures) - known:
        raise ConfigError(f"--figures are pdf, svg, png or none; got {','.join(settings.figures)}.")
    return settings
