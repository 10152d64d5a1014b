"""What figures are drawn with: style, looks of arms, lines with intervals, a legend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from interlace.evaluation.results import QUANTITIES, ArmResult, Measurement

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMN, PAGE, HEIGHT = 3.4, 7.0, 3.0  # inches
GREY, INK = "#8a8a8a", "#333333"
COUPLED = ("#D55E00", "#CC79A7", "#E69F00")
INDEPENDENT = ("#5f5f5f", "#0072B2", "#009E73", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
STYLE: dict[str, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.size": 2.5,
    "ytick.major.size": 0,
    "lines.linewidth": 1.3,
    "lines.markersize": 4,
    "lines.markeredgewidth": 0,
    "legend.frameon": False,
    "legend.fontsize": 7,
    "legend.handlelength": 2.6,
    "text.color": INK,
    "axes.labelcolor": INK,
    # Text stays text, and the same figure gives the same bytes.
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "svg.hashsalt": "interlace",
}


@dataclass(frozen=True)
class Look:
    """How a line is drawn, so that it is told apart by colour, by marker and by dashes."""

    colour: str
    marker: str
    line: Any


# A name, how to draw it, and measurements against width.
Line = tuple[str, Look, list[tuple[int, Measurement]]]


def looks(results: Sequence[ArmResult]) -> list[tuple[ArmResult, Look]]:
    """Each arm's look; coupled arms are drawn last, on top."""
    ordered = sorted(results, key=lambda result: result.coupled)
    found, counts = [], {True: 0, False: 0}
    for place, result in enumerate(ordered):
        colours = COUPLED if result.coupled else INDEPENDENT
        colour = colours[counts[result.coupled] % len(colours)]
        counts[result.coupled] += 1
        line = "-" if result.coupled else (0, (4, 1.5))
        found.append((result, Look(colour, MARKERS[place % len(MARKERS)], line)))
    return found


def new_figure(panels: int) -> tuple[Figure, list[Axes]]:
    """A figure of one column for one panel, of the page for more; no display, no global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    size = (COLUMN if panels == 1 else PAGE, HEIGHT)
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, panels, squeeze=False)[0]
    return figure, list(axes)


def height(entry: Measurement) -> tuple[float, float, float]:
    """Value, and distances to the interval's ends, in the unit of the axis."""
    scale = 1 if entry.metric in QUANTITIES else 100
    value = entry.estimate.value
    low = value if entry.estimate.low is None else entry.estimate.low
    high = value if entry.estimate.high is None else entry.estimate.high
    return scale * value, scale * (value - low), scale * (high - value)


def draw_line(
    axes: Axes,
    points: Sequence[tuple[float, Measurement]],
    look: Look,
    name: str | None = None,
    *,
    band: bool = False,
    markers: bool = True,
) -> None:
    """A line with its intervals, as bars or as a band; its name goes into the legend."""
    x = [place for place, _ in points]
    y, below, above = zip(*(height(entry) for _, entry in points), strict=True)
    marker = look.marker if markers else None
    axes.plot(x, y, color=look.colour, linestyle=look.line, marker=marker, label=name)
    if band:
        low = [value - step for value, step in zip(y, below, strict=True)]
        high = [value + step for value, step in zip(y, above, strict=True)]
        axes.fill_between(x, low, high, color=look.colour, alpha=0.13, linewidth=0)
    else:
        axes.errorbar(
            x, y, yerr=[below, above], fmt="none", ecolor=look.colour, elinewidth=0.9, alpha=0.7
        )


def number_point(
    axes: Axes, point: tuple[float, float], width: int, look: Look, above: bool
) -> None:
    """A point's width beside it: to the upper left, or to the lower right."""
    side = 1 if above else -1
    axes.annotate(
        str(width),
        point,
        xytext=(-3 * side, 3 * side),
        textcoords="offset points",
        ha="right" if above else "left",
        va="bottom" if above else "top",
        fontsize=6,
        color=look.colour,
    )


def width_axis(axes: Axes, widths: list[int]) -> None:
    """Widths, doubling from tick to tick."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(widths, [str(width) for width in widths])
    axes.minorticks_off()
    axes.set_xlabel("width W")


def legend(figure: Figure) -> None:
    """Every line's name once, below all panels."""
    lines = {
        str(line.get_label()): line
        for axes in figure.axes
        for line in axes.get_lines()
        if not str(line.get_label()).startswith("_")
    }
    columns = 2 if figure.get_figwidth() < PAGE else 5
    figure.legend(
        lines.values(), lines.keys(), loc="outside lower center", ncols=min(columns, len(lines))
    )


def plain_numbers() -> Any:
    """A formatter without powers: 1,024 rather than 2^10."""
    from matplotlib.ticker import FuncFormatter

    return FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}")
