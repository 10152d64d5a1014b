"""The kinds in plain loops, straight from their equations: what they are tested against.

Axes: P groups, W width, R = P*W rows, S positions, D hidden size.

P-Match, for every row and position: X <- X + W_O SiLU(W_in Norm(X)). Bridge:
X <- X + Bridge(Norm(X));   for every position s separately, over the W rows of one group:
Q = X[:, s] W_Q,  K = X[:, s] W_K,  V = X[:, s] W_V,   out = softmax(mask(Q K^T / sqrt(C))) V W_O

With `reads` "finished" or "history" the softmax also runs over earlier positions s' < s of siblings
(`bridge_reads`), whose keys are turned by the distance s - s'.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interlace.coupling.base import NORM_EPS
from interlace.coupling.bridge import BridgeBlock
from interlace.coupling.gated import GatedBlock
from interlace.coupling.hogwild import Hogwild
from interlace.coupling.joint import JointAttention
from interlace.coupling.lanerope import LaneRoPE
from interlace.coupling.mix import Mix
from interlace.coupling.pmatch import PMatchBlock
from interlace.coupling.reach import ROTARY_BASE
from interlace.rows import Groups


def bridge_reference(
    block: BridgeBlock,
    x: Float[Tensor, "R S D"],
    width: int,
    alive: Bool[Tensor, "P W S"] | None = None,
    completion_start: Int[Tensor, " P"] | None = None,
) -> Float[Tensor, "R S D"]:
    """What `block(x, Groups(width, alive, completion_start))` must return, one row, position and
    head at a time.

    Equations (1), (2), (3), (30), (31).
    """
    heads, kv_heads, dim = block.num_heads, block.num_kv_heads, block.head_dim
    w_q, w_k, w_v = block.qkv_weight.split([heads * dim, kv_heads * dim, kv_heads * dim])
    rows, positions, _ = x.shape
    out = x.clone()
    for s in range(positions):
        for row in range(rows):
            group, me = divmod(row, width)
            living = [
                [alive is None or bool(alive[group, w, at]) for at in range(positions)]
                for w in range(width)
            ]
            start = 0 if completion_start is None else int(completion_start[group])
            read = bridge_reads(block.reads, living, me, s, start)
            mixed = []
            for head in range(heads):
                shared = head // (heads // kv_heads)
                part = slice(head * dim, (head + 1) * dim)
                kv_part = slice(shared * dim, (shared + 1) * dim)
                query = w_q[part] @ _norm(block, x[row, s])
                siblings = [(_norm(block, x[group * width + w, at]), s - at) for w, at in read]
                scores = torch.stack(
                    [query @ _moved(w_k[kv_part] @ y, far) / math.sqrt(dim) for y, far in siblings]
                )
                weights = torch.exp(scores - scores.max())
                weights = weights / weights.sum()
                mixed.append(
                    sum(a * (w_v[kv_part] @ y) for a, (y, _) in zip(weights, siblings, strict=True))
                )
            out[row, s] = x[row, s] + block.o_weight @ torch.cat(mixed)
    return out


def bridge_reads(
    reads: str, alive: Sequence[Sequence[bool]], me: int, s: int, start: int
) -> list[tuple[int, int]]:
    """The (row, position) pairs of its group that row `me` reads at position s. Equation (31).

    Args:
        reads: Reach of the block.
        alive: Mask of the group, `[W][S]`.
        me: Row that reads.
        s: Position at which it reads.
        start: First position of the completions.
    """
    pairs = []
    for w, mine in enumerate(alive):
        if w == me or mine[s]:
            pairs.append((w, s))
        if w == me or reads == "position" or (reads == "finished" and mine[s]):
            continue
        pairs += [(w, at) for at in range(start, s) if mine[at]]
    return pairs


def gated_reference(
    block: GatedBlock,
    x: Float[Tensor, "R S A"],
    width: int,
    alive: Bool[Tensor, "P W S"] | None = None,
    completion_start: Int[Tensor, " P"] | None = None,
) -> Float[Tensor, "R S A"]:
    """What `block.attended(x, Groups(width, alive, completion_start))` must return, one row,
    position and head at a time."""
    heads, dim = block.num_heads, block.head_dim
    w_q, w_k, w_v = block.qkv_weight.chunk(3)
    rows, positions, _ = x.shape
    out = x.clone()
    for s in range(positions):
        for row in range(rows):
            group, me = divmod(row, width)
            living = [
                [alive is None or bool(alive[group, w, at]) for at in range(positions)]
                for w in range(width)
            ]
            start = 0 if completion_start is None else int(completion_start[group])
            read = bridge_reads(block.reads, living, me, s, start)
            low = [block.down_weight @ x[group * width + w, at] for w, at in read]
            mine = block.down_weight @ x[row, s]
            mixed = []
            for head in range(heads):
                part = slice(head * dim, (head + 1) * dim)
                scores = torch.stack(
                    [
                        (w_q[part] @ mine)
                        @ _apart(block, w_k[part] @ z, s - at, me - w)
                        / math.sqrt(dim)
                        for z, (w, at) in zip(low, read, strict=True)
                    ]
                )
                weights = torch.exp(scores - scores.max())
                weights = weights / weights.sum()
                mixed.append(sum(a * (w_v[part] @ z) for a, z in zip(weights, low, strict=True)))
            gate = 1 / (1 + torch.exp(-(block.gate_weight @ x[row, s] + block.gate_bias)))
            out[row, s] = x[row, s] + gate * (block.up_weight @ torch.cat(mixed))
    return out


def _apart(block: GatedBlock, key: Float[Tensor, " C"], far: int, rows: int) -> Tensor:
    """A key that lies so many positions back and belongs to a row so many numbers before: of its
    pairs of features the first turn with the positions, the others with the rows."""
    half, by_position = len(key) // 2, (len(key) - block.row_features) // 2
    out = key.clone()
    for i in range(half):
        if i < by_position:
            angle = -far * ROTARY_BASE ** (-i / by_position)
        else:
            angle = -rows * ROTARY_BASE ** (-(i - by_position) / (half - by_position))
        a, b = key[i], key[i + half]
        out[i] = a * math.cos(angle) - b * math.sin(angle)
        out[i + half] = b * math.cos(angle) + a * math.sin(angle)
    return out


def joint_reference(
    block: JointAttention,
    query: Float[Tensor, "R H S C"],
    key: Float[Tensor, "R G S C"],
    value: Float[Tensor, "R G S C"],
    groups: Groups,
    scale: float,
) -> Float[Tensor, "R S H C"]:
    """What a causal attention with `block` must return, one row, position and head at a time."""
    rows, heads, positions, _ = query.shape
    width, per_kv = groups.width, heads // key.shape[1]
    out = torch.empty(rows, positions, heads, value.shape[3], dtype=value.dtype)
    for row in range(rows):
        group, me = divmod(row, width)
        start = 0 if groups.completion_start is None else int(groups.completion_start[group])
        for s in range(positions):
            read = [(row, at) for at in range(s + 1)]
            for w in range(width):
                for at in range(start, s if block.strict else s + 1):
                    lives = groups.alive is None or bool(groups.alive[group, w, at])
                    if w != me and lives:
                        read.append((group * width + w, at))
            for head in range(heads):
                scores = torch.stack(
                    [
                        _meeting(block, groups, (row, s), (r, at), start)(
                            query[row, head, s], key[r, head // per_kv, at]
                        )
                        * scale
                        for r, at in read
                    ]
                )
                weights = torch.exp(scores - scores.max())
                weights = weights / weights.sum()
                out[row, s, head] = sum(
                    a * value[r, head // per_kv, at]
                    for a, (r, at) in zip(weights, read, strict=True)
                )
    return out


def mix_reference(
    block: Mix,
    x: Float[Tensor, "R S D"],
    said: Float[Tensor, "R S V"],
    width: int,
    alive: Bool[Tensor, "P W S"] | None = None,
) -> Float[Tensor, "R S D"]:
    """What rows are fed in place of their embeddings, one row and position at a time.

    Args:
        block: Coupling that mixes.
        x: Embeddings of the tokens.
        said: Logits that each token was drawn from.
        width: W.
        alive: Mask of the tokens that were fed while their rows were unfinished.
    """
    out = x.clone()
    for row in range(x.shape[0]):
        group, me = divmod(row, width)
        for s in range(x.shape[1]):
            others = [
                group * width + w
                for w in range(width)
                if w != me and (alive is None or bool(alive[group, w, s]))
            ]
            if not others:
                continue
            read = [row, *others] if block.own else others
            p = [said[r, s].exp() / said[r, s].exp().sum() for r in (row, *read)]
            alike = torch.stack([p[0] @ q / (p[0].norm() * q.norm()) for q in p[1:]])
            weights = (alike / block.temperature).exp()
            weights = weights / weights.sum()
            mixture = sum(a * x[r, s] for a, r in zip(weights, read, strict=True))
            out[row, s] = (1 - block.share) * x[row, s] + block.share * mixture
    return out


def _meeting(
    block: JointAttention,
    groups: Groups,
    reader: tuple[int, int],
    read: tuple[int, int],
    start: int,
) -> Callable[[Tensor, Tensor], Tensor]:
    """The score of a query and a key, each of a row and a position."""
    (row, s), (other, at) = reader, read
    group, me = divmod(row, groups.width)
    writer = other % groups.width
    if isinstance(block, LaneRoPE):
        lanes = (me if s >= start else 0), (writer if at >= start else 0)
        step = block.start if block.omega is None else block.omega
        return lambda q, k: _turned(q, lanes[0], step) @ _turned(k, lanes[1], step)
    assert isinstance(block, Hogwild)
    far = 0  # tokens from the block, or from the prompt's end, up to the reader's own text
    for n in range(0 if at < start else writer, groups.width):
        for column in range(start, s + 1):
            lives = groups.alive is None or bool(groups.alive[group, n, column])
            far += n != me and lives
    if other == row and at >= start:
        far = 0
    return lambda q, k: _turned(q, far, block.start) @ k


def _turned(x: Float[Tensor, " C"], steps: int, step: Sequence[float] | Tensor) -> Tensor:
    """Features turned by so many steps, pair by pair."""
    out, half = x.clone(), len(step)
    for i in range(half):
        angle = torch.as_tensor(steps * step[i])
        cos, sin = angle.cos(), angle.sin()
        out[i] = x[i] * cos - x[i + half] * sin
        out[i + half] = x[i + half] * cos + x[i] * sin
    return out


def _moved(key: Float[Tensor, " C"], far: int) -> Float[Tensor, " C"]:
    """A key that lies so many positions back: each pair of features turned by its angle."""
    half = len(key) // 2
    out = key.clone()
    for i in range(half if far else 0):
        angle = -far * ROTARY_BASE ** (-2 * i / len(key))
        a, b = key[i], key[i + half]
        out[i] = a * math.cos(angle) - b * math.sin(angle)
        out[i + half] = b * math.cos(angle) + a * math.sin(angle)
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


def reference(block: Any, x: Float[Tensor, "R S D"], rows: Groups) -> Float[Tensor, "R S D"]:
    """What a block gives for its input, whatever its kind."""
    if isinstance(block, PMatchBlock):
        return pmatch_reference(block, x)
    by_row = gated_reference if isinstance(block, GatedBlock) else bridge_reference
    return by_row(block, x, rows.width, rows.alive, rows.completion_start)
