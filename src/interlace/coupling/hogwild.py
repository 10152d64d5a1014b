"""Hogwild! (arXiv 2504.06261): self-attention sees what every row of a group has written, as blocks
of text that move: for each reader siblings' blocks stand behind the prompt, and its own last.

Axes: P groups, W width, R = P*W rows, S positions of this call, U positions so far, H query heads,
G key-value heads, C head dim, N rows of a group as its readers meet them.

A reader sees [prompt, siblings in the order of their numbers, itself]. So whatever siblings have
written lies before it, at no distance that a model was not trained for, and their blocks move away
as they and those behind them grow. Keys keep the positions of their own row, turned once and for
all. The paper's kernel turns each query once for each block instead, by how much farther the block
is than if it stood beside the reader: for block b of reader m, with n_j tokens in block j,

    far(m, b) = sum of n_j over j >= b, j != m;    the prompt: over all j != m;    its own block: 0

OPEN, what the text leaves to its prompts: finished rows' blocks stay, in their place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from interlace.coupling.base import INVARIANTS
from interlace.coupling.config import CouplingConfig, Layers
from interlace.coupling.joint import JointAttention, moved
from interlace.rows import Owners, Reads, Rows

PAPER = "https://arxiv.org/abs/2504.06261"


@dataclass(frozen=True)
class HogwildConfig(CouplingConfig):
    """Self-attention over all rows of a group, whose texts stand before the reader's own (arXiv
    2504.06261).

    It has no parameters and needs no training. It changes the model as soon as it is attached: at
    widths above 1 rows read each other. Width 1 is the base model, bit for bit.

    Args:
        layers: Layers whose attention sees the group: "all", every k-th layer as the integer k, or
            a list of layer indices.
    """

    kind: ClassVar[str] = "hogwild"

    layers: Layers = "all"

    @property
    def reads(self) -> Reads:
        """Everything that siblings wrote."""
        return "history"

    def facts(self) -> dict[str, str]:
        """Nothing is learned."""
        return {"learned": "no"}


class Hogwild(JointAttention):
    """One layer's attention over all rows of a group, the reader's own text last."""

    kind = HogwildConfig.kind
    Config = HogwildConfig
    title = "Hogwild!"
    about = (
        "Hogwild!: in each of these layers, attention sees what all rows of a group have written, "
        f"siblings' texts between the prompt and a row's own ([paper]({PAPER}))."
    )

    @classmethod
    def claims(cls, config: Any) -> frozenset[str]:
        """Not that a fresh one changes nothing, nor that identical rows are none; and blocks have
        an order."""
        return INVARIANTS - {"I1", "I2", "I5"}

    def meet(
        self,
        query: Float[Tensor, "P H W S C"],
        key: Float[Tensor, "P G W U C"],
        wrote: Bool[Tensor, "P W U"],
        late: Bool[Tensor, "P U"],
        first: int,
    ) -> tuple[Tensor, Tensor]:
        """Features W + 1 times as many: one part for each row's block and one for prompts, in which
        queries are turned as they meet that block and keys of other blocks are zero."""
        width = wrote.shape[1]
        sizes = wrote.cumsum(dim=-1)[..., first : first + query.shape[3]].transpose(1, 2)
        far = how_far(sizes[:, None], torch.arange(width, device=key.device)[:, None])  # P W S N
        own = torch.eye(width, dtype=torch.bool, device=key.device)
        to_blocks = far.masked_fill(own[:, None], 0)  # a row is as far from itself as ever
        all_far = torch.cat([to_blocks, far[..., :1]], dim=-1)[:, None, ..., None]
        spread = query.unsqueeze(-2).expand(*query.shape[:-1], width + 1, -1)
        q = moved(spread, all_far, self.fixed(query.device))
        blocks = own[:, None] & late[:, None, :, None]  # P W U N
        parts = torch.cat([blocks, ~late[:, None, :, None].expand(-1, width, -1, -1)], dim=-1)
        k = key.unsqueeze(-2) * parts[:, None, ..., None]
        return q.flatten(-2), k.flatten(-2)

    def meet_step(
        self, query: Float[Tensor, "R H C"], key: Float[Tensor, "R G C"], rows: Owners
    ) -> tuple[Tensor, Tensor]:
        """A query for each block."""
        far = self._far(query, rows)
        if far is None:
            return query, key
        spread = query.unsqueeze(1).expand(-1, far.shape[1], -1, -1)
        return moved(spread, far[..., None, None], self.fixed(query.device)), key

    def prompt_query(self, query: Float[Tensor, "R H 1 C"], rows: Rows) -> Tensor:
        """Queries of a decode step as they meet prompts: behind all that siblings have written."""
        assert isinstance(rows, Owners)
        far = self._far(query[:, :, 0], rows)
        if far is None:
            return query
        return moved(query, far[:, :1, None, None], self.fixed(query.device))

    def _far(self, query: Float[Tensor, "R H C"], rows: Owners) -> Int[Tensor, "R N"] | None:
        sizes = None if rows.kept is None else rows.kept.sizes(query)
        return None if sizes is None else how_far(sizes, rows.numbers(query.device))


def how_far(sizes: Int[Tensor, "*axes N"], reader: Int[Tensor, " *own"]) -> Int[Tensor, "*all N"]:
    """How much farther each block is than if it stood beside its reader, by the number of tokens in
    each; the first entry is how far the prompt is, too."""
    others = sizes * ~F.one_hot(reader, sizes.shape[-1]).bool()
    return others.flip(-1).cumsum(dim=-1).flip(-1)
