"""From the arguments of a call to requests: each prompt with its ids, its parameters and its keys,
checked before anything is computed.

Axes: W width, N forbidden tokens.
"""

from __future__ import annotations

import hashlib
import numbers
import operator
import struct
import warnings
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, UInt64
from torch import Tensor

from interlace.chat import chat_ids
from interlace.engine.backends.hf import HFBackend
from interlace.engine.types import EngineStats, Prompt, SamplingParams
from interlace.errors import GenerationError, shown


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
    room: int | None  # tokens that the model's context leaves for a completion, if it ends
    stats: EngineStats = field(default_factory=EngineStats)  # of the call that it belongs to
    alone: bool = False  # whether its prompt is computed without blocks, as at width 1 alone

    @cached_property
    def maxima(self) -> list[int]:
        """The most tokens that each row may get."""
        asked = self.params.max_new_tokens
        each = [asked] * self.params.width if isinstance(asked, int) else asked
        return [maximum if self.room is None else min(maximum, self.room) for maximum in each]

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


def row_keys(
    seed: int, prompt_token_ids: Sequence[int], sample_id: int | str, width: int
) -> UInt64[np.ndarray, " W"]:
    """The 64-bit stream key of each row of a group. Equation (14)."""
    digest = hashlib.blake2b(digest_size=32)
    digest.update(f"{seed}|{type(sample_id).__name__}:{sample_id}|".encode())
    digest.update(np.asarray(prompt_token_ids, dtype="<i8").tobytes())
    group = digest.digest()
    keys = [
        hashlib.blake2b(struct.pack("<q", row), key=group, digest_size=8).digest()
        for row in range(width)
    ]
    return np.frombuffer(b"".join(keys), dtype="<u8").astype(np.uint64)


def make_requests(
    backend: HFBackend,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    params: SamplingParams | Sequence[SamplingParams] | None,
    sample_ids: Sequence[int | str] | None,
    stats: EngineStats,
) -> list[Request]:
    """One request for each prompt, in order; what they cost is added to `stats`.

    Raises:
        GenerationError: for prompts or parameters that cannot be carried out.
    """
    each = one_each(params, len(prompts))
    ids_given = None if sample_ids is None else checked_ids(sample_ids, len(prompts))
    seen: Counter[tuple[int, ...]] = Counter()
    requests = []
    for index, (prompt, own) in enumerate(zip(prompts, each, strict=True)):
        ids = encode(prompt, index, tokenizer)
        occurrence = seen[tuple(ids)]
        seen[tuple(ids)] += 1
        sample_id = occurrence if ids_given is None else ids_given[index]
        requests.append(_request(backend, tokenizer, index, prompt, ids, own, sample_id, stats))
    return requests


def list_of_prompts(prompts: Any) -> list[Prompt]:
    """The prompts of a call; a single prompt, an encoding and an array are refused."""
    if isinstance(prompts, Mapping) and "input_ids" in prompts:
        raise GenerationError(
            f"prompts is a list of prompts; got {type(prompts).__name__}. Pass the texts "
            "themselves, or its ['input_ids'] as lists without padding."
        )
    if hasattr(prompts, "shape") and len(prompts.shape) > 1:
        raise GenerationError(
            f"prompts is a list of prompts; got an array of shape {tuple(prompts.shape)}, whose "
            "rows may be padded. Pass a list of token ids for each prompt, without padding."
        )
    if not isinstance(prompts, Iterable):
        raise GenerationError(f"prompts is a list of prompts; got {type(prompts).__name__}.")
    items = list(prompts.tolist() if hasattr(prompts, "tolist") else prompts)
    is_single = isinstance(prompts, str | bytes | Mapping)
    if is_single or (items and isinstance(items[0], numbers.Integral | Mapping)):
        raise GenerationError(
            "prompts is a list of prompts, and this is a single one: write [prompt]."
        )
    return items


def one_each(params: Any, count: int) -> list[SamplingParams]:
    """Parameters for each prompt of a call."""
    if params is None:
        params = SamplingParams()
    each = [params] * count if isinstance(params, SamplingParams) else params
    if not isinstance(each, list | tuple) or not all(isinstance(p, SamplingParams) for p in each):
        raise GenerationError(
            "params is a SamplingParams, or a list of one for each prompt; got "
            f"{type(params).__name__}. Write SamplingParams(width=8, ...)."
        )
    return list(_of_length("params", each, count))


def checked_ids(sample_ids: Any, count: int) -> list[int | str]:
    """With numbers of NumPy as plain ones, since uniforms depend on them to the letter."""
    try:
        if isinstance(sample_ids, str):
            raise TypeError
        plain = [i if isinstance(i, str) else operator.index(i) for i in sample_ids]
    except TypeError:
        raise GenerationError(
            "sample_ids is a list with a whole number or a text for each prompt; got "
            f"{sample_ids!r:.80}."
        ) from None
    return list(_of_length("sample_ids", plain, count))


def _of_length(name: str, values: Sequence[Any], count: int) -> Sequence[Any]:
    if len(values) != count:
        raise GenerationError(f"{name} has one entry for each prompt: {count}; got {len(values)}.")
    return values


