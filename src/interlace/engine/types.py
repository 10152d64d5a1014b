"""What goes into the engine and what comes out of it.

Axes: W width, T tokens of a completion, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from interlace.answers.extract import extract_answer
from interlace.answers.vote import Vote, majority_vote, weighted_vote
from interlace.engine.params import SamplingParams as SamplingParams

# A str is used verbatim, token ids are fed as they are (a one-dimensional array will do, too),
# messages go through the chat template.
Prompt = str | Sequence[int] | Sequence[dict[str, Any]]

FinishReason = Literal["stop", "length", "consensus", "interrupted"]


@dataclass
class Completion:
    """One row's output.

    Attributes:
        text: what the tokens say, without special tokens and without the stop string or end token
            that ended it.
        token_ids: the sampled tokens, the one that finished the row included.
        logprobs: log-softmax of the model's logits at temperature 1, before anything else, at each
            token; in nats.
        sampled_logprobs: log-probability under the distribution that was sampled from, after
            temperature and forbidden tokens (and filters where there are any); 0 when greedy.
        finish_reason: "stop" (an end token or stop string), "length" (the row's maximum),
            "consensus" (its group's majority was settled), or "interrupted".
        top_logprobs: for each token the most likely alternatives as (token id, log-probability).
    """

    text: str
    token_ids: list[int]
    logprobs: list[float]
    sampled_logprobs: list[float]
    finish_reason: FinishReason
    top_logprobs: list[list[tuple[int, float]]] | None = None

    @property
    def cumulative_logprob(self) -> float:
        """The sum of `logprobs`: log-probability of the completion given all that its row saw."""
        return float(sum(self.logprobs))


@dataclass
class GroupOutput:
    """The W completions of one prompt.

    Attributes:
        prompt: the prompt as it was given.
        prompt_token_ids: what was fed for it.
        completions: one for each row.
        params: what was asked for.
        tokens_saved: with `consensus`, the most tokens that stopping early can have saved: what
            the unfinished rows had left to their maximum.
        attention: with `record_attention`, who attended to whom in each step: `[W, W]`, or
            `[L, W, W]` for each layer; rows that were finished have zeros. Entry t was computed
            from the rows' t-th tokens and gave the next ones; the first tokens come from the prompt
            alone. Empty for a model without Bridge.
        seconds: from the group's admission to its last token.
    """

    prompt: Prompt
    prompt_token_ids: list[int]
    completions: list[Completion]
    params: SamplingParams
    tokens_saved: int = 0
    attention: list[Float[np.ndarray, "*L W W"]] | None = None
    seconds: float = 0.0

    @property
    def texts(self) -> list[str]:
        """The texts of the completions."""
        return [completion.text for completion in self.completions]

    @property
    def num_tokens(self) -> int:
        """Sampled tokens of all rows."""
        return sum(len(completion.token_ids) for completion in self.completions)

    def vote(
        self,
        *,
        extract: Callable[[str], str | None] = extract_answer,
        weights: Sequence[float | int | None] | None = None,
        **options: Any,
    ) -> Vote:
        """The answer that most rows gave.

        Args:
            extract: Function from a row's text to its answer, None for a row without one. A task's
                own is `lambda text: task.verify(example, text).answer`.
            weights: Weights of the rows `[W]`, as `weighted_vote` takes them, for instance
                `logprob_weights([c.logprobs for c in group.completions])`; without them each row
                has one vote.
            **options: Options of `majority_vote`: `normalise`, `equal`.

        Raises:
            AggregationError: for weights that are negative, not finite, or not one a row.
        """
        answers = [extract(text) for text in self.texts]
        if weights is None:
            return majority_vote(answers, **options)
        return weighted_vote(answers, weights, **options)

    def alive_positions(self) -> list[int]:
        """For each row, how many of its fed positions are alive when the group is fed again whole.
        Equation (15).

        A position is alive if its token was fed while the row was unfinished: the prompt, and every
        token but the one that finished the row (METHOD.md).
        """
        prompt = len(self.prompt_token_ids)
        return [prompt + max(len(c.token_ids) - 1, 0) for c in self.completions]


@dataclass(frozen=True)
class Step:
    """One synchronous token for every live row of a group.

    Attributes:
        tokens: `[W]`, the token each row got; None for rows that were finished already.
        alive: `[W]`, whether the row got a token in this step.
        texts: `[W]`, the text that each row's token adds ("" while a character is incomplete).
        finish_reasons: `[W]`, why the row ended with this step, else None.
        logprobs: `[W]`, log-probability of each token, as in `Completion`.
        top_logprobs: `[W]`, the likeliest tokens, as in `Completion`.
    """

    tokens: list[int | None]
    alive: list[bool]
    texts: list[str]
    finish_reasons: list[FinishReason | None]
    logprobs: list[float | None] = field(default_factory=list)
    top_logprobs: list[list[tuple[int, float]] | None] = field(default_factory=list)


@dataclass
class EngineStats:
    """What a call cost. Where calls share passes, each counts its own rows, and the time of every
    pass that it had a part in.

    Attributes:
        prefill_tokens: prompt positions computed (a prompt once, whatever its width).
        decode_steps: forward passes of one token a row.
        computed_row_steps: rows of all those passes.
        alive_row_steps: those of them that fed an unfinished row's token.
        sampled_tokens: tokens sampled, those after the prefill included.
        peak_cache_bytes: the most that keys and values took.
        preempted_groups: groups that were put back for want of memory and begun again.
        prefill_seconds: time in prefills.
        decode_seconds: time in steps, sampling included.
        notes: what a user should know, such as that memory ran short.
    """

    prefill_tokens: int = 0
    decode_steps: int = 0
    computed_row_steps: int = 0
    alive_row_steps: int = 0
    sampled_tokens: int = 0
    peak_cache_bytes: int = 0
    preempted_groups: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    notes: list[str] = field(default_factory=list)

    def add_time(self, seconds: float, prefill: bool) -> None:
        """Count the time of a step, of a prefill or a decode step."""
        if prefill:
            self.prefill_seconds += seconds
        else:
            self.decode_seconds += seconds

    @property
    def utilisation(self) -> float:
        """Alive over computed row-steps; 1 means that no finished row cost anything."""
        return self.alive_row_steps / self.computed_row_steps if self.computed_row_steps else 1.0
