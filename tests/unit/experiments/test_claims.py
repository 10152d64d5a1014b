"""experiments/09-claims: when a level is reached, what shares mean, whose laws they are."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from support.processes import ROOT, modules_of

HOME = ROOT / "09-claims"
FIRST, LAST = ROOT / "01-countdown/results", ROOT / "07-blocks-last/results"


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


def test_a_share_and_its_inverse_have_inverse_intervals(claims: Any) -> None:
    shares = [0.2, 0.5, 0.4]
    there, back = claims.log_interval(shares), claims.log_interval([1 / s for s in shares])
    assert there.low < there.value < there.high
    for end, other in (("value", "value"), ("low", "high"), ("high", "low")):
        assert getattr(there, end) * getattr(back, other) == pytest.approx(1)


@pytest.mark.parametrize(
    ("wide", "narrow"),
    [
        ("mixed", FIRST / "seed-0/bridge-mixed/final"),
        ("spliced", LAST / "seed-0/spliced-120/final"),
        ("spliced-narrow", LAST / "seed-0/spliced-120/final"),
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
