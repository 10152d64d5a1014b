"""What `interlace demo` does: train and evaluate in two processes, then show and write it down."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

from interlace.cli.demo.options import PACKAGED_ROLLOUTS, settle
from interlace.errors import RunError

if TYPE_CHECKING:
    import argparse

    from rich.console import Console

    from interlace.cli.demo.plan import Plan

INTERRUPTED = 130
STARTS = "starts.json"
SECONDS_BETWEEN_NOTES = 2.0


def run(arguments: argparse.Namespace) -> int:
    """Run the demo, or go on with it; the exit status is 130 after Ctrl-C."""
    from rich.console import Console

    from interlace.cli.demo.plan import Plan

    settings, folder = settle(arguments)
    return carry_out(Plan(folder, settings), Console(), restart=arguments.restart)


def carry_out(plan: Plan, console: Console, *, restart: bool = False) -> int:
    """As `run`, with the plan made and the console given.

    Raises:
        RunError: if the folder cannot be written, as on a full disk.
    """
    from interlace.cli.demo.folder import claimed

    with claimed(plan, restart) as known:
        _say(console, _greeting(plan, known))
        try:
            _work(plan, console)
            _show(plan, console)
        except KeyboardInterrupt:
            _say(
                console,
                f"\nInterrupted. What is done is kept in {plan.folder}; the same command goes on "
                "from there.",
            )
            return INTERRUPTED
        except BrokenPipeError:  # a reader that has seen enough, such as `head`
            raise
        except OSError as error:
            raise RunError(
                f"The demo could not write or read its files in {plan.folder}: {error}. Make room "
                "there and run the same command again: it goes on from what is done."
            ) from error
    return 0


def _greeting(plan: Plan, known: bool) -> str:
    if known:
        return f"Going on with the demo in {plan.folder}."
    if plan.settings.quick:
        return (
            f"Evaluating the packaged arms, trained with {PACKAGED_ROLLOUTS} rollouts of GRPO "
            "each, on held-out puzzles: reach a\ntarget with three numbers. Two processes, one "
            "core each."
        )
    return (
        "Training Bridge and RLVR-only from one tiny model, then asking both held-out puzzles: "
        "reach a target with three numbers.\nTwo processes, one core each, everything in "
        f"{plan.folder}. Ctrl-C is safe: the same command goes on."
    )


def _work(plan: Plan, console: Console) -> None:
    """All jobs; the seconds are kept whatever happens."""
    from interlace.cli.demo.children import Workers
    from interlace.cli.demo.follow import Progress
    from interlace.cli.demo.progress_view import ProgressView

    progress = Progress(plan)
    if progress.done:
        return
    clock = Clock(plan.folder / STARTS)
    view = ProgressView(console, progress)

    def look() -> None:
        clock.note()
        progress.read()
        view.update()

    with Workers(plan.folder) as workers, view:
        workers.wait(look)
    clock.note(now=True)


class Clock:
    """Seconds of every start, kept up to date, so that a kill loses next to none of them.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.before: list[float] = json.loads(path.read_text()) if path.exists() else []
        self._started = self._noted = time.monotonic()

    def note(self, now: bool = False) -> None:
        """Write them down, if the last time is long enough ago."""
        if now or time.monotonic() - self._noted > SECONDS_BETWEEN_NOTES:
            self._noted = time.monotonic()
            seconds = [*self.before, round(self._noted - self._started, 1)]
            partial = self._path.with_suffix(".tmp")
            partial.write_text(json.dumps(seconds), encoding="utf-8")
            partial.replace(self._path)


def _show(plan: Plan, console: Console) -> None:
    """The table, the group, the report."""
    from interlace.cli.demo import report
    from interlace.cli.demo.group_view import GroupView
    from interlace.cli.demo.outcome import read_outcome
    from interlace.cli.demo.usage import peak_bytes

    outcome = read_outcome(plan)
    console.print(report.table(outcome.lines()))
    _say(console, report.LEGEND, "dim")
    for sentence in outcome.sentences():
        _say(console, f"- {sentence}")
    view = GroupView(outcome.group)
    _say(console, "\nA group from inside\n", "bold")
    if console.is_terminal:
        view.play(console)
    else:
        _say(console, view.plain())
    for sentence in view.sentences():
        _say(console, f"- {sentence}")
    _say(console, "\nWhat the numbers do not say\n", "bold")
    for sentence in report.limits(outcome):
        _say(console, f"- {sentence}")
    seconds = Clock(plan.folder / STARTS).before
    report.write(outcome, seconds, peak_bytes())
    _say(console, f"\n{report.cost(outcome, seconds, peak_bytes())}.")
    _say(console, f"Report: {plan.folder / report.REPORT}")


def _say(console: Console, text: str, style: str | None = None) -> None:
    # A terminal breaks lines between words; a file keeps them whole.
    console.print(text, style=style, highlight=False, markup=False,
                  soft_wrap=not console.is_terminal)  # fmt: skip
