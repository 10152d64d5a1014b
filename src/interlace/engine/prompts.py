"""From what a user calls a prompt to the token ids that the model is fed."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

from interlace.chat import chat_ids
from interlace.engine.types import Prompt
from interlace.errors import GenerationError


def encode(prompt: Prompt, index: int, tokenizer: Any) -> list[int]:
    """Token ids of a prompt: a text verbatim, ids as they are, messages through the chat template.

    Args:
        prompt: a text, a list (or one-dimensional array) of token ids, or a list of messages.
        index: its place in the call, for messages.
        tokenizer: the model's; needed for all but ids.

    Raises:
        GenerationError: for an empty prompt, or one that the tokenizer cannot take.
    """
    if not isinstance(prompt, str):
        prompt = _as_list(prompt, index)
    # An empty text is empty too where the tokenizer would begin it with a token of its own.
    ids = _ids(prompt, index, tokenizer) if len(prompt) else []
    if not ids:
        raise GenerationError(
            f"Prompt {index} is empty: the model needs at least one token to go on from. To sample "
            "from nothing, pass the beginning-of-sequence token's id, [tokenizer.bos_token_id]."
        )
    return ids


def _ids(prompt: Any, index: int, tokenizer: Any) -> list[int]:
    if isinstance(prompt, str):
        return _from_text(prompt, index, _tokenizer(tokenizer, index))
    if all(isinstance(item, Mapping) for item in prompt):
        return _from_messages(list(prompt), index, _tokenizer(tokenizer, index))
    if all(isinstance(item, str) for item in prompt):
        raise GenerationError(
            f"Prompt {index} is a list of texts: they are one prompt each, for generate(texts); "
            f"got {_short(prompt)}."
        )
    try:
        return [_token_id(item) for item in prompt]
    except TypeError:
        raise GenerationError(
            f"Prompt {index} is a list of mixed things: it is a text, a list of token ids, or a "
            "list of messages like {'role': 'user', 'content': ...}; "
            f"got {_short(prompt)}."
        ) from None


def _as_list(prompt: Any, index: int) -> Sequence[Any]:
    if isinstance(prompt, Mapping):
        way_out = (
            "pass its ['input_ids'], one row a prompt"
            if "input_ids" in prompt
            else "for a single message write [message]"
        )
        raise GenerationError(
            f"Prompt {index} is a text, a list of token ids or a list of messages; got "
            f"{type(prompt).__name__}: {way_out}."
        )
    if hasattr(prompt, "tolist") and hasattr(prompt, "shape"):  # an array of numpy, torch, ...
        if len(prompt.shape) != 1:
            raise GenerationError(
                f"Prompt {index} is an array of shape {tuple(prompt.shape)}, and token ids are a "
                "one-dimensional one: pass one row at a time, without padding."
            )
        items: list[Any] = prompt.tolist()
        return items
    if not isinstance(prompt, list | tuple):
        raise GenerationError(
            f"Prompt {index} is a text, a list of token ids or a list of messages; got "
            f"{type(prompt).__name__}."
        )
    return prompt


def _token_id(item: Any) -> int:
    if isinstance(item, bool):
        raise TypeError
    return operator.index(item)


def _from_text(text: str, index: int, tokenizer: Any) -> list[int]:
    try:
        return list(tokenizer(text)["input_ids"])
    except Exception as error:  # tokenizers raise bare exceptions
        raise GenerationError(
            f"The tokenizer does not take prompt {index}, {_short(text)}: {error}"
        ) from error


def _from_messages(messages: list[Any], index: int, tokenizer: Any) -> list[int]:
    if not getattr(tokenizer, "chat_template", None):
        raise GenerationError(
            f"Prompt {index} is a list of messages, but this tokenizer has no chat template. Pass "
            "a text, or set tokenizer.chat_template."
        )
    try:
        return chat_ids(messages, tokenizer)
    except GenerationError as error:
        raise GenerationError(
            f"The chat template does not take prompt {index}, {_short(messages)}: {error}. Change "
            "the messages, pass a text, or set another tokenizer.chat_template."
        ) from error


def _tokenizer(tokenizer: Any, index: int) -> Any:
    if tokenizer is None:
        raise GenerationError(
            f"Prompt {index} is not a list of token ids, and this Engine has no tokenizer: pass "
            "one, Engine(model, tokenizer)."
        )
    return tokenizer


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
