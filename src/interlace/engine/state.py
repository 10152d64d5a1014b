"""A group while it is generated: its rows, their tokens so far, and what becomes of them.

Axes: R live rows, W width, L layers with blocks, N forbidden tokens.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt64
from torch import Tensor

from interlace.answers.vote import answer_classes
from interlace.engine.stopping import RowText, end_of_row, majority_is_settled
from interlace.engine.types import (
    Completion,
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

    @cached_property
    def longest(self) -> int:
        """The most tokens that a row may get."""
        return min(self.params.longest, self.room)

    @cached_property
    def prompt_key(self) -> bytes:
        """What requests of the same prompt have in common; bytes remember their hash."""
        return np.asarray(self.token_ids, dtype=np.int64).tobytes()

    @cached_property
    def sampling_key(self) -> Hashable:
        """Rows with equal keys are sampled in one call."""
        p = self.params
        shape = (p.temperature, p.top_k, p.top_p, p.min_p, p.repetition_penalty, p.top_logprobs)
        return (*shape, tuple(map(id, p.logits_processors)), tuple(self.forbidden.tolist()))


@dataclass(frozen=True)
class Drawn:
    """A row's next token with what is reported of it."""

    token: int
    logprob: float
    sampled_logprob: float
    top: list[tuple[int, float]] | None


@dataclass(eq=False)
class Row:
    """One row of a running group."""

    group: RunningGroup
    index: int
    maximum: int
    key: np.uint64
    text: RowText | None
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    sampled_logprobs: list[float] = field(default_factory=list)
    top_logprobs: list[list[tuple[int, float]]] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    answer: str | None = None  # once it is finished, for a consensus

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


class RunningGroup:
    """A group between its admission and its last token."""

    def __init__(self, request: Request, tokenizer: Any, streaming: bool) -> None:
        self.request = request
        self.last_step: Step | None = None
        self._tokenizer = tokenizer
        self._streaming = streaming
        self._started = time.perf_counter()
        self._attention: list[np.ndarray] = []
        self._tokens_saved = 0
        params = request.params
        follows_text = tokenizer is not None and (streaming or bool(params.stop))
        self.rows = [
            Row(
                self,
                row,
                min(params.row_maximum(row), request.room),
                request.keys[row],
                RowText(tokenizer, params.stop) if follows_text else None,
            )
            for row in range(params.width)
        ]

    @property
    def is_finished(self) -> bool:
        return all(row.finish_reason is not None for row in self.rows)

    def end_step(self, tokens: dict[int, int]) -> None:
        """Settle what this step's tokens, by row, mean for the group and its stream."""
        if self.request.params.consensus is not None:
            self._settle(tokens)
        if not self._streaming:
            return
        for row in self.rows:
            if row.finish_reason is not None and row.text is not None:
                row.text.finish()
        width = range(len(self.rows))
        self.last_step = Step(
            tokens=[tokens.get(w) for w in width],
            alive=[w in tokens for w in width],
            texts=[row.text.emit() if row.text else "" for row in self.rows],
            finish_reasons=[self.rows[w].finish_reason if w in tokens else None for w in width],
        )

    def _settle(self, tokens: dict[int, int]) -> None:
        """End the group if its unfinished rows cannot change the majority any more."""
        consensus = self.request.params.consensus
        assert consensus is not None
        ended = [self.rows[w] for w in tokens if self.rows[w].finish_reason is not None]
        for row in ended:
            row.answer = consensus(self._text_of(row))
        unfinished = [row for row in self.rows if row.finish_reason is None]
        if not ended or not unfinished:
            return
        classes = answer_classes([row.answer for row in self.rows])
        if majority_is_settled(classes, [row.index for row in unfinished]):
            for row in unfinished:
                row.finish_reason = "consensus"
                self._tokens_saved += row.maximum - len(row.tokens)

    def note_attention(
        self, weights: Float[np.ndarray, "L R R"], live: Sequence[Row], places: Sequence[int]
    ) -> None:
        """Keep who attended to whom in a step, the rows in their own order.

        Args:
            weights: of all live rows.
            live: all live rows, in the order of `weights`.
            places: where this group's are among them.
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
        if row.text is not None:  # the same as its stream, to the letter
            row.text.finish()
            return row.text.text
        ended = bool(row.tokens) and row.tokens[-1] in self.request.stop_ids
        return self._decode(row.tokens[:-1] if ended else row.tokens)

    def _decode(self, token_ids: list[int]) -> str:
        if self._tokenizer is None:
            return ""
        text: str = self._tokenizer.decode(token_ids, skip_special_tokens=True)
        return text
