"""The experiment's figures against width, and the names at the ends of lines.

The library draws such figures, too. These ones begin shares at 0, and of votes they name the widths
on the axis, because all arms have the same tokens at every width.
"""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from interlace.evaluation.drawing import (
    HEIGHT,
    Look,
    apart,
    draw_line,
    height,
    looks,
    new_figure,
    width_axis,
)
from interlace.evaluation.results import ArmResult, Measurement

Points = Sequence[tuple[float, Measurement]]
LINE = 9.5 / (HEIGHT * 72 * 0.72)  # of a text, as a share of the axes' height
SPREAD = 0.045  # in doublings, from arm to arm, so that intervals at one width can be told apart


def accuracy(results: Sequence[ArmResult]) -> Figure:
    """pass@1 against width."""
    figure, (axes,) = new_figure(1)
    against_width(axes, results, "pass@1", "pass@1 (%)")
    return figure


def diversity(results: Sequence[ArmResult]) -> Figure:
    """Coverage, and distinct answers of a group, against width."""
    figure, (left, right) = new_figure(2)
    against_width(left, results, "coverage", "coverage, any of W rows right (%)")
    against_width(right, results, "distinct_answers", "distinct answers of W rows")
    return figure


def votes(results: Sequence[ArmResult]) -> Figure:
    """maj@W against width, which stands for tokens: every arm has as many at a width."""
    figure, (axes,) = new_figure(1)
    against_width(axes, results, "maj", "maj@W (%) at equal tokens")
    most = {
        width: max(result.get("tokens", width).estimate.value for result in results)
        for width in results[0].widths
    }
    names = [f"{width}\n{tokens:,.0f}" for width, tokens in most.items()]
    axes.set_xticks(list(most), names)
    axes.set_xlabel("width W, and tokens a problem (all W rows)")
    return figure


def against_width(axes: Axes, results: Sequence[ArmResult], metric: str, title: str) -> None:
    """One metric of all arms, from 0."""
    named = []
    drawn = looks(results)
    for place, (result, look) in enumerate(drawn):
        series = result.series(metric)
        shift = 2 ** (SPREAD * (place - (len(drawn) - 1) / 2))
        # One number over independent rows holds at every width: a line, and no points on it.
        one = len({id(entry) for _, entry in series}) < len(series)
        points = [(width * (1 if one else shift), entry) for width, entry in series]
        draw_line(axes, points, look, band=one, markers=not one)
        named.append((points, result.arm, look))
    width_axis(axes, list(results[0].widths))
    axes.set_title(title, loc="left")
    axes.set_ylim(bottom=0)
    name_ends(axes, named)


def name_ends(axes: Axes, named: Sequence[tuple[Points, str, Look]]) -> None:
    """Names beside the ends of lines, moved apart; a thin line leads from a moved name to its end.

    It begins at the name's left edge. The library's begins at the middle of the name and may cross
    the name above.
    """
    low, high = axes.get_ylim()
    gap = LINE * (high - low)
    ends = [(height(points[-1][1])[0], points[-1][0], name, look) for points, name, look in named]
    ends.sort(key=lambda end: end[0])
    places = apart([y for y, *_ in ends], gap, low, high)
    for (y, x, name, look), place in zip(ends, places, strict=True):
        leader = {"arrowstyle": "-", "color": look.colour, "linewidth": 0.5, "alpha": 0.6}
        leader |= {"shrinkA": 0, "shrinkB": 4, "relpos": (0, 0.5)}
        axes.annotate(
            name,
            (x, y),
            xytext=(1.05, place),
            textcoords=axes.get_yaxis_transform(),
            arrowprops=leader if abs(place - y) > gap / 3 else None,
            annotation_clip=False,
            va="center",
            ha="left",
            color=look.colour,
        )
