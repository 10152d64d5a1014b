"""The experiment's figures, in the library's style: t intervals over the seeds throughout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import matplotlib as mpl
from curves import learning_curves
from finds import ROWS
from matplotlib.figure import Figure
from outcomes import over_seeds
from units import Config, Places

from interlace.evaluation.figures import (
    STYLE,
    Look,
    accuracy,
    diversity,
    draw_line,
    g_pass,
    legend,
    looks,
    new_figure,
    votes,
)
from interlace.evaluation.intervals import Estimate
from interlace.evaluation.results import ArmResult, Measurement

FORMATS = ("png", "svg")
# Rows, what a sibling has: the line's name and look. The names are those of the README's table.
KINDS = {
    ("coupled", "found"): ("coupled, found", Look("#D55E00", "o", "-")),
    ("isolated", "found"): ("isolated, found", Look("#5f5f5f", "^", (0, (4, 1.5)))),
    ("coupled", "not found"): ("coupled, not found", Look("#E69F00", "s", "-")),
    ("isolated", "not found"): ("isolated, not found", Look("#0072B2", "v", (0, (4, 1.5)))),
}


def draw(
    results: Sequence[ArmResult],
    found: Sequence[Mapping[str, Any]],
    config: Config,
    places: Places,
) -> list[Path]:
    """Write all figures."""
    folder = places.out / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    labels = config["labels"]
    shown = over_seeds(results, labels)
    seeds = {result.seed for result in results}
    by_label = {result.arm: look for result, look in looks(shown)}
    arms = {arm: by_label[labels[arm]] for arm in config["arms"]}
    written = []
    with mpl.rc_context(STYLE):
        figures = {
            "accuracy": accuracy(shown),
            "votes": votes(shown),
            "g-pass": g_pass(shown),
            "diversity": diversity(shown),
            "learning-curves": learning_curves(config, places, seeds, arms),
            "finds": finds_figure(found, labels),
        }
        for name, figure in figures.items():
            for kind in FORMATS if figure is not None else ():
                path = folder / f"{name}.{kind}"
                figure.savefig(path, dpi=200, metadata={"Date": None} if kind == "svg" else None)
                written.append(path)
    return written


def finds_figure(found: Sequence[Mapping[str, Any]], labels: Mapping[str, str]) -> Figure | None:
    """Hits of a try by what the siblings had found before it; one scale for all arms."""
    arms = list(dict.fromkeys(line["arm"] for line in found))
    if not arms:
        return None
    tries = [line for line in found if line["try"] != "any"]
    ends = [line["over_seeds"]["high"] or line["over_seeds"]["value"] for line in tries]
    figure, axes = new_figure(len(arms))
    for arm, place in zip(arms, axes, strict=True):
        for (rows, given), (name, look) in KINDS.items():
            points = [
                (int(line["try"]), _hits(line))
                for line in tries
                if (line["arm"], line["rows"], line["given"]) == (arm, rows, given)
            ]
            if points:
                draw_line(place, points, look, name)
        place.set_xticks([2, 3, 4])
        place.set_xlabel("try")
        place.set_ylim(0, 105 * min(max(ends), 1))
        place.set_title(f"{labels[arm]}: tries that hit (%)", loc="left")
    legend(figure)
    return figure


def _hits(line: Mapping[str, Any]) -> Measurement:
    """The line's share of hits, as the library's drawing takes it."""
    found = line["over_seeds"]
    estimate = Estimate(**{entry.name: found[entry.name] for entry in fields(Estimate)})
    return Measurement("hits", ROWS, 1, None, estimate, None, ROWS)
