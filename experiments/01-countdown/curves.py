"""Learning curves: what the training prompts' rows did while they trained."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from units import Config, Places, Unit, plan

from interlace.evaluation.figures import Look, draw_line, legend, new_figure
from interlace.evaluation.intervals import seed_interval
from interlace.evaluation.results import Measurement

WINDOWS = 24  # points of a learning curve
ROWS = 8  # of a prompt; the trained width, too
ALONE = "#882255"  # width 1 of an arm that mixes widths, so that its band is told apart
PANELS = (
    ("pass@1", 1, "pass@1 of training prompts (%)"),
    ("coverage", ROWS, "any of 8 rows right (%)"),
)


def learning_curves(
    config: Config, places: Places, seeds: set[int | None], arms: Mapping[str, Look]
) -> Figure:
    """pass@1, and coverage of eight rows, of the training prompts against rollouts."""
    units = [u for u in plan(config) if u.kind == "train" and u.seed in seeds]
    figure, axes = new_figure(2)
    for place, (metric, k, title) in zip(axes, PANELS, strict=True):
        for arm, look in arms.items():
            own = [unit for unit in units if unit.arm == arm]
            for width in _widths(own, metric):
                name = config["labels"][arm] + (f", W = {width}" if width else "")
                style = Look(ALONE, look.marker, ":") if width == 1 else look
                points = [
                    (x, Measurement(metric, width or ROWS, k, None, seed_interval(values), None, k))
                    for x, values in _windows([series(places, u, metric, width) for u in own])
                ]
                draw_line(place, points, style, name, band=True, markers=False)
        place.set_xlabel("rollouts")
        place.set_title(title, loc="left")
        place.set_ylim(0, 100)
    legend(figure)
    return figure


def series(places: Places, unit: Unit, metric: str, width: int | None) -> list[float]:
    """A metric at every rollout; nan where no prompt had the width."""
    name = metric if width is None else f"width_{width}/{metric}"
    with gzip.open(places.results(unit.name) / f"{unit.lines}.gz", "rt") as file:
        lines = [json.loads(line) for line in file]
    return [line.get(name, np.nan) for line in lines if metric in line]


def _widths(units: Sequence[Unit], metric: str) -> list[int | None]:
    """Widths to draw a line for: of an arm that mixes them the outer ones, of others its own."""
    mixed = units and isinstance(units[0].settings["trainer"]["width"], list)
    if not mixed:
        return [None] if units else []
    return [1, ROWS] if metric == "pass@1" else [ROWS]


def _windows(series: Sequence[Sequence[float]]) -> list[tuple[float, list[float]]]:
    """Middles of windows of rollouts, with every seed's mean there."""
    shortest = min(map(len, series))
    size = max(shortest // WINDOWS, 1)
    points = []
    for start in range(0, shortest - size + 1, size):
        chunks = [np.asarray(one[start : start + size]) for one in series]
        values = [float(np.nanmean(chunk)) for chunk in chunks if not np.isnan(chunk).all()]
        if values:
            points.append((start + size / 2, values))
    return points
