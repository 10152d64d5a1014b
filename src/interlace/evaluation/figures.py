"""Figures of a report, as they go into a paper: vector files and PNG, a column wide.

Colours are told apart by colour-blind eyes (Okabe and Ito), arms also differ by marker and line,
and a legend below names them. matplotlib is imported when a figure is made, and never through
pyplot, so that no display is needed and no global state left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interlace.errors import require
from interlace.evaluation.report import Report
from interlace.evaluation.results import QUANTITIES, ArmResult, Measurement, tasks_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMN, PAGE, HEIGHT = 3.4, 7.0, 3.0  # inches
LEGEND = 0.4  # inches of a legend that a figure has room for; a higher one makes the figure higher
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
    require("matplotlib", "eval", "A figure")
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
    """Every line's name once, below all panels, in as many columns as fit.

    A legend of many rows makes the figure higher, so that the panels keep their size.
    """
    lines = {
        str(line.get_label()): line
        for axes in figure.axes
        for line in axes.get_lines()
        if not str(line.get_label()).startswith("_")
    }
    for columns in range(len(lines), 0, -1):
        drawn = figure.legend(
            lines.values(), lines.keys(), loc="outside lower center", ncols=columns
        )
        box = drawn.get_window_extent()
        if columns == 1 or box.width <= figure.bbox.width:
            figure.set_figheight(figure.get_figheight() + max(box.height / figure.dpi - LEGEND, 0))
            return
        drawn.remove()


FORMATS = ("pdf", "svg", "png")
NO_DATE: dict[str, Any] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}


def write_figures(
    report: Report, folder: str | Path, formats: Sequence[str] = FORMATS
) -> list[Path]:
    """Draw every figure that the report has numbers for.

    For each task: `accuracy` (pass@1 against width), `votes` (maj@W against tokens a problem),
    `g-pass` (G-Pass@k against tau, at the largest width of all arms), `diversity` (coverage and
    distinct answers against width), `latency` (seconds of a group against width, where some were
    timed). With several tasks the task's name comes first.

    Returns:
        The files written, in all `formats`.
    """
    import matplotlib as mpl

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    tasks = tasks_of(report.results)
    for task in tasks:
        results = [result for result in report.results if result.task == task]
        for name, draw in FIGURES.items():
            with mpl.rc_context(STYLE):
                figure = draw(results)
                if figure is None:
                    continue
                stem = f"{_file_name(task)}-{name}" if len(tasks) > 1 else name
                for kind in formats:
                    path = folder / f"{stem}.{kind}"
                    figure.savefig(path, dpi=200, metadata=NO_DATE.get(kind))
                    written.append(path)
    return written


def accuracy(results: Sequence[ArmResult]) -> Figure | None:
    """pass@1 against width, with intervals; of a single arm its other metrics too."""
    if len(results) > 1:
        return against_width([(lines_of(results, "pass@1"), "pass@1 (%)")])
    (result,) = results
    colours = ("#D55E00", "#0072B2", "#009E73", "#5f5f5f")
    lines = [
        (name, Look(colour, marker, "-"), result.series(metric))
        for (metric, name), colour, marker in zip(
            (("pass@1", "pass@1"), ("maj", "maj@W"), ("coverage", "any right")),
            colours,
            MARKERS,
            strict=False,
        )
    ]
    whole = [(w, e) for w in result.widths if (e := result.find("g_pass", w, w)) is not None]
    lines.append(("all right", Look(colours[3], MARKERS[3], "-"), whole))
    return against_width([(lines, f"{result.arm}, rows and sets of W (%)")])


def diversity(results: Sequence[ArmResult]) -> Figure | None:
    """Coverage, and distinct answers of a group, against width."""
    return against_width(
        [
            (lines_of(results, "coverage"), "coverage, any of W rows right (%)"),
            (lines_of(results, "distinct_answers"), "distinct answers of W rows"),
        ]
    )


def latency(results: Sequence[ArmResult]) -> Figure | None:
    """Seconds of a group that ran alone against width."""
    return against_width([(lines_of(results, "seconds"), "seconds of a group alone")])


def votes(results: Sequence[ArmResult]) -> Figure | None:
    """maj@W against the tokens that it costs, points labelled with their width."""
    figure, (axes,) = new_figure(1)
    lines = []
    for result, look in looks(results):
        pairs = [(result.find("tokens", width), entry) for width, entry in result.series("maj")]
        points = [(tokens.estimate.value, entry) for tokens, entry in pairs if tokens is not None]
        if points:
            lines.append((result, look, points))
            draw_line(axes, points, look, result.arm)
    if not lines:
        return None
    # At a width independent arms lie close together: numbers on the lowest of them do for all.
    lowest = min(
        (line for line in lines if not line[0].coupled),
        key=lambda line: height(line[2][-1][1])[0],
        default=None,
    )
    for line in lines:
        if line[0].coupled or line is lowest:
            for x, entry in line[2]:
                point = (x, height(entry)[0])
                number_point(axes, point, entry.width, line[1], above=line[0].coupled)
    axes.set_xscale("log", base=2)
    # Without powers: 1,024 rather than 2^10.
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}" if x >= 1 else f"{x:g}")
    axes.set_xlabel("tokens a problem (all W rows)")
    axes.set_title("maj@W (%), points numbered by W", loc="left")
    axes.set_ylim(bottom=0)
    legend(figure)
    return figure


def g_pass(results: Sequence[ArmResult]) -> Figure | None:
    """G-Pass@k against tau, with bands, at the largest k that all arms have."""
    common = set.intersection(*(set(result.widths) for result in results))
    k = max(common, default=1)
    if k == 1:
        return None
    figure, (axes,) = new_figure(1)
    for result, look in looks(results):
        points = [(float(entry.tau or 0), entry) for entry in result.g_pass(k)]
        draw_line(axes, points, look, result.arm, band=True, markers=k <= 8)
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "¼", "½", "¾", "1"])
    axes.set_xlabel(r"$\tau$: share of the rows that must be right")
    axes.set_title(rf"G-Pass@{k}$_\tau$ (%)", loc="left")
    axes.set_ylim(bottom=0)
    legend(figure)
    return figure


FIGURES: dict[str, Callable[[Sequence[ArmResult]], Any]] = {
    "accuracy": accuracy,
    "votes": votes,
    "g-pass": g_pass,
    "diversity": diversity,
    "latency": latency,
}


def lines_of(results: Sequence[ArmResult], metric: str) -> list[Line]:
    """A metric of every arm, in the arm's look."""
    return [(result.arm, look, result.series(metric)) for result, look in looks(results)]


def against_width(panels: Sequence[tuple[list[Line], str]]) -> Figure | None:
    """Panels of lines against width, from 0, each with its title; None without any line."""
    shown = [panel for panel in panels if any(series for _, _, series in panel[0])]
    if not shown:
        return None
    figure, all_axes = new_figure(len(shown))
    for axes, (lines, title) in zip(all_axes, shown, strict=True):
        for place, (name, look, series) in enumerate(lines):
            if not series:
                continue
            # Side by side, so that intervals at one width can be told apart.
            shift = 2 ** (0.045 * (place - (len(lines) - 1) / 2))
            # One number over independent rows holds at every width: a line, and no points on it.
            one = len({id(entry) for _, entry in series}) < len(series)
            points = [(width * (1 if one else shift), entry) for width, entry in series]
            draw_line(axes, points, look, name, band=one, markers=not one)
        width_axis(axes, sorted({width for _, _, series in lines for width, _ in series}))
        axes.set_title(title, loc="left")
        axes.set_ylim(bottom=0)
    legend(figure)
    return figure


def _file_name(task: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in task).strip("-") or "task"
