"""Arms compared over the same problems, in the paper's table layout; and what independent voting
must spend to reach what a coupled arm reaches.

Letters: E problems of a task, A arms, B resamples, K widths at which independent voting was
measured. Differences are taken problem by problem, so that the problems' own difficulty cancels.
Two intervals answer two questions:

- *over problems*: would the gain of these trained models show on other problems? A t interval of
  paired differences, averaged over seeds within each problem first.
- *over seeds*: would training again give the gain? Within each seed the mean paired difference,
  then a t interval over the seeds' means. A claim about training needs this one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Float

from interlace.errors import MetricError
from interlace.evaluation.intervals import (
    LEVEL,
    RESAMPLES,
    Estimate,
    difference_interval,
    ratio_interval,
    resampled_means,
    seed_interval,
)
from interlace.evaluation.results import (
    QUANTITIES,
    ArmResult,
    arms_of,
    estimate_values,
    tasks_of,
)


def check_same_problems(first: ArmResult, second: ArmResult) -> None:
    """Refuse results that have not the same problems in the same order."""
    if first.task == second.task and first.example_ids == second.example_ids:
        return
    if first.task != second.task:
        raise MetricError(
            f"Paired differences need one task; got {first.task!r} ({first.arm}) and "
            f"{second.task!r} ({second.arm}). Compare task by task, or pass all tasks to compare."
        )
    only = [
        f"{', '.join(sorted(more)[:5])}{' and more' if len(more) > 5 else ''} ({arm})"
        for arm, more in (
            (first.arm, set(first.example_ids) - set(second.example_ids)),
            (second.arm, set(second.example_ids) - set(first.example_ids)),
        )
        if more
    ]
    if not only:
        raise MetricError(
            f"Paired differences need the problems in the same order; {first.arm!r} and "
            f"{second.arm!r} have {first.task!r} in two orders. Measure both from their records."
        )
    raise MetricError(
        f"Paired differences need the same problems in both arms; on {first.task!r} only one arm "
        f"has {'; '.join(only)}. Evaluate both arms on the same examples."
    )


def average_seeds(results: Sequence[ArmResult]) -> list[ArmResult]:
    """One result for each arm and task: problems' values averaged over the training seeds.

    Intervals are over problems. What all seeds measured is kept; provenance becomes that of each
    seed, by its name.
    """
    grouped: dict[tuple[str, str], list[ArmResult]] = {}
    for result in results:
        grouped.setdefault((result.arm, result.task), []).append(result)
    return [found[0] if len(found) == 1 else _average(found) for found in grouped.values()]


def _average(results: list[ArmResult]) -> ArmResult:
    first = results[0]
    for other in results[1:]:
        check_same_problems(first, other)
    by_key = [
        {(e.metric, e.width, e.k, e.threshold): e for e in result.measurements}
        for result in results
    ]
    kept = [key for key in by_key[0] if all(key in found for found in by_key)]
    measurements = []
    for key in kept:
        entries = [found[key] for found in by_key]
        values = np.mean([entry.values for entry in entries], axis=0)
        estimate = estimate_values(key[0], values, entries[0].estimate.level)
        measurements.append(replace(entries[0], values=values, estimate=estimate))
    provenance = {str(result.seed): dict(result.provenance) for result in results}
    return replace(first, seed=None, measurements=tuple(measurements), provenance=provenance)


def common_seeds(
    results: Sequence[ArmResult], arms: list[str], tasks: list[str]
) -> list[int | None]:
    """The seeds that every trained arm has on every task; [None] if none was trained here."""
    found = {
        (arm, task): {r.seed for r in results if r.arm == arm and r.task == task}
        for arm in arms
        for task in tasks
    }
    for (arm, task), seeds in found.items():
        if not seeds:
            raise MetricError(
                f"Every arm covers the same tasks; {arm!r} has no result on {task!r}. Evaluate it "
                "there, or leave that task out."
            )
        same = [r for r in results if r.arm == arm and r.task == task]
        if len(same) != len(seeds):
            raise MetricError(
                f"An arm has one result for each task and seed; {arm!r} has {len(same)} on "
                f"{task!r} with seeds {sorted(map(str, seeds))}. Give each its training seed."
            )
    trained = {key: seeds for key, seeds in found.items() if seeds != {None}}
    if not trained:
        return [None]
    (first_key, expected), *others = trained.items()
    for key, seeds in [(first_key, expected), *others]:
        if seeds != expected or None in seeds:
            raise MetricError(
                f"Trained arms need the same seeds on every task: {first_key[0]!r} has "
                f"{sorted(map(str, expected))} on {first_key[1]!r}, {key[0]!r} has "
                f"{sorted(map(str, seeds))} on {key[1]!r}. Leave out the results without a partner."
            )
    return sorted(expected, key=lambda seed: (seed is None, seed))


def values_matrix(
    results: Sequence[ArmResult],
    arms: list[str],
    task: str,
    seed: int | None,
    what: tuple[str, int, int | None],
) -> Float[np.ndarray, "A E"]:
    """Values of all arms on one task in one seed; untrained arms enter every seed."""
    chosen = [
        next(r for r in results if r.arm == arm and r.task == task and r.seed in (seed, None))
        for arm in arms
    ]
    for result in chosen[1:]:
        check_same_problems(chosen[0], result)
    return np.stack([result.get(*what).values for result in chosen])


# One `[A, E]` of values for each task.
Values = list[Float[np.ndarray, "A _"]]


@dataclass(frozen=True)
class ArmRow:
    """One line of a comparison.

    Attributes:
        arm: Name of the arm.
        by_task: Mean over problems and seeds for each task.
        mean: Mean over the tasks' means.
        gain: Difference of `mean` and the base arm's, over problems; None for the base arm itself.
        gain_by_seed: Gain within each training seed, over problems; empty for an arm that was not
            trained here.
        gain_over_seeds: Mean of the seeds' gains, over seeds; None with fewer than two.
        next_best: Arm with the largest gain besides this one and the base; None without one.
        relative_gain: Gain over `next_best`'s gain, minus 1, over problems: .39 says 39 % more. NaN
            without ends unless that gain's interval lies above 0: a ratio of two losses would show
            the larger loss as the larger gain. None without a `next_best`.
        relative_gain_over_seeds: Relative gain over seeds; None with fewer than two.
    """

    arm: str
    by_task: dict[str, float]
    mean: float
    gain: Estimate | None = None
    gain_by_seed: dict[str, Estimate] = field(default_factory=dict)
    gain_over_seeds: Estimate | None = None
    next_best: str | None = None
    relative_gain: Estimate | None = None
    relative_gain_over_seeds: Estimate | None = None


@dataclass(frozen=True)
class Comparison:
    """Arms over the same problems.

    Attributes:
        metric: Name of the metric compared.
        width: Width it was taken at, in every arm.
        label: Usual name of the metric.
        base: Name of the arm that gains are over.
        tasks: Tasks, each counting once in means.
        problems: Number of problems of all tasks.
        seeds: Training seeds.
        rows: Lines of the table, one an arm.
    """

    metric: str
    width: int
    label: str
    base: str
    tasks: tuple[str, ...]
    problems: int
    seeds: tuple[int, ...]
    rows: tuple[ArmRow, ...]


def compare(
    results: Sequence[ArmResult],
    base: str,
    *,
    metric: str = "pass@1",
    width: int,
    threshold: int | None = None,
    level: float = LEVEL,
) -> Comparison:
    """Compare arms with paired differences over the same problems.

    Args:
        results: Results of all arms, tasks and training seeds. Every arm covers the same tasks with
            the same problems; trained arms have the same seeds, and an arm that was not trained
            here (a base model, seed None) stands beside every seed.
        base: Name of the arm that gains are over.
        metric: Name of the metric to compare, for instance `pass@1`, `maj`, `coverage` or `g_pass`.
        width: Width at which to take it. Means over independent rows do not depend on it.
        threshold: Number of rows that must be correct, for `g_pass`.
        level: Coverage of the intervals.

    Raises:
        MetricError: naming the problems, tasks or seeds that do not match.
        MetricError: if an arm has no such metric at this width.
    """
    arms, tasks = arms_of(results), tasks_of(results)
    if base not in arms:
        raise MetricError(f"Gains are over one of the arms {', '.join(arms)}; got {base!r}.")
    seeds = common_seeds(results, arms, tasks)
    what = (metric, width, threshold)
    by_seed = [[values_matrix(results, arms, task, seed, what) for task in tasks] for seed in seeds]
    gains = _Gains(by_seed, arms.index(base), level, metric not in QUANTITIES)
    trained = {result.arm for result in results if result.seed is not None}
    rows = tuple(
        _row(gains, index, arms, tasks, [s for s in seeds if s is not None and arm in trained])
        for index, arm in enumerate(arms)
    )
    return Comparison(
        metric=metric,
        width=width,
        label=results[0].get(metric, width, threshold).label,
        base=base,
        tasks=tuple(tasks),
        problems=sum(task.shape[1] for task in gains.pooled),
        seeds=tuple(seed for seed in seeds if seed is not None),
        rows=rows,
    )


def _row(gains: _Gains, index: int, arms: list[str], tasks: list[str], seeds: list[int]) -> ArmRow:
    by_task = {
        task: float(values[index].mean()) for task, values in zip(tasks, gains.pooled, strict=True)
    }
    mean = float(np.mean(list(by_task.values())))
    if index == gains.base:
        return ArmRow(arms[index], by_task, mean)
    rival, several = gains.rival(index), len(seeds) > 1
    by_seed = [gains.gain(values, index) for values in gains.by_seed] if seeds else []
    return ArmRow(
        arm=arms[index],
        by_task=by_task,
        mean=mean,
        gain=gains.gain(gains.pooled, index),
        gain_by_seed={str(seed): gain for seed, gain in zip(seeds, by_seed, strict=True)},
        gain_over_seeds=(
            seed_interval([gain.value for gain in by_seed], gains.level) if several else None
        ),
        next_best=None if rival is None else arms[rival],
        relative_gain=None if rival is None else gains.relative(index, rival),
        relative_gain_over_seeds=(
            gains.relative_over_seeds(index, rival) if several and rival is not None else None
        ),
    )


class _Gains:
    """Gains over the base arm, from the values of every seed."""

    def __init__(self, by_seed: list[Values], base: int, level: float, shares: bool) -> None:
        self.by_seed, self.base, self.level, self.shares = by_seed, base, level, shares
        # Seeds share their problems: averaging within a problem keeps problems the clusters.
        self.pooled: Values = [np.mean(task, axis=0) for task in zip(*by_seed, strict=True)]

    def gain(self, values: Values, arm: int) -> Estimate:
        differences = [task[arm] - task[self.base] for task in values]
        return difference_interval(differences, self.level, shares=self.shares)

    def rival(self, arm: int) -> int | None:
        """The arm with the largest gain besides this one and the base."""
        others = [i for i in range(len(self.pooled[0])) if i not in (arm, self.base)]
        return max(others, key=lambda i: self.gain(self.pooled, i).value, default=None)

    def relative(self, arm: int, rival: int) -> Estimate:
        """gain(arm) / gain(rival) - 1, over problems."""
        gains = [task[[arm, rival]] - task[self.base] for task in self.pooled]
        count = sum(task.shape[1] for task in gains)
        if not self.gain(self.pooled, rival).is_above(0):
            return self._undefined(count)
        covariance = [_covariance_of_mean(task) for task in gains]
        return self._less_one(
            np.mean([task.mean(axis=1) for task in gains], axis=0),
            np.sum(covariance, axis=0) / len(gains) ** 2,
            count - len(gains),
            count,
        )

    def relative_over_seeds(self, arm: int, rival: int) -> Estimate:
        """The same from the seeds' mean gains, over seeds."""
        gains = np.array(
            [[self.gain(values, index).value for values in self.by_seed] for index in (arm, rival)]
        )
        count = gains.shape[1]
        if not seed_interval(gains[1].tolist(), self.level).is_above(0):
            return self._undefined(count)
        return self._less_one(gains.mean(axis=1), _covariance_of_mean(gains), count - 1, count)

    def _undefined(self, count: int) -> Estimate:
        return Estimate(math.nan, None, None, "fieller", self.level, count)

    def _less_one(
        self,
        means: Float[np.ndarray, 2],
        covariance: Float[np.ndarray, "2 2"],
        freedom: int,
        count: int,
    ) -> Estimate:
        top, bottom = means.tolist()
        ratio = ratio_interval((top, bottom), covariance, max(freedom, 1), self.level, count)
        low, high = (None if end is None else end - 1 for end in (ratio.low, ratio.high))
        return replace(ratio, value=ratio.value - 1, low=low, high=high)


