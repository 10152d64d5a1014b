"""Paired comparison: what must match, what is averaged over what, and the paper's own numbers."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from interlace.errors import MetricError
from interlace.evaluation.compare import Comparison, average_seeds, check_same_problems, compare
from interlace.evaluation.intervals import difference_interval
from support.evaluation import made

RNG = np.random.default_rng(0)
DIFFICULTY = RNG.random(60)


def arm(name: str, gain: float, *, seed: int | None = None, **options):
    rng = np.random.default_rng([len(name), seed or 0, int(1000 * abs(gain))])
    values = np.clip(DIFFICULTY + gain + rng.normal(0, 0.05, 60), 0, 1)
    return made(name, {"pass@1": {4: values}}, seed=seed, **options)


def values(result):
    return result.get("pass@1", 4).values


def row(comparison: Comparison, name: str):
    return next(row for row in comparison.rows if row.arm == name)


def test_gains_are_paired_over_problems():
    base, rlvr, bridge = arm("base", 0), arm("RLVR-only", 0.05), arm("Bridge", 0.1)
    found = compare([base, rlvr, bridge], "base", width=4)
    assert (found.label, found.width, found.problems, found.tasks) == ("pass@1", 4, 60, ("toy",))
    assert [line.arm for line in found.rows] == ["base", "RLVR-only", "Bridge"]
    assert row(found, "base").gain is None
    expected = stats.ttest_rel(values(bridge), values(base)).confidence_interval()
    gain = row(found, "Bridge").gain
    assert gain.value == pytest.approx(values(bridge).mean() - values(base).mean())
    assert (gain.low, gain.high) == pytest.approx((expected.low, expected.high))
    # Unpaired, the problems' difficulty would hide it.
    assert gain.low > 0
    assert stats.ttest_ind(values(bridge), values(base)).confidence_interval().low < 0
    assert row(found, "Bridge").gain_by_seed == {}
    assert row(found, "Bridge").gain_over_seeds is None


def test_relative_gain_is_the_papers():
    """Means of 7 sets from the paper's table: 33.55, 37.75, 36.68, 39.40 give +39 %."""

    def constant(name: str, mean: float):
        return made(name, {"pass@1": {4: np.full(50, mean)}})

    arms = [
        constant(*pair)
        for pair in (
            ("base", 0.3355),
            ("RLVR-only", 0.3775),
            ("P-Match", 0.3668),
            ("Bridge", 0.3940),
        )
    ]
    found = row(compare(arms, "base", width=4), "Bridge")
    assert found.next_best == "RLVR-only"
    assert found.gain.value == pytest.approx(0.0585)
    assert found.relative_gain.value == pytest.approx(0.393, abs=0.0005)
    assert row(compare(arms, "base", width=4), "RLVR-only").next_best == "Bridge"


def test_relative_gain_has_fiellers_interval_over_problems():
    arms = [arm("base", 0), arm("RLVR-only", 0.05), arm("Bridge", 0.1)]
    found = row(compare(arms, "base", width=4), "Bridge").relative_gain
    top, bottom = (values(arms[i]) - values(arms[0]) for i in (2, 1))
    # At either end the difference top - ratio * bottom is just not significant.
    for end in (found.low, found.high):
        test = stats.ttest_1samp(top - (1 + end) * bottom, 0)
        # One degree of freedom less than problems, as there.
        assert test.pvalue == pytest.approx(0.05, abs=1e-6)
    assert found.method == "fieller"


def test_relative_gain_over_tasks_is_that_of_the_mean_gains():
    """Two tasks with the same values: as one task of twice the problems, but for one degree of
    freedom."""
    tasks = [
        made(result.arm, {"pass@1": {4: values(result)}}, task=task)
        for result in (arm("base", 0), arm("RLVR-only", 0.05), arm("Bridge", 0.1))
        for task in ("one", "two")
    ]
    doubled = [
        made(name, {"pass@1": {4: np.tile(values(arm(name, gain)), 2)}})
        for name, gain in (("base", 0), ("RLVR-only", 0.05), ("Bridge", 0.1))
    ]
    over, once = (
        row(compare(arms, "base", width=4), "Bridge").relative_gain for arms in (tasks, doubled)
    )
    assert over.value == pytest.approx(once.value)
    assert over.count == once.count == 120
    assert (over.low, over.high) == pytest.approx((once.low, once.high), rel=0.01)


