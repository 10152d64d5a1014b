"""From W responses to one: the best by a score, the most central, and one shape for every way.

An `Aggregator` is any callable from `Responses` to an `Aggregate`. The ones here wrap this
package's functions, for callers that pick them by name. Ties go to the first response.
"""

from __future__ import annotations

import inspect
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from interlace.answers.extract import extract_answer
from interlace.answers.vote import Vote, logprob_weights, majority_vote, weighted_vote
from interlace.errors import AggregationError

MEDOID_CHARACTERS = 20_000

Scorer = Callable[..., Any]
Extract = Callable[[str], str | None]


@dataclass(frozen=True)
class Choice:
    """One response chosen among W.

    Attributes:
        text: Chosen response; None if no row had a score.
        index: Row of the chosen response; None if no row had a score.
        scores: Score of each row, `[W]`; None for a row that has none.
        tie: Whether another row has exactly the chosen one's score.
    """

    text: str | None
    index: int | None
    scores: tuple[float | None, ...]
    tie: bool


def best_of_n(
    texts: Sequence[str],
    scorer: Scorer,
    *,
    prompt: Any = "",
    columns: Mapping[str, Any] | None = None,
) -> Choice:
    """The response with the highest score.

    Args:
        texts: Responses, `[W]`.
        scorer: Function that scores: a plain one, `scorer(text) -> float`, or a reward function
            with TRL's signature, `scorer(prompts, completions, **columns) -> list[float | None]`,
            which is told by its parameter named `completions`. None leaves a row out.
        prompt: Prompt, for a reward function.
        columns: Columns of the example besides, for a reward function; one value each, which every
            row gets.

    Returns:
        The chosen response and all scores.

    Raises:
        AggregationError: for a score that is no number or NaN, or not one score a row.

    >>> best_of_n(["short", "the longest", "longer"], len).text
    'the longest'
    >>> def reward(prompts, completions, answer, **columns):
    ...     return [float(right in text) for text, right in zip(completions, answer)]
    >>> best_of_n(["5", "4"], reward, prompt="2 + 2 =", columns={"answer": "4"}).index
    1
    """
    _check_texts(texts)
    if "completions" in _parameters(scorer):
        repeated = {name: [value] * len(texts) for name, value in (columns or {}).items()}
        given = scorer(prompts=[prompt] * len(texts), completions=list(texts), **repeated)
    else:
        given = [scorer(text) for text in texts]
    if not isinstance(given, Sequence) or len(given) != len(texts):
        got = len(given) if isinstance(given, Sequence) else type(given).__name__
        raise AggregationError(
            f"A reward function returns a list with one score a row; got {got} for {len(texts)} "
            "rows."
        )
    return _highest(texts, [_score(row, value) for row, value in enumerate(given)])


def medoid(texts: Sequence[str]) -> Choice:
    """The most central response: the one most like all others, for free text.

    Similarity is the cosine between counts of character trigrams, case and blanks folded. A row's
    score is its mean similarity to the other rows, 0 to 1; blank rows have none and count for
    nobody. Cosines add up, so the time is linear in W. Of a longer text the first
    `MEDOID_CHARACTERS` characters count.

    Args:
        texts: Responses, `[W]`.

    Returns:
        The chosen response and all scores.

    >>> choice = medoid(["a red fox ran", "the red fox ran off", "a red fox ran off", "no idea"])
    >>> choice.text, choice.index
    ('a red fox ran off', 2)
    """
    _check_texts(texts)
    profiles = [_trigrams(text) for text in texts]
    total: dict[str, float] = {}
    for profile in profiles:
        for trigram, weight in profile.items():
            total[trigram] = total.get(trigram, 0.0) + weight
    others = sum(map(bool, profiles)) - 1
    scores: list[float | None] = []
    for profile in profiles:
        if not profile:
            scores.append(None)
            continue
        similarity = math.fsum(weight * total[trigram] for trigram, weight in profile.items()) - 1.0
        # Rounded, so that the order of a sum's terms cannot break a tie.
        scores.append(round(similarity / others, 9) if others else 1.0)
    return _highest(texts, scores)


@dataclass(frozen=True)
class Responses:
    """What an aggregator is given: one group's responses.

    Attributes:
        prompt: Prompt as text.
        texts: Responses, `[W]`.
        logprobs: Token log-probabilities of each row, `[W]`, natural logarithm; None if unknown.
        columns: Columns of the example besides these, for reward functions.
    """

    prompt: str
    texts: Sequence[str]
    logprobs: Sequence[Sequence[float]] | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Aggregate:
    """What an aggregator makes of a group.

    Attributes:
        method: Name of the aggregator.
        text: Response to give; None if there is none.
        answer: Short answer that won, for votes; else None.
        index: Row that `text` comes from; None if it is nobody's.
        details: Further facts about the outcome, ready for JSON.
    """

    method: str
    text: str | None
    answer: str | None = None
    index: int | None = None
    details: dict[str, Any] = field(default_factory=dict)


@runtime_checkable
class Aggregator(Protocol):
    """From W responses to one. Any function with this signature is an aggregator.

    >>> def longest(responses: Responses) -> Aggregate:
    ...     return Aggregate("longest", max(responses.texts, key=len))
    >>> aggregator: Aggregator = longest
    >>> aggregator(Responses("2 + 2?", ["4", "four"])).text
    'four'
    """

    def __call__(self, responses: Responses, /) -> Aggregate:
        """The outcome for one group."""
        ...


