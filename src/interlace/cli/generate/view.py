"""A group on a terminal: W rows side by side while they are sampled, then what came of them.

Without a terminal the same is plain text.

Axes: W width. On a narrow terminal the columns stack into several lines of panels; if panels would
be too low to read, each row gets one line.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from interlace.terminal import printable

if TYPE_CHECKING:
    from interlace.answers import Aggregate
    from interlace.engine.types import Step

MIN_COLUMN, MIN_LINES = 26, 3


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
    return "\n".join([*parts, *_plain_outcome(outcome)])


def _plain_outcome(outcome: Aggregate | None) -> list[str]:
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


FRAMES_PER_SECOND = 12
ENDS = {"stop": "✓", "length": "cut at", "consensus": "settled at", "interrupted": "broken off at"}


@dataclass
class Row:
    """One row, as far as it is sampled."""

    text: str = ""
    tokens: int = 0
    finish_reason: str | None = None


@dataclass
class Columns:
    """The rows of one group as they grow.

    Args:
        width: Number of rows, W.
        title: Words that stand over them, such as the model.
    """

    width: int
    title: str
    rows: list[Row] = field(default_factory=list)
    steps: int = 0
    started: float = field(default_factory=time.monotonic)
    seconds: float | None = None

    def __post_init__(self) -> None:
        self.rows = [Row() for _ in range(self.width)]

    @property
    def tokens(self) -> int:
        return sum(row.tokens for row in self.rows)

    def take(self, step: Step) -> None:
        """Add one step of the engine's stream."""
        self.steps += 1
        for row, text, alive, reason in zip(
            self.rows, step.texts, step.alive, step.finish_reasons, strict=True
        ):
            row.text += text
            row.tokens += alive
            row.finish_reason = row.finish_reason or reason

    def end(self) -> None:
        """Stop the clock; rows without an end were interrupted."""
        self.seconds = time.monotonic() - self.started
        for row in self.rows:
            row.finish_reason = row.finish_reason or "interrupted"

    def status(self) -> Text:
        """One line: model, width, steps, tokens, speed."""
        seconds = self.seconds or time.monotonic() - self.started
        speed = self.tokens / seconds if self.tokens else 0.0
        parts = [f"width {self.width}", f"step {self.steps}", f"{self.tokens:,} tokens"]
        return Text.assemble(
            (printable(self.title), "bold"),
            ("  ".join(["", *parts, f"{speed:,.1f} tokens/s"]), "dim"),
            no_wrap=True,
            overflow="ellipsis",
        )

    def live(self, console: Console) -> Live:
        """A context in which they are shown while they grow; nothing stays on the screen after."""
        return Live(
            self.growing(console),  # the first frame, which is drawn at once
            console=console,
            get_renderable=lambda: self.growing(console),
            refresh_per_second=FRAMES_PER_SECOND,
            transient=True,
        )

    def growing(self, console: Console) -> RenderableType:
        """What fits on the screen: the end of every row, and an empty line, where the terminal can
        echo a Ctrl-C without pushing anything out of place."""
        across, lines = _grid(self.width, console.width, console.height - 3)
        if lines < MIN_LINES:
            room = max(console.height - 4, 1)
            shown = self.rows[:room]
            more = [Text(f"and {self.width - room} more rows", style="dim")]
            each = [self._one_line(i, row, console) for i, row in enumerate(shown)]
            return Group(self.status(), *each, *(more if self.width > room else []), Text())
        inner = console.width // across - 4
        bodies = [_tail(console, row.text, inner, lines) for row in self.rows]
        # Panels grow with the longest row: empty ones would only push the prompt off the screen.
        tallest = max(MIN_LINES, *(len(body) for body in bodies))
        texts = [Text("\n").join(body) for body in bodies]
        return Group(self.status(), self._panels(texts, across, [tallest] * self.width), Text())

    def final(
        self, console: Console, styles: Sequence[str], answers: Sequence[str | None]
    ) -> RenderableType:
        """All rows whole, their borders in the colours of what they answered."""
        across, _ = _grid(self.width, console.width, console.height)
        inner = console.width // across - 4
        bodies = [Text(printable(row.text).strip()) for row in self.rows]
        lines = [len(body.wrap(console, inner)) for body in bodies]
        heights = [
            max(lines[row - row % across : row - row % across + across])
            for row in range(self.width)
        ]
        return Group(self.status(), self._panels(bodies, across, heights, styles, answers))

    def _panels(
        self,
        bodies: Sequence[Text],
        across: int,
        lines: Sequence[int],
        styles: Sequence[str] | None = None,
        answers: Sequence[str | None] = (),
    ) -> RenderableType:
        grid = Table.grid(expand=True)
        for _ in range(across):
            grid.add_column(ratio=1)
        panels = [
            Panel(
                body,
                title=_title(index, row),
                title_align="left",
                subtitle=short(answers[index]) if answers else None,
                subtitle_align="right",
                height=lines[index] + 2,
                box=box.ROUNDED,
                border_style=styles[index] if styles else _style(row),
            )
            for index, (row, body) in enumerate(zip(self.rows, bodies, strict=True))
        ]
        for start in range(0, self.width, across):
            grid.add_row(*panels[start : start + across])
        return grid

    def _one_line(self, index: int, row: Row, console: Console) -> Text:
        title = _title(index, row)
        room = max(console.width - title.cell_len - 2, 1)
        text = " ".join(printable(row.text[-4 * room :]).split())
        while Text(text).cell_len > room:
            text = text[1:]
        return Text.assemble(title, "  ", text, style=_style(row), no_wrap=True)


def _grid(width: int, columns: int, height: int) -> tuple[int, int]:
    """How many panels stand side by side, and how many lines of text each has.

    >>> _grid(8, 140, 40), _grid(8, 80, 24), _grid(2, 140, 40)
    ((4, 18), (3, 6), (2, 38))
    """
    most = max(1, min(width, columns // MIN_COLUMN))
    down = -(-width // most)
    across = -(-width // down)  # 6 rows where 5 fit stand as 3 and 3
    return across, height // down - 2


def _tail(console: Console, text: str, width: int, lines: int) -> list[Text]:
    """The last lines of a text as it wraps at `width`."""
    # More than fits cannot show: wrapping a whole long row at every step would take its time.
    wrapped = Text(printable(text[-2 * width * lines :])).wrap(console, width, tab_size=4)
    return list(wrapped[-lines:])


def _title(index: int, row: Row) -> Text:
    return Text(f"{index + 1} {ENDS.get(row.finish_reason or '', '·')} {row.tokens} tokens")


def _style(row: Row) -> str:
    return "bright_black" if row.finish_reason else "cyan"
