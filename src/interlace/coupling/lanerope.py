"""LaneRoPE (arXiv 2605.27570): self-attention itself sees what every row of a group has written.

Axes: P groups, W width, R = P*W rows, S positions of this call, U positions so far, H query heads,
G key-value heads, C head dim, F frequencies (pairs of features that RoPE turns).

A row is a lane. The token at position i of lane m has its query and its key turned by its position,
as ever, and by its lane, in the same pairs of features, so that a score depends on differences:

    q(i, m) = R(Omega m) R(theta i) q,   k likewise;   prompts belong to all lanes and have m = 0

and attention has one softmax over the row's own past, its prompt among it, and what siblings wrote,
as long as they were alive. Group Think (arXiv 2505.11107) is Omega = theta L: lane m lies as if it
were written m slots of L tokens further on, one after the other. OPEN, what the texts do not say:

- whether a row sees what siblings write at its own position (`strict`): it does, since a lockstep
  step has all keys before it attends.
- whether lane 0 is the prompt's (`prompt`): yes, as Group Think has it. With "own" a prompt is as
  near to every lane as to the first.
- the formula of the NTK-aware Omega: theta_f L^(1 - f / (F - 1)), from a slot apart in the fastest
  pair of features to a token apart in the slowest, which alone would go beyond what was trained.
- whether a learned Omega is shared by layers or heads: by the heads of a layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from interlace.coupling.base import INVARIANTS
from interlace.coupling.config import CouplingConfig, Layers, check_whole, check_word
from interlace.coupling.joint import JointAttention, moved
from interlace.rows import Owners, Reads, Rows

PAPER = "https://arxiv.org/abs/2605.27570"


@dataclass(frozen=True)
class LaneRoPEConfig(CouplingConfig):
    """Self-attention over all rows of a group, told apart by a rotation (arXiv 2605.27570).

    Unlike other kinds it changes the model as soon as it is attached: at widths above 1 rows read
    each other, without any training. Width 1 is the base model, bit for bit. Group Think is
    `LaneRoPEConfig(omega="slot", learned=False)`, and needs no training.

    Args:
        omega: Angle between neighbouring lanes: "zero", lanes cannot be told apart; "slot", a lane
            is `slot` positions further on; "ntk", likewise in the fastest features, and a single
            position in the slowest.
        slot: Number of positions between neighbouring lanes.
        learned: Whether the angle is a parameter of each layer, which starts at `omega`.
        strict: Whether a row sees only earlier positions of its siblings, not their own one.
        prompt: Lane of a prompt: "first", so that later lanes are farther from it, or "own", the
            row's.
        layers: Layers whose attention sees the group: "all", every k-th layer as the integer k, or
            a list of layer indices.

    Raises:
        ConfigError: for a slot below 1, or another word.
    """

    kind: ClassVar[str] = "lanerope"

    omega: Literal["zero", "slot", "ntk"] = "ntk"
    slot: int = 4096
    learned: bool = True
    strict: bool = False
    prompt: Literal["first", "own"] = "first"
    layers: Layers = "all"

    def __post_init__(self) -> None:
        check_word(self, "omega", ("zero", "slot", "ntk"))
        check_word(self, "prompt", ("first", "own"))
        check_word(self, "learned", (True, False))
        check_word(self, "strict", (True, False))
        check_whole(self, "slot")

    @property
    def reads(self) -> Reads:
        """Everything that siblings wrote."""
        return "history"

    def facts(self) -> dict[str, str]:
        """The angle between lanes, and what of it is learned."""
        what = self.omega if self.omega == "zero" else f"{self.omega}, {self.slot:,} positions"
        return {"Omega": what, "learned": "yes" if self.learned else "no"}


class LaneRoPE(JointAttention):
    """One layer's attention over all rows of a group, each in its lane."""

    kind = LaneRoPEConfig.kind
    Config = LaneRoPEConfig
    title = "LaneRoPE"
    about = (
        "LaneRoPE: in each of these layers, attention sees what all rows of a group have written, "
        f"told apart by a rotation for each row ([paper]({PAPER}))."
    )

    def __init__(
        self, config: LaneRoPEConfig, theta: Float[Tensor, " F"], kv_size: int = 0
    ) -> None:
        super().__init__(config, theta, kv_size)
        self.start = omega(config, theta)
        self.strict, self.shares_lane = config.strict, config.prompt == "own"
        self.omega = nn.Parameter(torch.tensor(self.start)) if config.learned else None

    @classmethod
    def claims(cls, config: Any) -> frozenset[str]:
        """Not that a fresh one changes nothing, nor that identical rows are none; and lanes that
        are told apart do not permute."""
        told_apart = config.omega != "zero" or config.learned
        return INVARIANTS - {"I1", "I5"} - ({"I2"} if told_apart else set())

    @property
    def kept_bytes(self) -> int:
        size = 4 if self.omega is None else self.omega.element_size()
        return 2 * self._kv_size * size

    def alone(self, query: Float[Tensor, "R H S C"]) -> Float[Tensor, "R H S C"]:
        """Queries where nobody has siblings: those of the base model."""
        if self.omega is not None and torch.is_grad_enabled():
            return query + 0 * self.omega.sum()  # zeros, which data-parallel reducers need
        return query

    def meet(
        self,
        query: Float[Tensor, "P H W S C"],
        key: Float[Tensor, "P G W U C"],
        wrote: Bool[Tensor, "P W U"],
        late: Bool[Tensor, "P U"],
        first: int,
    ) -> tuple[Tensor, Tensor]:
        """Queries and keys in their rows' lanes."""
        lanes = torch.arange(wrote.shape[1], device=key.device)[:, None, None]
        here = torch.ones_like(late) if self.shares_lane else late
        here = here[:, None, None, :, None]  # P 1 1 U 1
        late_queries = here[..., first : first + query.shape[3], :]
        return self._in_lane(query, lanes * late_queries), self._in_lane(key, lanes * here)

    def meet_step(
        self, query: Float[Tensor, "R H C"], key: Float[Tensor, "R G C"], rows: Owners
    ) -> tuple[Tensor, Tensor]:
        """Likewise."""
        lanes = rows.numbers(query.device)[:, None, None]
        return self._in_lane(query, lanes), self._in_lane(key, lanes)

    def prompt_query(self, query: Float[Tensor, "R H 1 C"], rows: Rows) -> Tensor:
        """Queries of a decode step as they meet the keys of prompts, which are in lane 0."""
        if self.shares_lane:
            return query
        return self._in_lane(query, rows.numbers(query.device)[:, None, None, None])

    def _in_lane(self, x: Float[Tensor, "*axes C"], lanes: Tensor) -> Float[Tensor, "*axes C"]:
        step = self.fixed(x.device) if self.omega is None else self.omega
        return moved(x, lanes, step)

    def extra_repr(self) -> str:
        return f"frequencies={len(self.start)}, strict={self.strict}"


def omega(config: LaneRoPEConfig, theta: Float[Tensor, " F"]) -> list[float]:
    """The angle between neighbouring lanes, for each frequency."""
    if config.omega == "zero":
        return [0.0] * len(theta)
    last = max(len(theta) - 1, 1)
    ntk = config.omega == "ntk"
    return [
        turn * config.slot ** (1 - pair / last if ntk else 1)
        for pair, turn in enumerate(theta.tolist())
    ]
