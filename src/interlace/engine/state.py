"""A group while it is generated: its rows, their tokens and texts so far, the next ones, and what
becomes of them.

Axes: R live rows, W width, L layers with blocks, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interlace.engine.consensus import Ask, Consensus
from interlace.engine.kv import Ahead, Slot
from interlace.engine.request import Request
from interlace.engine.sampling import Sampler, has_filters, needs_history, uniforms
from interlace.engine.types import Completion, FinishReason, GroupOutput, Step
from interlace.errors import GenerationError

# What a decoder prints for bytes that are no character, or not yet one.
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
_LONGEST_CHARACTER = 4  # bytes of UTF-8, so at most as many tokens


class RowText:
    """A row's text, extended token by token without decoding the whole row again.

    The text goes on only when a character is complete, and ends before a stop string. What it
    emits is never taken back: an end of the text that a stop string may begin with is held back.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._stop = stop
        self._longest_stop = max((len(s) for s in stop), default=1)
        self._tokens: list[int] = []
        # Tokens up to `_read` are in the text. Decoding starts at `_from`, a little before, because
        # many tokenizers decode the first token of a sequence in another way.
        self._from = self._read = 0
        self._emitted = 0
        self._is_final = False
        self.text = ""
        self.stopped = False

    def add(self, token: int) -> None:
        """Take one token; sets `stopped` if a stop string is complete, and cuts the text before
        it."""
        self._tokens.append(token)
        now, end = self._decode(self._from), len(self._tokens)
        if now.endswith(_INCOMPLETE):
            if end - self._read < _LONGEST_CHARACTER:
                return
            # Bytes that are no character: take them, but for the last, which may still become one.
            near = range(end - _LONGEST_CHARACTER + 1, end)
            sure = (k for k in near if self._decode(self._from, k) + self._decode(k) == now)
            end = next(sure, self._read)
            now = self._decode(self._from, end)
        if end > self._read:
            self._extend(now, end)

    def finish(self) -> None:
        """No more tokens come: what was held back, or incomplete, is text now."""
        if not self.stopped and self._read < len(self._tokens):
            self._extend(self._decode(self._from), len(self._tokens))
        self._is_final = True

    def emit(self) -> str:
        """The text since the last call that cannot become a stop string any more."""
        end = len(self.text) - (0 if self._is_final or self.stopped else self._held())
        new, self._emitted = self.text[self._emitted : end], max(end, self._emitted)
        return new

    def _extend(self, now: str, end: int) -> None:
        """Let the text go on to token `end`, up to which decoding gives `now`."""
        before = self._decode(self._from, self._read)
        searched = max(0, len(self.text) - self._longest_stop + 1)
        self.text += now[len(before) :]
        self._from, self._read = self._read, end
        found = [at for s in self._stop if (at := self.text.find(s, searched)) >= 0]
        if found:
            self.text, self.stopped = self.text[: min(found)], True

    def _held(self) -> int:
        """The length of the longest end of the text that a stop string begins with."""
        text, last = self.text, self.text[-1:]  # the last sign first: a long stop stays cheap
        ends = ((s, n) for s in self._stop for n in range(1, min(len(s), len(text) + 1)))
        return max((n for s, n in ends if s[n - 1] == last and text.endswith(s[:n])), default=0)

    def _decode(self, start: int, end: int | None = None) -> str:
        text: str = self._tokenizer.decode(self._tokens[start:end], skip_special_tokens=True)
        return text


def end_of_row(
    token: int, sampled: int, maximum: int, stop_ids: frozenset[int], text: RowText | None
) -> FinishReason | None:
    """Why a row ends with this token, its `sampled`-th, or None if it goes on."""
    if token in stop_ids or (text is not None and text.stopped):
        return "stop"
    return "length" if sampled >= maximum else None


