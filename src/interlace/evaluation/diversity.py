"""How different the rows of a group are: distinct answers, entropy of answers, distinct-n.

Letters: D draws (groups, or subsets of independent rows), k rows of a draw. Read beside accuracy:
a gain in pass@1 that was bought by copying siblings shows here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from interlace.errors import MetricError
from interlace.evaluation.votes import answer_runs


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
        texts: The rows of one group.
        n: Words of an n-gram, at least 1.

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
