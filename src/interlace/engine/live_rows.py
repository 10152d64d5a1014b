"""The live rows of a decode step as groups: ragged, in any order, of any widths.

Axes: R live rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interlace.rows import Groups


class LiveRows(Groups):
    """Only unfinished rows are fed in a decode step, so groups shrink at their own pace.

    To a block they are one group of R rows in which a row sees the rows that share its group: the
    same result as `Groups(width, alive)` with the finished rows in their places and masked, without
    computing them. No row order is assumed.
    """

    def __init__(self, owners: Sequence[int], device: torch.device) -> None:
        super().__init__(width=len(owners))
        seen: Tensor | None = None
        if len(set(owners)) > 1:
            owner = torch.tensor(owners, device=device)
            seen = (owner[:, None] == owner[None, :])[None, None]
        object.__setattr__(self, "_seen", seen)

    def visible(self) -> Bool[Tensor, "1 1 R R"] | None:
        """Who sees whom; None when all rows are of one group."""
        seen: Tensor | None = self.__dict__["_seen"]
        return seen

    def additive_mask(self, dtype: torch.dtype) -> Float[Tensor, "1 1 R R"] | None:
        """`visible` as numbers to add to scores: 0 where seen, else minus infinity."""
        seen = self.visible()
        if seen is None:
            return None
        mask: Tensor | None = self.__dict__.get("_additive")
        if mask is None:
            mask = torch.zeros_like(seen, dtype=dtype).masked_fill_(~seen, float("-inf"))
            object.__setattr__(self, "_additive", mask)
        return mask

    def to(self, device: torch.device | str | int | None, non_blocking: bool = False) -> LiveRows:
        """The same rows with their mask on `device`."""
        seen = self.visible()
        if seen is not None:
            object.__setattr__(self, "_seen", seen.to(device, non_blocking=non_blocking))
        return self
