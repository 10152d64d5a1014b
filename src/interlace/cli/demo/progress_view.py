"""The demo's progress: a table that stays in place on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich import box
from rich.live import Live
from rich.table import Table
from rich.text import Text

from interlace.cli.demo.follow import JobProgress, Progress, sparkline
from interlace.cli.demo.plan import LABELS, SHOWN_WIDTH

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

SECONDS_BETWEEN_LINES = 15.0
PASS = "pass@1"
PASS_WIDE, COVERAGE = f"width_{SHOWN_WIDTH}/pass@1", f"width_{SHOWN_WIDTH}/coverage"
BAR = 14


class ProgressView:
    """Shows a demo's progress.

    Args:
        console: where.
        progress: what is shown; it is read by whoever calls `update`.
    """

    def __init__(self, console: Console, progress: Progress) -> None:
        self._console, self._progress = console, progress
        self._said = time.monotonic()
        self._ended = {id(j) for lane in progress.lanes for j in lane if j.done}
        self._live: Live | None = None
        if console.is_terminal:
            self._live = Live(self.table(), console=console, auto_refresh=False)

    def __enter__(self) -> ProgressView:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self) -> None:
        """Show it as it is now."""
        if self._live is not None:
            self._live.update(self.table(), refresh=True)
            return
        for lane in self._progress.lanes:
            for job in lane:
                if job.done and id(job) not in self._ended:
                    self._ended.add(id(job))
                    self._print(f"{_name(job)}: done{_numbers(job)}")
        if time.monotonic() - self._said > SECONDS_BETWEEN_LINES:
            self._said = time.monotonic()
            at_work = [job for job in _current(self._progress) if not job.done]
            parts = [f"{_name(job)} {_reached(job)}{_numbers(job)}" for job in at_work]
            self._print("; ".join([*parts, _left(self._progress)]))

    def table(self) -> RenderableType:
        """Every job in a line."""
        table = Table(box=box.SIMPLE_HEAD, title=self._title(), title_justify="left")
        for name in ("", "", "done", "", "pass@1", "of width 8", "coverage of 8", "pass@1 so far"):
            right = name in ("pass@1", "of width 8", "coverage of 8")
            table.add_column(name, justify="right" if right else "left", no_wrap=True)
        order = sorted(
            (job for lane in self._progress.lanes for job in lane),
            key=lambda job: (job.job.kind in ("evaluate", "spread"), job.job.kind == "spread"),
        )
        for job in order:
            style = "green" if job.done else "" if job.begun else "dim"
            numbers = [_percent(job.recent(name)) for name in (PASS, PASS_WIDE, COVERAGE)]
            table.add_row(
                Text(LABELS[job.job.arm], "bold"),
                job.job.title,
                _bar(job),
                _reached(job),
                *numbers,
                Text(sparkline(job.series(PASS)), "cyan"),
                style=style,
            )
        return table

    def _title(self) -> Text:
        return Text(f"{duration(self._progress.seconds)} so far, {_left(self._progress)}", "dim")

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """Seconds as people say them.

    >>> duration(42.3), duration(125)
    ('42 s', '2 min 5 s')
    """
    whole = round(seconds)
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60} s"


def _current(progress: Progress) -> list[JobProgress]:
    """The job at work in each lane."""
    return [next((job for job in lane if not job.done), lane[-1]) for lane in progress.lanes]


def _left(progress: Progress) -> str:
    return f"about {duration(progress.seconds_left)} left"


def _name(job: JobProgress) -> str:
    return f"{LABELS[job.job.arm]}, {job.job.title}"


def _reached(job: JobProgress) -> str:
    part, reached = job.part
    what = "step " if part.counts == "steps" else "problem " if job.job.kind == "warmup" else ""
    what = "group " if job.job.kind == "evaluate" else what
    return "" if job.job.kind == "spread" else f"{what}{reached} of {part.total}"


def _numbers(job: JobProgress) -> str:
    value, wide = job.recent(PASS), job.recent(PASS_WIDE)
    if value is None:
        return ""
    return f", pass@1 {_percent(value)}" + (f", at width 8 {_percent(wide)}" if wide else "")


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"


def _bar(job: JobProgress) -> Text:
    share = job.spent / job.expected
    full = round(share * BAR)
    return Text.assemble(("━" * full, "cyan"), ("━" * (BAR - full), "bright_black"))
