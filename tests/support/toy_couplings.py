"""A toy coupling for each seat, and one that takes two; tests register them. Small as kinds can be.

Each reads the mean over the rows that a row sees at its own position, itself among them, so that W
identical rows are one row of width 1 (I5), and adds a learned share of it that starts at zero.

Axes: P groups, W width, R rows, S positions, H query heads, G key-value heads, C head dim.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from interlace.coupling.attention import explicit
from interlace.coupling.base import INVARIANTS, Coupling
from interlace.coupling.config import CouplingConfig, Layers
from interlace.rows import Rows


def weights_of(rows: Rows, count: int, positions: int) -> tuple[Tensor, int]:
    """`[P, S, W, W]`: each row's equal weights over the rows that it sees; and P."""
    problems = rows.check(count, positions)
    width, visible = count // problems, rows.visible()
    if visible is None:
        visible = torch.ones(problems, positions, width, width, dtype=torch.bool)
    return visible / visible.sum(dim=-1, keepdim=True), problems


def mean_of_seen(x: Tensor, rows: Rows) -> Tensor:
    """`[R, S, *]`: the mean over the rows that each row sees."""
    weights, problems = weights_of(rows, *x.shape[:2])
    by_group = x.unflatten(0, (problems, -1)).transpose(1, 2)  # P S W *
    return (weights.to(x.dtype) @ by_group).transpose(1, 2).flatten(0, 1)


@dataclass(frozen=True)
class ToyConfig(CouplingConfig):
    """Of a kind at layers."""

    layers: Layers = "all"


@dataclass(frozen=True)
class ToyLayerConfig(ToyConfig):
    kind: ClassVar[str] = "toylayer"


class ToyLayer(Coupling):
    """X <- X + w * mean of X over the rows seen."""

    kind, Config, title = "toylayer", ToyLayerConfig, "Toy"
    about = "A toy."

    def __init__(self, config: Any, size: int, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size, device=device, dtype=dtype))

    def layer(self, x: Tensor, rows: Rows) -> Tensor:
        return x + self.weight * mean_of_seen(x, rows)

    def attention_weights(self, x: Tensor, rows: Rows) -> Tensor:
        return weights_of(rows, *x.shape[:2])[0].unsqueeze(2)


@dataclass(frozen=True)
class ToyInputConfig(CouplingConfig):
    kind: ClassVar[str] = "toyinput"


class ToyInput(ToyLayer):
    """A row is fed its own token's embedding and a share of what its siblings are fed."""

    kind, Config, seats = "toyinput", ToyInputConfig, ("input",)

    def input(self, embeddings: Tensor, rows: Rows) -> Tensor:
        return ToyLayer.layer(self, embeddings, rows)


@dataclass(frozen=True)
class ToyHeadConfig(CouplingConfig):
    kind: ClassVar[str] = "toyhead"


class ToyHead(ToyLayer):
    """A row's logits and a share of its siblings'."""

    kind, Config, seats = "toyhead", ToyHeadConfig, ("head",)

    @classmethod
    def sizes(cls, base: Any, layer: int) -> tuple[Any, ...]:
        return (base.vocab_size,)

    def head(self, logits: Tensor, rows: Rows) -> Tensor:
        return ToyLayer.layer(self, logits, rows)


@dataclass(frozen=True)
class ToyAttentionConfig(ToyConfig):
    kind: ClassVar[str] = "toyattention"


class ToyAttention(Coupling):
    """Every head also attends to the rows seen, at its own position; `weight` says how much."""

    kind, Config, title, seats = "toyattention", ToyAttentionConfig, "Toy", ("attention",)
    about = "A toy."

    def __init__(self, config: Any, size: int, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((1,), -100.0, device=device, dtype=dtype))

    @classmethod
    def claims(cls, config: Any) -> frozenset[str]:
        """Not the bits of the base model: a softmax over more keys is summed in another order."""
        return INVARIANTS - {"I1"}

    def attention(self, query: Tensor, key: Tensor, value: Tensor, mask: Any, rows: Any) -> Any:
        weights, problems = weights_of(rows, query.shape[0], query.shape[2])
        count, positions, width = query.shape[0], query.shape[2], rows.width
        offset = key.shape[2] - positions
        more = [
            t[:, :, offset:].unflatten(0, (problems, -1)).transpose(1, 2).flatten(2, 3)
            for t in (key, value)
        ]
        key, value = (
            torch.cat([t, new.repeat_interleave(width, dim=0)], dim=2)
            for t, new in zip((key, value), more, strict=True)
        )
        # Equal weights in place of 0 and minus infinity: more rows that say the same weigh no more.
        bias = weights.log().permute(0, 2, 1, 3)[..., None] + self.weight  # P W S W 1
        same = torch.eye(positions, dtype=torch.bool)[:, None]
        bias = bias.masked_fill(~same, -1e4).clamp(min=-1e4).flatten(3).flatten(0, 1)[:, None]
        own = explicit(mask, query, key[:, :, : offset + positions])
        if own.dtype == torch.bool:
            own = torch.zeros(own.shape).masked_fill(~own, -1e4)
        own = own.expand(count, 1, positions, -1)
        return query, key, value, torch.cat([own, bias], dim=-1).to(query.dtype)

    def attention_step(
        self, query: Tensor, key: Tensor, value: Tensor, rows: Rows, scale: float, softcap: Any
    ) -> tuple[Tensor, Tensor]:
        weights, _ = weights_of(rows, query.shape[0], 1)
        repeats = query.shape[1] // key.shape[1]
        key, value = (t.repeat_interleave(repeats, dim=1) for t in (key, value))
        q, k, v = (t[:, :, 0].transpose(0, 1) for t in (query, key, value))  # H R C
        scores = q @ k.transpose(-1, -2) * scale
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        scores = scores + weights[0].log()
        out = (scores.softmax(dim=-1) @ v).transpose(0, 1)
        return out, scores.logsumexp(dim=-1).t() + self.weight


@dataclass(frozen=True)
class ToyAttendedConfig(ToyConfig):
    kind: ClassVar[str] = "toyattended"


class ToyAttended(ToyLayer):
    """What a row's heads give and a share of what its siblings' give."""

    kind, Config, seats = "toyattended", ToyAttendedConfig, ("attended",)

    @classmethod
    def sizes(cls, base: Any, layer: int) -> tuple[Any, ...]:
        return (base.num_attention_heads * base.head_dim,)

    def attended(self, out: Tensor, rows: Rows) -> Tensor:
        return ToyLayer.layer(self, out, rows)


@dataclass(frozen=True)
class ToyBothConfig(ToyConfig):
    kind: ClassVar[str] = "toyboth"


class ToyBoth(ToyHead):
    """Two seats: a block at each layer, and one at the head."""

    kind, Config, seats = "toyboth", ToyBothConfig, ("layer", "head")

    @classmethod
    def build(cls, config: Any, base: Any, layer: int | None, **where: Any) -> ToyBoth:
        return cls(config, base.vocab_size if layer is None else base.hidden_size, **where)


TOYS: tuple[type[Coupling], ...] = (
    ToyInput,
    ToyAttention,
    ToyAttended,
    ToyLayer,
    ToyHead,
    ToyBoth,
)
