"""The Bridge block.

Axes: P groups, W width, R = P*W rows, S positions, D hidden size, H query heads, G key-value heads,
C head dim. For every position s separately, over the W rows of one group (METHOD.md, arXiv
2510.01143):

    X <- X + softmax(mask(Q K^T / sqrt(C))) V W_O,   Q, K, V = Norm(X)[:, s] W_Q, W_K, W_V

With a longer reach than the paper's, the same softmax also runs over earlier positions: reach.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from interlace.coupling.attention import merged
from interlace.coupling.base import INVARIANTS, NORM_EPS, PAPER, Coupling
from interlace.coupling.config import BlockConfig, check_word
from interlace.coupling.reach import attend_with_earlier, attend_with_lse
from interlace.errors import ConfigError, GroupError
from interlace.rows import Groups, Owners, Reads, Rows


@dataclass(frozen=True)
class BridgeConfig(BlockConfig):
    """The Bridge block: attention along the batch axis, over the rows of a group (arXiv
    2510.01143).

    The default widths (q+k+v+o = 2112) give the paper's 5.1 % on Distill-Qwen-1.5B and 2.8 % on
    Distill-Qwen-7B.

    Args:
        num_heads: Number of query heads of the Bridge, H.
        num_kv_heads: Number of key-value heads; divides `num_heads`.
        head_dim: Dimension of one head.
        layers: Layers that carry a block: "all", every k-th layer as the integer k (the last layer
            included), or a list of layer indices (negative ones count from the end).
        parameter_share: Share of new over base parameters, between 0 and 1. When given, heads and
            head dim follow from it: `num_heads` becomes an upper bound and the nearest legal shape
            is taken.
        reads: Reach of a row: "position", its live siblings at the same position (the paper's);
            "finished", also every completion position that finished siblings wrote; "history",
            every completion position so far of every sibling. The last two tell distances apart
            by rotary positions, and keep keys and values of the blocks while a group is sampled.
        alone: Meaning of width 1: "block", a row that reads itself (the paper's), or "skip",
            exactly the base model.

    Raises:
        ConfigError: for sizes below 1, heads that do not divide, a share outside (0, 1), another
            word, or an odd head dim where there are positions.

    >>> BridgeConfig().projection_width
    2112
    """

    kind: ClassVar[str] = "bridge"

    reads: Reads = "position"
    alone: Literal["block", "skip"] = "block"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_word(self, "reads", get_args(Reads))
        check_word(self, "alone", ("block", "skip"))
        if self.reads != "position" and self.head_dim % 2:
            raise ConfigError(
                "Rotary positions turn pairs of features, so with reads="
                f"{self.reads!r} head_dim is even; got {self.head_dim}."
            )

    @property
    def skips_alone(self) -> bool:
        """Whether rows that are groups of width 1 go by the blocks."""
        return self.alone == "skip"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without what is the paper's: files and runs of 0.1 have neither
        key, and go on."""
        values = super().to_dict()
        papers = {"reads": "position", "alone": "block"}
        return {k: v for k, v in values.items() if papers.get(k) != v}

    def facts(self) -> dict[str, str]:
        """Heads and their dimension; the reach and the meaning of width 1 where it is another."""
        heads = f"{self.num_heads} ({self.num_kv_heads} key-value) x {self.head_dim}"
        reach = {} if self.reads == "position" else {"reads": self.reads}
        alone = {"at width 1": "the base model"} if self.skips_alone else {}
        return {"heads x head dim": heads} | reach | alone


class BridgeBlock(Coupling):
    """Attention along the batch axis: each row of a group reads its siblings at the same position.

    No positional encoding, so rows permute freely and any width runs with the same weights; no
    key-value cache, since only the current position is shared. W_O starts at zero: a fresh block
    changes nothing. With another reach than the paper's there are both, of siblings' earlier
    positions; rows still permute freely.

    W_Q, W_K and W_V are one matrix (`qkv_weight`, in that order), because one matrix product costs
    less than three; none is an `nn.Linear`, so that adapters and quantisers that look for linears
    leave the block alone.

    Shape: `[R, S, D] -> [R, S, D]`, the residual included.
    """

    kind = BridgeConfig.kind
    Config = BridgeConfig
    title = "Bridge"
    about = (
        "Bridge blocks make the responses that are sampled for one prompt interdependent: after "
        f"each of these layers, the rows of a group attend to each other ([paper]({PAPER}))."
    )
    hides = True
    PROJECTIONS = ("qkv_weight", "o_weight")

    def __init__(self, config: BridgeConfig, hidden_size: int) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = (
            config.num_heads,
            config.num_kv_heads,
            config.head_dim,
        )
        self.q_size, self.kv_size = (
            self.num_heads * self.head_dim,
            self.num_kv_heads * self.head_dim,
        )
        self.reads, self.skips_alone = config.reads, config.skips_alone
        self.norm = nn.RMSNorm(hidden_size, eps=NORM_EPS)
        self.qkv_weight = nn.Parameter(torch.empty(self.q_size + 2 * self.kv_size, hidden_size))
        self.o_weight = nn.Parameter(torch.empty(hidden_size, self.q_size))
        self.reset_parameters()

    @property
    def kept_bytes(self) -> int:
        return 2 * self.kv_size * self.qkv_weight.element_size()

    def reset_parameters(self) -> None:
        """Unit-variance projections of a normalised input; W_O zero, so that the attached model is
        the base model. Equation (5)."""
        nn.init.ones_(self.norm.weight)
        nn.init.normal_(self.qkv_weight, std=self.qkv_weight.shape[1] ** -0.5)
        nn.init.zeros_(self.o_weight)

    def forward(self, x: Float[Tensor, "R S D"], rows: Rows) -> Float[Tensor, "R S D"]:
        """The layer seat; rows that are alone go by it where the configuration says so."""
        alone = self.skips_alone and rows.alone()
        if alone is True:
            rows.check(x.shape[0], x.shape[1])
            return x + self._nothing() if torch.is_grad_enabled() else x
        out = (self.step if isinstance(rows, Owners) else self.layer)(x, rows)
        return out if alone is False else torch.where(alone[:, None, None], x, out)

    @classmethod
    def claims(cls, config: Any) -> frozenset[str]:
        """All; but with "history" a row reads siblings where it does not read itself."""
        return INVARIANTS - ({"I5"} if config.reads == "history" else set())

    def _nothing(self) -> Tensor | float:
        """Zero, with a gradient of zeros for every parameter, which data-parallel reducers need."""
        return sum(0 * p.sum() for p in self.parameters() if p.requires_grad)

    def layer(self, x: Float[Tensor, "R S D"], rows: Rows) -> Float[Tensor, "R S D"]:
        """X + Bridge(Norm(X)), here so that the method is in one file. Equation (1)."""
        return x + self.added(x, rows)

    def added(self, x: Float[Tensor, "R S D"], rows: Rows) -> Float[Tensor, "R S D"]:
        """Bridge(Norm(X)), what the block adds to X. Equations (1), (8)."""
        count = rows.check(x.shape[0], x.shape[1])
        normed = self.norm(x)
        reads_kept = self.reads != "position" and isinstance(rows, Owners)
        if count == x.shape[0] and not reads_kept:  # width 1
            # The softmax over itself alone is 1, so only V and O matter. W_Q and W_K, in one
            # parameter with W_V, still get a gradient, of zeros, which data-parallel reducers need.
            values = F.linear(normed, self.qkv_weight[self.q_size + self.kv_size :])
            per_head = values.unflatten(-1, (self.num_kv_heads, self.head_dim))
            mixed = per_head.repeat_interleave(self.num_heads // self.num_kv_heads, dim=2).flatten(
                2
            )
        else:
            q, k, v = self._project(normed, count)
            mixed = read_siblings(self, q, k, v, rows)
        return F.linear(mixed, self.o_weight)

    def attention_weights(
        self, x: Float[Tensor, "R S D"], rows: Rows
    ) -> Float[Tensor, "P S H W N"] | None:
        """Who attends to whom: the softmax weights for input X, summed over a row's positions."""
        q, k, _ = self._project(self.norm(x), rows.check(x.shape[0], x.shape[1]))
        return shares_of_siblings(self, q, k, rows)

    def _project(
        self, normed: Float[Tensor, "R S D"], count: int
    ) -> tuple[Float[Tensor, "P W S H C"], Float[Tensor, "P W S G C"], Float[Tensor, "P W S G C"]]:
        """Queries, keys and values of every row, head and position. Equation (2)."""
        qkv = (
            F.linear(normed, self.qkv_weight)
            .unflatten(0, (count, -1))
            .unflatten(-1, (-1, self.head_dim))
        )
        q, k, v = qkv.split([self.num_heads, self.num_kv_heads, self.num_kv_heads], dim=3)
        return q, k, v

    def extra_repr(self) -> str:
        return f"heads={self.num_heads}, kv_heads={self.num_kv_heads}, head_dim={self.head_dim}"


def read_siblings(
    block: Coupling,
    q: Float[Tensor, "P W S H C"],
    k: Float[Tensor, "P W S G C"],
    v: Float[Tensor, "P W S G V"],
    rows: Rows,
) -> Float[Tensor, "R S HV"]:
    """What each row reads with the reach of a block, heads concatenated. Equations (3), (30)."""
    if block.reads == "position":
        return _attend(q, k, v, rows.visible())
    if isinstance(rows, Owners):
        return _read_in_step(block, q, k, v, rows)
    assert isinstance(rows, Groups)
    keys, values = rows.joined(block.place, k, v)
    earlier = rows.earlier(block.reads, q.shape[0], q.shape[2], q.device)
    visible = rows.visible()
    if earlier is None:
        return _attend(q, k, v, visible)
    mixed = attend_with_earlier(q, keys, values, visible, earlier, block.turned_features)
    if earlier.first == 0:
        return mixed
    before = slice(earlier.first)
    q, k, v = (t[:, :, before] for t in (q, k, v))
    own = _attend(q, k, v, None if visible is None else visible[:, before])
    return torch.cat([own, mixed], dim=1)


def _read_in_step(
    block: Coupling,
    q: Float[Tensor, "1 R 1 H C"],
    k: Float[Tensor, "1 R 1 G C"],
    v: Float[Tensor, "1 R 1 G C"],
    rows: Owners,
) -> Float[Tensor, "R 1 HC"]:
    """`read_siblings` in a decode step, the parts merged by their log-sum-exp. Equation (13)."""
    if rows.kept is None:
        raise GroupError(
            f"{block.title} blocks with reads={block.reads!r} read what siblings wrote at earlier "
            "positions, and this step keeps none of it. Pass Owners(..., kept=...), or whole "
            "sequences with Groups."
        )
    part = rows.kept.read(block.place, q[0, :, 0], k[0, :, 0], v[0, :, 0])
    visible = rows.visible()
    if part is None:
        return _attend(q, k, v, visible)
    own, lse = attend_with_lse(q[0, :, 0], k[0, :, 0], v[0, :, 0], visible)
    return merged(own, lse, *part).flatten(1).unsqueeze(1)


def shares_of_siblings(
    block: Coupling,
    q: Float[Tensor, "P W S H C"],
    k: Float[Tensor, "P W S G C"],
    rows: Rows,
) -> Float[Tensor, "P S H W N"] | None:
    """How much of what a row reads comes from each row, as `Coupling.attention_weights` has it.

    Beyond the own position: what `read_siblings` gives where a row's values are its unit vector.
    None where earlier calls keep what is read.
    """
    width = q.shape[1]
    if block.reads == "position":
        return _weights(q, k, rows.visible()).flatten(2, 3)
    if isinstance(rows, Groups):
        if rows.continues:
            return None
        units = torch.eye(width, dtype=q.dtype, device=q.device)[None, :, None, None]
        read = read_siblings(block, q, k, units.expand(*k.shape[:-1], -1), rows)
        return read.unflatten(0, (-1, width)).unflatten(-1, (-1, width)).permute(0, 2, 3, 1, 4)
    part = (
        rows.kept.shares(block.place, q[0, :, 0])
        if isinstance(rows, Owners) and rows.kept
        else None
    )
    own = _weights(q, k, rows.visible()).flatten(2, 3)
    if part is None:
        return own
    earlier, lse = part
    _, own_lse = attend_with_lse(q[0, :, 0], k[0, :, 0], k[0, :, 0], rows.visible())
    own = F.pad(own[0, 0].transpose(0, 1), (0, earlier.shape[-1]))
    return merged(own, own_lse, F.pad(earlier, (width, 0)), lse).transpose(0, 1)[None, None]


def _attend(
    q: Float[Tensor, "P W S H C"],
    k: Float[Tensor, "P W S G C"],
    v: Float[Tensor, "P W S G V"],
    visible: Bool[Tensor, "P S W W"] | None,
) -> Float[Tensor, "R S HV"]:
    """softmax(mask(Q K^T / sqrt(C))) V at each position of each group, heads concatenated.

    Equation (3).
    """
    p, w, s, _, _ = q.shape
    if _fused_is_faster(q):
        query, key, value = (t.permute(0, 2, 3, 1, 4).flatten(0, 1) for t in (q, k, v))
        mask = None if visible is None else visible.flatten(0, 1).unsqueeze(1)
        mixed = F.scaled_dot_product_attention(query, key, value, mask, enable_gqa=True)
        return mixed.unflatten(0, (p, s)).permute(0, 3, 1, 2, 4).reshape(p * w, s, -1)
    weights = _weights(q, k, visible).flatten(3, 4)  # P S G (H/G W) W
    mixed = weights @ v.permute(0, 2, 3, 1, 4)
    return mixed.unflatten(3, (-1, w)).permute(0, 4, 1, 2, 3, 5).reshape(p * w, s, -1)


def _weights(
    q: Float[Tensor, "P W S H C"],
    k: Float[Tensor, "P W S G C"],
    visible: Bool[Tensor, "P S W W"] | None,
) -> Float[Tensor, "P S G Q W W"]:
    """softmax(mask(Q K^T / sqrt(C))), the Q = H/G query heads of a key-value head beside each
    other. Equation (3)."""
    w, kv_heads = k.shape[1], k.shape[3]
    query = q.unflatten(3, (kv_heads, -1)).permute(0, 2, 3, 4, 1, 5).flatten(3, 4)
    scores = (query @ k.permute(0, 2, 3, 4, 1)).unflatten(3, (-1, w)) * q.shape[-1] ** -0.5
    if visible is not None:
        scores = scores.masked_fill(~visible[:, :, None, None], float("-inf"))
    return scores.softmax(dim=-1)


def _fused_is_faster(q: Tensor) -> bool:
    """Measured for W x W problems: torch's fused attention wins on CPU, except on long
    half-precision inputs, where its backward is up to 14 times slower than plain products. On GPUs
    its grids end at 65,535 problems, and a training batch has one problem a position; plain
    products have no such end."""
    return q.device.type == "cpu" and (q.dtype in (torch.float32, torch.float64) or q.shape[2] == 1)
