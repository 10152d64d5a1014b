"""What `interlace eval` does: load, sample what is missing, measure, print."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interlace.cli.eval.settings import Settings, settle
from interlace.cli.running import INTERRUPTED, Bar, load_engine, summary
from interlace.terminal import say
from interlace.user_code import named_function

if TYPE_CHECKING:
    import argparse

    from rich.console import Console

    from interlace.engine.engine import Engine
    from interlace.evaluation.report import Report
    from interlace.evaluation.results import ArmResult
    from interlace.remote import RemoteEngine
    from interlace.tasks import Task


def run(arguments: argparse.Namespace) -> int:
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
    from interlace.evaluation.run import report_of

    settings.sampling()  # mistakes show before a model is loaded
    given = settings.scorer.items()
    scorers = {name: named_function(str(where), "--scorer") for name, where in given}
    task = _task(settings)
    engine = load_engine(settings, notes)
    result = _sampled(settings, engine, _answerable(settings, task, engine, notes), scorers, notes)
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
    engine: Engine | RemoteEngine,
    task: Task,
    scorers: Mapping[str, Callable[..., Any]],
    notes: Console,
) -> ArmResult | None:
    """The run's result; None after Ctrl-C."""
    from interlace.evaluation.evaluate import evaluate

    result = None
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
            notes=_noted(settings),
        )
    for line in [] if progress.tally is None else summary(progress.tally):
        say(notes, line)
    return result


def _task(settings: Settings, **more: Any) -> Task:
    from interlace.tasks import get_task

    options = settings.task_options | more
    for name in ("data", "split"):
        if getattr(settings, name) is not None:
            options[name] = getattr(settings, name)
    return get_task(settings.task, **options)


def _answerable(
    settings: Settings, task: Task, engine: Engine | RemoteEngine, notes: Console
) -> Task:
    """The task with prompts as plain text, if the model has no chat template and none was asked
    for."""
    if engine.chats or not task.chat or "chat" in settings.task_options:
        return task
    say(notes, f"The tokenizer of {settings.model} has no chat template: prompts are plain text.")
    return _task(settings, chat=False)


def _noted(settings: Settings) -> dict[str, Any]:
    """What the command line knows of a run, besides what `evaluate` sees itself."""
    options = dict(settings.task_options)
    if settings.data is not None:
        options["data"] = settings.data
    return {"task_options": options, "memory": settings.memory}


def _print(settings: Settings, report: Report, folder: Path, notes: Console) -> None:
    import json

    from rich.console import Console

    from interlace.evaluation.report import print_report

    if settings.json:
        sys.stdout.write(json.dumps(report.to_json(), allow_nan=False) + "\n")
    else:
        print_report(report, Console())
    say(notes, f"{folder} has result.json, report.md, the figures and the raw generations.")