@dataclass(eq=False)
class Ticket:
    """A request in the core, from `add` to its end, whether it waits or runs.

    Attributes:
        id: Number by which the caller knows it.
        streams: Whether the caller wants each step.
        shown: Steps that the caller has seen. Where the group had to begin again, they come again
            to the token, and are not shown twice.
    """

    id: int
    request: Request
    streams: bool = False
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
        slot: Place of the row in the backend while it is live.
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
    """A group between its admission and its last token; see `Consensus` for `ask`."""

    def __init__(self, ticket: Ticket, tokenizer: Any, ask: Ask, mixes: bool = False) -> None:
        self.ticket = ticket
        self.request = ticket.request
        self._tokenizer = tokenizer
        self._started = time.perf_counter()
        self._attention: list[np.ndarray] = []
        self._mixing: list[np.ndarray] | None = [] if mixes else None
        self._tokens_saved = 0
        request, params = self.request, self.request.params
        follows_text = tokenizer is not None and bool(params.stop)
        self.rows = [
            Row(self, w, maximum, request.keys[w], self._new_text() if follows_text else None)
            for w, maximum in enumerate(request.maxima)
        ]
        self._told = 0  # steps of which `_seen` has the text
        self._seen: list[RowText | None] = [
            None if tokenizer is None or not ticket.streams else self._new_text() for _ in self.rows
        ]
        self._consensus = None
        if params.consensus is not None:
            self._consensus = Consensus(self.rows, params.consensus, self._text_of, ask)

    @property
    def steps(self) -> int:
        """Steps that it has taken."""
        return max(len(row.tokens) for row in self.rows)

    @property
    def is_recorded(self) -> bool:
        """Whether it wants to know who attends to whom."""
        return self._mixing is not None or self.request.params.record_attention is not None

    @property
    def is_finished(self) -> bool:
        """Whether nothing can change any more."""
        ended = all(row.finish_reason is not None for row in self.rows)
        return ended and (self._consensus is None or self._consensus.known == self.steps)

    def settle(self, wait: bool) -> None:
        """End the group where its majority was settled, as far as that is known by now, or once it
        is."""
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
        for recorded in (self._attention, self._mixing or []):
            del recorded[steps - 1 :]

    def new_steps(self) -> Iterator[tuple[int, Step, bool]]:
        """The steps that the caller has not seen yet, and that are sure by now, with their numbers
        and whether it is the last of them; each counts as seen once the next is asked for, so that
        an interrupt loses none."""
        if not self.ticket.streams:
            return
        sure = self.steps if self._consensus is None else self._consensus.known
        for number in range(self._told, sure):
            step, self._told = self._step(number, self._seen), number + 1
            if number >= self.ticket.shown:
                yield number, step, number == sure - 1
                self.ticket.shown = number + 1

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
        self, weights: Float[np.ndarray, "L R N"], live: Sequence[Row], places: Sequence[int]
    ) -> None:
        """Keep who attended to whom in a step, the rows in their own order, of the attention of all
        live rows, among which this group's stand at `places`."""
        order = [live[place].index for place in places]
        width = len(self.rows)
        full = np.zeros((weights.shape[0], width, width), dtype=np.float32)
        own = weights[:, places]
        full[np.ix_(range(len(full)), order, order)] = own[:, :, places]
        earlier = own[:, :, len(live) :][:, :, :width]
        full[:, order, : earlier.shape[2]] += earlier
        if self._mixing is not None:
            self._mixing.append(full[0])  # of the one module at the input
        wanted = self.request.params.record_attention
        if wanted is not None:
            self._attention.append(full.mean(axis=0) if wanted == "mean" else full)

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
            mixing=self._mixing,
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
            streams = self.ticket.streams or bool(self.request.params.stop)
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


# The next tokens --------------------------------------------------------------------------------


@dataclass
class Drawing:
    """What a step has given: each row's token, and the groups for which it could not."""

    tokens: dict[Row, Drawn] = field(default_factory=dict)
    failed: dict[RunningGroup, Exception] = field(default_factory=dict)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and (
        "can't allocate memory" in text or "out of memory" in text
    )


def draw(rows: Sequence[Row], logits: Float[Tensor, "R V"], sample: Sampler) -> Drawing:
    """Draw for each row; rows that are sampled alike, in one call.

    A group whose logits are not numbers, or whose logits processors raise, fails alone. Only want
    of memory is raised: then nothing has been drawn, and the step can be done again.
    """
    alike: dict[Hashable, list[int]] = {}
    for place, row in enumerate(rows):
        alike.setdefault(row.group.request.sampling_key, []).append(place)
    drawing = Drawing()
    for places in alike.values():
        part = logits if len(places) == len(rows) else logits[places]
        _draw_alike([rows[place] for place in places], part, sample, drawing)
    return _without_failed(drawing)


