"""Votes and diversity over many draws of rows at once.

Letters: n rows of a problem, D draws (groups, or subsets of independent rows), k rows of a draw.
The rule for a single group is `interlace.answers.majority_vote`; this is the same rule over arrays,
for the many subsets of independent rows over which a vote at width k is averaged. Diversity is read
beside accuracy: a gain in pass@1 that was bought by copying siblings shows there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from math import comb

import numpy as np
from jaxtyping import Bool, Float, Int

from interlace.errors import MetricError

NO_ANSWER = -1


@lru_cache(maxsize=256)
def subset_draws(n: int, k: int, most: int, seed: int) -> Int[np.ndarray, "D k"]:
    """k-subsets of n exchangeable rows, each in row order: all of them where there are at most
    `most`; else `most` random ones, the same for the same seed."""
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
        order: Row that stands at each place; rows of one answer keep their order.
        slots: Numbers of the runs of each draw, below D k.
        opens: Places where a run opens.
        answered: Whether each row has an answer.
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
        classes: Numbers of the answers, equal for equal answers; `NO_ANSWER` does not vote.
        weights: Weights of at least 0; None counts every row once.

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


def distinct_answers(classes: Int[np.ndarray, "D k"]) -> Int[np.ndarray, "D"]:
    """How many different answers each draw holds, 0 to k; rows without an answer do not count.
    Equation (20).

    >>> distinct_answers(np.array([[0, 1, 0, -1], [-1, -1, -1, -1]])).tolist()
    [2, 0]
    """
    runs = answer_runs(classes)
    return (runs.opens & runs.answered).sum(axis=1)


def answer_entropy(classes: Int[np.ndarray, "D k"]) -> Float[np.ndarray, "D"]:
    """Entropy of the answers of each draw, in bits: 0 if all agree, log2(k) if all differ.
    Equation (20).

    The plug-in estimate from the k rows (it grows with k, so compare equal k). Rows without an
    answer do not count; a draw without any answer has entropy 0.

    >>> answer_entropy(np.array([[0, 1, 0, 1], [5, 5, 5, -1]])).tolist()
    [1.0, 0.0]
    """
    counts = answer_runs(classes).totals()
    given = np.maximum(counts.sum(axis=1, keepdims=True), 1)
    shares = counts / given
    bits = shares * np.log2(shares, where=shares > 0, out=np.zeros_like(shares))
    return -bits.sum(axis=1) + 0.0


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Different n-grams over all n-grams of the texts of one group, 0 to 1. Equation (20).

    Source: arXiv 1510.03055. n-grams are of words between white space and never cross from one text
    to the next. The share falls with the length of the texts, so read it beside their length.

    Args:
        texts: Texts of the rows of one group.
        n: Number of words of an n-gram, at least 1.

    Returns:
        The share; 1 if no text is long enough to hold an n-gram.

    Raises:
        MetricError: for n below 1.

    >>> distinct_n(["a b c", "a b d"], 2)
    0.75
    """
    if n < 1:
        raise MetricError(f"An n-gram has at least one word; got n = {n}. Use n = 1 or 2.")
    grams = [
        gram
        for words in (text.split() for text in texts)
        for gram in zip(*(words[start:] for start in range(n)), strict=False)
    ]
    return len(set(grams)) / len(grams) if grams else 1.0
