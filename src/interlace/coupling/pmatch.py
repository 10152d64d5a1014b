"""P-Match: the baseline block with the Bridge's parameter count (METHOD.md, "Training", 4).

Axes: R rows, S positions, D hidden size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from interlace.coupling.bridge import NORM_EPS, Block
from interlace.coupling.config import PMatchConfig
from interlace.rows import Rows


class PMatchBlock(Block):
    """The baseline with the Bridge's parameter count: a per-token residual MLP. Rows see no
    siblings.

    Shape: `[R, S, D] -> [R, S, D]`, the residual included. The second matrix starts at zero.
    """

    PROJECTIONS = ("in_weight", "o_weight")

    def __init__(
        self,
        config: PMatchConfig,
        hidden_size: int,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(hidden_size, eps=NORM_EPS, device=device, dtype=dtype)
        self.in_weight = nn.Parameter(
            torch.empty(config.mlp_size, hidden_size, device=device, dtype=dtype)
        )
        self.o_weight = nn.Parameter(
            torch.empty(hidden_size, config.mlp_size, device=device, dtype=dtype)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As the Bridge: unit-variance projection, zero output."""
        nn.init.ones_(self.norm.weight)
        nn.init.normal_(self.in_weight, std=self.in_weight.shape[1] ** -0.5)
        nn.init.zeros_(self.o_weight)

    def forward(self, x: Float[Tensor, "R S D"], groups: Rows) -> Float[Tensor, "R S D"]:
        """X + W_O SiLU(W_in Norm(X)); `groups` is checked but changes nothing."""
        return x + self.added(x, groups)

    def added(self, x: Float[Tensor, "R S D"], groups: Rows) -> Float[Tensor, "R S D"]:
        """W_O SiLU(W_in Norm(X)), what the block adds to X."""
        groups.check(x.shape[0], x.shape[1])
        inner = F.silu(self._linear(self.norm(x), "in_weight"))
        return self._linear(inner, "o_weight")

    def extra_repr(self) -> str:
        return f"mlp_size={self.in_weight.shape[0]}"