def _without_failed(drawing: Drawing) -> Drawing:
    for group in drawing.failed:
        for row in group.rows:
            drawing.tokens.pop(row, None)
    return drawing


def needs_host(request: Request) -> bool:
    """Whether drawing for a request, or the end of its rows, is more than a backend can do by
    itself: filters and processors, stop strings, and all that is recorded of a step."""
    params = request.params
    recorded = params.top_logprobs > 0 or params.record_attention is not None
    reads_text = bool(params.stop) or params.consensus is not None
    return has_filters(params) or needs_history(params) or recorded or reads_text


def ahead_of(row: Row) -> Ahead:
    """What a backend needs to know of a row to go on with it by itself."""
    request = row.group.request
    return Ahead(
        token=row.tokens[-1],
        length=len(row.tokens) - 1,
        key=int(row.key.astype(np.int64)),
        temperature=request.params.temperature,
        forbidden=request.forbidden.tolist(),
        stops=sorted(request.stop_ids),
    )


def drawing_of(rows: Sequence[Row], values: Sequence[Sequence[float]]) -> Drawing:
    """What a backend has drawn by itself: of each row the token and its log-probabilities."""
    drawing = Drawing()
    for row, (token, logprob, sampled) in zip(rows, values, strict=True):
        if logprob != logprob or sampled != sampled:
            drawing.failed[row.group] = _cannot_draw(row, logits_are_numbers=logprob == logprob)
        drawing.tokens[row] = Drawn(int(token), logprob, sampled, None)
    return _without_failed(drawing)


def _draw_alike(
    rows: Sequence[Row], logits: Float[Tensor, "R V"], sample: Sampler, drawing: Drawing
) -> None:
    try:
        drawing.tokens.update(zip(rows, _sampled(rows, logits, sample), strict=True))
    except Exception as error:
        if is_out_of_memory(error):
            raise
        groups = dict.fromkeys(row.group for row in rows)
        if len(groups) == 1:
            drawing.failed[rows[0].group] = error
            return
        for group in groups:  # each alone, so that only those fail that have to
            places = [place for place, row in enumerate(rows) if row.group is group]
            _draw_alike([rows[place] for place in places], logits[places], sample, drawing)


def _sampled(rows: Sequence[Row], logits: Float[Tensor, "R V"], sample: Sampler) -> list[Drawn]:
    request = rows[0].group.request
    histories = None
    if needs_history(request.params):
        histories = [row.group.request.token_ids + row.tokens for row in rows]
    keys = np.array([row.key for row in rows], dtype=np.uint64)
    steps = np.array([len(row.tokens) for row in rows])
    uniform = uniforms(keys, steps)
    sampled = sample(logits, uniform, request.params, request.forbidden, histories)
    logprobs, sampled_logprobs = sampled.logprobs.tolist(), sampled.sampled_logprobs.tolist()
    tops: list[list[tuple[int, float]]] | list[None] = [None] * len(rows)
    if sampled.top_tokens is not None and sampled.top_logprobs is not None:
        pairs = zip(sampled.top_tokens.tolist(), sampled.top_logprobs.tolist(), strict=True)
        tops = [list(zip(ids, values, strict=True)) for ids, values in pairs]
    for row, logprob, sampled_logprob in zip(rows, logprobs, sampled_logprobs, strict=True):
        if logprob != logprob or sampled_logprob != sampled_logprob:
            raise _cannot_draw(row, logits_are_numbers=logprob == logprob)
    return list(map(Drawn, sampled.tokens.tolist(), logprobs, sampled_logprobs, tops))


def _cannot_draw(row: Row, logits_are_numbers: bool) -> GenerationError:
    where = f"prompt {row.group.request.index}, row {row.index}, step {len(row.tokens)}"
    if logits_are_numbers:
        return GenerationError(
            f"No token is left to sample at {where}: logits processors and forbidden tokens have "
            "taken all of them. Look at params.logits_processors; PAD and BOS are never sampled "
            "unless they are stop ids."
        )
    return GenerationError(
        f"The model's logits are not numbers (NaN or infinite) at {where}. Look for weights or "
        "activations that overflow; a wider dtype (bfloat16, float32) may help."
    )
