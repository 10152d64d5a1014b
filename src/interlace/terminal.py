"""What people read: text that cannot steer a terminal, and tables that are made once and printed as
Markdown or on a terminal.

A model's text, the name of an arm and the manifest of a folder come from elsewhere. Whatever shows
them does so through this module, and never as rich's markup.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as RichTable

# A number with the ends of its interval.
Cell = str | tuple[str, str, str]

# C0 without line feed and tab, DEL, C1; and what turns the direction of text.
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """Text without what could steer a terminal.

    >>> printable("red \\x1b[31malert\\x07")
    'red [31malert'
    """
    return _STEERING.sub("", text)


def say(console: Console, text: str, style: str | None = None) -> None:
    """Print a line as it is: no markup, nothing that steers, no colours of rich's own."""
    # A terminal breaks lines between words; a file keeps them whole.
    console.print(
        printable(text),
        style=style,
        highlight=False,
        markup=False,
        emoji=False,
        soft_wrap=not console.is_terminal,
    )


@dataclass(frozen=True)
class Table:
    """Rows under headings, for two printers.

    Attributes:
        columns: Headings, one a column.
        rows: Lines of cells.
        title: Words above the table; a terminal shows them, a report has headings of its own.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    title: str = ""

    def markdown(self) -> str:
        """The table in Markdown; an interval stands in brackets behind its number."""
        lines = [[_in_line(cell) for cell in line] for line in (self.columns, *self.rows)]
        lines.insert(1, ["---"] * len(self.columns))
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def print(self, console: Console) -> None:
        """Print the table on a terminal; where it is narrow, intervals stand below numbers."""
        from rich.measure import Measurement

        table = self._rich(below=False)
        wide = console.options.update(max_width=10_000)
        if Measurement.get(console, wide, table).maximum > console.width:
            table = self._rich(below=True)
        console.print(table)

    def _rich(self, below: bool) -> RichTable:
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(
            title=Text(printable(self.title), style="bold") if self.title else None,
            title_justify="left",
            box=None,
            header_style="bold",
            show_header=any(self.columns),
            padding=(0, 2, 0, 0),
        )
        for place, name in enumerate(self.columns):
            numbers = place > 0 and any(_is_number(row[place]) for row in self.rows)
            table.add_column(
                Text(printable(name)), justify="right" if numbers else "left", overflow="fold"
            )
        before = ""
        for row in self.rows:
            # What a row shares with the one above it is not said again.
            first = Text("" if row[0] == before else printable(str(row[0])), style="bold")
            before = str(row[0])
            table.add_row(first, *(_shown(cell, below) for cell in row[1:]))
        return table


def _is_number(cell: Cell) -> bool:
    return isinstance(cell, tuple) or cell[:1].isdigit() or cell[:2].strip("+-")[:1].isdigit()


def _in_line(cell: Cell) -> str:
    text = cell if isinstance(cell, str) else f"{cell[0]} [{cell[1]}, {cell[2]}]"
    return " ".join(printable(text).replace("|", "\\|").split("\n"))


def _shown(cell: Cell, below: bool):  # type: ignore[no-untyped-def]
    from rich.text import Text

    if isinstance(cell, str):
        return Text(printable(cell))
    value, low, high = map(printable, cell)
    ends = f"\n{low}{' to ' if low[:1] in '+-' else '-'}{high}" if below else f" [{low}, {high}]"
    return Text(value).append(ends, style="dim")


def facts(title: str, sections: Sequence[Mapping[str, Any]]) -> Table:
    """A table of names and values; None is left out, whole numbers get commas."""
    rows: list[tuple[str, str]] = []
    for section in sections:
        rows += [("", "")] if rows else []
        for name, value in section.items():
            if value is not None:
                rows.append((name, f"{value:,}" if isinstance(value, int) else str(value)))
    return Table(("", ""), rows, title)


def percent(value: float, sign: bool = False) -> str:
    """A share in per cent.

    >>> percent(0.125), percent(0.125, sign=True)
    ('12.5', '+12.5')
    """
    return f"{100 * value:{'+' if sign else ''}.1f}"


def number(value: float) -> str:
    """Three digits that count, without an exponent where a person would not write one.

    >>> number(1234.5), number(0.01234), number(2.5e7)
    ('1,234', '0.0123', '2.50e+07')
    """
    if value == 0 or 1e-3 <= abs(value) < 1e6:
        digits = 2 if value == 0 else max(0, 2 - math.floor(math.log10(abs(value))))
        return f"{value:,.{digits}f}"
    return f"{value:.2e}"


def in_bytes(count: int) -> str:
    """A number of bytes in the unit that keeps it short.

    >>> in_bytes(3 * 2**20)
    '3.0 MiB'
    """
    value, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"
