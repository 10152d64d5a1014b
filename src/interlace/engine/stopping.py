"""When a row ends, what its text is so far, and when a group's majority is settled."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any

from interlace.engine.types import FinishReason, SamplingParams

# What a decoder prints for bytes that are no character, or not yet one.
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
_LONGEST_CHARACTER = 4  # bytes of UTF-8, so at most as many tokens


class RowText:
    """A row's text, extended token by token without decoding the whole row again.

    The text goes on only when a character is complete, and ends before a stop string. What it
    emits is never taken back: an end of the text that a stop string may begin with is held back.

    Args:
        tokenizer: the model's.
        stop: the stop strings.
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
        return max(
            (n for s in self._stop for n in range(1, len(s)) if self.text.endswith(s[:n])),
            default=0,
        )

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


def majority_is_settled(answers: Sequence[Hashable | None], unfinished: Sequence[int]) -> bool:
    """Whether the unfinished rows cannot change the majority, whatever they answer.

    Args:
        answers: each row's answer, or the class of answers that it belongs to; None for rows
            without one, unfinished rows among them.
        unfinished: the indices of the rows that may still answer.

    The majority is the most frequent answer, ties by first seen (METHOD.md).

    >>> majority_is_settled(["7", "7", "7", None, None], unfinished=[3, 4])
    True
    >>> majority_is_settled(["7", "7", None, None], unfinished=[2, 3])
    True
    >>> majority_is_settled([None, "7", "7", None], unfinished=[0, 3])
    False
    """
    counts = Counter(a for a in answers if a is not None)
    if not unfinished:
        return True
    if not counts:
        return False
    first = {answer: answers.index(answer) for answer in counts}
    leader = min(counts, key=lambda answer: (-counts[answer], first[answer]))
    left = len(unfinished)
    rivals = [(counts[a], first[a]) for a in counts if a != leader] + [(0, len(answers))]
    for votes, seen in rivals:
        if votes + left > counts[leader]:
            return False
        if votes + left == counts[leader] and min(seen, *unfinished) < first[leader]:
            return False
    return True


def stop_ids_of(model: Any, tokenizer: Any, params: SamplingParams) -> frozenset[int]:
    """Token ids that finish a row: the model's own unless they are ignored, and those asked for.

    A stop string that is a special token is asked for by its id, since no text shows it.
    """
    own = frozenset() if params.ignore_eos else end_token_ids(model, tokenizer)
    special = set()
    if params.stop and tokenizer is not None:
        added = getattr(tokenizer, "added_tokens_decoder", {}).items()
        special = {i for i, token in added if token.special and token.content in params.stop}
    return own | special | frozenset(params.stop_token_ids)


def end_token_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """The model's end tokens: its generation config's, else its config's, else the tokenizer's."""
    for source in (getattr(model, "generation_config", None), model.config, tokenizer):
        ids = getattr(source, "eos_token_id", None)
        if ids is not None:
            return frozenset([ids] if isinstance(ids, int) else ids)
    return frozenset()


def forbidden_token_ids(model: Any, tokenizer: Any, stop_ids: frozenset[int]) -> list[int]:
    """PAD and BOS, which are never sampled unless they are end tokens too (often PAD is EOS).

    A warning says so where the tokenizer has one of them as an ordinary piece of text.
    """
    sources = (getattr(model, "generation_config", None), model.config, tokenizer)
    names = ("pad_token_id", "bos_token_id")
    named = {getattr(s, name, None): name for s in sources for name in names}
    allowed = stop_ids | end_token_ids(model, tokenizer)
    embeddings = model.get_output_embeddings() or model.get_input_embeddings()
    vocabulary = embeddings.weight.shape[0]
    ids = sorted(
        i for i in named if isinstance(i, int) and i not in allowed and 0 <= i < vocabulary
    )
    for token in ids:
        text = _ordinary_text(tokenizer, token)
        if text:
            warnings.warn(
                f"Token {token}, {text!r:.40}, is the model's {named[token]} and so never sampled, "
                "but the tokenizer has it as ordinary text. If it is text, set it to None in "
                "model.config and model.generation_config.",
                UserWarning,
                stacklevel=2,
            )
    return ids


def _ordinary_text(tokenizer: Any, token: int) -> str:
    """The text of a token that is no special one; "" for all others."""
    added = getattr(tokenizer, "added_tokens_decoder", None)
    if added is None or token in added or token in tokenizer.all_special_ids:
        return ""
    if token >= len(tokenizer):
        return ""
    return str(tokenizer.decode([token])).strip()
