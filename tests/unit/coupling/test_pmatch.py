"""P-Match: its equation, its zero start, and rows that do not see each other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from interlace import Groups, PMatchConfig, detach
from interlace.coupling.pmatch import PMatchBlock
from interlace.errors import GroupError
from support.architectures import attach_fresh, attach_random, build, random_ids, randomise

CONFIG = PMatchConfig(num_heads=4, num_kv_heads=2, head_dim=3)


def by_the_equation(block: PMatchBlock, x: Tensor) -> Tensor:
    out = x.clone()
    for row in range(x.shape[0]):
        for s in range(x.shape[1]):
            token = x[row, s]
            normed = token / torch.sqrt((token * token).mean() + 1e-6) * block.norm.weight
            inner = block.in_weight @ normed
            out[row, s] = token + block.o_weight @ (inner / (1 + torch.exp(-inner)))
    return out


def test_block_matches_its_equation() -> None:
    block = PMatchBlock(CONFIG, 7).double()
    randomise(block.named_parameters(), seed=1)
    x = torch.randn(6, 5, 7, dtype=torch.float64)
    torch.testing.assert_close(block(x, Groups(3)), by_the_equation(block, x), rtol=0, atol=1e-12)


def test_fresh_block_is_the_identity_and_only_w_o_is_zero() -> None:
    block = PMatchBlock(CONFIG, 7)
    x = torch.randn(6, 5, 7)
    assert torch.equal(block(x, Groups(3)), x)
    assert [name for name, p in block.named_parameters() if not p.any()] == ["o_weight"]
    assert "mlp_size=18" in repr(block)


def test_groups_are_checked() -> None:
    with pytest.raises(GroupError, match="got 4 rows at width 3"):
        PMatchBlock(CONFIG, 7)(torch.zeros(4, 5, 7), Groups(3))


@torch.no_grad()
def test_rows_of_an_attached_model_see_no_siblings() -> None:
    model, ids = build("llama"), random_ids(10, 13)
    base = model(ids).logits
    attach_fresh(model, "pmatch")
    assert torch.equal(model(ids, groups=Groups(5)).logits, base)
    detach(model)
    attach_random(model, "pmatch")
    out = model(ids, groups=Groups(5)).logits
    assert torch.equal(model(ids).logits, out)
    assert (out - base).abs().max() > 0.05
    other = ids.clone()
    other[1:] = random_ids(9, 13, seed=9)
    assert torch.equal(model(other, groups=Groups(5)).logits[0], out[0])
