"""A group while it is generated: its rows, their tokens so far, and what becomes of them.

Axes: R live rows, W width, L layers with blocks, N forbidden tokens.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt64
from torch import Tensor

from interlace.engine.consensus import Ask, Consensus
from interlace.engine.kv import Slot
from interlace.engine.stopping import RowText, end_of_row
from interlace.engine.types import (
    Completion,
    EngineStats,
    FinishReason,
    GroupOutput,
    Prompt,
    SamplingParams,
    Step,
)


@dataclass(eq=False)
class Request:
    """One group to generate, with all that does not change while it runs."""

    index: int
    prompt: Prompt
    token_ids: list[int]
    params: SamplingParams
    keys: UInt64[np.ndarray, " W"]
    stop_ids: frozenset[int]
    forbidden: Int[Tensor, " N"]
    room: int  # tokens that the model's context leaves for a completion
    stats: EngineStats = field(default_factory=EngineStats)  # of the call that it belongs to
    alone: bool = False  # whether its prompt is computed without blocks, as at width 1 alone

    @cached_property
    def maxima(self) -> list[int]:
        """The most tokens that each row may get."""
        return [min(self.params.row_maximum(row), self.room) for row in range(self.params.width)]

    @cached_property
    def prompt_key(self) -> bytes:
        """What requests of the same prompt have in common; bytes remember their hash."""
        ids = np.asarray(self.token_ids, dtype=np.int64).tobytes()
        return ids + b"alone" if self.alone else ids

    @cached_property
    def sampling_key(self) -> Hashable:
        """Rows with equal keys are sampled in one call."""
        p = self.params
        shape = (p.temperature, p.top_k, p.top_p, p.min_p, p.repetition_penalty, p.top_logprobs)
        return (*shape, tuple(map(id, p.logits_processors)), tuple(self.forbidden.tolist()))


@dataclass(eq=False)
class Ticket:
    """A request in the core, from `add` to its end, whether it waits or runs.

    Attributes:
        id: Number by which the caller knows it.
        texts: What the caller has seen of each row's text; None where it wants no steps.
        shown: Steps that the caller has seen. Where the group had to begin again, they come again
            to the token, and are not shown twice.
    """

    id: int
    request: Request
    texts: list[RowText | None] | None = None
    shown: int = 0


@dataclass(frozen=True)
class Drawn:
    """A row's next token with what is reported of it."""

    token: int
    logprob: float
    sampled_logprob: float
    top: list[tuple[int, float]] | None


@dataclass(eq=False)
class Row:
    """One row of a running group.

    Attributes:
        slot: Its place in the backend while it is live.
    """

    group: RunningGroup
    index: int
    maximum: int
    key: np.uint64
    text: RowText | None  # where its text decides when it ends
    slot: Slot | None = None
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    sampled_logprobs: list[float] = field(default_factory=list)
    top_logprobs: list[list[tuple[int, float]]] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    @property
    def complete(self) -> int:
        """Tokens of which everything is there, should an interrupt have come in the middle."""
        return min(len(self.tokens), len(self.logprobs), len(self.sampled_logprobs))

    def append(self, drawn: Drawn) -> None:
        """Take the next token, which may be the last."""
        stop_ids = self.group.request.stop_ids
        if drawn.top is not None:
            self.top_logprobs.append(drawn.top)
        self.tokens.append(drawn.token)
        self.logprobs.append(drawn.logprob)
        self.sampled_logprobs.append(drawn.sampled_logprob)
        if self.text is not None and drawn.token not in stop_ids:
            self.text.add(drawn.token)
        self.finish_reason = end_of_row(
            drawn.token, len(self.tokens), self.maximum, stop_ids, self.text
        )

    def cut(self, steps: int, reason: FinishReason) -> None:
        """End it with its first `steps` tokens."""
        for each in (self.tokens, self.logprobs, self.sampled_logprobs, self.top_logprobs):
            del each[steps:]
        self.finish_reason = reason