def _covariance_of_mean(samples: Float[np.ndarray, "2 _"]) -> Float[np.ndarray, "2 2"]:
    count = samples.shape[1]
    # One sample has no spread: infinite, so that no interval comes of it.
    return np.cov(samples) / count if count > 1 else np.full((2, 2), np.inf)


# Parallel efficiency ----------------------------------------------------------------------------


@dataclass(frozen=True)
class ParallelEfficiency:
    """What independent voting needs to reach a coupled arm's accuracy at width w.

    Attributes:
        coupled_arm: Name of the coupled arm.
        independent_arm: Name of the independent arm.
        task: Task that both were measured on.
        metric: Metric of the coupled arm that sets the target.
        vote: Set metric of the independent arm that has to reach it.
        width: Width of the coupled arm, w.
        target: Metric of the coupled arm at w.
        tokens: Number of tokens a problem that the coupled arm spent at w.
        needed_width: Width at which the independent curve first reaches the target, interpolated
            linearly in log2(width); None if not within `largest`. Its interval is a percentile
            bootstrap over problems, both arms resampled together; an end of None lies beyond
            `largest`.
        needed_tokens: Number of tokens a problem that this width takes.
        token_ratio: Ratio of `needed_tokens` to `tokens`: above 1 the coupled arm is the cheaper
            one.
        not_reached: Share of resamples in which the target is not reached within `largest`.
        largest: Largest width at which independent voting was measured.
    """

    coupled_arm: str
    independent_arm: str
    task: str
    metric: str
    vote: str
    width: int
    target: Estimate
    tokens: Estimate
    needed_width: Estimate
    needed_tokens: Estimate
    token_ratio: Estimate
    not_reached: float
    largest: int

    @property
    def reached(self) -> bool:
        """Whether the independent curve reaches the target at all."""
        return not math.isnan(self.needed_width.value)


