"""`interlace eval`: a task at every width, with intervals; or a run's numbers computed anew."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from interlace.cli.shared import (
    INTERRUPTED,
    Bar,
    DeviceOptions,
    FigureType,
    ModelOptions,
    SamplingOptions,
    check_loading,
    file_name,
    load_engine,
    summary,
    task_of,
)
from interlace.configuration import Parser
from interlace.errors import ConfigError
from interlace.terminal import say
from interlace.user_code import named_function

if TYPE_CHECKING:
    from argparse import Namespace

    from rich.console import Console

    from interlace.engine.engine import Engine
    from interlace.evaluation.report import Report
    from interlace.evaluation.responses import RecordedResponses
    from interlace.evaluation.results import ArmResult
    from interlace.remote import RemoteEngine
    from interlace.tasks import Task

_MISSING = dataclasses.MISSING
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
  Responses made elsewhere, n for each problem, whose rows do not read each other:
    interlace eval --responses theirs.jsonl --rows independent --task gsm8k
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
        responses: Path of a file of responses made elsewhere (JSON lines), instead of a model.
        rows: Kind of the responses of a line: groups, whose rows read each other, or independent;
            with --responses only.
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
    responses: str | None = None
    rows: Literal["groups", "independent"] | None = None
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

    def folder(self) -> Path:
        """Where the run is kept."""
        if self.output is not None:
            return Path(self.output)
        model = Path(self.model).name if self.responses is None else Path(self.responses).stem
        name = "-".join([self.task, model, *([self.arm] if self.arm else [])])
        return Path("runs") / file_name(name)


def build_parser(prog: str) -> Parser:
    """The options of `interlace eval`."""
    parser = Parser(
        prog,
        usage="--model MODEL --task TASK [options]\n--from RUN [options]\n"
        "--responses FILE --rows groups|independent --task TASK [options]",
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
    """The settings of a command line."""
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
    if settings.responses is not None:
        return _made_elsewhere(settings)
    if settings.rows is not None:
        raise ConfigError("--rows says what the lines of --responses FILE hold; give both.")
    check_loading(settings)
    _check_task(settings)
    return settings


def _check_task(settings: Settings) -> None:
    if not settings.task:
        raise ConfigError("Say which task: --task countdown; `interlace tasks` lists them.")


_OF_RESPONSES = {
    *("responses", "rows", "task", "task_options", "data", "split", "limit", "arm", "scorer"),
    *("training_seed", "symbolic_votes", "figures", "output", "overwrite", "json"),
}


def _made_elsewhere(settings: Settings) -> Settings:
    """The settings of --responses, which samples and times nothing."""
    fields = dataclasses.fields(Settings)
    others = [f for f in fields if f.name not in _OF_RESPONSES and f.default_factory is _MISSING]
    given = [f for f in others if getattr(settings, f.name) != f.default]
    if given:
        names = " and ".join(f"--{f.name.replace('_', '-')}" for f in given)
        raise ConfigError(
            f"--responses judges what {settings.responses} holds and samples nothing; leave out "
            f"{names}."
        )
    if settings.rows is None:
        raise ConfigError(
            "Say what the responses of a line are: --rows groups, if they read each other, or "
            "--rows independent. Their texts do not show it, and the metrics differ."
        )
    _check_task(settings)
    return dataclasses.replace(settings, timed=0)


# What it does -----------------------------------------------------------------------------------


def run(arguments: Namespace) -> int:
    """Evaluate as asked; the exit status is 130 after Ctrl-C, with what was recorded kept."""
    from rich.console import Console

    settings = settle(arguments)
    notes = Console(stderr=True)
    if settings.from_run is not None:
        return _again(settings, notes)
    return _evaluate(settings, notes)


def _again(settings: Settings, notes: Console) -> int:
    """Measure the raw generations of a run, and write its result anew."""
    from interlace.evaluation.intervals import LEVEL
    from interlace.evaluation.run import load_run, report_of, write_report

    assert settings.from_run is not None
    folder = Path(settings.from_run)
    result = load_run(folder, ks=settings.ks, level=settings.level or LEVEL)
    report = report_of(result)
    write_report(folder, report, settings.figures)
    _print(settings, report, folder, notes)
    return 0


def _evaluate(settings: Settings, notes: Console) -> int:
    """Sample, or go on sampling; then print."""
    from interlace.evaluation.responses import RecordedResponses
    from interlace.evaluation.run import report_of

    settings.sampling()  # mistakes show before a model is loaded
    scorers = {
        name: named_function(str(where), "--scorer") for name, where in settings.scorer.items()
    }
    task = task_of(settings.task, settings, settings.task_options)
    engine: Engine | RemoteEngine | RecordedResponses
    if settings.responses is not None:
        assert settings.rows is not None
        engine = RecordedResponses(settings.responses, task, settings.rows, limit=settings.limit)
        settings = dataclasses.replace(
            settings, widths=tuple(engine.widths), groups_per_problem=engine.groups
        )
    else:
        engine = load_engine(settings, notes)
        task = _answerable(settings, task, engine, notes)
    result = _sampled(settings, engine, task, scorers, notes)
    if result is None:
        say(
            notes,
            f"Interrupted; {settings.folder()} has what was recorded. Run the same command again "
            "to go on.",
            "yellow",
        )
        return INTERRUPTED
    _print(settings, report_of(result), settings.folder(), notes)
    return 0


def _sampled(
    settings: Settings,
    engine: Engine | RemoteEngine | RecordedResponses,
    task: Task,
    scorers: Mapping[str, Callable[..., Any]],
    notes: Console,
) -> ArmResult | None:
    """The run's result; None after Ctrl-C."""
    from interlace.evaluation.evaluate import evaluate

    result, options = None, dict(settings.task_options)
    if settings.data is not None:
        options["data"] = settings.data
    with Bar(notes) as progress, contextlib.suppress(KeyboardInterrupt):
        result = evaluate(
            engine,
            task,
            settings.widths,
            limit=settings.limit,
            groups_per_problem=settings.groups_per_problem,
            samples=settings.samples,
            params=settings.sampling(),
            arm=settings.arm,
            training_seed=settings.training_seed,
            scorers=scorers,
            symbolic_votes=settings.symbolic_votes,
            timed=settings.timed,
            batch_rows=settings.batch_rows,
            output=settings.folder(),
            overwrite=settings.overwrite,
            figures=settings.figures,
            progress=progress,
            notes={"task_options": options, "memory": settings.memory},
        )
    for line in [] if progress.tally is None else summary(progress.tally):
        say(notes, line)
    return result


def _answerable(
    settings: Settings, task: Task, engine: Engine | RemoteEngine, notes: Console
) -> Task:
    """The task with prompts as plain text, if the model has no chat template and none was asked
    for."""
    if engine.chats or not task.chat or "chat" in settings.task_options:
        return task
    say(notes, f"The tokenizer of {settings.model} has no chat template: prompts are plain text.")
    return task_of(settings.task, settings, settings.task_options | {"chat": False})


def _print(settings: Settings, report: Report, folder: Path, notes: Console) -> None:
    import json

    from rich.console import Console

    from interlace.evaluation.report import print_report

    if settings.json:
        sys.stdout.write(json.dumps(report.to_json(), allow_nan=False) + "\n")
    else:
        print_report(report, Console())
    say(notes, f"{folder} has result.json, report.md, the figures and the raw generations.")