class RunningGroup:
    """A group between its admission and its last token.

    Args:
        ticket: Request that it answers.
        tokenizer: Tokenizer of the model; None without texts.
        ask: What begins to answer whether a majority is settled; see `Consensus`.
    """

    def __init__(self, ticket: Ticket, tokenizer: Any, ask: Ask) -> None:
        self.ticket = ticket
        self.request = ticket.request
        self._tokenizer = tokenizer
        self._started = time.perf_counter()
        self._attention: list[np.ndarray] = []
        self._tokens_saved = 0
        request, params = self.request, self.request.params
        follows_text = tokenizer is not None and bool(params.stop)
        self.rows = [
            Row(self, w, maximum, request.keys[w], self._new_text() if follows_text else None)
            for w, maximum in enumerate(request.maxima)
        ]
        self._consensus = None
        if params.consensus is not None:
            self._consensus = Consensus(self.rows, params.consensus, self._text_of, ask)

    @property
    def steps(self) -> int:
        """Steps that it has taken."""
        return max(len(row.tokens) for row in self.rows)

    @property
    def is_finished(self) -> bool:
        """Whether nothing can change any more."""
        ended = all(row.finish_reason is not None for row in self.rows)
        return ended and (self._consensus is None or self._consensus.known == self.steps)

    def settle(self, wait: bool) -> None:
        """End the group where its majority was settled, as far as that is known by now.

        Args:
            wait: Whether to wait until it is known.
        """
        if self._consensus is None:
            return
        steps = self._consensus.settled(self.steps, wait)
        if steps is None:
            return
        for row in self.rows:
            if len(row.tokens) > steps or row.finish_reason is None:
                self._tokens_saved += row.maximum - steps
                row.cut(steps, "consensus")
                row.text = None
        del self._attention[steps - 1 :]

    def new_steps(self) -> Iterator[tuple[Step, bool]]:
        """The steps that the caller has not seen yet, and that are sure by now, with whether it is
        the last of them; each counts as seen once the next is asked for, so that an interrupt loses
        none."""
        ticket, sure = self.ticket, self.steps
        if ticket.texts is None:
            return
        if self._consensus is not None:
            sure = self._consensus.known
        for number in range(ticket.shown, sure):
            yield self._step(number, ticket.texts), number == sure - 1
            ticket.shown = number + 1

    def _step(self, number: int, seen: list[RowText | None]) -> Step:
        tokens: list[int | None] = []
        reasons: list[FinishReason | None] = []
        for row, text in zip(self.rows, seen, strict=True):
            token = row.tokens[number] if number < len(row.tokens) else None
            ended = row.finish_reason is not None and number == len(row.tokens) - 1
            tokens.append(token)
            reasons.append(row.finish_reason if ended else None)
            if text is not None and token is not None:
                if token not in self.request.stop_ids:
                    text.add(token)
                if ended:
                    text.finish()
        return Step(
            tokens=tokens,
            alive=[token is not None for token in tokens],
            texts=[text.emit() if text is not None else "" for text in seen],
            finish_reasons=reasons,
            logprobs=[_at(row.logprobs, number) for row in self.rows],
            top_logprobs=[_at(row.top_logprobs, number) for row in self.rows],
        )

    def note_attention(
        self, weights: Float[np.ndarray, "L R R"], live: Sequence[Row], places: Sequence[int]
    ) -> None:
        """Keep who attended to whom in a step, the rows in their own order.

        Args:
            weights: Attention of all live rows.
            live: All live rows, in the order of `weights`.
            places: Where this group's are among them.
        """
        order = [live[place].index for place in places]
        width = len(self.rows)
        full = np.zeros((weights.shape[0], width, width), dtype=np.float32)
        full[np.ix_(range(len(full)), order, order)] = weights[:, places][:, :, places]
        mean = self.request.params.record_attention == "mean"
        self._attention.append(full.mean(axis=0) if mean else full)

    def result(self) -> GroupOutput:
        """The group's completions as they are; rows that are unfinished count as interrupted."""
        params = self.request.params
        whole_steps = min((r.complete for r in self.rows if r.finish_reason is None), default=None)
        return GroupOutput(
            prompt=self.request.prompt,
            prompt_token_ids=self.request.token_ids,
            completions=[self._completion(row, whole_steps) for row in self.rows],
            params=params,
            tokens_saved=self._tokens_saved,
            attention=self._attention if params.record_attention else None,
            seconds=time.perf_counter() - self._started,
        )

    def _completion(self, row: Row, whole_steps: int | None) -> Completion:
        """A row as it is; without what it has got of a step that was interrupted."""
        cut = whole_steps is not None and len(row.tokens) > whole_steps
        end = whole_steps if cut else None
        return Completion(
            text=self._decode(row.tokens[:end]) if cut else self._text_of(row),
            token_ids=row.tokens[:end],
            logprobs=row.logprobs[:end],
            sampled_logprobs=row.sampled_logprobs[:end],
            finish_reason="interrupted" if cut else row.finish_reason or "interrupted",
            top_logprobs=row.top_logprobs[:end] if self.request.params.top_logprobs else None,
        )

    def _text_of(self, row: Row) -> str:
        ended = bool(row.tokens) and row.tokens[-1] in self.request.stop_ids
        tokens = row.tokens[:-1] if ended else row.tokens
        text = row.text
        if text is None:
            streams = self.ticket.texts is not None or bool(self.request.params.stop)
            if self._tokenizer is None or not streams:
                return self._decode(tokens)
            text = self._new_text()  # the same as its stream, to the letter
            for token in tokens:
                text.add(token)
        text.finish()
        return text.text

    def _new_text(self) -> RowText:
        return RowText(self._tokenizer, self.request.params.stop)

    def _decode(self, token_ids: list[int]) -> str:
        if self._tokenizer is None:
            return ""
        text: str = self._tokenizer.decode(token_ids, skip_special_tokens=True)
        return text


def _at(values: Sequence[Any], number: int) -> Any:
    return values[number] if number < len(values) else None
