"""From groups and steps to OpenAI's objects: choices, chunks, log-probabilities, usage.

A reply is plain dictionaries: a stream makes one for each row and step, and pydantic's models would
cost more than the step. The tests read them with the strict types of the `openai` package.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from interlace.answers import Aggregate
from interlace.engine.state import RowText
from interlace.engine.types import Completion, GroupOutput, Step
from interlace.jsonl import to_json
from interlace.server.logits import Scored, Token
from interlace.server.protocol import ChatRequest, SamplingRequest

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


class TokenTexts:
    """The text and the bytes of single tokens; its tokenizer is used by one thread."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._is_byte_level = "ByteLevel" in repr(getattr(backend, "decoder", ""))
        # Many tokenizers drop the blank of the first token that they decode.
        self._before = list(tokenizer("a", add_special_tokens=False)["input_ids"])
        self._start: str = tokenizer.decode(self._before)
        self.text = lru_cache(maxsize=65_536)(self._text)
        self.raw = lru_cache(maxsize=65_536)(self._raw)

    def _text(self, number: int) -> str:
        """As it stands within a text: with its blank, where it has one."""
        text: str = self.tokenizer.decode([*self._before, number])
        if text.startswith(self._start) and number not in self.tokenizer.all_special_ids:
            return text[len(self._start) :]
        alone: str = self.tokenizer.decode([number])
        return alone

    def _raw(self, number: int) -> bytes:
        """A part of a character has bytes, though no text."""
        token = self.tokenizer.convert_ids_to_tokens(number)
        if isinstance(token, str):
            if found := _BYTE.fullmatch(token):
                return bytes([int(found[1], 16)])
            if self._is_byte_level and all(sign in _BYTES_OF for sign in token):
                return bytes(_BYTES_OF[sign] for sign in token)
        return self.text(number).encode("utf-8", "replace")