def test_a_rival_that_gained_nothing_gives_no_interval():
    nothing = made("RLVR-only", {"pass@1": {4: values(arm("base", 0)) * 1.0}})
    found = compare([arm("base", 0), nothing, arm("Bridge", 0.1)], "base", width=4)
    assert row(found, "Bridge").relative_gain.low is None
    assert np.isnan(row(found, "Bridge").relative_gain.value)


@pytest.mark.parametrize("rival", [-0.3, -0.1, 0.0])
def test_a_gain_relative_to_a_rival_that_lost_is_undefined(rival):
    """Of two losses the larger would look like the larger gain: -30 over -10 points is +200 %."""
    arms = [arm("base", 0), arm("P-Match", rival), arm("Bridge", -0.35)]
    found = row(compare(arms, "base", width=4), "Bridge")
    assert found.next_best == "P-Match"
    assert np.isnan(found.relative_gain.value)
    assert (found.relative_gain.low, found.relative_gain.high) == (None, None)


def test_relative_to_a_rival_whose_gain_may_be_chance_is_undefined():
    """The rival gains a little in the mean, which its interval does not tell from nothing."""
    noise = np.tile([0.3, -0.28], 30)
    rival = made("P-Match", {"pass@1": {4: 0.5 + noise}})
    base, bridge = (
        made(n, {"pass@1": {4: np.full(60, m)}}) for n, m in (("base", 0.5), ("B", 0.7))
    )
    found = row(compare([base, rival, bridge], "base", width=4), "B")
    assert found.gain.low > 0
    assert np.isnan(found.relative_gain.value)


def test_over_seeds_a_ratio_needs_a_rival_that_gains_over_seeds():
    """Both seeds' rivals gain over problems, but so differently that seeds do not tell."""
    seeds = [1, 2]
    rivals = [arm("RLVR-only", gain, seed=s) for s, gain in zip(seeds, (0.02, 0.2), strict=True)]
    bridges = [arm("Bridge", 0.15, seed=seed) for seed in seeds]
    found = row(compare([arm("base", 0), *rivals, *bridges], "base", width=4), "Bridge")
    assert found.relative_gain.low is not None
    assert np.isnan(found.relative_gain_over_seeds.value)


def test_seeds_are_paired_within_and_compared_over():
    seeds = [1, 2, 3]
    bridges = [arm("Bridge", 0.1 + 0.01 * seed, seed=seed) for seed in seeds]
    rivals = [arm("RLVR-only", 0.05, seed=seed) for seed in seeds]
    base = arm("base", 0)
    found = compare([base, *rivals, *bridges], "base", width=4)
    line = row(found, "Bridge")
    assert found.seeds == (1, 2, 3)
    means = [(values(bridge) - values(base)).mean() for bridge in bridges]
    assert {seed: gain.value for seed, gain in line.gain_by_seed.items()} == pytest.approx(
        {"1": means[0], "2": means[1], "3": means[2]}
    )
    assert line.gain_by_seed["2"] == difference_interval([values(bridges[1]) - values(base)])
    over = stats.t.interval(0.95, 2, np.mean(means), stats.sem(means))
    assert (line.gain_over_seeds.low, line.gain_over_seeds.high) == pytest.approx(over)
    pooled = np.mean([values(bridge) for bridge in bridges], axis=0) - values(base)
    assert line.gain == difference_interval([pooled])
    ratios = line.relative_gain_over_seeds
    assert ratios.value == pytest.approx(
        np.mean(means) / np.mean([(values(r) - values(base)).mean() for r in rivals]) - 1
    )
    assert ratios.count == 3
    assert row(found, "base").gain_over_seeds is None


