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

SIGNS: dict[Mark, str] = {
    "miss": " ", "first": "*", "same": ">", "unseen": "~", "own": "+", "again": "=",
}  # fmt: skip
STYLES: dict[Mark, str] = {
    "miss": "dim",
    "first": "bold black on cyan",
    "same": "bold cyan",
    "unseen": "bold yellow",
    "own": "green",
    "again": "cyan",
}
LEGEND: tuple[tuple[Mark, str], ...] = (
    ("first", "first find"),
    ("same", "same as a sibling's earlier find"),
    ("unseen", "the same, unseen: no row sees another"),
    ("own", "another find"),
    ("again", "hits again"),
)
NOTE = (
    "An expression that reaches the target is a find. What stands after = is the model's own "
    "arithmetic, which does not count and may be wrong (frac: not whole; neg: below 0). A row that "
    "has fewer than four tries ended itself there."
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
        self.alone = Found(task, example, outcome["alone"], coupled=False)
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
        return Group(self._head(step), both, self._legend(), Text(NOTE, "dim"))

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
        return "\n".join([*parts, "", legend, NOTE])

    def sentences(self) -> list[str]:
        """What is to be said of it: that it was picked, how often such a thing happens, and whether
        more often than by chance."""
        o, width = self.outcome, self.width
        same, unseen = self.together.count("same"), self.alone.count("unseen")
        together, alone = o["following_together"], o["following_alone"]
        picked = (
            f"This group was picked out of {o['groups']}, because it shows spreading best: {same} "
            f"of its {width} rows found the same as a sibling before them. Of the rows alone, "
            f"which see nobody, {unseen} did."
        )
        if not same:
            picked = (
                f"In none of the {o['groups']} groups did a row find the same as a sibling before "
                "it; this is one of them."
            )
        return [
            picked,
            f"Over all {o['groups']} groups of {o['problems']} problems: once a sibling has hit, a "
            f"row that has not hits at its next try in {_share(together['after'])}. The same "
            f"weights and problems with rows alone, in sets of {width}: {_share(alone['after'])}; "
            "there another row's hit only says that the problem is easy.",
            _verdict(o["beyond_alone"]),
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


def _verdict(beyond: list[float] | None) -> str:
    """What the coupled rows have beyond the rows alone: that alone may be called taken over."""
    if beyond is None:
        return "That is too little to compare."
    value, low, high = (f"{100 * one:+.0f}" for one in beyond)
    found = f"The difference is {value} points [{low}, {high}]: "
    if beyond[1] > 0:
        return found + "that much is taken over from siblings."
    return found + "this run does not show that rows take anything over from siblings."
