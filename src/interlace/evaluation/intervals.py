"""Intervals over problems, and over training seeds.

Letters: E problems, B bootstrap resamples, A arms. A metric is the mean over E problems of one
value a problem (already averaged over the problem's groups): problems are the clusters, so rows and
groups of one problem never count as evidence twice. The width of an interval says how the number
would move with *other problems*; what another training run would change is in `seed_interval`.

- shares (0 to 1): `score`, Wilson's interval with an effective sample size, which does not collapse
  at 0 and 1, where bootstraps and plain t do
- other means (tokens, seconds): `bca`, a bootstrap over problems, since they are skewed
- paired differences: `t` over problems, `adjusted-t` where few problems differ at all
- ratios of two gains: `fieller`, which says so when the denominator may be 0
- seeds: `t-seeds`, since five are too few to bootstrap

Measured by `benchmarks/interval_coverage.py`; reasons in
docs/decisions/0010-intervals-over-problems.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from types import SimpleNamespace

import numpy as np
from jaxtyping import Float

from interlace.errors import MetricError, require

LEVEL = 0.95
RESAMPLES = 2000
# Fewer problems than this with a difference, and the adjusted interval takes over.
FEW_DIFFERENCES = 10
# A quarter of a problem at 0 and another at 1 enter the variance, so that the effective size does
# not explode when almost all problems score 0 (or 1), nor for a handful of problems.
PSEUDO_PROBLEMS = 0.25
# Numbers of resampling weights held at a time.
CHUNK = 2_000_000
# Problems left out at a time where BCa looks at each problem's weight.
JACKKNIFE = 256


@dataclass(frozen=True)
class Estimate:
    """A number with its interval.

    Attributes:
        value: Point estimate.
        low: Lower end; None where there is none (see `method`).
        high: Upper end; None where there is none.
        method: Method that made the interval; see this module's table.
        level: Coverage that the interval aims at, 0 to 1.
        count: Number of units that the interval is over: problems, or seeds for `t-seeds`.
    """

    value: float
    low: float | None
    high: float | None
    method: str
    level: float = LEVEL
    count: int = 0

    def excludes(self, value: float) -> bool:
        """Whether the interval has both ends and `value` lies outside."""
        return self.low is not None and self.high is not None and not self.low <= value <= self.high

    def is_above(self, value: float) -> bool:
        """Whether the whole interval lies above `value`; not without a lower end."""
        return self.low is not None and self.low > value


def proportion_interval(values: Float[np.ndarray, "E"], level: float = LEVEL) -> Estimate:
    """A mean of shares with Wilson's score interval, n replaced by an effective sample size.

    Values of problems lie between 0 and 1 and vary less than single draws would. The effective size
    is E m(1-m) / s^2 (E over the design effect, as for proportions of complex surveys), with m and
    s^2 from the values and a quarter of a problem at 0 and at 1. With 0/1 values this is Wilson's
    interval; with all values 0 or all 1 it still has the width that E problems justify.

    Source: Wilson 1927; Korn and Graubard 1998 (effective size); Franco et al. 2019 (comparison).

    Args:
        values: Shares, one a problem, each 0 to 1.
        level: Coverage to aim at.

    Raises:
        MetricError: without values, or for values outside 0 to 1.

    >>> estimate = proportion_interval(np.zeros(100))
    >>> estimate.value, estimate.low, round(estimate.high, 3)
    (0.0, 0.0, 0.037)
    """
    values = _checked(values)
    if values.min() < 0 or values.max() > 1:
        raise MetricError(
            f"Shares lie between 0 and 1; got values from {values.min()} to {values.max()}. "
            "Use mean_interval for other quantities."
        )
    mean, count = float(values.mean()), len(values)
    per_draw = NormalDist().inv_cdf(0.5 + level / 2) ** 2 / _effective_size(values)
    centre = (mean + per_draw / 2) / (1 + per_draw)
    half = math.sqrt(per_draw * (mean * (1 - mean) + per_draw / 4)) / (1 + per_draw)
    low, high = max(centre - half, 0.0), min(centre + half, 1.0)
    # Rounding must not leave the mean of all zeros, or all ones, outside its interval.
    return Estimate(mean, min(low, mean), max(high, mean), "score", level, count)


def _effective_size(values: Float[np.ndarray, "E"]) -> float:
    count, extra = len(values), PSEUDO_PROBLEMS
    total = count + 2 * extra
    mean = (values.sum() + extra) / total
    variance = ((values**2).sum() + extra) / total - mean**2
    return float(count * mean * (1 - mean) / (variance * total / (total - 1)))


def mean_interval(
    values: Float[np.ndarray, "E"],
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """A mean of any quantity with the BCa bootstrap over problems.

    Source: Efron 1987 (bias-corrected and accelerated).

    Returns:
        Without ends for a single problem, which says nothing of others.

    Raises:
        MetricError: without values.

    >>> mean_interval(np.array([3.0, 3.0, 3.0])).low
    3.0
    """
    require("scipy", "eval", "An interval")
    from scipy import stats

    values = _checked(values)
    mean, count = float(values.mean()), len(values)
    if count == 1:
        return Estimate(mean, None, None, "bca", level, 1)
    if float(((values - mean) ** 2).sum()) <= 1e-24 * max(1.0, mean**2) * count:
        return Estimate(mean, mean, mean, "bca", level, count)
    found = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=0,
        # Its own draws take an array of resamples by problems; these are made in parts.
        bootstrap_result=SimpleNamespace(
            bootstrap_distribution=resampled_means(values, resamples, seed)
        ),
        confidence_level=level,
        batch=JACKKNIFE,
    ).confidence_interval
    return Estimate(mean, float(found.low), float(found.high), "bca", level, count)


def difference_interval(
    differences: Sequence[Float[np.ndarray, "_"]], level: float = LEVEL, *, shares: bool = True
) -> Estimate:
    """A mean of paired differences with a t interval over problems. Equation (22).

    With several tasks the mean is that of the tasks' means, each task counting once, and problems
    are strata within tasks. Where fewer than ten problems differ at all, a t interval is too short
    (zero, if none does): then two problems enter each task, one at the largest possible gain and
    one at the largest loss (Bonett and Price 2012 for paired proportions), named `adjusted-t`.

    Args:
        differences: Differences for each task, one number a problem: the second arm minus the
            first.
        level: Coverage to aim at.
        shares: Whether the differences are of shares, so that they lie between -1 and 1 and can be
            adjusted; otherwise (tokens, seconds) the method is always `t`.

    Returns:
        Without ends if a task has a single problem and the adjustment does not apply.

    Raises:
        MetricError: without values.

    >>> estimate = difference_interval([np.zeros(50)])
    >>> estimate.method, round(estimate.low, 2), round(estimate.high, 2)
    ('adjusted-t', -0.06, 0.06)
    """
    strata = [_checked(task) for task in differences]
    if not strata:
        raise MetricError("A paired difference needs at least one task; got none.")
    value = float(np.mean([task.mean() for task in strata]))
    count = sum(len(task) for task in strata)
    few = shares and sum(map(np.count_nonzero, strata)) < FEW_DIFFERENCES
    used = [np.append(task, [-1.0, 1.0]) for task in strata] if few else strata
    method = "adjusted-t" if few else "t"
    if min(len(task) for task in used) < 2:
        return Estimate(value, None, None, method, level, count)
    centre = float(np.mean([task.mean() for task in used]))
    variance = sum(task.var(ddof=1) / len(task) for task in used) / len(used) ** 2
    freedom = sum(len(task) - 1 for task in used)
    half = _t_quantile(level, freedom) * math.sqrt(variance)
    low, high = min(centre - half, value), max(centre + half, value)
    if shares:
        low, high = max(low, -1.0), min(high, 1.0)
    return Estimate(value, low, high, method, level, count)


def seed_interval(values: Sequence[float], level: float = LEVEL) -> Estimate:
    """A mean over training seeds with a t interval. Equation (21).

    Args:
        values: Numbers, one a seed: the mean over problems in that seed's run (or of its paired
            differences).
        level: Coverage to aim at.

    Returns:
        Without ends for a single seed.

    Raises:
        MetricError: without values.

    >>> estimate = seed_interval([0.10, 0.12, 0.11, 0.13, 0.09])
    >>> round(estimate.low, 4), round(estimate.high, 4)
    (0.0904, 0.1296)
    """
    array = _checked(np.asarray(values, dtype=float))
    mean, count = float(array.mean()), len(array)
    if count == 1:
        return Estimate(mean, None, None, "t-seeds", level, 1)
    half = _t_quantile(level, count - 1) * float(array.std(ddof=1)) / math.sqrt(count)
    return Estimate(mean, mean - half, mean + half, "t-seeds", level, count)


def ratio_interval(
    means: tuple[float, float],
    covariance: Float[np.ndarray, "2 2"],
    freedom: float,
    level: float = LEVEL,
    count: int = 0,
) -> Estimate:
    """The ratio of two means that may be correlated, with Fieller's interval.

    Source: Fieller 1954. All ratios r for which means[0] - r means[1] could be 0.

    Returns:
        Without ends where the denominator is not distinguishable from 0, since no bounded interval
        has the coverage then. The value is NaN if the denominator is 0.
    """
    top, bottom = means
    value = top / bottom if bottom else math.nan
    quantile2 = _t_quantile(level, freedom) ** 2
    a = bottom**2 - quantile2 * covariance[1, 1]
    b = top * bottom - quantile2 * covariance[0, 1]
    c = top**2 - quantile2 * covariance[0, 0]
    if a <= 0:
        return Estimate(value, None, None, "fieller", level, count)
    root = math.sqrt(max(b * b - a * c, 0.0))
    return Estimate(value, float((b - root) / a), float((b + root) / a), "fieller", level, count)


def resampled_means(
    values: Float[np.ndarray, "E *rest"], resamples: int, seed: int
) -> Float[np.ndarray, "B *rest"]:
    """Means over problems that were drawn with replacement; the same draws for the same (E, seed).

    Columns of one call share their draws, so that paired columns stay paired.
    """
    count = len(values)
    flat = values.reshape(count, -1)
    step = max(1, CHUNK // count)
    parts = [
        _weights(count, resamples, seed, start, min(start + step, resamples)) @ flat
        for start in range(0, resamples, step)
    ]
    return np.concatenate(parts).reshape(resamples, *values.shape[1:]) / count


@lru_cache(maxsize=4)
def _weights(
    count: int, resamples: int, seed: int, start: int, stop: int
) -> Float[np.ndarray, "b E"]:
    """How often each problem is drawn, for the resamples start .. stop."""
    generator = np.random.default_rng([seed, count, resamples, start])
    drawn = generator.multinomial(count, np.full(count, 1 / count), size=stop - start)
    return drawn.astype(float)


def _t_quantile(level: float, freedom: float) -> float:
    """Half the width of a two-sided t interval, in standard errors."""
    require("scipy", "eval", "An interval")
    from scipy import special

    # As `scipy.stats.t.ppf`, without its checks of distributions, which take longer than the rest.
    return float(special.stdtrit(freedom, 0.5 + level / 2))


def _checked(values: Float[np.ndarray, "E"]) -> Float[np.ndarray, "E"]:
    if len(values) == 0 or not np.isfinite(values).all():
        raise MetricError(
            f"An interval needs at least one problem, and finite values; got {len(values)} values"
            f", {int((~np.isfinite(values)).sum())} of them not finite."
        )
    return values
