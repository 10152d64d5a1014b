"""A group of rows, try by try, beside the same rows alone: on a terminal, and as plain text."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from interlace.cli.demo.spread import Found, Mark
from interlace.tasks.tiny_countdown import TRIES, TRY_TOKENS

SIGNS: dict[Mark, str] = {"miss": " ", "first": "*", "taken": ">", "own": "+", "again": "="}
STYLES: dict[Mark, str] = {
    "miss": "dim",
    "first": "bold black on cyan",
    "taken": "bold cyan",
    "own": "green",
    "again": "cyan",
}
LEGEND: tuple[tuple[Mark, str], ...] = (
    ("first", "first find of the group"),
    ("taken", "taken over from a sibling"),
    ("own", "hit in another way"),
    ("again", "written again"),
)
SECONDS_A_TOKEN, SECONDS_A_TRY = 0.06, 0.7


class GroupView:
    """Shows the group of `group.json`.

    Args:
        outcome: its content.
    """

    def __init__(self, outcome: Mapping[str, Any]) -> None:
        from interlace.tasks import get_task

        task = get_task("tiny-countdown")
        (example,) = [one for one in task if one.id == outcome["example"]]
        self.outcome = outcome
        self.together = Found(task, example, outcome["together"])
        self.alone = Found(task, example, outcome["alone"])
        lengths = [len(_short(one.tokens)) for f in (self.together, self.alone) for r in f.rows
                   for one in r]  # fmt: skip
        self._column = max(lengths, default=0)

    @property
    def width(self) -> int:
        """W."""
        return len(self.outcome["together"])

    def play(self, console: Console) -> None:
        """Replay the steps in place; the last one stays."""
        steps = TRIES * TRY_TOKENS
        with Live(self.frame(console, 0), console=console, auto_refresh=False) as live:
            for step in range(1, steps + 1):
                live.update(self.frame(console, step), refresh=True)
                time.sleep(SECONDS_A_TRY if step % TRY_TOKENS == 0 else SECONDS_A_TOKEN)

    def frame(self, console: Console, step: int | None = None) -> RenderableType:
        """Both groups after so many steps; None for all."""
        titles = (f"One group of {self.width}: rows see each other", "The same weights, rows alone")
        tables = [
            self._table(found, title, step)
            for found, title in zip((self.together, self.alone), titles, strict=True)
        ]
        needed = 2 * (TRIES * (self._column + 3) + 5) + 2
        both: RenderableType = Group(*tables)
        if console.width >= needed:
            both = Columns(tables, padding=(0, 2))
        return Group(self._head(step), both, self._legend())

    def plain(self) -> str:
        """Both groups as text, finds marked by a sign before them."""
        parts = [self._head(None).plain]
        for found, title in (
            (self.together, f"One group of {self.width}: rows see each other"),
            (self.alone, "The same weights, rows alone"),
        ):
            parts += ["", title]
            for index, row in enumerate(found.rows):
                cells = [
                    SIGNS[found.mark(index, k)] + _short(one.tokens).ljust(self._column)
                    for k, one in enumerate(row)
                ]
                parts.append(f"  row {index + 1}  {'  '.join(cells)}".rstrip())
        legend = "   ".join(f"{SIGNS[mark]} {text}" for mark, text in LEGEND)
        return "\n".join([*parts, "", legend])

    def sentences(self) -> list[str]:
        """What is to be said of it: that it was picked, and how often such a thing happens."""
        taken, width = self.together.count("taken"), self.width
        first = (
            f"This group was picked out of {self.outcome['groups']}, because it shows spreading "
            f"best: {taken} of its {width} rows took over a sibling's find."
            if taken
            else f"In none of the {self.outcome['groups']} groups did a row take over a sibling's "
            "find; this is one of them."
        )
        together = self.outcome["following_together"]
        alone = self.outcome["following_alone"]
        return [
            first,
            "Over all groups: once a sibling has hit, a row that has not hits at its next try in "
            f"{_share(together['after'])}. The same weights with rows alone, in sets of {width}: "
            f"{_share(alone['after'])} (there a sibling's hit only says that the problem is easy). "
            f"Before any sibling has hit: {_share(together['before'])}, and alone "
            f"{_share(alone['before'])}.",
        ]

    def _head(self, step: int | None) -> Text:
        numbers, _, target = str(self.outcome["prompt"]).rstrip(" :").partition(" -> ")
        text = Text.assemble(
            "Reach ", (target, "bold"), " with ", (", ".join(numbers.split()), "bold")
        )
        return text if step is None else text.append(f"   step {step}", "dim")

    def _table(self, found: Found, title: str, step: int | None) -> Table:
        table = Table(title=title, title_justify="left", title_style="bold", box=None)
        table.add_column("row", justify="right", style="dim")
        for k in range(TRIES):
            table.add_column(f"try {k + 1}", min_width=self._column + 1, no_wrap=True)
        steps = TRIES * TRY_TOKENS if step is None else step
        for index, row in enumerate(found.rows):
            cells = [_cell(found, index, k, steps - k * TRY_TOKENS) for k in range(len(row))]
            table.add_row(str(index + 1), *cells)
        return table

    def _legend(self) -> Text:
        parts = [(f"{SIGNS[mark]} {text}", STYLES[mark]) for mark, text in LEGEND]
        return Text("   ").join(Text(*part) for part in parts)


def _cell(found: Found, row: int, k: int, shown: int) -> Text:
    """A try as far as it is written; what it is shows once its value stands there."""
    one = found.rows[row][k]
    if shown <= 0:
        return Text("")
    if shown < len(one.tokens):
        return Text(" " + _short(one.tokens[:shown]))
    mark = found.mark(row, k)
    return Text(SIGNS[mark] + _short(one.tokens), STYLES[mark])


def _short(tokens: tuple[str, ...]) -> str:
    return "".join(tokens)


def _share(counts: list[int]) -> str:
    hits, tries = counts
    return f"{100 * hits / tries:.0f} % ({hits} of {tries} tries)" if tries else "no try at all"
