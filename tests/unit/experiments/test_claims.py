"""experiments/09-claims: when a level is reached, what shares mean, whose laws they are."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from interlace.evaluation.results import ArmResult, Measurement, estimate_values
from support.processes import ROOT, modules_of

HOME = ROOT / "09-claims"
FIRST, LAST = ROOT / "01-countdown/results", ROOT / "07-blocks-last/results"
LONG, SMOLLM2 = ROOT / "05-long-run/results", ROOT / "08-smollm2/results"


@pytest.fixture(scope="module")
def claims() -> Iterator[Any]:
    before = list(sys.path)  # the script adds 01-countdown's folder
    try:
        with modules_of("09-claims", "claims") as (module,):
            yield module
    finally:
        sys.path[:] = before


def test_a_level_is_reached_by_the_mean_of_the_last_rollouts(claims: Any) -> None:
    nan = float("nan")  # a rollout without a prompt of the width
    curve = [0.1] * 9 + [nan, 0.3, 0.9, 0.9]
    assert claims.first_at(curve, 0.1) == 10
    assert claims.first_at(curve, 0.12) == 11
    assert claims.first_at(curve, 0.2) == 12
    with pytest.raises(ValueError, match="below"):
        claims.first_at(curve, 0.5)


def test_a_level_is_kept_from_where_no_later_mean_is_below(claims: Any) -> None:
    curve = [0.0, 1.0, 0.0, 0.0, 1.0, 1.0, 1.0]
    assert claims.first_at(curve, 0.5, 2) == 2
    assert claims.first_at(curve, 0.5, 2, True) == 5
    assert claims.first_at([1.0, 1.0], 0.5, 2, True) == 2
    with pytest.raises(ValueError, match="below"):
        claims.first_at([1.0, 1.0, 0.0, 0.0], 0.5, 2, True)


def test_a_share_and_its_inverse_have_inverse_intervals(claims: Any) -> None:
    shares = [0.2, 0.5, 0.4]
    there, back = claims.log_interval(shares), claims.log_interval([1 / s for s in shares])
    assert there.low < there.value < there.high
    for end, other in (("value", "value"), ("low", "high"), ("high", "low")):
        assert getattr(there, end) * getattr(back, other) == pytest.approx(1)


def of_law(*widths: int) -> ArmResult:
    """Fifty problems of very different difficulty, every one of them on the law d P^-.5."""
    difficulty = np.linspace(0.02, 0.98, 50)
    entries = []
    for width in widths:
        values = 1 - difficulty * width**-0.5
        estimate = estimate_values("pass@1", values, 0.95)
        entries.append(Measurement("pass@1", width, 1, None, estimate, values, 16))
    return ArmResult("arm", "task", 0, True, tuple(map(str, range(50))), tuple(entries))


def test_a_law_is_missed_by_what_is_measured_on_the_same_problems(claims: Any) -> None:
    narrow, found = of_law(1, 2, 4, 8, 16), of_law(64)
    own = found.get("pass@1", 64).estimate
    assert own.high - own.low > 0.02  # other problems would be easier or harder, for both
    missed = claims.missed(narrow, found, 64, {"form": "power"})
    assert missed.value == pytest.approx(0, abs=1e-6)
    assert missed.low == pytest.approx(0, abs=1e-6)
    assert missed.high == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("wide", "narrow"),
    [
        ("mixed", FIRST / "seed-0/bridge-mixed/final"),
        ("spliced", LAST / "seed-0/spliced-120/final"),
        ("spliced-narrow", LAST / "seed-0/spliced-120/final"),
        ("long", LONG / "seed-2/spliced-1080/final"),
        ("long-narrow", LONG / "seed-2/spliced-1080/final"),
        ("smollm2", SMOLLM2 / "seed-2/spliced/final"),
        ("smollm2-narrow", SMOLLM2 / "seed-2/spliced/final"),
    ],
)
def test_wide_records_are_of_the_models_that_the_laws_are_fitted_to(wide: str, narrow: Any) -> None:
    own, theirs = (
        json.loads((folder / "config.json").read_text(encoding="utf-8"))["settings"]
        for folder in (HOME / "wide/results" / wide, narrow)
    )
    assert own["model"]["weights"] == theirs["model"]["weights"]
    assert own["task"] == theirs["task"]
    assert own["sampling"] == theirs["sampling"]


def test_the_tables_are_those_of_the_records(claims: Any) -> None:
    values = json.loads((HOME / "claims.json").read_text(encoding="utf-8"))
    page = (HOME / "README.md").read_text(encoding="utf-8")
    for name, table in claims.sections_of(values).items():
        assert table in page, name
