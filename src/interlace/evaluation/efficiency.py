"""Parallel efficiency: what independent voting must spend to reach what a coupled arm reaches.

Letters: E problems, B resamples, K widths at which independent voting was measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from interlace.errors import MetricError
from interlace.evaluation.compare import check_same_problems, values_of
from interlace.evaluation.intervals import LEVEL, RESAMPLES, Estimate, resampled_means
from interlace.evaluation.results import ArmResult


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
    values = np.stack([values_of(entry) for entry in columns], axis=1)
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
