"""Parallel efficiency on curves whose crossing is known."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from interlace.errors import MetricError
from interlace.evaluation.compare import first_crossing, parallel_efficiency
from interlace.jsonl import to_json
from support.evaluation import made

PROBLEMS = 400
RANKS = np.arange(PROBLEMS) / PROBLEMS


def solved(share: float) -> np.ndarray:
    """The easiest share of the problems."""
    return (share > RANKS).astype(float)


def coupled(share: float, tokens: float = 500.0):
    return made("Bridge", {"maj": {4: solved(share)}, "tokens": {4: np.full(PROBLEMS, tokens)}})


def independent(curve: dict[int, float]):
    return made(
        "base",
        {
            "maj": {width: solved(share) for width, share in curve.items()},
            "row_tokens": {1: np.full(PROBLEMS, 100.0)},
        },
        coupled=False,
    )


def test_the_crossing_is_interpolated_in_log_width():
    found = parallel_efficiency(coupled(0.5), independent({1: 0.2, 4: 0.4, 16: 0.6, 64: 0.8}), 4)
    assert found.target.value == 0.5
    assert found.needed_width.value == pytest.approx(8)
    assert found.needed_tokens.value == pytest.approx(800)
    assert found.token_ratio.value == pytest.approx(1.6)
    assert found.reached
    assert found.largest == 64
    assert found.needed_width.low < 8 < found.needed_width.high
    assert found.token_ratio.low == pytest.approx(found.needed_width.low * 100 / 500)


def test_not_reached_within_what_was_sampled():
    found = parallel_efficiency(coupled(0.7), independent({1: 0.2, 4: 0.4, 16: 0.5}), 4)
    assert not found.reached
    assert math.isnan(found.needed_width.value)
    assert found.needed_width.high is None
    assert found.not_reached == 1.0
    assert to_json(found)["needed_width"]["value"] is None  # JSON has no NaN


def test_an_end_beyond_the_curve_is_open():
    """Reached at the last width, but not in every resample."""
    rng = np.random.default_rng(0)
    target = made(
        "Bridge",
        {
            "maj": {4: (rng.random(PROBLEMS) < 0.5).astype(float)},
            "tokens": {4: np.full(PROBLEMS, 500.0)},
        },
    )
    curve = {w: (rng.random(PROBLEMS) < s).astype(float) for w, s in ((1, 0.2), (16, 0.53))}
    base = made("base", {"maj": curve, "row_tokens": {1: np.full(PROBLEMS, 9.0)}}, coupled=False)
    found = parallel_efficiency(target, base, 4)
    assert found.reached
    assert found.needed_width.high is None
    assert found.needed_width.low < 16
    assert 0.025 < found.not_reached < 0.5


def test_problems_are_resampled_in_pairs():
    """The same problems solved by both arms: the crossing hardly moves, though accuracy would."""
    found = parallel_efficiency(coupled(0.5), independent({1: 0.2, 8: 0.5, 16: 0.7}), 4)
    assert found.needed_width.value == pytest.approx(8)
    # Unpaired, an accuracy of .5 +- .05 crosses between 5.6 and 9.5.
    assert found.needed_width.low > 7.9
    assert found.needed_width.high < 8.1


def test_the_interval_is_the_middle_of_the_resamples():
    """95 % of what the needed width is on problems drawn again, found here one draw at a time."""
    rng = np.random.default_rng(5)
    right = {w: (rng.random(PROBLEMS) < s).astype(float) for w, s in ((1, 0.2), (16, 0.8))}
    target = (rng.random(PROBLEMS) < 0.5).astype(float)
    bridge = made("Bridge", {"maj": {4: target}, "tokens": {4: np.full(PROBLEMS, 500.0)}})
    tokens = {1: np.full(PROBLEMS, 100.0)}
    base = made("base", {"maj": right, "row_tokens": tokens}, coupled=False)
    found = parallel_efficiency(bridge, base, 4).needed_width
    drawn = []
    for _ in range(2000):
        who = rng.integers(PROBLEMS, size=PROBLEMS)
        low, high = right[1][who].mean(), right[16][who].mean()
        drawn.append(16 ** ((target[who].mean() - low) / (high - low)))
    ends = np.quantile(drawn, [0.025, 0.975])
    assert np.log([found.low, found.high]) == pytest.approx(np.log(ends), abs=0.05)


def test_one_row_may_be_enough():
    found = parallel_efficiency(coupled(0.1), independent({1: 0.2, 4: 0.4}), 4)
    assert found.needed_width.value == 1.0
    assert found.token_ratio.value == pytest.approx(0.2)


def test_first_crossings():
    widths = np.array([1.0, 2.0, 4.0, 8.0])
    curves = np.array(
        [
            [0.1, 0.5, 0.3, 0.6],  # falls again: the first crossing counts
            [0.2, 0.2, 0.2, 0.4],  # flat, then up
            [0.5, 0.1, 0.1, 0.1],  # there from the start
            [0.1, 0.2, 0.3, 0.35],  # never
        ]
    )
    found = first_crossing(curves, widths, np.full(4, 0.4))
    assert found[:3] == pytest.approx([2**0.75, 8.0, 1.0])
    assert np.isnan(found[3])


def test_what_cannot_be_compared():
    base = independent({1: 0.2, 4: 0.4})
    with pytest.raises(MetricError, match="two widths or more"):
        parallel_efficiency(coupled(0.5), independent({4: 0.4}), 4)
    with pytest.raises(MetricError, match="'Bridge', coupled"):
        parallel_efficiency(coupled(0.5), coupled(0.4), 4)
    with pytest.raises(MetricError, match="no maj at width 8"):
        parallel_efficiency(coupled(0.5), base, 8)
    renamed = dataclasses.replace(base, example_ids=tuple(f"q{i}" for i in range(PROBLEMS)))
    with pytest.raises(MetricError, match="same problems"):
        parallel_efficiency(coupled(0.5), renamed, 4)
