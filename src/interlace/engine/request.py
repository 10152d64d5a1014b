"""From the arguments of a call to requests: each prompt with its ids, its parameters and its keys,
checked before anything is computed."""

from __future__ import annotations

import numbers
import operator
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from interlace.engine.backends.base import Backend
from interlace.engine.prompts import encode
from interlace.engine.sampling import row_keys
from interlace.engine.state import Request
from interlace.engine.stopping import forbidden_token_ids, stop_ids_of
from interlace.engine.types import EngineStats, Prompt, SamplingParams
from interlace.errors import GenerationError


def make_requests(
    backend: Backend,
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
    each = _one_each(params, len(prompts))
    ids_given = None if sample_ids is None else _sample_ids(sample_ids, len(prompts))
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
    """The prompts of a call.

    Raises:
        GenerationError: for a single prompt, an encoding or an array.
    """
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


def _one_each(params: Any, count: int) -> list[SamplingParams]:
    if params is None:
        params = SamplingParams()
    each = [params] * count if isinstance(params, SamplingParams) else params
    if not isinstance(each, list | tuple) or not all(isinstance(p, SamplingParams) for p in each):
        raise GenerationError(
            "params is a SamplingParams, or a list of one for each prompt; got "
            f"{type(params).__name__}. Write SamplingParams(width=8, ...)."
        )
    return list(_of_length("params", each, count))


def _sample_ids(sample_ids: Any, count: int) -> list[int | str]:
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
    backend: Backend,
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
        room=params.longest if context is None else context - len(ids),
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
