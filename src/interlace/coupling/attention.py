"""The seats within a layer's attention, in Hugging Face's attention interface: what attention runs
on, and what is made of its result.

Axes: R rows, H query heads, G key-value heads, S positions of this call, U positions so far (those
of the cache included), C head dim.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from interlace.coupling.base import Coupling
from interlace.errors import AttachError
from interlace.rows import Rows

PREFIX = "interlace-coupled-"
CARRIED = ("sdpa", "eager")

_serving: ContextVar[tuple[Coupling, Rows] | None] = ContextVar("interlace_coupling", default=None)


@contextmanager
def serving(coupling: Coupling, rows: Rows) -> Iterator[None]:
    """Within this context, which is one layer's forward, attention has the coupling's part."""
    token = _serving.set((coupling, rows))
    try:
        yield
    finally:
        _serving.reset(token)


def in_step(
    query: Float[Tensor, "R H 1 C"],
    key: Float[Tensor, "R G 1 C"],
    value: Float[Tensor, "R G 1 C"],
    scale: float,
    softcap: float | None,
) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
    """In a decode step: the queries as they meet the keys of prompts, and what the coupling of the
    layer in hand adds; the queries themselves and None where there is none."""
    served = _serving.get()
    if served is None or "attention" not in served[0].seats:
        return query, None
    coupling, rows = served
    rows.check(query.shape[0], query.shape[2])
    part = coupling.attention_step(query, key, value, rows, scale, softcap)
    return coupling.prompt_query(query, rows), part


def attended(out: Float[Tensor, "R S H C"]) -> Float[Tensor, "R S H C"]:
    """What attention gives, as the coupling of the layer in hand changes it."""
    served = _serving.get()
    if served is None or "attended" not in served[0].seats:
        return out
    coupling, rows = served
    changed: Tensor = coupling(out.flatten(2), rows)
    return changed.view_as(out)


def merged(
    out: Float[Tensor, "*axes C"],
    lse: Float[Tensor, "*axes"],
    part: Float[Tensor, "*axes C"],
    part_lse: Float[Tensor, "*axes"],
) -> Float[Tensor, "*axes C"]:
    """The attention over what both parts read, from the attention over each; exact."""
    wide = torch.promote_types(lse.dtype, torch.float32)
    share = torch.sigmoid(part_lse.to(wide) - lse.to(wide)).unsqueeze(-1)
    return torch.lerp(out, part.to(out.dtype), share.to(out.dtype))


def use_coupled_attention(model: PreTrainedModel) -> None:
    """Have a model's layers ask `coupled_attention`, which asks for what they asked before."""
    configs = _configs(model)
    for before in (config._attn_implementation for config in configs):
        if before not in CARRIED:
            raise AttachError(
                f"{type(model).__name__} runs {before} attention, which gives a coupling no place "
                "beside it. Load the model with attn_implementation='sdpa'."
            )
    for config in configs:
        config._attn_implementation = PREFIX + config._attn_implementation


def use_own_attention(model: PreTrainedModel) -> None:
    """Undo `use_coupled_attention`."""
    for config in _configs(model):
        config._attn_implementation = config._attn_implementation.removeprefix(PREFIX)


def _configs(model: PreTrainedModel) -> list[Any]:
    decoder: Any = model.get_decoder()
    found: dict[int, Any] = {id(c): c for c in (model.config, decoder.config)}
    return list(found.values())


def coupled_attention(
    before: str,
    module: nn.Module,
    query: Float[Tensor, "R H S C"],
    key: Float[Tensor, "R G U C"],
    value: Float[Tensor, "R G U C"],
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Float[Tensor, "R S H C"], None]:
    """Hugging Face's attention interface: the implementation `before`, on what the coupling of the
    layer in hand puts in place of queries, keys, values and mask."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    shape = query.shape[0], query.shape[2], query.shape[1], query.shape[3]
    served = _serving.get()
    if served is not None and "attention" in served[0].seats:
        coupling, rows = served
        rows.check(query.shape[0], query.shape[2])
        query, key, value, attention_mask = coupling.attention(
            query, key, value, attention_mask, rows
        )
    if before == "sdpa":
        attend: Any = ALL_ATTENTION_FUNCTIONS["sdpa"]
        out, _ = attend(
            module, query, key, value, attention_mask, scaling=scale, dropout=dropout, **kwargs
        )
    else:
        keys, values = (
            t.repeat_interleave(query.shape[1] // t.shape[1], dim=1) for t in (key, value)
        )
        scores = query @ keys.transpose(-1, -2) * scale
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        mask = explicit(attention_mask, query, key)
        if mask.dtype == torch.bool:
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        else:
            scores = scores + mask
        weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
        weights = nn.functional.dropout(weights, p=dropout, training=module.training)
        out = (weights @ values).transpose(1, 2).contiguous()
    return attended(out.reshape(shape)), None


def explicit(mask: Tensor | None, query: Tensor, key: Tensor) -> Tensor:
    """The mask of an attention that sees the past where it has none."""
    if mask is not None:
        return mask
    seen = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device)
    return seen.tril(key.shape[2] - query.shape[2])[None, None]


for _before in CARRIED:
    AttentionInterface.register(PREFIX + _before, functools.partial(coupled_attention, _before))
    AttentionMaskInterface.register(PREFIX + _before, ALL_MASK_ATTENTION_FUNCTIONS[_before])
