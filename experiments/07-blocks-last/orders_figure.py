"""Pictures of orders of training: rows that are right, and the gain, against rollouts of RLVR.

The report of an experiment draws its own; the front page's, of three experiments, is drawn by

    python experiments/07-blocks-last/orders_figure.py
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from orders import HERE, MAIN, load_config

from interlace.evaluation.figures import (
    COUPLED,
    INDEPENDENT,
    MARKERS,
    NO_DATE,
    STYLE,
    Look,
    draw_line,
    legend,
    new_figure,
)
from interlace.evaluation.intervals import Estimate
from interlace.evaluation.results import Measurement

# Title, experiment and queue of a panel on the front page, and the lines there.
FRONT_PAGE = (
    ("Countdown, 0.4 M parameters", "07-blocks-last", MAIN),
    ("13 times its problems", "05-long-run", MAIN),
    ("pair sums, SmolLM2-135M", "08-smollm2", "subtracting"),
)
SHOWN = ("RLVR-only", "blocks last", "SFT on the spliced texts")
FORMATS = ("png", "svg")
APART = 0.045  # of the way to the next number of rollouts: intervals stand beside each other
ROOM = 6  # points below and above all values; a longer interval leaves the picture
Values = Mapping[str, Any]
Curves = Mapping[str, Mapping[int, str]]  # a line's arms by rollouts; the first is held against
NO_PROBLEMS = np.empty(0)  # their values; a picture shows none


@dataclass(frozen=True)
class Line:
    """pass@1 of an arm for each number of rollouts, at one width."""

    name: str
    look: Look
    width: int
    arms: Mapping[int, str]


def draw(values: Values, curves: Curves, folder: Path) -> list[Path]:
    """Write an experiment's picture, from what its `results.json` holds, into a folder."""
    with mpl.rc_context(STYLE):
        figure, (left, right) = new_figure(2)
        lines = lines_of(values, curves)
        right_rows = draw_lines(left, lines, [measured(values, line) for line in lines])
        left.set_title("rows that are right (%)", loc="left")
        gains = draw_gains(right, values, lines)
        right.set_title(f"points over {lines[0].name}", loc="left")
        return save(figure, folder, "rollouts", [right_rows, gains])


def draw_front_page(folder: Path) -> list[Path]:
    """Write the gains of three experiments beside each other into a folder."""
    with mpl.rc_context(STYLE):
        figure, panels = new_figure(len(FRONT_PAGE))
        said = []
        for axes, (title, experiment, queue) in zip(panels, FRONT_PAGE, strict=True):
            home = HERE.parent / experiment
            curves = load_config(queue=queue, home=home)["curves"]
            out = home if queue == MAIN else home / queue
            values = json.loads((out / "results.json").read_text(encoding="utf-8"))
            lines = lines_of(values, {name: curves[name] for name in SHOWN})
            said.append(draw_gains(axes, values, lines))
            axes.set_title(title, loc="left")
        lowest, highest = zip(*(axes.get_ylim() for axes in panels), strict=True)
        for axes in panels:
            axes.set_ylim(min(lowest), max(highest))
        panels[0].set_ylabel(f"points over {lines[0].name}")
        return save(figure, folder, "gains", said)


def save(figure: Figure, folder: Path, name: str, said: Sequence[str]) -> list[Path]:
    """Write the figure with its legend in all formats; the panels in words are its description."""
    legend(figure)
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / f"{name}.{kind}" for kind in FORMATS]
    for path in written:
        metadata = {**NO_DATE.get(path.suffix[1:], {}), "Description": " | ".join(said)}
        figure.savefig(path, dpi=200, metadata=metadata)
    return written


def lines_of(values: Values, curves: Curves) -> list[Line]:
    """A line for independent rows; of coupled ones a line at W = 8 and one at W = 1."""
    found: list[Line] = []
    colours = {True: cycle(COUPLED), False: cycle(INDEPENDENT)}
    for (name, arms), marker in zip(curves.items(), cycle(MARKERS), strict=False):
        coupled = any(arm in values["widths"] for arm in arms.values())
        colour = next(colours[coupled])
        if coupled:
            found.append(Line(f"{name}, W = 8", Look(colour, marker, "-"), 8, arms))
            found.append(Line(f"{name}, W = 1", Look(colour, marker, ":"), 1, arms))
        else:
            found.append(Line(name, Look(colour, marker, (0, (4, 1.5))), 8, arms))
    return found


def measured(
    values: Values, line: Line, against: Line | None = None
) -> list[tuple[int, Measurement]]:
    """The line's pass@1 by rollouts, or its difference to another line's, as far as there is one:
    over the seeds that have it, of one seed over its problems."""
    found = []
    for rollouts, arm in line.arms.items():
        if against is None:
            entries = values["arms"].get(arm, [])
        else:
            pair = (arm, against.arms.get(rollouts))
            entries = [e for e in values["differences"] if (e["arm"], e["against"]) == pair]
        for entry in entries:
            if (entry["metric"], entry["width"]) == ("pass@1", line.width):
                over = entry["over_seeds" if len(entry["by_seed"]) > 1 else "over_problems"]
                estimate = Estimate(**over)
                found.append(
                    (rollouts, Measurement("pass@1", line.width, 1, None, estimate, NO_PROBLEMS, 1))
                )
    return found


def draw_gains(axes: Axes, values: Values, lines: Sequence[Line]) -> str:
    """What every line but the first adds to the first, which is 0; in words."""
    alone, *others = lines
    axes.axhline(0, color=alone.look.colour, linestyle=alone.look.line, linewidth=1)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:+.0f}" if v else "0"))
    return draw_lines(axes, others, [measured(values, line, alone) for line in others])


def draw_lines(
    axes: Axes, lines: Sequence[Line], points: Sequence[Sequence[tuple[int, Measurement]]]
) -> str:
    """Lines with their points, every number of rollouts as far from the next; in words."""
    ticks = sorted({rollouts for own in points for rollouts, _ in own})
    values = [100 * entry.estimate.value for own in points for _, entry in own]
    if not values:
        return ""  # of the arms, only the first are done
    for place, (line, own) in enumerate(zip(lines, points, strict=True)):
        shift = APART * (place - (len(lines) - 1) / 2)
        if own:
            shifted = [(ticks.index(rollouts) + shift, entry) for rollouts, entry in own]
            draw_line(axes, shifted, line.look, line.name)
    axes.set_ylim(min(values) - ROOM, max(values) + ROOM)
    axes.set_xticks(range(len(ticks)), [f"{rollouts:,}" for rollouts in ticks])
    axes.set_xlim(-0.5, len(ticks) - 0.5)
    axes.set_xlabel("rollouts of RLVR")
    return "; ".join(in_words(line, own) for line, own in zip(lines, points, strict=True) if own)


def in_words(line: Line, points: Sequence[tuple[int, Measurement]]) -> str:
    """A line's numbers."""
    said = [f"{100 * entry.estimate.value:.1f} after {rollouts:,}" for rollouts, entry in points]
    return f"{line.name}: {', '.join(said)}"


if __name__ == "__main__":
    for path in draw_front_page(HERE.parents[1] / "docs" / "assets"):
        print(f"wrote {path}")
