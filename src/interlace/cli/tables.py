"""A report in a terminal: metrics by widths, each number above its interval; Markdown in a pipe."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from interlace.evaluation.markdown import to_markdown
from interlace.evaluation.results import QUANTITIES, ArmResult, Measurement

if TYPE_CHECKING:
    from interlace.evaluation.compare import Comparison
    from interlace.evaluation.efficiency import ParallelEfficiency
    from interlace.evaluation.intervals import Estimate
    from interlace.evaluation.report import Report

# Metric, what it is called, whether all rows of the set have to be right.
ROWS = (
    ("pass@1", "pass@1 (%)", False),
    ("maj", "maj@W (%)", False),
    ("weighted:likelihood", "weighted vote (%)", False),
    ("coverage", "pass@W (%)", False),
    ("g_pass", "all W right (%)", True),
    ("mg_pass", "mG-Pass@W (%)", False),
    ("answered", "with answer (%)", False),
    ("truncated", "cut off (%)", False),
    ("distinct_answers", "distinct answers", False),
    ("tokens", "tokens", False),
    ("seconds", "seconds", False),
)


def print_report(report: Report) -> None:
    """Print a report's numbers to standard output."""
    console = Console()
    if not console.is_terminal:
        sys.stdout.write(to_markdown(report))
        return
    for name, value in report.provenance.items():
        console.print(Text(f"{name}: ", style="dim").append(str(value)), soft_wrap=True)
    if report.comparisons:
        _print_comparisons(console, report.comparisons)
    else:
        for result in report.results:
            console.print()
            console.print(_arm(result))
    if report.efficiencies:
        console.print()
        console.print(_efficiency(report.efficiencies))
    if report.results:
        level = report.results[0].measurements[0].estimate.level
        console.print(Text(f"Below a number its {100 * level:g} % interval over problems.", "dim"))


def _print_comparisons(console: Console, found: Sequence[Comparison]) -> None:
    """A table for each metric; with several tasks also each task's numbers at the largest width."""
    base = found[0].base
    several = len(found[0].tasks) > 1
    where = f"mean of {len(found[0].tasks)} tasks" if several else found[0].tasks[0]
    for metric, label, _ in ROWS:
        group = [comparison for comparison in found if comparison.metric == metric]
        if not group:
            continue
        problems = f"{group[0].problems} problems"
        console.print()
        console.print(_gains(group, f"{label}, {where}: {problems}, gains over {base}"))
        if several and metric in ("pass@1", "maj"):
            console.print()
            console.print(_by_task(group[-1], label))


def _arm(result: ArmResult) -> Table:
    kind = "each width a run of its own"
    if not result.coupled:
        kind = f"independent, {result.measurements[0].rows} rows a problem"
    table = _table(f"{result.arm} on {result.task}: {len(result.example_ids)} problems, {kind}")
    table.add_column("width W")
    widths = result.widths
    for width in widths:
        table.add_column(str(width), justify="right", overflow="fold")
    for metric, label, whole in ROWS:
        found = [result.find(metric, width, width if whole else None) for width in widths]
        if not any(found):
            continue
        if len({id(entry) for entry in found}) == 1:  # one number that holds at every width
            found[1:] = [None] * (len(found) - 1)
        table.add_row(label, *(_cell(entry) for entry in found))
    return table


def _cell(entry: Measurement | None) -> Text:
    if entry is None:
        return Text("")
    return _number(entry.estimate, 1 if entry.metric in QUANTITIES else 100)


def _number(estimate: Estimate | None, scale: float, sign: bool = False, unit: str = "") -> Text:
    """A number above its interval."""
    if estimate is None:
        return Text("")
    if math.isnan(estimate.value):
        return Text("undefined")
    shown = Text(_digits(scale * estimate.value, scale, sign) + unit)
    if estimate.low is not None and estimate.high is not None:
        ends = [_digits(scale * end, scale, sign) for end in (estimate.low, estimate.high)]
        shown.append("\n" + (" to " if sign else "-").join(ends), style="dim")
    return shown


def _digits(value: float, scale: float, sign: bool = False) -> str:
    if scale == 100:
        return f"{value:{'+' if sign else ''}.1f}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _gains(group: Sequence[Comparison], title: str) -> Table:
    """Arms by widths: the arm's mean, and below it its gain; then the relative gain at the end."""
    table = _table(title)
    table.add_column("arm")
    for comparison in group:
        table.add_column(f"W = {comparison.width}", justify="right", overflow="fold")
    if len(group[-1].rows) > 2:
        table.add_column(f"relative gain, W = {group[-1].width}", justify="right", overflow="fold")
    for place, row in enumerate(group[-1].rows):
        cells = [Text(row.arm, style="bold")]
        for comparison in group:
            own = comparison.rows[place]
            cell = Text(f"{100 * own.mean:.1f}")
            gain = own.gain_over_seeds or own.gain
            if gain is not None:
                cell.append("\n" + _number(gain, 100, sign=True).plain, style="dim")
            cells.append(cell)
        if row.next_best is not None:
            relative = _number(row.relative_gain, 100, sign=True, unit=" %").plain.partition("\n")
            cells.append(Text(f"{relative[0]} ({row.next_best})").append("\n" + relative[2], "dim"))
        table.add_row(*cells)
    return table


def _by_task(found: Comparison, label: str) -> Table:
    """The paper's layout: arms by tasks, mean and gain."""
    table = _table(f"{label} by task, W = {found.width}")
    table.add_column("arm")
    for name in (*found.tasks, f"mean of {len(found.tasks)}", "gain"):
        table.add_column(name, justify="right", overflow="fold")
    for row in found.rows:
        by_task = [Text(f"{100 * row.by_task[task]:.1f}") for task in found.tasks]
        gain = _number(row.gain_over_seeds or row.gain, 100, sign=True)
        table.add_row(Text(row.arm, style="bold"), *by_task, f"{100 * row.mean:.1f}", gain)
    return table


def _efficiency(found: Sequence[ParallelEfficiency]) -> Table:
    table = _table("What independent votes need to reach a coupled arm's votes")
    for name in ("arm", "at W", "maj@W (%)", "by", "needs width", "times the tokens"):
        table.add_column(
            name, justify="left" if name in ("arm", "by") else "right", overflow="fold"
        )
    for entry in found:
        reached = [_needed(entry, e) for e in (entry.needed_width, entry.token_ratio)]
        table.add_row(
            Text(entry.coupled_arm),
            str(entry.width),
            _number(entry.target, 100),
            Text(entry.independent_arm),
            *reached,
        )
    return table


def _needed(entry: ParallelEfficiency, estimate: Estimate) -> Text:
    """A cost, whose interval may end beyond what was measured."""
    if not entry.reached:
        return Text(f"beyond {entry.largest}")
    ends = ["beyond" if end is None else _digits(end, 1) for end in (estimate.low, estimate.high)]
    return Text(_digits(estimate.value, 1)).append("\n" + "-".join(ends), style="dim")


def _table(title: str) -> Table:
    return Table(
        title=Text(title, style="bold"), title_justify="left", box=None, header_style="bold"
    )
