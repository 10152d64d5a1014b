"""From a group to its line of output, and to one response.

Axes: W width.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from interlace.answers import (
    Aggregate,
    Aggregator,
    BestOfN,
    MajorityVote,
    Medoid,
    Responses,
    WeightedVote,
    synthesis_prompt,
)
from interlace.errors import AggregationError, ConfigError
from interlace.user_code import blame, named_function

if TYPE_CHECKING:
    from interlace.cli.generate import Settings
    from interlace.engine.types import Completion, GroupOutput

DECIMALS = 6
_ROOM_STEPS = 12


@dataclass(eq=False)
class Aggregation:
    """Makes one response of each group, as the settings say; the engine writes syntheses."""

    settings: Settings
    engine: Any
    as_prompt: Callable[[str], Any]

    def __post_init__(self) -> None:
        named, scored = self.settings.aggregate, self.settings.scorer
        if named == "synthesize" and not hasattr(self.engine, "tokenizer"):
            raise ConfigError(
                "--aggregate synthesize fits the responses into the model's context, which a "
                "server does not tell. Use another --aggregate, or load the model here."
            )
        scorer = None if scored is None else named_function(scored, "--scorer")
        votes: dict[str, Aggregator] = {
            "majority": MajorityVote(),
            "weighted": WeightedVote(scorer=scorer),
            "best-of-n": BestOfN(scorer=scorer),
            "medoid": Medoid(),
        }
        self._aggregator: Aggregator | None = votes.get(named)
        if ":" in named:
            self._aggregator = named_function(named, "--aggregate")

    @property
    def writes(self) -> bool:
        """Whether the engine makes the outcomes, so that it has to be free."""
        return self.settings.aggregate == "synthesize"

    def __call__(self, responses: Sequence[Responses]) -> list[Aggregate | None]:
        """The outcome for each group; None where there is to be none."""
        if self.writes:
            return self._syntheses(responses)
        if self._aggregator is None:
            return [None] * len(responses)
        return [self._one(self._aggregator, group) for group in responses]

    def _one(self, aggregator: Aggregator, responses: Responses) -> Aggregate:
        where = f"On the responses to {responses.prompt!r:.60} {self._own}"
        try:
            outcome = aggregator(responses)
        except BaseException as error:
            blame(error, where, AggregationError)
        if not isinstance(outcome, Aggregate):
            raise AggregationError(
                f"An aggregator returns an interlace.Aggregate; {self._own} returned "
                f"{outcome!r:.60}."
            )
        return outcome

    @property
    def _own(self) -> str:
        if ":" in self.settings.aggregate:
            return f"the aggregator {self.settings.aggregate}"
        return f"the scorer {self.settings.scorer}"

    def _syntheses(self, responses: Sequence[Responses]) -> list[Aggregate | None]:
        """Syntheses, all in one call of the engine; a group of blank texts has none."""
        outcomes: list[Aggregate | None] = [Aggregate("synthesize", None)] * len(responses)
        rows = [row for row, r in enumerate(responses) if any(text.strip() for text in r.texts)]
        fitted = [self._fitted(responses[row]) for row in rows]
        params = self.settings.sampling().replace(width=1, consensus=None)
        groups = self.engine.generate([ids for ids, _ in fitted], params)
        for row, group, (_, shortened) in zip(rows, groups, fitted, strict=True):
            details = {"shortened": list(shortened), "tokens": group.num_tokens}
            text = group.completions[0].text
            outcomes[row] = Aggregate("synthesize", text, details=details)
        return outcomes

    def _fitted(self, responses: Responses) -> tuple[list[int], tuple[int, ...]]:
        """The synthesis prompt's token ids, its responses shortened until it fits the context."""
        from interlace.engine.request import encode

        tokenizer = self.engine.tokenizer
        context, _ = self.engine.core.backend.context  # LongRoPE's is not its configuration's
        room = (context or sys.maxsize) - self.settings.max_new_tokens
        characters = sum(map(len, responses.texts)) + len(responses.texts)
        for _ in range(_ROOM_STEPS):
            text, shortened = synthesis_prompt(
                responses.prompt,
                responses.texts,
                max_characters=max(characters, len(responses.texts)),
                special_tokens=getattr(tokenizer, "all_special_tokens", ()),
            )
            ids = encode(self.as_prompt(text), 0, tokenizer)
            if len(ids) <= room:
                return ids, shortened
            characters = int(characters * min(0.9, 0.95 * max(room, 1) / len(ids)))
        raise AggregationError(
            f"A synthesis of {len(responses.texts)} responses to {responses.prompt!r:.60} does not "
            f"fit the model's context with {self.settings.max_new_tokens} new tokens. Use a "
            "smaller --width or --max-new-tokens, or another --aggregate."
        )


def responses_of(
    group: GroupOutput, prompt: str, columns: Mapping[str, Any] | None = None
) -> Responses:
    """What an aggregator is given of a group."""
    return Responses(
        prompt=prompt,
        texts=group.texts,
        logprobs=[completion.logprobs for completion in group.completions],
        columns=columns or {},
    )


def line_of(
    name: str | int, prompt: Any, group: GroupOutput, outcome: Aggregate | None
) -> dict[str, Any]:
    """A group as one line of output.

    Log-probabilities are natural logarithms at temperature 1, before anything else. They and all
    other numbers are rounded to `DECIMALS`: the rest is noise of the arithmetic.
    """
    line = {
        "id": name,
        "prompt": prompt,
        "prompt_tokens": len(group.prompt_token_ids),
        "width": group.params.width,
        "completions": [_completion(completion) for completion in group.completions],
    }
    if outcome is not None:
        line["aggregate"] = {
            "method": outcome.method,
            "answer": outcome.answer,
            "text": outcome.text,
            "row": outcome.index,
            **_rounded(outcome.details),
        }
    return line


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, DECIMALS)
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list | tuple) else value


def _completion(completion: Completion) -> dict[str, Any]:
    values: dict[str, Any] = {
        "text": completion.text,
        "token_ids": completion.token_ids,
        "logprobs": _rounded(completion.logprobs),
        "finish_reason": completion.finish_reason,
    }
    if completion.top_logprobs is not None:
        values["top_logprobs"] = _rounded(completion.top_logprobs)
    return values