def _request(
    backend: HFBackend,
    tokenizer: Any,
    index: int,
    prompt: Prompt,
    ids: list[int],
    params: SamplingParams,
    sample_id: int | str,
    stats: EngineStats,
) -> Request:
    base = backend.base
    vocabulary = base.get_input_embeddings().weight.shape[0]
    _check_ids(f"Prompt {index} has", ids, vocabulary)
    _check_ids("stop_token_ids has", params.stop_token_ids, vocabulary)
    context, why = backend.context
    if context is not None and len(ids) >= context:
        raise GenerationError(
            f"Prompt {index} has {len(ids)} tokens, and the model's context is {context}: there is "
            f"no room for a completion{why}. Shorten the prompt."
        )
    if tokenizer is None and (params.stop or params.consensus):
        raise GenerationError(
            "Stop strings and consensus read text: give the Engine a tokenizer, or use "
            "stop_token_ids."
        )
    stop_ids = stop_ids_of(base, tokenizer, params)
    forbidden = forbidden_token_ids(base, tokenizer, stop_ids)
    return Request(
        index=index,
        prompt=prompt,
        token_ids=ids,
        params=params,
        keys=row_keys(params.seed, ids, sample_id, params.width),
        stop_ids=stop_ids,
        forbidden=torch.tensor(forbidden, dtype=torch.long, device=backend.device),
        room=None if context is None else context - len(ids),
        stats=stats,
        alone=params.width == 1 and backend.skips_alone,
    )


def _check_ids(whose: str, ids: Sequence[int], vocabulary: int) -> None:
    outside = [i for i in ids if not 0 <= i < vocabulary]
    if outside:
        raise GenerationError(
            f"{whose} token ids outside the model's vocabulary of {vocabulary}: {outside[:5]}. Is "
            "the tokenizer this model's?"
        )


def encode(prompt: Prompt, index: int, tokenizer: Any) -> list[int]:
    """Token ids of a prompt: a text verbatim, ids as they are, messages through the chat template.

    Args:
        prompt: Text, list (or one-dimensional array) of token ids, or list of messages.
        index: Place of the prompt in the call, for error messages.
        tokenizer: Tokenizer of the model; needed for all but ids.

    Raises:
        GenerationError: for an empty prompt, or one that the tokenizer cannot take.
    """
    prompt = checked_prompt(prompt, index)
    # An empty text is empty too where the tokenizer would begin it with a token of its own.
    ids = _ids(prompt, index, tokenizer) if len(prompt) else []
    if not ids:
        raise GenerationError(
            f"Prompt {index} is empty: the model needs at least one token to go on from. To sample "
            "from nothing, pass the beginning-of-sequence token's id, [tokenizer.bos_token_id]."
        )
    return ids


def _ids(prompt: Any, index: int, tokenizer: Any) -> list[int]:
    is_chat = isinstance(prompt[0], Mapping)
    if not isinstance(prompt, str) and not is_chat:
        return list(prompt)
    if tokenizer is None:
        raise GenerationError(
            f"Prompt {index} is not a list of token ids, and this Engine has no tokenizer: "
            "pass one, Engine(model, tokenizer)."
        )
    return (_from_messages if is_chat else _from_text)(prompt, index, tokenizer)


def checked_prompt(prompt: Any, index: int) -> Prompt:
    """A prompt that is a text, a list of token ids or a list of messages; it may be empty.

    Raises:
        GenerationError: for anything else.
    """
    if isinstance(prompt, str):
        return prompt
    items = _as_list(prompt, index)
    if all(isinstance(item, Mapping) for item in items):
        return items
    if all(isinstance(item, str) for item in items):
        raise GenerationError(
            f"Prompt {index} is a list of texts: they are one prompt each, for generate(texts); "
            f"got {shown(items, 80)}."
        )
    try:
        if any(isinstance(item, bool) for item in items):
            raise TypeError
        return [operator.index(item) for item in items]
    except TypeError:
        raise GenerationError(
            f"Prompt {index} is a list of mixed things: it is a text, a list of token ids, or a "
            "list of messages like {'role': 'user', 'content': ...}; "
            f"got {shown(items, 80)}."
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


def _from_text(text: str, index: int, tokenizer: Any) -> list[int]:
    try:
        return list(tokenizer(text)["input_ids"])
    except Exception as error:  # tokenizers raise bare exceptions
        raise GenerationError(
            f"The tokenizer does not take prompt {index}, {shown(text, 80)}: {error}"
        ) from error


def _from_messages(messages: Sequence[Any], index: int, tokenizer: Any) -> list[int]:
    if not getattr(tokenizer, "chat_template", None):
        raise GenerationError(
            f"Prompt {index} is a list of messages, but this tokenizer has no chat template. Pass "
            "a text, or set tokenizer.chat_template."
        )
    try:
        return chat_ids(list(messages), tokenizer)
    except GenerationError as error:
        raise GenerationError(
            f"The chat template does not take prompt {index}, {shown(messages, 80)}: {error}. "
            "Change the messages, pass a text, or set another tokenizer.chat_template."
        ) from error


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
    # A quantised head's weight may be no tensor, but a method.
    vocabulary = getattr(embeddings, "out_features", None) or embeddings.weight.shape[0]
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
