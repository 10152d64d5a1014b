"""Who listened to whom in a group: heat maps of rows against rows, in a terminal and as a PNG.

Axes: T steps, L layers with blocks, W width. Readers stand one below the other, the rows that they
read side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from interlace.errors import ConfigError, require
from interlace.terminal import printable

if TYPE_CHECKING:
    from interlace.engine.types import GroupOutput

Map = tuple[str, Float[np.ndarray, "W W"]]  # a title, and the shares in it
NOBODY = "No row listens to another here: at width 1, or where no block attends to rows."
PNG_TEXT = 48  # characters of a row beside its map


def maps_of(group: GroupOutput, layers: Sequence[int] = ()) -> list[Map]:
    """The heat maps of a group that was sampled with `record_attention="layers"`, averaged over
    heads and over the steps of each reader: of each layer named, from 1, else of their mean; none
    where nobody listened.

    Raises:
        ConfigError: for a layer without a block.
    """
    if not group.attention or len(group.completions) == 1:
        return []
    steps = np.stack(group.attention)  # T L W W
    read = np.maximum((steps.sum(axis=-1) > 0).sum(axis=0), 1)  # L W
    means = steps.sum(axis=0) / read[..., None]
    count = len(means)
    if not layers:
        return [(f"mean of {count} layers" if count > 1 else "one layer", means.mean(axis=0))]
    wrong = [layer for layer in layers if not 1 <= layer <= count]
    if wrong:
        raise ConfigError(
            f"--attention-layer counts the layers with blocks from 1 to {count}; got {wrong[0]}."
        )
    return [(f"layer {layer} of {count}", means[layer - 1]) for layer in layers]


def view(maps: Sequence[Map], texts: Sequence[str], console: Console) -> RenderableType:
    """The maps one below the other, each row's text beside it; on a terminal shades show the per
    cent, too."""
    if not maps:
        return Text(NOBODY, style="yellow")
    return Group(*(_table(*one, texts, console) for one in maps))


def write_png(maps: Sequence[Map], texts: Sequence[str], path: Path) -> None:
    """Draw the maps side by side, the rows' texts at the left."""
    if not maps:
        raise ConfigError(f"--attention-png has nothing to draw. {NOBODY}")
    require("matplotlib", "eval", "A figure")
    import matplotlib as mpl

    from interlace.evaluation.figures import STYLE

    with mpl.rc_context(STYLE | {"axes.grid": False}):
        _figure(maps, [_line(text)[-PNG_TEXT:] for text in texts]).savefig(path, dpi=200)


def _figure(maps: Sequence[Map], texts: Sequence[str]):  # type: ignore[no-untyped-def]
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    width, most = len(texts), max(float(shares.max()) for _, shares in maps)
    side = max(1.6, 0.28 * width)  # inches
    figure = Figure(figsize=(2.8 + side * len(maps), side + 0.7), layout="constrained")
    FigureCanvasAgg(figure)
    for place, (axes, (title, shares)) in enumerate(
        zip(figure.subplots(1, len(maps), squeeze=False)[0], maps, strict=True)
    ):
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=most)
        for row, column in np.ndindex(*shares.shape):
            shade = "white" if shares[row, column] > 0.6 * most else "#333333"
            axes.text(column, row, f"{100 * shares[row, column]:.0f}", color=shade, fontsize=5,
                      ha="center", va="center")  # fmt: skip
        names = [f"{text}  {row}" for row, text in enumerate(texts, start=1)]
        shown = names if place == 0 else [str(row) for row in range(1, width + 1)]
        # A "$" in a row's text would begin mathematics.
        axes.set_yticks(range(width), [name.replace("$", r"\$") for name in shown], fontsize=5)
        axes.set_xticks(range(width), range(1, width + 1), fontsize=5)
        axes.set_title(f"{title}, %")
        axes.set_xlabel("is read")
    return figure


def _table(
    title: str, shares: Float[np.ndarray, "W W"], texts: Sequence[str], console: Console
) -> Table:
    most = max(float(shares.max()), 1e-6)
    table = Table.grid(padding=0)
    for _ in range(len(shares) + 1):
        table.add_column(width=4, justify="right", no_wrap=True)
    table.add_column(no_wrap=True, overflow="ellipsis")
    table.title, table.title_justify = f"row listens to row, per cent: {title}", "left"
    table.add_row("", *(str(place) for place in range(1, len(shares) + 1)), style="dim")
    room = max(console.width - 4 * len(shares) - 6, 1)
    for place, (own, text) in enumerate(zip(shares, texts, strict=True), start=1):
        cells = [Text(f"{100 * one:3.0f} ", style=_shade(one / most)) for one in own]
        table.add_row(f"{place} ", *cells, f"  {_line(text)[-room:]}")
    return table


def _shade(share: float) -> str:
    """From the background's black to a full blue; the number in it stays readable."""
    red, green, blue = (round(share * full) for full in (40, 120, 255))
    return f"{'white' if share > 0.2 else 'bright_black'} on rgb({red},{green},{blue})"


def _line(text: str) -> str:
    return " ".join(printable(text).split())