def parallel_efficiency(
    coupled: ArmResult, independent: ArmResult, width: int
) -> ParallelEfficiency:
    """The width, and the tokens, that independent votes need to reach those of a coupled arm.

    The independent curve is taken as measured, not smoothed: its first crossing of the target
    counts, also where votes fall again at larger widths.

    Raises:
        MetricError: for different problems, a coupled arm in the independent one's place, or an
            independent curve of fewer than two widths.
        MetricError: if the coupled arm has no such metric at this width.
    """
    check_same_problems(coupled, independent)
    curve = independent.series("maj")
    if independent.coupled or len(curve) < 2:
        raise MetricError(
            "Parallel efficiency needs independent rows measured at two widths or more; got "
            f"{independent.arm!r}, {'coupled, ' if independent.coupled else ''}with maj at "
            f"{[place for place, _ in curve]}. Sample independent rows once, at a large width."
        )
    target, spent = coupled.get("maj", width), coupled.get("tokens", width)
    columns = [target, spent, independent.get("row_tokens", 1), *(entry for _, entry in curve)]
    values = np.stack([entry.values for entry in columns], axis=1)
    widths = np.array([place for place, _ in curve], dtype=float)
    own = _costs(values.mean(axis=0)[None], widths)[:, 0]
    resampled = _costs(resampled_means(values, RESAMPLES, 0), widths)

    def estimate(row: int) -> Estimate:
        low, high = _ends(resampled[row])
        return Estimate(float(own[row]), low, high, "percentile", LEVEL, len(values))

    return ParallelEfficiency(
        coupled_arm=coupled.arm,
        independent_arm=independent.arm,
        task=coupled.task,
        metric="maj",
        vote="maj",
        width=width,
        target=target.estimate,
        tokens=spent.estimate,
        needed_width=estimate(0),
        needed_tokens=estimate(1),
        token_ratio=estimate(2),
        not_reached=float(np.isnan(resampled[0]).mean()),
        largest=int(widths[-1]),
    )