@dataclass(frozen=True)
class MajorityVote:
    r"""`majority_vote` over the answers that `extract` finds.

    >>> outcome = MajorityVote()(Responses("1 + 1?", [r"\boxed{2}", "It is 3", "So 2"]))
    >>> outcome.answer, outcome.index, outcome.details["counts"]
    ('2', 0, {'2': 2, '3': 1})
    """

    extract: Extract = extract_answer

    def __call__(self, responses: Responses, /) -> Aggregate:
        answers = [self.extract(text) for text in responses.texts]
        return _from_vote("majority", responses, answers, majority_vote(answers))


@dataclass(frozen=True)
class WeightedVote:
    """`weighted_vote`: rows weigh by `scorer`, or by their log-probability without one.

    Attributes:
        extract: Function from a response to its answer.
        scorer: As in `best_of_n`, with scores of at least 0; None for `logprob_weights`.
        length_normalised: As in `logprob_weights`.
    """

    extract: Extract = extract_answer
    scorer: Scorer | None = None
    length_normalised: bool = True

    def __call__(self, responses: Responses, /) -> Aggregate:
        weights: Sequence[float | None]
        if self.scorer is None:
            weights = logprob_weights(
                _logprobs(responses), length_normalised=self.length_normalised
            )
        else:
            weights = _scored(responses, self.scorer).scores
        answers = [self.extract(text) for text in responses.texts]
        outcome = _from_vote("weighted", responses, answers, weighted_vote(answers, weights))
        outcome.details["weights"] = list(weights)
        return outcome


@dataclass(frozen=True)
class BestOfN:
    """`best_of_n` with `scorer`, or with each row's mean log-probability without one."""

    scorer: Scorer | None = None

    def __call__(self, responses: Responses, /) -> Aggregate:
        if self.scorer is not None:
            return _from_choice("best-of-n", _scored(responses, self.scorer))
        means = [
            math.fsum(tokens) / len(tokens) if tokens else None for tokens in _logprobs(responses)
        ]

        def mean_logprob(prompts: Any, completions: Any) -> list[float | None]:
            return means

        return _from_choice("best-of-n", best_of_n(responses.texts, mean_logprob))


@dataclass(frozen=True)
class Medoid:
    """`medoid`: the most central response."""

    def __call__(self, responses: Responses, /) -> Aggregate:
        return _from_choice("medoid", medoid(responses.texts))


def _scored(responses: Responses, scorer: Scorer) -> Choice:
    return best_of_n(responses.texts, scorer, prompt=responses.prompt, columns=responses.columns)


def _logprobs(responses: Responses) -> Sequence[Sequence[float]]:
    if responses.logprobs is None or len(responses.logprobs) != len(responses.texts):
        raise AggregationError(
            "Weighing by log-probability needs one list of token log-probabilities a row; got "
            f"{'none' if responses.logprobs is None else len(responses.logprobs)} for "
            f"{len(responses.texts)} rows. Pass `logprobs`, or a scorer."
        )
    return responses.logprobs


def _from_vote(
    method: str, responses: Responses, answers: Sequence[str | None], vote: Vote
) -> Aggregate:
    details = {
        "counts": vote.counts,
        "share": vote.share,
        "tie": vote.tie,
        "answers": list(answers),
        "classes": list(vote.classes),
        "undecided": vote.undecided,
    }
    text = None if vote.index is None else responses.texts[vote.index]
    return Aggregate(method, text, vote.winner, vote.index, details)


def _from_choice(method: str, choice: Choice) -> Aggregate:
    details = {"scores": list(choice.scores), "tie": choice.tie}
    return Aggregate(method, choice.text, None, choice.index, details)


def _trigrams(text: str) -> dict[str, float]:
    """Counts of character trigrams, scaled to length 1."""
    folded = " ".join(text[:MEDOID_CHARACTERS].casefold().split())
    if not folded:
        return {}
    padded = f" {folded} "
    counts = Counter(padded[start : start + 3] for start in range(len(padded) - 2))
    length = math.sqrt(sum(count * count for count in counts.values()))
    return {trigram: count / length for trigram, count in counts.items()}


def _parameters(scorer: Scorer) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(scorer).parameters
    except (TypeError, ValueError):  # some builtins have no signature
        return {}


def _score(row: int, value: Any) -> float | None:
    if value is None:
        return None
    try:
        score = float(value)
    except (TypeError, ValueError):
        score = math.nan
    if math.isnan(score):
        raise AggregationError(
            f"A score is a number, or None for a row without one; row {row} has {value!r:.40}."
        )
    return score


def _highest(texts: Sequence[str], scores: Sequence[float | None]) -> Choice:
    known = [(score, row) for row, score in enumerate(scores) if score is not None]
    if not known:
        return Choice(None, None, tuple(scores), False)
    best = max(score for score, _ in known)
    rows = [row for score, row in known if score == best]
    return Choice(texts[rows[0]], rows[0], tuple(scores), len(rows) > 1)


def _check_texts(texts: Sequence[str]) -> None:
    if isinstance(texts, str):
        raise AggregationError(
            f"Pass a sequence of responses, one a row; got the single string {texts!r:.40}. Wrap "
            "it in a list."
        )
