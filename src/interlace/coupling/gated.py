"""Gated lateral attention, as LACE describes it (arXiv 2604.15529): a low-rank side path beside a
layer's attention, in which the rows of a group read each other.

Axes: P groups, W width, R = P*W rows, S positions, A = heads x head dim of the base model's
attention, E rank, H lateral heads, C = E / H. With X what a layer's heads give, before their
projection:

    X <- X + sigmoid(G X + b) * (softmax(mask(Q K^T / sqrt(C))) V U)
    Q, K, V = (X D) W_Q, (X D) W_K, (X D) W_V

Queries and keys are turned by the row's number and, where earlier positions are read, by position:
each turns features of its own. LACE has no code. OPEN, what its text does not say, with our choice:

- which positions are read (`reads`): the own position, which needs no cache; or also what siblings
  wrote before. The row's own past is left to the base model's attention.
- rank, heads, initial values: as below; U starts at zero, so that the attached model is the base.
- whether the gate is one number a row or one a feature (`gate`), and its bias: one number, 0.
- how many features tell rows apart (`row_features`), and their frequencies: half, and RoPE's.
- whether the side path starts before or behind the heads' projection: before it.
- which layers exactly: every other one from the middle on, `layers="upper"`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from interlace.coupling.base import INVARIANTS, Coupling
from interlace.coupling.bridge import read_siblings, shares_of_siblings
from interlace.coupling.config import CouplingConfig, Layers, check_whole, check_word, heads_of
from interlace.coupling.reach import turned, turns
from interlace.errors import ConfigError
from interlace.rows import Reads, Rows

LACE = "https://arxiv.org/abs/2604.15529"


@dataclass(frozen=True)
class GatedConfig(CouplingConfig):
    """Gated lateral attention within layers, as LACE describes it (arXiv 2604.15529).

    Args:
        rank: Dimension of the side path, over all of its heads.
        num_heads: Number of its heads; divides `rank` into even parts.
        layers: Layers that carry one: "upper", every other layer from the middle on; "all", every
            k-th layer as the integer k, or a list of layer indices.
        reads: Reach of a row: "position", its live siblings at the same position, or "history",
            also every completion position so far of every sibling.
        row_features: Number of features of a head that tell rows apart by their numbers, even; None
            for half. With 0 rows are anonymous, and any order of them is the same.
        gate: Size of the gate: "row", one number for a row's position, or "feature", one for each
            feature.
        gate_bias: Value that the gate's bias starts at, before the sigmoid.

    Raises:
        ConfigError: for sizes below 1, heads that do not divide evenly, or another word.
    """

    kind: ClassVar[str] = "gated"

    rank: int = 64
    num_heads: int = 4
    layers: Layers = "upper"
    reads: Reads = "position"
    row_features: int | None = None
    gate: Literal["row", "feature"] = "row"
    gate_bias: float = 0.0

    def __post_init__(self) -> None:
        check_whole(self, "rank", "num_heads")
        check_word(self, "reads", ("position", "history"))
        check_word(self, "gate", ("row", "feature"))
        if self.rank % (2 * self.num_heads):
            raise ConfigError(
                "Heads share the rank, an even number of features each: rank must be a multiple of "
                f"2 * num_heads; got {self.rank} and {self.num_heads}."
            )
        if self.row_features is not None:
            check_whole(self, "row_features", least=0)
            if self.row_features % 2 or self.row_features > self.head_dim:
                raise ConfigError(
                    f"row_features is an even number up to the head dim, {self.head_dim}; got "
                    f"{self.row_features}."
                )

    @property
    def head_dim(self) -> int:
        """C, the features of one head."""
        return self.rank // self.num_heads

    @property
    def features_of_rows(self) -> int:
        """The features of a head that tell rows apart."""
        return self.head_dim // 4 * 2 if self.row_features is None else self.row_features

    def layer_indices(self, num_layers: int) -> list[int]:
        """The indices of the layers that carry one, ascending."""
        if self.layers == "upper":
            return list(range(num_layers // 2, num_layers, 2))
        return super().layer_indices(num_layers)

    def facts(self) -> dict[str, str]:
        """Rank, heads, reach and gate."""
        return {
            "rank": str(self.rank),
            "heads x head dim": f"{self.num_heads} x {self.head_dim}",
            "reads": self.reads,
            "gate": f"one number a {self.gate}",
        }


class GatedBlock(Coupling):
    """A gated side path of low rank, in which rows read their siblings.

    Shape: `[R, S, A] -> [R, S, A]`, what it is given included.
    """

    kind = GatedConfig.kind
    Config = GatedConfig
    title = "Gated"
    about = (
        "Gated lateral attention: within each of these layers, a gated side path of low rank lets "
        f"the rows of a group attend to each other, as LACE describes it ([paper]({LACE}))."
    )
    seats = ("attended",)
    PROJECTIONS = ("down_weight", "qkv_weight", "up_weight")

    def __init__(self, config: GatedConfig, size: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = config.num_heads, config.head_dim
        self.reads = config.reads
        self.row_features = config.features_of_rows
        self.turned_features = self.head_dim - self.row_features
        self._bias = config.gate_bias
        rank, gates = config.rank, 1 if config.gate == "row" else size

        def empty(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(*shape))

        self.down_weight = empty(rank, size)
        self.qkv_weight = empty(3 * rank, rank)
        self.up_weight = empty(size, rank)
        self.gate_weight, self.gate_bias = empty(gates, size), empty(gates)
        self.reset_parameters()

    @classmethod
    def sizes(cls, base: Any, layer: int) -> tuple[Any, ...]:
        """The size of what a layer's heads give."""
        heads, _, head_dim = heads_of(base)
        return (heads * head_dim,)

    @classmethod
    def claims(cls, config: Any) -> frozenset[str]:
        """Rows that are told apart do not permute, and only at their own position is it nothing to
        read siblings that hold the same."""
        lost = {"I2"} if config.features_of_rows else set()
        return INVARIANTS - lost - ({"I5"} if config.reads == "history" else set())

    @property
    def kept_bytes(self) -> int:
        return 2 * self.num_heads * self.head_dim * self.qkv_weight.element_size()

    def reset_parameters(self) -> None:
        """Projections that keep the variance; U zero, so that the attached model is the base model;
        a gate that is the same everywhere."""
        for weight in (self.down_weight, self.qkv_weight):
            nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
        nn.init.zeros_(self.up_weight)
        nn.init.zeros_(self.gate_weight)
        nn.init.constant_(self.gate_bias, self._bias)

    def added(self, x: Float[Tensor, "R S A"], rows: Rows) -> Float[Tensor, "R S A"]:
        """sigmoid(G X + b) * (what the row reads, times U), what is added to X."""
        count = rows.check(x.shape[0], x.shape[1])
        q, k, v = self._project(x, count, rows)
        mixed = F.linear(read_siblings(self, q, k, v, rows), self.up_weight)
        return torch.sigmoid(F.linear(x, self.gate_weight, self.gate_bias)) * mixed

    def attention_weights(
        self, x: Float[Tensor, "R S A"], rows: Rows
    ) -> Float[Tensor, "P S H W N"] | None:
        """Who attends to whom, before the gate."""
        q, k, _ = self._project(x, rows.check(x.shape[0], x.shape[1]), rows)
        return shares_of_siblings(self, q, k, rows)

    def _project(
        self, x: Float[Tensor, "R S A"], count: int, rows: Rows
    ) -> tuple[Float[Tensor, "P W S H C"], Float[Tensor, "P W S H C"], Float[Tensor, "P W S H C"]]:
        """Queries and keys, turned by the rows' numbers, and values."""
        qkv = F.linear(F.linear(x, self.down_weight), self.qkv_weight)
        q, k, v = (
            qkv.unflatten(0, (count, -1))
            .unflatten(-1, (3, self.num_heads, self.head_dim))
            .unbind(dim=3)
        )
        if self.row_features:
            numbers = rows.numbers(x.device)[:, None, None]
            first = (self.head_dim - self.row_features) // 2
            angles = turns(numbers, self.head_dim, x.dtype, self.row_features, first)
            q, k = turned(q, *angles), turned(k, *angles)
        return q, k, v

    def extra_repr(self) -> str:
        return f"rank={self.num_heads * self.head_dim}, heads={self.num_heads}, reads={self.reads}"
