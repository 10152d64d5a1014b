"""One shape for every way from W responses to one, and for a user's own.

An `Aggregator` is any callable from `Responses` to an `Aggregate`. The ones here wrap this
package's functions, for the command line and the server, which pick them by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from interlace.answers.choose import Choice, Scorer, best_of_n, medoid
from interlace.answers.extract import extract_answer
from interlace.answers.synthesis import SYNTHESIS_TEMPLATE, synthesize
from interlace.answers.vote import Vote, logprob_weights, majority_vote, weighted_vote
from interlace.errors import AggregationError

Extract = Callable[[str], str | None]


@dataclass(frozen=True)
class Responses:
    """What an aggregator is given: one group's responses.

    Attributes:
        prompt: The prompt as text.
        texts: `[W]` the responses.
        logprobs: `[W]` each row's token log-probabilities, natural logarithm; None if unknown.
        columns: The example's other columns, for reward functions.
    """

    prompt: str
    texts: Sequence[str]
    logprobs: Sequence[Sequence[float]] | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Aggregate:
    """What an aggregator makes of a group.

    Attributes:
        method: The aggregator's name.
        text: The response to give; None if there is none.
        answer: The short answer that won, for votes; else None.
        index: The row that `text` comes from; None if it is nobody's.
        details: More about the outcome, ready for JSON.
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
        extract: Response to answer.
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


@dataclass(frozen=True)
class Synthesize:
    """`synthesize` with a model; other attributes as there."""

    generate: Callable[[str], str]
    template: str = SYNTHESIS_TEMPLATE
    max_characters: int = 16_000
    special_tokens: Sequence[str] = ()

    def __call__(self, responses: Responses, /) -> Aggregate:
        if not any(text.strip() for text in responses.texts):
            return Aggregate("synthesize", None)
        written = synthesize(
            responses.prompt,
            responses.texts,
            self.generate,
            template=self.template,
            max_characters=self.max_characters,
            special_tokens=self.special_tokens,
        )
        return Aggregate("synthesize", written.text, details={"shortened": list(written.shortened)})


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
