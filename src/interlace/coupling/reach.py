"""What a Bridge block reads beyond its own position: earlier positions of its siblings.

Axes: P groups, W width, R = P*W rows, S positions of this call, L positions so far, B positions of
a block of queries, N pairs (position, row) that are read, H query heads, G key-value heads, C head
dim.

One softmax runs over the siblings at the row's own position and the earlier ones that it may read
(`rows.Earlier` says which). Queries and keys carry rotary positions, so that a score depends on the
distance; at distance 0 it is the paper's score.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from interlace.rows import Earlier

ROTARY_BASE = 10_000.0
_MASK_ENTRIES = 2**24  # of a block of queries, over all groups of a call


def turns(
    positions: Int[Tensor, "*axes"],
    head_dim: int,
    dtype: torch.dtype,
    features: int | None = None,
    first: int = 0,
) -> tuple[Float[Tensor, "*axes half"], Float[Tensor, "*axes half"]]:
    """Cosine and sine by which the features at each position are turned. Equation (30).

    Args:
        positions: Positions, or other numbers that a score shall depend on the difference of.
        head_dim: Dimension of a head.
        dtype: Data type of the features.
        features: Number of features that turn; None for all. The others stay as they are.
        first: Pair of features that is the first to turn.
    """
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    features = head_dim if features is None else features
    pair = torch.arange(head_dim // 2, device=positions.device, dtype=exact) - first
    speed = ROTARY_BASE ** (-2 * pair / max(features, 1))
    angles = positions.unsqueeze(-1) * speed * ((pair >= 0) & (pair < features // 2))
    return angles.cos().to(dtype), angles.sin().to(dtype)


def turned(x: Float[Tensor, "*axes C"], cos: Tensor, sin: Tensor) -> Float[Tensor, "*axes C"]:
    """Features turned to their position, the first half of a head with the second."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def attend_with_earlier(
    q: Float[Tensor, "P W S H C"],
    keys: Float[Tensor, "P W L G C"],
    values: Float[Tensor, "P W L G V"],
    visible: Bool[Tensor, "P S W W"] | None,
    earlier: Earlier,
    features: int | None = None,
) -> Float[Tensor, "R B HV"]:
    """What the rows read at this call's positions from `earlier.first` on, heads concatenated.
    Positions turn so many `features` of a head; None: all.

    Blocks of queries bound the mask; the backward pass makes each block's mask again.
    """
    width, length, heads = q.shape[1], keys.shape[2], q.shape[3]
    cos, sin = turns(earlier.positions[:, None, :, None], q.shape[-1], q.dtype, features)
    offset = length - q.shape[2]
    q, keys = turned(q, cos[:, :, offset:], sin[:, :, offset:]), turned(keys, cos, sin)
    keys, values = (t.repeat_interleave(heads // t.shape[3], dim=3) for t in (keys, values))
    far = [_gathered(t, earlier.pairs) for t in (keys, values)]
    near = [t[:, :, offset:] for t in (keys, values)]

    def block(
        start: int, stop: int, q: Tensor, near_k: Tensor, near_v: Tensor, *far: Tensor
    ) -> Tensor:
        mask = torch.cat([earlier.seen(start, stop), _same(visible, start, stop, q)], dim=-1)
        count = earlier.upto[stop - 1]
        key, value = (
            torch.cat([one[:, :count], other[:, :, start:stop].flatten(1, 2)], dim=1)
            for one, other in zip(far, (near_k, near_v), strict=True)
        )
        query = q[:, :, start:stop].flatten(1, 2).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(
            query, key.transpose(1, 2), value.transpose(1, 2), mask.flatten(1, 2).unsqueeze(1)
        )
        return mixed.transpose(1, 2).unflatten(1, (width, -1)).flatten(3).flatten(0, 1)

    parts = []
    for start, stop in _blocks(q.shape[0], width, q.shape[2], earlier):
        inputs = (q, *near, *far)
        if torch.is_grad_enabled() and q.requires_grad:
            parts.append(checkpoint(block, start, stop, *inputs, use_reentrant=False))
        else:
            parts.append(block(start, stop, *inputs))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def attend_with_lse(
    query: Float[Tensor, "R H C"],
    key: Float[Tensor, "R G C"],
    value: Float[Tensor, "R G C"],
    visible: Bool[Tensor, "1 1 R R"] | None,
) -> tuple[Float[Tensor, "R H C"], Float[Tensor, "R H"]]:
    """What the rows of a decode step read at their own position, with its log-sum-exp."""
    grouped = query.unflatten(1, (key.shape[1], -1)).permute(1, 2, 0, 3)  # G Q R C
    scores = grouped @ key.permute(1, 2, 0).unsqueeze(1) * query.shape[-1] ** -0.5
    return mixed_with_lse(scores, value, visible, float("-inf"))


def mixed_with_lse(
    scores: Float[Tensor, "G Q R R"],
    value: Float[Tensor, "R G V"],
    visible: Bool[Tensor, "*#axes R R"] | None,
    hidden: float | None = None,
    softcap: float | None = None,
) -> tuple[Float[Tensor, "R H V"], Float[Tensor, "R H"]]:
    """softmax(softcap(scores)) V with its log-sum-exp; `hidden` is the score of what is not seen,
    by default so low that a part of which nothing is seen has no weight."""
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if visible is not None:
        least = torch.finfo(scores.dtype).min / 4 if hidden is None else hidden
        scores = scores.masked_fill(~visible, least)
    out = scores.softmax(dim=-1).to(value.dtype) @ value.transpose(0, 1).unsqueeze(1)
    return out.flatten(0, 1).transpose(0, 1), scores.logsumexp(dim=-1).flatten(0, 1).t()


def _gathered(x: Float[Tensor, "P W L H C"], pairs: Int[Tensor, "P N"]) -> Float[Tensor, "P N H C"]:
    flat = x.transpose(1, 2).flatten(1, 2)
    return flat[torch.arange(x.shape[0], device=x.device)[:, None], pairs]


def _same(
    visible: Bool[Tensor, "P S W W"] | None, start: int, stop: int, like: Tensor
) -> Bool[Tensor, "P W B WB"]:
    """`visible` over all pairs of rows and positions of a block: the same position only."""
    count, width = like.shape[:2]
    here = torch.eye(stop - start, dtype=torch.bool, device=like.device)
    if visible is None:
        seen = torch.ones(count, width, stop - start, width, dtype=torch.bool, device=like.device)
    else:
        seen = visible[:, start:stop].transpose(1, 2)  # P W B W
    return (seen[..., None] & here[None, None, :, None]).flatten(3)


def _blocks(count: int, width: int, positions: int, earlier: Earlier) -> list[tuple[int, int]]:
    """From `earlier.first` on, blocks of so many positions that a mask keeps within its bound."""
    blocks, start = [], earlier.first
    while start < positions:
        size = positions - start
        while size > 1 and _entries(count, width, size, earlier.upto[start + size - 1]) > (
            _MASK_ENTRIES
        ):
            size = -(-size // 2)
        blocks.append((start, start + size))
        start += size
    return blocks


def _entries(count: int, width: int, size: int, pairs: int) -> int:
    return count * width * size * (pairs + width * size)
