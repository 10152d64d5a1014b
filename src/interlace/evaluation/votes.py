"""Votes over many draws of rows at once.

Letters: n rows of a problem, D draws, k rows of a draw. The rule for a single group is
`interlace.answers.majority_vote`; this is the same rule over arrays, for the many subsets of
independent rows over which a vote at width k is averaged.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from math import comb

import numpy as np
from jaxtyping import Bool, Float, Int

NO_ANSWER = -1


@lru_cache(maxsize=256)
def subset_draws(n: int, k: int, most: int, seed: int) -> Int[np.ndarray, "D k"]:
    """k-subsets of n exchangeable rows, each in row order.

    All of them where there are at most `most`; else `most` random ones, the same for the same seed.
    """
    if comb(n, k) <= most:
        draws = np.array(list(combinations(range(n), k)))
    else:
        keys = np.random.default_rng([seed, n, k]).random((most, n))
        draws = np.sort(np.argpartition(keys, k - 1, axis=1)[:, :k], axis=1)
    draws.flags.writeable = False
    return draws


@dataclass(frozen=True, eq=False)
class Runs:
    """The rows of each draw sorted by answer, so that equal answers form runs.

    Attributes:
        order: Which row stands where; rows of one answer keep their order.
        slots: One number for each run of each draw, below D k.
        opens: Where a run opens.
        answered: Where a row has an answer.
    """

    order: Int[np.ndarray, "D k"]
    slots: Int[np.ndarray, "D k"]
    opens: Bool[np.ndarray, "D k"]
    answered: Bool[np.ndarray, "D k"]

    def totals(self, weights: Float[np.ndarray, "D k"] | None = None) -> Float[np.ndarray, "D k"]:
        """Votes of each run, in the runs' order; 0 for rows without an answer."""
        given = self.answered.astype(float)
        if weights is not None:
            given *= np.take_along_axis(weights, self.order, axis=1)
        votes = np.bincount(self.slots.ravel(), given.ravel(), minlength=self.slots.size)
        return votes.reshape(self.slots.shape)


def answer_runs(classes: Int[np.ndarray, "D k"]) -> Runs:
    """Sort each draw by answer. Much cheaper than comparing every two rows."""
    draws, k = classes.shape
    order = np.argsort(classes, axis=1, kind="stable")
    ordered = np.take_along_axis(classes, order, axis=1)
    opens = np.ones_like(ordered, dtype=bool)
    opens[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    slots = np.cumsum(opens, axis=1) - 1 + k * np.arange(draws)[:, None]
    return Runs(order, slots, opens, ordered != NO_ANSWER)


def vote_winners(
    classes: Int[np.ndarray, "D k"], weights: Float[np.ndarray, "D k"] | None = None
) -> Int[np.ndarray, "D"]:
    """The first row of the answer that most rows of a draw gave.

    Args:
        classes: Equal numbers for equal answers; `NO_ANSWER` does not vote.
        weights: At least 0; None counts every row once.

    Returns:
        Positions in 0 .. k-1; ties go to the answer seen first; `NO_ANSWER` without any vote or
        without any weight.
    """
    runs, k = answer_runs(classes), classes.shape[1]
    totals = runs.totals(weights)
    first = np.full(classes.size, k)
    first[runs.slots[runs.opens]] = runs.order[runs.opens]
    best = totals.max(axis=1, keepdims=True)
    # Sums of the same weights in another order may differ in the last digit.
    tied = totals >= best * (1 - 1e-12)
    winners = np.where(tied, first.reshape(-1, k), k).min(axis=1)
    return np.where(best[:, 0] > 0, winners, NO_ANSWER)


def best_rows(
    classes: Int[np.ndarray, "D k"], scores: Float[np.ndarray, "D k"]
) -> Int[np.ndarray, "D"]:
    """The row with the highest score among those with an answer; the first at a tie.

    Returns:
        Positions in 0 .. k-1; `NO_ANSWER` where no row has an answer.
    """
    eligible = np.where(classes == NO_ANSWER, -np.inf, scores)
    best = np.argmax(eligible, axis=1)
    return np.where((classes == NO_ANSWER).all(axis=1), NO_ANSWER, best)
