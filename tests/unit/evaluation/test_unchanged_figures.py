"""Figures of a real run, frozen when intervals and fits were still this library's own code.

`unchanged_figures.json` holds value, low and high of the countdown experiment's first seed: every
measurement at width 8, every gain, what independent votes need, and every fit. What computes them
may change; they may not. Three nulls stand for a gain relative to one that is not clearly above 0.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from interlace.evaluation.report import Report, make_report
from support.processes import modules_of

FROZEN = Path(__file__).with_name("unchanged_figures.json")
ARMS = ("base", "rlvr", "bridge-mixed")
Figures = dict[str, list[float | None]]


@pytest.fixture(scope="module")
def report() -> Report:
    with modules_of("01-countdown", "units", "outcomes") as (units, outcomes):
        places, config = units.Places(units.HERE), units.load_config()
        chosen = {f"seed-0/{arm}/final" for arm in ARMS}
        found = [unit for unit in units.plan(config) if unit.name in chosen]
        return make_report([outcomes.load(places, unit) for unit in found])


def figures_of(report: Report) -> Figures:
    return {name: [e[end] for end in ("value", "low", "high")] for name, e in _named(report)}


def _named(report: Report) -> Iterator[tuple[str, dict[str, Any]]]:
    values = report.to_json()
    for result in values["results"]:
        for row in result["measurements"]:
            if row["width"] == 8 or row["k"] == 1:
                yield f"{result['arm']} {row['metric']} {row['k']} {row['threshold']}", row
    for comparison in values["comparisons"]:
        for row in comparison["rows"]:
            for kind in ("gain", "relative_gain"):
                if row[kind] is not None:
                    name = f"{kind} of {row['arm']} in {comparison['metric']}"
                    yield f"{name} {comparison['width']}", row[kind]
    for entry in values["efficiencies"]:
        for kind in ("needed_width", "needed_tokens", "token_ratio"):
            arms = f"{entry['independent_arm']} for {entry['coupled_arm']}"
            yield f"{kind} of {arms} {entry['width']}", entry[kind]
    for fit in values["fits"]:
        for name, parameter in fit["parameters"].items():
            yield f"{name} of {fit['arm']} {fit['metric']} {fit['form']}", parameter
        quality = {"value": fit["rmse"], "low": fit["r2"], "high": max(fit["standardised"])}
        yield f"quality of {fit['arm']} {fit['metric']} {fit['form']}", quality


def test_figures_are_those_of_the_library_before(report: Report) -> None:
    frozen, found = json.loads(FROZEN.read_text()), figures_of(report)
    assert found.keys() == frozen.keys()
    assert len(frozen) > 100
    for name, expected in frozen.items():
        assert [x is None for x in found[name]] == [x is None for x in expected], name
        numbers = [x for x in found[name] if x is not None]
        known = [x for x in expected if x is not None]
        assert numbers == pytest.approx(known, abs=1e-6, rel=1e-6), name
