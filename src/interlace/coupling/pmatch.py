"""P-Match: the baseline block with the Bridge's parameter count (METHOD.md, "Training", 4).

Axes: R rows, S positions, D hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from interlace.coupling.base import NORM_EPS, PAPER, Coupling
from interlace.coupling.config import BlockConfig
from interlace.rows import Rows


@dataclass(frozen=True)
class PMatchConfig(BlockConfig):
    """P-Match: a per-token residual MLP with the very parameter count of the Bridge of the same
    numbers.

    Same norm, same places; two matrices without bias, hidden size (q + k + v + o) / 2. Rows do not
    see each other. Arguments are those of `BridgeConfig`.

    >>> from interlace import BridgeConfig
    >>> PMatchConfig().parameters_per_layer(64) == BridgeConfig().parameters_per_layer(64)
    True
    """

    kind: ClassVar[str] = "pmatch"

    @property
    def mlp_size(self) -> int:
        """The MLP's hidden size, (q + k + v + o) / 2. Equation (11)."""
        return self.projection_width // 2

    def facts(self) -> dict[str, str]:
        """The size of the MLP."""
        return {"MLP size": f"{self.mlp_size:,}"}


class PMatchBlock(Coupling):
    """The baseline with the Bridge's parameter count: a per-token residual MLP. Rows see no
    siblings.

    Shape: `[R, S, D] -> [R, S, D]`, the residual included. The second matrix starts at zero.
    """

    kind = PMatchConfig.kind
    Config = PMatchConfig
    title = "P-Match"
    about = (
        "P-Match blocks: the per-token baseline with the parameter count of Bridge blocks "
        f"([paper]({PAPER})). Rows do not see each other."
    )
    couples = False
    PROJECTIONS = ("in_weight", "o_weight")

    def __init__(self, config: PMatchConfig, hidden_size: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(hidden_size, eps=NORM_EPS)
        self.in_weight = nn.Parameter(torch.empty(config.mlp_size, hidden_size))
        self.o_weight = nn.Parameter(torch.empty(hidden_size, config.mlp_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As the Bridge: unit-variance projection, zero output."""
        nn.init.ones_(self.norm.weight)
        nn.init.normal_(self.in_weight, std=self.in_weight.shape[1] ** -0.5)
        nn.init.zeros_(self.o_weight)

    def added(self, x: Float[Tensor, "R S D"], rows: Rows) -> Float[Tensor, "R S D"]:
        """W_O SiLU(W_in Norm(X)), what the block adds to X; `rows` is checked but changes nothing.
        Equation (11)."""
        rows.check(x.shape[0], x.shape[1])
        inner = F.silu(F.linear(self.norm(x), self.in_weight))
        return F.linear(inner, self.o_weight)

    def extra_repr(self) -> str:
        return f"mlp_size={self.in_weight.shape[0]}"