def test_an_arm_that_was_not_trained_here_has_no_interval_over_seeds():
    arms = [arm("base", 0), arm("other", 0.02), *(arm("Bridge", 0.1, seed=s) for s in (1, 2))]
    found = compare(arms, "base", width=4)
    assert row(found, "other").gain_over_seeds is None
    assert row(found, "other").gain_by_seed == {}
    assert row(found, "Bridge").gain_over_seeds is not None


def test_tasks_count_once_each():
    arms = [
        made(name, {"pass@1": {4: np.full(size, mean)}}, task=task)
        for name, means in (("base", (0.1, 0.5)), ("Bridge", (0.3, 0.6)))
        for task, size, mean in zip(("small", "large"), (20, 200), means, strict=True)
    ]
    line = row(compare(arms, "base", width=4), "Bridge")
    assert line.by_task == pytest.approx({"small": 0.3, "large": 0.6})
    assert line.mean == pytest.approx(0.45)
    assert line.gain.value == pytest.approx(0.15)


def test_problems_that_do_not_match_are_named():
    ids = tuple(f"p{index}" for index in range(59))
    other = made("Bridge", {"pass@1": {4: DIFFICULTY}}, ids=(*ids, "q1"))
    with pytest.raises(MetricError, match=r"p59 \(base\); q1 \(Bridge\)"):
        compare([arm("base", 0), other], "base", width=4)


def test_problems_in_another_order_are_refused():
    ids = tuple(f"p{index}" for index in reversed(range(60)))
    shuffled = made("Bridge", {"pass@1": {4: DIFFICULTY}}, ids=ids)
    with pytest.raises(MetricError, match="same order"):
        compare([arm("base", 0), shuffled], "base", width=4)


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ([arm("Bridge", 0.1, seed=1), arm("RLVR-only", 0, seed=2)], "same seeds on every task"),
        ([arm("Bridge", 0.1, seed=1), arm("Bridge", 0.1)], "same seeds on every task"),
        ([arm("Bridge", 0.1, seed=1), arm("Bridge", 0.2, seed=1)], "one result for each task"),
        ([made("Bridge", {"pass@1": {4: DIFFICULTY}}, task="other")], "same tasks"),
    ],
)
def test_seeds_and_tasks_must_match(others, message):
    with pytest.raises(MetricError, match=message):
        compare([arm("base", 0), *others], "base", width=4)


def test_the_base_must_be_there():
    with pytest.raises(MetricError, match="one of the arms Bridge; got 'base'"):
        compare([arm("Bridge", 0.1)], "base", width=4)
    with pytest.raises(MetricError, match="no maj at width 4"):
        compare([arm("base", 0), arm("Bridge", 0.1)], "base", metric="maj", width=4)


def test_two_tasks_are_not_one() -> None:
    others = [made(task, {"pass@1": {1: DIFFICULTY}}, task=task) for task in ("a", "b")]
    with pytest.raises(MetricError, match="need one task"):
        check_same_problems(*others)


def test_differences_of_quantities():
    first = made("a", {"tokens": {4: 100 + DIFFICULTY}})
    second = made("b", {"tokens": {4: 150 + 2 * DIFFICULTY}})
    found = row(compare([first, second], "a", metric="tokens", width=4), "b").gain
    assert found.value == pytest.approx(50 + DIFFICULTY.mean())
    assert found.low > 50


def test_seeds_average_within_problems():
    runs = [arm("Bridge", 0.1, seed=seed) for seed in (1, 2)]
    (merged,) = average_seeds(runs)
    assert merged.seed is None
    assert values(merged) == pytest.approx((values(runs[0]) + values(runs[1])) / 2)
    assert merged.get("pass@1", 4).estimate.value == pytest.approx(values(merged).mean())
    assert set(merged.provenance) == {"1", "2"}
    assert average_seeds(runs[:1]) == runs[:1]