def _byte_level() -> dict[str, int]:
    """The signs by which byte-level tokenizers write bytes (GPT-2's table)."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {
        chr(256 + place): byte for place, byte in enumerate(hidden)
    }


_BYTES_OF = _byte_level()


class Places:
    """Where the tokens of one choice stand in its text, which begins at `start`; parts of a
    character, where it stands."""

    def __init__(self, tokenizer: Any, start: int = 0) -> None:
        self._text, self._start = RowText(tokenizer, ()), start

    def next(self, token: int) -> int:
        """The place of the next token."""
        place = self._start + len(self._text.text)
        self._text.add(token)
        return place


@dataclass
class Replier:
    """Makes the objects of one reply."""

    request: SamplingRequest
    model: str
    tokens: TokenTexts
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))
    _places: dict[int, Places] = field(default_factory=dict)  # by the index of the choice

    @property
    def is_chat(self) -> bool:
        """Whether choices are messages."""
        return isinstance(self.request, ChatRequest)

    def complete_reply(
        self,
        groups: Sequence[GroupOutput],
        scored: Sequence[Scored] | None = None,
        aggregates: Sequence[Aggregate] | None = None,
        generated: bool = True,
    ) -> dict[str, Any]:
        """The unstreamed reply. `scored` are the prompts, where the request echoes them; where
        nothing is `generated`, they alone were to be scored."""
        width = self.request.width
        choices = []
        for number, group in enumerate(groups):
            for row, completion in enumerate(group.completions):
                prompt = scored[number] if scored else None
                index = number * width + row
                choices.append(self._choice(index, group, completion, prompt, generated))
        reply: dict[str, Any] = {
            "id": ("chatcmpl-" if self.is_chat else "cmpl-") + self.id,
            "object": "chat.completion" if self.is_chat else "text_completion",
            "created": self.created,
            "model": self.model,
            "choices": choices,
            "usage": usage(groups, generated),
        }
        if aggregates is not None:
            reply["aggregate"] = [aggregate_json(a, n * width) for n, a in enumerate(aggregates)]
        if self.request.record_attention:
            reply["attention"] = [attention_json(group) for group in groups]
        if self.request.return_token_ids:
            reply["prompt_token_ids"] = [group.prompt_token_ids for group in groups]
        return reply

    def chunk(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        """One chunk of a stream."""
        return {
            "id": ("chatcmpl-" if self.is_chat else "cmpl-") + self.id,
            "object": "chat.completion.chunk" if self.is_chat else "text_completion",
            "created": self.created,
            "model": self.model,
            "choices": choices,
            **more,
        }

    def opening(self, prompts: int) -> Iterator[dict[str, Any]]:
        """The first chunks of a chat stream: each choice says who speaks."""
        if self.is_chat:
            for index in range(prompts * self.request.width):
                delta = {"role": "assistant", "content": ""}
                yield self._delta(index, delta, None, None)

    def step(self, first: int, step: Step) -> Iterator[dict[str, Any]]:
        """One choice for each row that got a token; `first` is the index of the group's first
        choice."""
        for row, token in enumerate(step.tokens):
            if token is None:
                continue
            index, text = first + row, step.texts[row]
            logprob, top = step.logprobs[row], step.top_logprobs[row]
            logprobs = self._logprobs([Token(token, logprob, top or [])], index)
            delta: Any = {"content": text} if self.is_chat else text
            choice = self._delta(index, delta, logprobs, step.finish_reasons[row])
            if self.request.return_token_ids:
                choice["token_ids"] = [token]
            yield choice

    def echo(self, first: int, prompt: Scored) -> Iterator[dict[str, Any]]:
        """The prompt before each choice of its group; the end too where nothing else is asked."""
        reason = "length" if self.request.max_tokens == 0 else None
        for index in range(first, first + self.request.width):
            yield self._delta(index, prompt.text, self._echoed(prompt, index), reason)

    def _delta(self, index: int, delta: Any, logprobs: Any, reason: str | None) -> dict[str, Any]:
        name = "delta" if self.is_chat else "text"
        return {"index": index, name: delta, "logprobs": logprobs, "finish_reason": reason}

    def _choice(
        self,
        index: int,
        group: GroupOutput,
        completion: Completion,
        prompt: Scored | None,
        generated: bool,
    ) -> dict[str, Any]:
        text = completion.text if generated else ""
        tokens = tokens_of(completion) if generated else []
        choice: dict[str, Any] = {"index": index}
        if self.is_chat:
            choice["message"] = {"role": "assistant", "content": text}
            choice["message"] |= {"refusal": None, "annotations": []}
        else:
            choice["text"] = (prompt.text if prompt else "") + text
        before = None if prompt is None else self._echoed(prompt, index)
        logprobs = self._logprobs(tokens, index)
        if before and logprobs:
            logprobs = {name: before[name] + logprobs[name] for name in before}
        choice["logprobs"] = logprobs
        choice["finish_reason"] = completion.finish_reason if generated else "length"
        if self.request.return_token_ids:
            choice["token_ids"] = completion.token_ids if generated else []
        return choice

    def _echoed(self, prompt: Scored, index: int) -> dict[str, Any] | None:
        """Of a prompt's tokens; those of the choice come after its text."""
        logprobs = self._logprobs(prompt.tokens, index)
        self._places[index] = Places(self.tokens.tokenizer, len(prompt.text))
        return logprobs

    def _logprobs(self, tokens: Sequence[Token], index: int) -> dict[str, Any] | None:
        """Of the next tokens of a choice."""
        count = self.request.alternatives
        if count is None:
            return None
        if self.is_chat:
            return {"content": [self._chat_token(t, count) for t in tokens], "refusal": None}
        places = self._places.setdefault(index, Places(self.tokens.tokenizer))
        return {
            "tokens": [self.tokens.text(token.id) for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [self._likely(token, count) for token in tokens],
            "text_offset": [places.next(token.id) for token in tokens],
        }

    def _likely(self, token: Token, count: int) -> dict[str, float] | None:
        """The likeliest tokens and the one that was taken; the likelier of two of one text."""
        if token.logprob is None:
            return None
        found: dict[str, float] = {}
        for number, logprob in [*token.top[:count], (token.id, token.logprob)]:
            found.setdefault(self.tokens.text(number), logprob)
        return found

    def _chat_token(self, token: Token, count: int) -> dict[str, Any]:
        top = [self._one(number, logprob) for number, logprob in token.top[:count]]
        return {**self._one(token.id, token.logprob), "top_logprobs": top}

    def _one(self, number: int, logprob: float | None) -> dict[str, Any]:
        raw = self.tokens.raw(number)
        return {"token": self.tokens.text(number), "logprob": logprob, "bytes": list(raw)}


def tokens_of(completion: Completion) -> list[Token]:
    """The tokens of a completion with their log-probabilities."""
    tops = completion.top_logprobs or [[]] * len(completion.token_ids)
    each = zip(completion.token_ids, completion.logprobs, tops, strict=True)
    return [Token(number, logprob, top) for number, logprob, top in each]


def usage(groups: Sequence[GroupOutput], generated: bool = True) -> dict[str, int]:
    """Tokens of the prompts, each once whatever its width, and of all rows."""
    prompt = sum(len(group.prompt_token_ids) for group in groups)
    completion = sum(group.num_tokens for group in groups) if generated else 0
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


def aggregate_json(aggregate: Aggregate, first: int) -> dict[str, Any]:
    """One answer out of a group; its index among all choices."""
    index = None if aggregate.index is None else first + aggregate.index
    return {
        "method": aggregate.method,
        "answer": aggregate.answer,
        "text": aggregate.text,
        "index": index,
        "details": to_json(aggregate.details),  # a scorer may say that a row is infinitely bad
    }


def attention_json(group: GroupOutput) -> list[Any]:
    """Who listened to whom in each step, `[steps, W, W]` or `[steps, L, W, W]`, to four places."""
    return [weights.round(4).tolist() for weights in group.attention or []]
