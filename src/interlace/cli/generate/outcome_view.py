"""What came of a group, for a terminal and without one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from interlace.terminal import printable

if TYPE_CHECKING:
    from interlace.answers import Aggregate
    from interlace.cli.generate.live import Columns

COLOURS = ("green", "cyan", "magenta", "yellow", "blue", "red")


def class_styles(outcome: Aggregate | None, width: int) -> list[str]:
    """A border style for each row: one colour an answer, the winner's first; dim without one."""
    if outcome is None:
        return ["bright_black"] * width
    if "classes" not in outcome.details:
        return ["green" if row == outcome.index else "bright_black" for row in range(width)]
    classes: list[int | None] = outcome.details["classes"]
    order = list(dict.fromkeys([outcome.index, *classes]))
    colours = {first: COLOURS[i % len(COLOURS)] for i, first in enumerate(order)}
    return ["bright_black" if first is None else colours[first] for first in classes]


def outcome_view(outcome: Aggregate | None, styles: Sequence[str]) -> RenderableType | None:
    """What came of the group: the count of a vote, or the chosen or written response."""
    if outcome is None:
        return None
    if "counts" in outcome.details:
        return _vote_table(outcome, styles)
    if outcome.text is None:
        return Text(f"{outcome.method}: no row has a response", style="yellow")
    where = "" if outcome.index is None else f", row {outcome.index + 1}"
    return Panel(
        Text(printable(outcome.text).strip()),
        title=f"{outcome.method}{where}",
        title_align="left",
        border_style="green",
        box=box.HEAVY,
    )


def _vote_table(outcome: Aggregate, styles: Sequence[str]) -> RenderableType:
    details = outcome.details
    if outcome.answer is None:
        return Text(f"{outcome.method} vote: no row has an answer", style="yellow")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left")
    for heading, justify in (
        ("answer", "left"),
        ("votes", "right"),
        ("", "left"),
        ("rows", "left"),
    ):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    classes, answers = details["classes"], details["answers"]
    most = max(details["counts"].values())
    for answer, votes in details["counts"].items():
        first = next(row for row in classes if row is not None and answers[row] == answer)
        rows = [row for row, own in enumerate(classes) if own == first]
        shown = short(answer)
        shown.stylize(f"bold {styles[first]}")
        table.add_row(
            shown,
            f"{votes:.3g}",
            Text("█" * max(1, round(20 * votes / most)) if most else "", style=styles[first]),
            ", ".join(str(row + 1) for row in rows),
        )
    silent = [str(row + 1) for row, own in enumerate(classes) if own is None]
    if silent:
        table.add_row(Text("no answer", style="dim"), "", "", Text(", ".join(silent), style="dim"))
    tie = "  (a tie: seen first wins)" if details["tie"] else ""
    winner = Text.assemble(
        (f"{outcome.method} vote: ", "bold"),
        (printable(outcome.answer), f"bold {styles[outcome.index or 0]}"),
        (f"  {details['share']:.0%} of the votes{tie}", "dim"),
    )
    return Group(table, winner)


def plain(columns: Columns, outcome: Aggregate | None) -> str:
    """The same without a terminal: every row whole, then what came of them."""
    parts = []
    for index, row in enumerate(columns.rows, start=1):
        head = f"--- row {index} of {columns.width}: {row.finish_reason}, {row.tokens} tokens ---"
        parts.append(f"{head}\n{row.text.strip()}\n")
    return "\n".join([*parts, *plain_outcome(outcome)])


def plain_outcome(outcome: Aggregate | None) -> list[str]:
    """The outcome in lines of text."""
    if outcome is None:
        return []
    head = f"=== {outcome.method}"
    details: dict[str, Any] = outcome.details
    if "counts" in details:
        if outcome.answer is None:
            return [f"{head}: no row has an answer ==="]
        counts = ", ".join(f"{answer}: {votes:.3g}" for answer, votes in details["counts"].items())
        tie = ", a tie" if details["tie"] else ""
        return [f"{head} ({counts}{tie}) ===", outcome.answer]
    where = "" if outcome.index is None else f": row {outcome.index + 1}"
    return [f"{head}{where} ===", outcome.text if outcome.text is not None else "nothing"]


def short(answer: str | None, most: int = 60) -> Text:
    """An answer in one line of at most `most` characters."""
    shown = printable(" ".join((answer or "").split()))
    return Text(shown if len(shown) <= most else shown[: most - 3] + "...")
