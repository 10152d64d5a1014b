"""The block against its equation in plain loops, on every path that it can take."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from interlace import BridgeConfig, Groups
from interlace.coupling import bridge as block_module
from interlace.coupling.bridge import BridgeBlock
from interlace.errors import GroupError
from support.architectures import randomise
from support.reference import bridge_reference

FLOAT64 = torch.float64


def random_block(
    kv_heads: int, ratio: int, head_dim: int, hidden: int, dtype: torch.dtype = FLOAT64
) -> BridgeBlock:
    config = BridgeConfig(num_heads=kv_heads * ratio, num_kv_heads=kv_heads, head_dim=head_dim)
    block = BridgeBlock(config, hidden).to(dtype)
    randomise(block.named_parameters(), seed=1)
    return block


def random_case(
    count: int, width: int, positions: int, hidden: int, masked: bool, seed: int
) -> tuple[Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count * width, positions, hidden, generator=generator, dtype=FLOAT64)
    alive = torch.rand(count, width, positions, generator=generator) < 0.6
    return 2 * x, alive if masked else None


shapes = st.fixed_dictionaries(
    {
        "kv_heads": st.integers(1, 3),
        "ratio": st.integers(1, 3),
        "head_dim": st.integers(1, 5),
        "hidden": st.integers(1, 7),
    }
)
cases = st.fixed_dictionaries(
    {
        "count": st.integers(1, 3),
        "width": st.integers(1, 5),
        "positions": st.integers(1, 4),
        "masked": st.booleans(),
        "seed": st.integers(0, 1000),
    }
)


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "products"])
@pytest.mark.parametrize("gradients", [True, False], ids=["gradients", "inference"])
@settings(max_examples=40, deadline=None)
@given(shape=shapes, case=cases)
def test_block_matches_the_equation(
    shape: dict[str, int], case: dict[str, int], gradients: bool, fused: bool
) -> None:
    block = random_block(**shape)
    x, alive = random_case(hidden=shape["hidden"], **case)
    groups = Groups(case["width"], alive)
    with (
        torch.set_grad_enabled(gradients),
        patch.object(block_module, "_fused_is_faster", lambda q: fused),
    ):
        out = block(x, groups)
    expected = bridge_reference(block, x, case["width"], alive)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)


def test_ragged_groups_match_groups_of_their_own_width() -> None:
    """A group that lacks rows is one whose missing rows are never alive."""
    block = random_block(2, 2, 3, 7)
    x, _ = random_case(2, 5, 4, 7, masked=False, seed=0)
    alive = torch.ones(2, 5, 4, dtype=torch.bool)
    alive[0, 3:] = False
    alive[1, 1:] = False
    out = block(x, Groups(5, alive))
    torch.testing.assert_close(out[:3], block(x[:3], Groups(3)), rtol=0, atol=1e-12)
    torch.testing.assert_close(out[5:6], block(x[5:6], Groups(1)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "products"])
def test_gradients_match_the_equation(fused: bool) -> None:
    block = random_block(2, 2, 3, 7)
    x, alive = random_case(2, 3, 4, 7, masked=True, seed=0)
    x.requires_grad_()
    inputs = [x, *block.parameters()]
    weight = torch.randn(x.shape, dtype=FLOAT64)
    with patch.object(block_module, "_fused_is_faster", lambda q: fused):
        got = torch.autograd.grad((block(x, Groups(3, alive)) * weight).sum(), inputs)
    expected = torch.autograd.grad((bridge_reference(block, x, 3, alive) * weight).sum(), inputs)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.1), (torch.float16, 0.01)]
)
@pytest.mark.parametrize("positions", [1, 5], ids=["decode", "prefill"])
@pytest.mark.parametrize("width", [1, 4])
@pytest.mark.parametrize("masked", [True, False])
@torch.no_grad()
def test_lower_precision_follows_the_equation(
    dtype: torch.dtype, tolerance: float, positions: int, width: int, masked: bool
) -> None:
    low = random_block(2, 3, 5, 24, dtype)
    exact = random_block(2, 3, 5, 24)
    exact.load_state_dict(low.state_dict())
    x, alive = random_case(2, width, positions, 24, masked, seed=3)
    x = x.to(dtype).double()
    out = low(x.to(dtype), Groups(width, alive))
    assert out.dtype == dtype
    expected = bridge_reference(exact, x, width, alive)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=tolerance)


def test_which_path_is_fused() -> None:
    """On CPU in full precision always; in half precision for a single position only."""
    taken = {
        (dtype, positions): block_module._fused_is_faster(
            torch.zeros(1, 2, positions, 3, 4, dtype=dtype)
        )
        for dtype in (torch.float32, FLOAT64, torch.bfloat16, torch.float16)
        for positions in (1, 5)
    }
    assert [key for key, fused in taken.items() if not fused] == [
        (torch.bfloat16, 5),
        (torch.float16, 5),
    ]
    assert not block_module._fused_is_faster(torch.zeros(1, 2, 5, 3, 4, device="meta"))


@settings(max_examples=20, deadline=None)
@given(shape=shapes, case=cases)
def test_attention_weights_are_those_of_the_block(
    shape: dict[str, int], case: dict[str, int]
) -> None:
    block = random_block(**shape)
    x, alive = random_case(hidden=shape["hidden"], **case)
    width, heads = case["width"], shape["kv_heads"] * shape["ratio"]
    groups = Groups(width, alive)
    weights = block.attention_weights(x, groups)
    assert weights.shape == (case["count"], case["positions"], heads, width, width)
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
    if alive is not None:
        hidden = ~(alive.transpose(1, 2)[:, :, None] | torch.eye(width, dtype=torch.bool))
        assert (weights[hidden[:, :, None].expand_as(weights)] == 0).all()
    # The output that follows from these weights is the block's.
    values = nn.functional.linear(block.norm(x), block.qkv_weight[block.q_size + block.kv_size :])
    values = groups.to_groups(values).unflatten(-1, (shape["kv_heads"], -1))
    values = values.repeat_interleave(shape["ratio"], 3)
    mixed = torch.einsum("pshwv,pvshc->pwshc", weights, values).flatten(3).flatten(0, 1)
    out = x + mixed @ block.o_weight.T
    torch.testing.assert_close(block(x, groups), out, rtol=0, atol=1e-12)


def test_fresh_block_is_the_identity_and_only_w_o_is_zero() -> None:
    block = BridgeBlock(BridgeConfig(num_heads=4, num_kv_heads=2, head_dim=3), 7)
    x = torch.randn(6, 5, 7)
    assert torch.equal(block(x, Groups(3)), x)
    zero = [name for name, p in block.named_parameters() if not p.any()]
    assert zero == ["o_weight"]
    assert sorted(name for name, _ in block.named_parameters()) == [
        "norm.weight",
        "o_weight",
        "qkv_weight",
    ]


def test_fresh_projections_have_unit_variance() -> None:
    block = BridgeBlock(BridgeConfig(), 512)
    x = torch.randn(64, 8, 512)
    projected = nn.functional.linear(block.norm(x), block.qkv_weight)
    assert abs(projected.std().item() - 1) < 0.02


def test_width_1_trains_every_parameter_with_zeros_not_none() -> None:
    """Data-parallel reducers wait for a gradient of every parameter."""
    block = random_block(2, 2, 3, 7)
    x, _ = random_case(1, 4, 5, 7, masked=False, seed=0)
    block(x, Groups(1)).sum().backward()
    assert all(p.grad is not None for p in block.parameters())
    q_and_k = block.qkv_weight.grad
    assert q_and_k is not None
    assert not q_and_k[: block.q_size + block.kv_size].any()
    assert q_and_k[block.q_size + block.kv_size :].any()


def test_rows_and_masks_that_do_not_fit_are_refused() -> None:
    block = random_block(1, 1, 2, 3)
    x = torch.zeros(4, 5, 3, dtype=FLOAT64)
    for call in (block, block.attention_weights):
        with pytest.raises(GroupError, match="got 4 rows at width 3"):
            call(x, Groups(3))
        with pytest.raises(GroupError, match="S = 5, got 6"):
            call(x, Groups(2, torch.ones(2, 2, 6, dtype=torch.bool)))
        with pytest.raises(GroupError, match=r"\[1, 2, 5\] has 1"):
            call(x, Groups(2, torch.ones(1, 2, 5, dtype=torch.bool)))


def test_block_hides_from_tools_that_look_for_linears() -> None:
    block = random_block(2, 2, 3, 7)
    assert not any(isinstance(module, nn.Linear) for module in block.modules())
    assert "heads=4, kv_heads=2, head_dim=3" in repr(block)
