"""Live rows stand in for whole groups: the same as finished rows in their places, masked.

Axes: P groups, W width, R live rows.
"""

from __future__ import annotations

import copy

import pytest
import torch

from interlace import Groups
from interlace.coupling.bridge import BridgeBlock
from interlace.engine.live_rows import LiveRows
from support.architectures import BRIDGE, HIDDEN, randomise

CPU = torch.device("cpu")


def test_who_sees_whom() -> None:
    rows = LiveRows([7, 9, 7, 3], CPU)
    assert rows.width == 4
    seen = rows.visible()
    assert seen is not None
    assert seen[0, 0].int().tolist() == [[1, 0, 1, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]]
    mask = rows.additive_mask(torch.float32)
    assert mask is not None
    assert torch.equal(mask == 0, seen)
    assert (mask[~seen] == -torch.inf).all()


def test_one_group_needs_no_mask() -> None:
    rows = LiveRows([4, 4, 4], CPU)
    assert rows.visible() is None
    assert rows.additive_mask(torch.float32) is None


@pytest.mark.parametrize("order", ["in order", "shuffled"])
@torch.no_grad()
def test_the_same_as_groups_with_finished_rows_masked(order: str) -> None:
    """Three groups of five, some rows of which are finished, and one of which is finished whole."""
    block = BridgeBlock(BRIDGE, HIDDEN)
    randomise(block.named_parameters(), seed=1)
    x = torch.randn(15, 1, HIDDEN)
    alive = torch.ones(3, 5, 1, dtype=torch.bool)
    alive[0, [1, 4]] = alive[1] = False
    expected = block(x, Groups(5, alive))
    live = torch.tensor([r for r in range(15) if alive.flatten()[r]])
    if order == "shuffled":
        live = live[torch.randperm(len(live))]
    rows = LiveRows((live // 5).tolist(), CPU)
    torch.testing.assert_close(block(x[live], rows), expected[live], atol=1e-5, rtol=1e-5)


def test_copies_keep_the_mask() -> None:
    """The attached model watches a copy of what it is given, and accelerate moves it."""
    rows = LiveRows([1, 2], CPU)
    for copied in (rows.watched(), copy.copy(rows), rows.to("cpu")):
        seen = copied.visible()
        assert seen is not None
        assert torch.equal(seen, rows.visible())
