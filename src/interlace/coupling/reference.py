"""The kinds in plain loops, straight from their equations: the oracle of the tests, not for use.

Axes: P groups, W width, R = P*W rows, S positions, D hidden size.

P-Match, for every row and position: X <- X + W_O SiLU(W_in Norm(X)). Bridge:
X <- X + Bridge(Norm(X));   for every position s separately, over the W rows of one group:
Q = X[:, s] W_Q,  K = X[:, s] W_K,  V = X[:, s] W_V,   out = softmax(mask(Q K^T / sqrt(C))) V W_O
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interlace.coupling.base import NORM_EPS
from interlace.coupling.bridge import BridgeBlock
from interlace.coupling.pmatch import PMatchBlock


def bridge_reference(
    block: BridgeBlock,
    x: Float[Tensor, "R S D"],
    width: int,
    alive: Bool[Tensor, "P W S"] | None = None,
) -> Float[Tensor, "R S D"]:
    """What `block(x, Groups(width, alive))` must return, one row, position and head at a time.

    Equations (1), (2), (3).
    """
    heads, kv_heads, dim = block.num_heads, block.num_kv_heads, block.head_dim
    w_q, w_k, w_v = block.qkv_weight.split([heads * dim, kv_heads * dim, kv_heads * dim])
    rows, positions, _ = x.shape
    out = x.clone()
    for s in range(positions):
        for row in range(rows):
            group, me = divmod(row, width)
            visible = [
                w for w in range(width) if w == me or alive is None or bool(alive[group, w, s])
            ]
            mixed = []
            for head in range(heads):
                shared = head // (heads // kv_heads)
                part = slice(head * dim, (head + 1) * dim)
                kv_part = slice(shared * dim, (shared + 1) * dim)
                query = w_q[part] @ _norm(block, x[row, s])
                siblings = [_norm(block, x[group * width + w, s]) for w in visible]
                scores = torch.stack(
                    [query @ (w_k[kv_part] @ y) / math.sqrt(dim) for y in siblings]
                )
                weights = torch.exp(scores - scores.max())
                weights = weights / weights.sum()
                mixed.append(
                    sum(a * (w_v[kv_part] @ y) for a, y in zip(weights, siblings, strict=True))
                )
            out[row, s] = x[row, s] + block.o_weight @ torch.cat(mixed)
    return out


def pmatch_reference(block: PMatchBlock, x: Float[Tensor, "R S D"]) -> Float[Tensor, "R S D"]:
    """What `block(x, rows)` must return whoever sees whom, one row and position at a time."""
    out = x.clone()
    for row in range(x.shape[0]):
        for s in range(x.shape[1]):
            inner = block.in_weight @ _norm(block, x[row, s])
            out[row, s] = x[row, s] + block.o_weight @ (inner * torch.sigmoid(inner))
    return out


def _norm(block: BridgeBlock | PMatchBlock, x: Float[Tensor, " D"]) -> Float[Tensor, " D"]:
    return x / torch.sqrt((x * x).mean() + NORM_EPS) * block.norm.weight
