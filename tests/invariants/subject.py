"""What the invariants are checked on, and how two results are compared.

Axes: P = 2 groups, W = 5 rows, R = 10 rows, S = 13 positions, V = 97.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from interlace.coupling.config import CouplingConfig
from interlace.coupling.registry import coupling_class
from interlace.rows import Groups
from support.architectures import ARCHITECTURES, attach_random, build, config_of, random_mixing

COUNT, WIDTH, POSITIONS = 2, 5, 13
ROWS = COUNT * WIDTH
START = torch.tensor([4, 2])  # the first columns of the groups' completions
REACHES = ["finished", "history"]  # beside the paper's
PROMPTS = [[11, 12, 13, 14, 15, 16, 17], [21, 22, 23]]


@dataclass(frozen=True)
class Subject:
    """What an invariant is checked on."""

    name: str
    attn: str = "sdpa"
    dtype: torch.dtype = torch.float32
    reads: str = "position"
    kind: str = "bridge"

    @property
    def config(self) -> CouplingConfig:
        """What is attached."""
        return config_of(self.kind, **self.options)

    @property
    def claims(self) -> frozenset[str]:
        """The invariants that hold for it."""
        return coupling_class(self.config.kind).claims(self.config)

    @property
    def couples(self) -> bool:
        """Whether its rows see each other."""
        return coupling_class(self.config.kind).couples

    def base(self) -> PreTrainedModel:
        # Differences take an architecture that has windows everywhere, where lanes see none.
        plain = self.name == "starcoder2" and self.kind.startswith(("lanerope", "hogwild"))
        return build(
            self.name, self.attn, self.dtype, **({"sliding_window": None} if plain else {})
        )

    def attached(self) -> PreTrainedModel:
        return attach_random(self.base(), self.kind, **self.options)

    def groups(
        self,
        count: int,
        positions: int,
        width: int,
        alive: Tensor | None = None,
        start: Tensor | None = None,
    ) -> Groups:
        """`Groups(width, alive, start)`, for couplings that mix with random weights."""
        mixing = None
        if coupling_class(self.config.kind).mixes:
            mixing = random_mixing(count, width, positions, alive, start)
        return Groups(width, alive, start, mixing=mixing)

    @property
    def options(self) -> dict[str, Any]:
        return {"reads": self.reads} if self.kind == "bridge" else {}

    @property
    def moe(self) -> bool:
        return ARCHITECTURES[self.name].moe

    @property
    def exact(self) -> float:
        """Zero; experts are batched over rows, so there the last bits may differ."""
        return 1e-6 if self.moe else 0.0

    @property
    def close(self) -> float:
        """Largest gap between logits of order 1 that are computed in another order."""
        return {torch.float64: 1e-10, torch.float32: 2e-5, torch.bfloat16: 0.25}[self.dtype]


def assert_close(got: Tensor, expected: Tensor, largest: float, what: str) -> None:
    gap = (got.float() - expected.float()).abs().max().item()
    assert gap <= largest, f"{what}: largest gap {gap:.3g}, allowed {largest:.3g}"


def assert_far(got: Tensor, other: Tensor, what: str) -> None:
    """Without this a block that does nothing would pass every invariant."""
    gap = (got.float() - other.float()).abs().max().item()
    assert gap > 0.05, f"{what}: largest gap only {gap:.3g}, so the check has nothing to see"
