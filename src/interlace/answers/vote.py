"""Votes over the answers of a group: which answer did most rows give?

W is the number of rows. The rule (METHOD: maj@W; self-consistency, arXiv 2203.11171): the most
frequent normalised answer wins; ties go to the answer that was seen first; a row without an answer
(None or blank) does not vote; without any vote there is no winner.

Answers fall into classes. A row joins the class that holds its normal form; failing that, the
first class whose *first* answer it is `equal` to; failing that, it opens a class. Every row is in
one class only: "the same answer" is an equivalence even where `equal` is not transitive. Two
answers that `equal` could not compare (None) count as different in this vote, which says so.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from interlace.answers.equal import symbolically_equal
from interlace.answers.normalise import normalise_answer
from interlace.errors import AggregationError, UndecidedWarning

MAX_UNDECIDED = 2  # comparisons without an outcome, after which an answer is compared no more

Normalise = Callable[[str], Hashable]
Equal = Callable[[str, str], bool | None]


@dataclass(frozen=True)
class Vote:
    """The outcome of a vote.

    Attributes:
        winner: Winning answer as its first row wrote it; None without any vote.
        index: First row that gave it; None without any vote.
        counts: Number of votes (or summed weights) per class of answers, named by the class's first
            answer, most first; equal counts in the order seen.
        share: Share of the winner in all votes, 0 to 1; 0 without any vote.
        tie: Whether another answer has exactly as many votes.
        classes: First row with the same answer, for each row; None for a row that did not vote.
        undecided: Number of comparisons that had no outcome within the bounds, so that the answers
            count as different.
    """

    winner: str | None
    index: int | None
    counts: dict[str, float | int]
    share: float
    tie: bool
    classes: tuple[int | None, ...]
    undecided: int = 0


def majority_vote(
    answers: Sequence[str | None],
    *,
    normalise: Normalise = normalise_answer,
    equal: Equal | None = symbolically_equal,
) -> Vote:
    r"""The answer that most rows gave.

    Args:
        answers: Answers of the rows, `[W]`; None for a row without one.
        normalise: Function from a text to its normal form; answers with equal forms are the same
            answer. None as the form says that the text is no answer.
        equal: Function that compares two answers with different forms, asked with both texts; it
            returns None where it cannot tell. The default uses math-verify for formulas where it is
            installed (the `math` extra); None turns it off.

    Returns:
        The vote; see `Vote`.

    Raises:
        AggregationError: if `answers` is a single string, or holds something that is no string.

    >>> vote = majority_vote(["0.5", None, "7", r"\frac{1}{2}", "1/2"])
    >>> vote.winner, vote.index, vote.counts, vote.share, vote.tie
    ('0.5', 0, {'0.5': 3, '7': 1}, 0.75, False)
    >>> vote.classes
    (0, None, 2, 0, 0)
    """
    _check_answers(answers)
    classes, undecided = _classes(answers, normalise, equal)
    return _count(answers, classes, [1] * len(classes), undecided)


def weighted_vote(
    answers: Sequence[str | None],
    weights: Sequence[float | int | None],
    *,
    normalise: Normalise = normalise_answer,
    equal: Equal | None = symbolically_equal,
) -> Vote:
    """The answer whose rows weigh most. Equal weights give `majority_vote`.

    Args:
        answers: Answers, `[W]`, as in `majority_vote`.
        weights: Weights, `[W]`, finite and at least 0, from any scorer; None for a row that does
            not vote. Log-probabilities become weights through `logprob_weights`.
        normalise: Function as in `majority_vote`.
        equal: Function as in `majority_vote`.

    Returns:
        The vote, with summed weights as its counts.

    Raises:
        AggregationError: for weights that are negative, not finite, or not one a row.

    >>> weighted_vote(["4", "5", "5"], [0.9, 0.2, 0.3]).winner
    '4'
    """
    if len(weights) != len(answers):
        raise AggregationError(
            f"A weighted vote needs one weight a row: got {len(answers)} answers and "
            f"{len(weights)} weights."
        )
    for row, weight in enumerate(weights):
        if weight is not None and not (math.isfinite(weight) and weight >= 0):
            raise AggregationError(
                f"A vote's weight is finite and at least 0; row {row} has {weight!r}. Pass "
                "log-probabilities through `logprob_weights` first, and shift scores that can be "
                "negative."
            )
    answers = [
        None if weight is None else answer for answer, weight in zip(answers, weights, strict=True)
    ]
    _check_answers(answers)
    classes, undecided = _classes(answers, normalise, equal)
    known = [0.0 if weight is None else weight for weight in weights]
    return _count(answers, classes, known, undecided)


def logprob_weights(
    logprobs: Sequence[Sequence[float]], *, length_normalised: bool = True
) -> list[float]:
    """Weights for `weighted_vote` from the log-probabilities of each row's tokens.

    A row weighs `exp(s - max s)`, s being the mean of its tokens' log-probabilities, or their sum
    with `length_normalised=False`. The mean is the "normalized" weight of self-consistency (arXiv
    2203.11171); the sum is the probability of the whole row, which long rows lose. Dividing by the
    largest changes neither winner nor shares, and keeps the weights of long rows above underflow.

    Args:
        logprobs: Token log-probabilities of the rows, `[W]`, natural logarithm, each at most 0.
        length_normalised: Whether weights come from the mean (default) or the sum.

    Returns:
        `[W]` weights, at most 1; 0 for a row without tokens.

    Raises:
        AggregationError: for a log-probability that is NaN or above 0.

    Examples:
        >>> [round(weight, 3) for weight in logprob_weights([[-1.0, -1.0], [-1.5]])]
        [1.0, 0.607]
    """
    scores = []
    for row, tokens in enumerate(logprobs):
        for value in tokens:
            if not value <= 1e-4:  # NaN too; rounding may leave a certain token just above 0
                raise AggregationError(
                    f"A log-probability is at most 0; row {row} has {value!r}. Pass the natural "
                    "logarithm of each token's probability, as in `completion.logprobs`."
                )
        total = math.fsum(tokens)
        scores.append(
            (total / len(tokens) if length_normalised else total) if tokens else -math.inf
        )
    best = max(scores, default=-math.inf)
    if best == -math.inf:
        return [0.0] * len(scores)
    return [math.exp(score - best) for score in scores]


def answer_classes(
    answers: Sequence[str | None],
    *,
    normalise: Normalise = normalise_answer,
    equal: Equal | None = symbolically_equal,
) -> tuple[int | None, ...]:
    """For each row the first row with the same answer; None for a row without one.

    An `UndecidedWarning` says where a comparison had no outcome.

    >>> answer_classes(["2", None, "3", "2.0"])
    (0, None, 2, 0)
    """
    _check_answers(answers)
    return _classes(answers, normalise, equal)[0]


def _classes(
    answers: Sequence[str | None], normalise: Normalise, equal: Equal | None
) -> tuple[tuple[int | None, ...], int]:
    """The classes of `answer_classes`, and how many comparisons had no outcome."""
    by_form: dict[Hashable, int] = {}
    firsts: list[int] = []
    undecided: Counter[int] = Counter()
    classes: list[int | None] = []
    for row, answer in enumerate(answers):
        form = None if answer is None else normalise(answer)
        if answer is None or form is None:
            classes.append(None)
            continue
        if form not in by_form:
            by_form[form] = _class_of(row, answers, firsts, equal, undecided)
        classes.append(by_form[form])
    count = undecided.total() // 2
    if count:
        hard = answers[undecided.most_common(1)[0][0]]
        warnings.warn(
            f"In a vote, comparisons that could not be decided within the bounds: {count}, such as "
            f"of {hard!r:.60}. Those answers count as different; `equal=None` compares none.",
            UndecidedWarning,
            stacklevel=3,
        )
    return tuple(classes), count


def _check_answers(answers: Any) -> None:
    if isinstance(answers, str):
        raise AggregationError(
            f"A vote takes a sequence of answers, one a row; got the single string {answers!r:.40}."
            " Wrap it in a list."
        )
    for row, answer in enumerate(answers):
        if answer is not None and not isinstance(answer, str):
            raise AggregationError(
                f"An answer is a string, or None for a row without one; row {row} has "
                f"{answer!r:.40} ({type(answer).__name__})."
            )


def _class_of(
    row: int,
    answers: Sequence[str | None],
    firsts: list[int],
    equal: Equal | None,
    undecided: Counter[int],
) -> int:
    """The class of a normal form that was not seen before; opens one if it equals none."""
    answer = answers[row] or ""
    for first in firsts if equal is not None else ():
        # A text that costs the whole bound again and again must not cost W times that.
        hard = max(undecided[first], undecided[row]) >= MAX_UNDECIDED
        same = None if hard or equal is None else equal(answers[first] or "", answer)
        if same:
            return first
        if same is None:
            undecided.update((first, row))
    firsts.append(row)
    return row


def _count(
    answers: Sequence[str | None],
    classes: Sequence[int | None],
    weights: Sequence[float | int],
    undecided: int,
) -> Vote:
    members: dict[int, list[float]] = {}
    for row, first in enumerate(classes):
        if first is not None:
            members.setdefault(first, []).append(weights[row])
    # fsum is exact before rounding, so the order of rows cannot tip a vote.
    sums = {
        first: sum(given) if all(isinstance(w, int) for w in given) else math.fsum(given)
        for first, given in members.items()
    }
    total = math.fsum(sums.values())
    # Sorting is stable and `members` is in the order seen: ties go to the first.
    ranked = sorted(sums, key=lambda first: -sums[first])
    counts = {answers[first] or "": sums[first] for first in ranked}
    if not ranked or total == 0:
        return Vote(None, None, counts, 0.0, False, tuple(classes), undecided)
    winner = ranked[0]
    tie = len(ranked) > 1 and sums[ranked[1]] == sums[winner]
    share = sums[winner] / total
    return Vote(answers[winner], winner, counts, share, tie, tuple(classes), undecided)