def first_crossing(
    curves: Float[np.ndarray, "B K"],
    widths: Float[np.ndarray, "K"],
    targets: Float[np.ndarray, "B"],
) -> Float[np.ndarray, "B"]:
    """The width at which each curve first reaches its target, linear in log2(width).

    Returns:
        The first width where the curve starts at or above the target; NaN where it stays below.

    >>> first_crossing(np.array([[0.2, 0.4, 0.6]]), np.array([1.0, 4.0, 16.0]), np.array([0.5]))
    array([8.])
    """
    reached = curves >= targets[:, None]
    after = np.argmax(reached, axis=1)
    before = np.maximum(after - 1, 0)
    index = np.arange(len(curves))
    low, high = curves[index, before], curves[index, after]
    rise = np.where(after > before, high - low, 1.0)
    share = np.where(after > before, (targets - low) / np.where(rise > 0, rise, 1.0), 0.0)
    logs = np.log2(widths)
    crossing = 2 ** (logs[before] + share * (logs[after] - logs[before]))
    return np.where(reached.any(axis=1), crossing, np.nan)


def _costs(
    means: Float[np.ndarray, "B columns"], widths: Float[np.ndarray, "K"]
) -> Float[np.ndarray, "3 B"]:
    """Needed width, needed tokens and token ratio, from means in the order of `columns`."""
    needed = first_crossing(means[:, 3:], widths, means[:, 0])
    tokens = needed * means[:, 2]
    # A coupled arm that wrote no token has no ratio.
    spent = np.where(means[:, 1] > 0, means[:, 1], np.nan)
    return np.stack([needed, tokens, tokens / spent])


def _ends(samples: Float[np.ndarray, "B"]) -> tuple[float | None, float | None]:
    """Percentile ends with what was not reached as infinite; None for an infinite end."""
    ordered = np.sort(np.where(np.isnan(samples), np.inf, samples))
    places = [round((0.5 + side * LEVEL / 2) * (len(ordered) - 1)) for side in (-1, 1)]
    low, high = (float(ordered[place]) for place in places)
    return (low if math.isfinite(low) else None, high if math.isfinite(high) else None)
