"""The options of `interlace eval`: their defaults, their help, and what contradicts what."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from interlace.cli.options import DeviceOptions, FigureType, ModelOptions, SamplingOptions
from interlace.configuration import Parser
from interlace.errors import ConfigError

if TYPE_CHECKING:
    from argparse import Namespace

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
class _Sampling(SamplingOptions):
    """Sampling.

    Args:
        groups_per_problem: Number of groups of each problem at every width.
        samples: Number of rows of each problem at every width, instead of a number of groups.
        batch_rows: Number of rows in one call of the engine.
    """

    max_new_tokens: int = 512
    groups_per_problem: int = 1
    samples: int | None = None
    batch_rows: int = 256


@dataclass(frozen=True)
class _Measuring:
    """Measuring.

    Args:
        arm: Name in tables; by default base, Bridge or P-Match, as the model is.
        training_seed: Seed that the model was trained with.
        scorer: Functions of a module or .py file, as NAME=WHERE:FUNCTION, that score rows for
            weighted and best-of-n votes.
        symbolic_votes: Count equal formulas as one vote (extra math).
        timed: Number of problems whose group is sampled once more, alone, at every width, for the
            latency; 0 leaves out seconds.
        from_run: Path of a run's folder whose rows are measured, instead of sampling.
        ks: Sizes of sets; with --from only.
        level: Coverage of the intervals, by default 0.95; with --from only.
        figures: Types of the figures' files: pdf, svg, png, or none.
    """

    arm: str | None = None
    training_seed: int | None = None
    scorer: dict[str, str] = field(default_factory=dict)
    symbolic_votes: bool = False
    timed: int = 4
    from_run: str | None = None
    ks: tuple[int, ...] | None = None
    level: float | None = None
    figures: tuple[FigureType, ...] = ("pdf", "svg", "png")


@dataclass(frozen=True)
class Settings(ModelOptions, _Sampling, _Measuring, DeviceOptions):
    """Task and result.

    Args:
        task: Name of a task (`interlace tasks` lists them), rg:NAME, jsonl:PATH or FILE.py:CLASS.
        widths: Numbers of responses that see each other, each a run of its own.
        limit: Number of problems, from the first on; by default all.
        data: Path of a JSONL file, or another hub id, to read the problems from.
        split: Split of the problems; by default the task's own.
        task_options: Options of the task, such as digits=2 steps=3.
        output: Path of the run's folder; by default runs/TASK-MODEL[-ARM].
        overwrite: Begin that folder anew.
        json: Print the result as JSON instead of tables.
    """

    task: str = ""
    widths: tuple[int, ...] = (1, 2, 4, 8, 16)
    limit: int | None = None
    data: str | None = None
    split: Literal["train", "test", "all"] | None = None
    task_options: dict[str, Any] = field(default_factory=dict)
    output: str | None = None
    overwrite: bool = False
    json: bool = False

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


def build_parser(prog: str) -> Parser:
    """The options of `interlace eval`."""
    parser = Parser(
        prog,
        usage="--model MODEL --task TASK [options]\n--from RUN [options]",
        description="Sample a task at several widths and measure pass@1, majority votes, "
        "G-Pass@k,\ncoverage, diversity, tokens and seconds, each with its interval. Prints the\n"
        "tables; keeps raw generations, result and figures in a folder, and goes on\n"
        "there after a kill.",
        examples=EXAMPLES,
        config="limit: 100",
    )
    parser.aliases["from"] = "from_run"
    parser.add_options(Settings)
    return parser


def settle(arguments: Namespace) -> Settings:
    """The settings of a command line.

    Raises:
        ConfigError: for a missing or contradictory option.
    """
    settings = Settings(**vars(arguments))
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
    return settings
