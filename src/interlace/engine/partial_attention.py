"""Attention over a part of the keys, with the log-sum-exp that lets parts merge exactly.

Axes: B problems, G key-value heads, N queries, U keys, C head dim.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

# Torch's fused CPU attention also returns the log-sum-exp, but only through this private operator.
fused_cpu: Any = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
_FUSED_DTYPES = (torch.float32, torch.bfloat16)


def attend_partially(
    query: Float[Tensor, "B G N C"],
    keys: Float[Tensor, "B G U C"],
    values: Float[Tensor, "B G U C"],
    mask: Float[Tensor, "B 1 #N U"] | None,
    scale: float,
    softcap: float | None = None,
) -> tuple[Float[Tensor, "B G N C"], Float[Tensor, "B G N"]]:
    """softmax(softcap(Q K^T scale) + mask) V over these keys alone, and the scores' log-sum-exp."""
    fused = fused_cpu is not None and query.device.type == "cpu" and softcap is None
    if fused and query.dtype in _FUSED_DTYPES:
        out, lse = fused_cpu(query, keys, values, 0.0, False, attn_mask=mask, scale=scale)
        return out, lse
    return _portable(query, keys, values, mask, scale, softcap)


def _portable(
    query: Float[Tensor, "B G N C"],
    keys: Float[Tensor, "B G U C"],
    values: Float[Tensor, "B G U C"],
    mask: Float[Tensor, "B 1 #N U"] | None,
    scale: float,
    softcap: float | None,
) -> tuple[Float[Tensor, "B G N C"], Float[Tensor, "B G N"]]:
    scores = query @ keys.transpose(-1, -2)
    scores = (scores if scores.dtype == torch.float64 else scores.float()) * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:
        scores = scores + mask
    lse = scores.logsumexp(dim=-1)
    return (scores - lse.unsqueeze(-1)).exp().to(values.dtype) @ values, lse


def merge(
    a: Float[Tensor, "B G N C"],
    a_lse: Float[Tensor, "B G N"],
    b: Float[Tensor, "B G N C"],
    b_lse: Float[Tensor, "B G N"],
) -> Float[Tensor, "B G N C"]:
    """The attention over both parts' keys, from the attention over each; exact. Equation (13)."""
    share = torch.sigmoid(b_lse - a_lse).unsqueeze(-1).to(a.dtype)
    return torch.lerp(a, b, share)
