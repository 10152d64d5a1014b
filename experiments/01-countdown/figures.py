"""The experiment's figures, in the library's style: t intervals over the seeds throughout."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from outcomes import over_seeds
from units import Config, Places, Unit, plan

from interlace.evaluation.drawing import (
    STYLE,
    Look,
    draw_line,
    height,
    label_ends,
    looks,
    new_figure,
)
from interlace.evaluation.figures import write_figures
from interlace.evaluation.intervals import seed_interval
from interlace.evaluation.report import Report
from interlace.evaluation.results import ArmResult, Measurement, estimate_from_json

FORMATS = ("png", "svg")
WINDOWS = 24  # points of a learning curve
TRAINED_WIDTH = 8


def draw(
    results: Sequence[ArmResult],
    found: Sequence[Mapping[str, Any]],
    config: Config,
    places: Places,
) -> list[Path]:
    """Write all figures; those of a single number against width come from the library."""
    folder = places.out / "figures"
    labels = config["labels"]
    shown = over_seeds(results, labels)
    written = write_figures(Report(results=tuple(shown)), folder, FORMATS)
    seeds = {result.seed for result in results}
    by_label = {result.arm: look for result, look in looks(shown)}
    arms = {arm: by_label[labels[arm]] for arm in config["arms"]}
    with mpl.rc_context(STYLE):
        figures = {
            "learning-curves": learning_curves(config, places, seeds, arms),
            "finds": finds_figure(found, labels),
        }
        for name, figure in figures.items():
            for kind in FORMATS if figure is not None else ():
                path = folder / f"{name}.{kind}"
                figure.savefig(path, dpi=200, metadata={"Date": None} if kind == "svg" else None)
                written.append(path)
    return written


def learning_curves(
    config: Config, places: Places, seeds: set[int | None], arms: Mapping[str, Look]
) -> Figure:
    """pass@1, and coverage of eight rows, of the training prompts against rollouts."""
    units = [u for u in plan(config) if u.kind == "train" and u.seed in seeds]
    figure, axes = new_figure(2)
    panels = (("pass@1", "pass@1 of training prompts (%)"), ("coverage", "any of 8 rows right (%)"))
    for place, (metric, title) in zip(axes, panels, strict=True):
        ends = []
        for arm, look in arms.items():
            own = [unit for unit in units if unit.arm == arm]
            for width in _widths(own, metric):
                name = config["labels"][arm] + (f", W = {width}" if width else "")
                style = Look(look.colour, look.marker, ":" if width == 1 else look.line)
                points = _curve([series(places, unit, metric, width) for unit in own])
                draw_line(place, points, style, band=True, markers=False)
                ends.append((points[-1][0], height(points[-1][1])[0], name, style))
        place.set_xlabel("rollouts")
        place.set_title(title, loc="left")
        label_ends(place, ends)
    return figure


def finds_figure(found: Sequence[Mapping[str, Any]], labels: Mapping[str, str]) -> Figure | None:
    """Hits of a try by what the siblings had found before it."""
    arms = list(dict.fromkeys(line["arm"] for line in found))
    if not arms:
        return None
    kinds = {
        ("coupled", "found"): ("seen find", Look("#D55E00", "o", "-")),
        ("coupled", "not found"): ("no find yet", Look("#E69F00", "s", "-")),
        ("isolated", "found"): ("find unseen", Look("#5f5f5f", "^", (0, (4, 1.5)))),
    }
    figure, axes = new_figure(len(arms))
    for arm, place in zip(arms, axes, strict=True):
        ends = []
        for (rows, given), (name, look) in kinds.items():
            chosen = [
                line
                for line in found
                if (line["arm"], line["rows"], line["given"]) == (arm, rows, given)
                and line["try"] != "any"
            ]
            points = [(int(line["try"]), _measurement(line["over_seeds"])) for line in chosen]
            if points:
                draw_line(place, points, look)
                ends.append((points[-1][0], height(points[-1][1])[0], name, look))
        place.set_xticks([2, 3, 4])
        place.set_xlabel("try")
        place.set_ylim(bottom=0)
        place.set_title(f"{labels[arm]}: tries that hit (%)", loc="left")
        label_ends(place, ends)
    return figure


def _widths(units: Sequence[Unit], metric: str) -> list[int | None]:
    """Widths to draw a line for: of an arm that mixes them the outer ones, of others its own."""
    mixed = units and isinstance(units[0].settings["trainer"]["width"], list)
    if not mixed:
        return [None] if units else []
    return [1, TRAINED_WIDTH] if metric == "pass@1" else [TRAINED_WIDTH]


def series(places: Places, unit: Unit, metric: str, width: int | None) -> list[float]:
    """A metric at every rollout; nan where no prompt had the width."""
    name = metric if width is None else f"width_{width}/{metric}"
    with gzip.open(places.results(unit.name) / f"{unit.lines}.gz", "rt") as file:
        lines = [json.loads(line) for line in file]
    return [line.get(name, np.nan) for line in lines if metric in line]


def _curve(series: Sequence[Sequence[float]]) -> list[tuple[float, Measurement]]:
    """Means of windows of rollouts, over the seeds."""
    shortest = min(map(len, series))
    size = max(shortest // WINDOWS, 1)
    points = []
    for start in range(0, shortest - size + 1, size):
        chunks = [np.asarray(one[start : start + size]) for one in series]
        values = [float(np.nanmean(chunk)) for chunk in chunks if not np.isnan(chunk).all()]
        if values:
            estimate = seed_interval(values)
            points.append((start + size / 2, _as_measurement(estimate)))
    return points


def _measurement(values: Mapping[str, Any]) -> Measurement:
    return _as_measurement(estimate_from_json(values))


def _as_measurement(estimate: Any) -> Measurement:
    return Measurement("pass@1", 1, 1, None, estimate, None, 1)
