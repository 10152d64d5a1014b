"""A Bridge block's decode step on the CPU in as few operator calls as torch has.

At one token a row the block's arithmetic is nothing and its calls are everything. Here the norm's
weight is folded into W_Q, W_K, W_V, its scale is applied after the product (one number a row
commutes with it), and the residual is added by the last product. Otherwise it is
`BridgeBlock.layer`.

Axes: R live rows, D hidden size, H query heads, G key-value heads, C head dim.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interlace.coupling.bridge import BridgeBlock
from interlace.engine.partial_attention import fused_cpu
from interlace.rows import Owners, Rows


class BridgeStep:
    """Stands in for one block's `step` while the engine runs."""

    def __init__(self, block: BridgeBlock) -> None:
        self._block = block
        norm = block.norm.weight.detach()
        folded = (block.qkv_weight.detach().float() * norm.float()).to(norm.dtype)
        self._qkv = torch.ops.mkldnn._reorder_linear_weight(folded)
        self._o = torch.ops.mkldnn._reorder_linear_weight(block.o_weight.detach())
        self._eps = torch.full((1,), float(block.norm.eps or 0), dtype=torch.float32)
        self._per_dim = 1 / block.norm.weight.shape[0]
        self._heads = [block.num_heads, block.num_kv_heads, block.num_kv_heads]
        self._scale = block.head_dim**-0.5

    @property
    def nbytes(self) -> int:
        """What the packed copies take, in bytes."""
        weights = (self._block.qkv_weight, self._block.o_weight)
        return sum(w.numel() * w.element_size() for w in weights)

    def __call__(self, x: Float[Tensor, "R S D"], rows: Rows) -> Float[Tensor, "R S D"]:
        """X + Bridge(Norm(X)), as the block itself computes it where this is not a decode step."""
        if x.shape[1] != 1 or not isinstance(rows, Owners):
            return self._block.layer(x, rows)
        ops: Any = torch.ops.mkldnn
        length = torch.linalg.vector_norm(x, 2, -1, True, dtype=torch.float32)
        scale = torch.addcmul(self._eps, length, length, value=self._per_dim).rsqrt_()
        qkv = ops._linear_pointwise(x, self._qkv, None, "none", [], "").mul_(scale)
        heads = qkv.view(1, x.shape[0], -1, self._block.head_dim).transpose(1, 2)
        q, k, v = heads.split(self._heads, 1)
        mask = rows.additive_mask(x.dtype)
        mixed = fused_cpu(q, k, v, 0.0, False, attn_mask=mask, scale=self._scale)[0]
        mixed = mixed.transpose(1, 2).reshape(x.shape[0], 1, -1)
        result: Tensor = ops._linear_pointwise.binary(mixed, x, self._o, None, "add")
        return result
