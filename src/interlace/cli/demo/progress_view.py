"""The demo's progress: a table that stays in place on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich import box
from rich.live import Live
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from interlace.cli.demo.follow import PASS, JobProgress, Progress, sparkline
from interlace.cli.demo.plan import LABELS, SHOWN_WIDTH

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

SECONDS_BETWEEN_LINES = 15.0
PASS_WIDE, COVERAGE = f"width_{SHOWN_WIDTH}/pass@1", f"width_{SHOWN_WIDTH}/coverage"
METRICS = (PASS, PASS_WIDE, COVERAGE)  # of training
BAR = 10
MOST = 500  # wider than any table, so that it says how wide it would like to be


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
        """Every job in a line, with as many columns as fit."""
        for bar, points in ((True, 20), (False, 20), (False, 6)):
            table = self._table(bar, points)
            wide = self._console.options.update(max_width=MOST)
            if Measurement.get(self._console, wide, table).maximum <= self._console.width:
                break
        return table

    def _table(self, bar: bool, points: int) -> Table:
        title = Text(f"{duration(self._progress.seconds)} so far, {_left(self._progress)}", "dim")
        table = Table(
            box=box.SIMPLE_HEAD,
            title=title,
            title_justify="left",
            padding=(0, 1, 0, 0),
            pad_edge=False,
        )
        columns = {
            "arm": "", "job": "", "bar": "", "reached": "", PASS: PASS,
            PASS_WIDE: f"W = {SHOWN_WIDTH}", COVERAGE: "coverage",
            "line": "so far",
        }  # fmt: skip
        trains = any(job.job.kind == "grpo" for lane in self._progress.lanes for job in lane)
        left_out = (set() if bar else {"bar"}) | (set() if trains else {*METRICS, "line"})
        shown = [name for name in columns if name not in left_out]
        for name in shown:
            number = name in METRICS
            table.add_column(columns[name], justify="right" if number else "left", no_wrap=True)
        order = sorted(
            (job for lane in self._progress.lanes for job in lane),
            key=lambda job: (job.job.kind in ("evaluate", "spread"), job.job.kind == "spread"),
        )
        for job in order:
            cells: dict[str, str | Text] = {
                "arm": Text(LABELS[job.job.arm], "bold"),
                "job": job.job.title,
                "bar": _bar(job),
                "reached": _reached(job),
                **{name: _percent(job.recent(name)).removesuffix(" %") for name in METRICS},
                "line": Text(sparkline(job.series(PASS), points), "cyan"),
            }
            style = "green" if job.done else "" if job.begun else "dim"
            table.add_row(*(cells[name] for name in shown), style=style)
        return table

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
    what = {"warmup": "problem", "evaluate": "group"}.get(job.job.kind, "")
    what = what if part.counts == "line" else part.counts
    return f"{what} {reached} of {part.total}" if what else ""


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
