"""Figures of a report, as they go into a paper: vector files and PNG, a column wide.

Colours are told apart by colour-blind eyes (Okabe and Ito), arms also differ by marker and line,
and a legend below names them. matplotlib is imported when a
figure is made, and never through pyplot, so that no display is needed and no global state left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interlace.evaluation.drawing import (
    MARKERS,
    STYLE,
    Line,
    Look,
    draw_line,
    height,
    legend,
    looks,
    new_figure,
    number_point,
    plain_numbers,
    width_axis,
)
from interlace.evaluation.report import Report
from interlace.evaluation.results import ArmResult, tasks_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("pdf", "svg", "png")


def write_figures(
    report: Report, folder: str | Path, formats: Sequence[str] = FORMATS, dpi: int = 200
) -> list[Path]:
    """Draw every figure that the report has numbers for.

    For each task: `accuracy` (pass@1 against width), `votes` (maj@W against tokens a problem),
    `g-pass` (G-Pass@k against tau, at the largest width of all arms), `diversity` (coverage and
    distinct answers against width), `latency` (seconds of a group against width, where some were
    timed). With several tasks the task's name comes first.

    Args:
        report: What to draw; one loaded from JSON will do.
        folder: Where to; made if missing.
        formats: File types that matplotlib writes.
        dpi: Of the PNG.

    Returns:
        The files written.
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
                    figure.savefig(path, dpi=dpi, metadata=_no_date(kind))
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
    axes.xaxis.set_major_formatter(plain_numbers())
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


def _no_date(kind: str) -> dict[str, Any] | None:
    return {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(kind)
