"""Advantages against examples worked by hand."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from interlace.training.losses import STD_FLOOR, advantages, without_variance
from support.engine import Largest

# Two groups of width 2 for prompt 0, one for prompt 1 and one for prompt 2, in mixed order.
REWARDS = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
PROMPTS = torch.tensor([0, 1, 0, 2])


def expected(rows: list[list[float]]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def test_over_all_rollouts_of_the_prompt() -> None:
    got = advantages(REWARDS, PROMPTS, scale="none")
    # Prompt 0: rewards 1, 0, 0, 0, mean 1/4; prompt 1: mean 1; prompt 2: mean 1/2.
    torch.testing.assert_close(got, expected([[0.75, -0.25], [0, 0], [-0.25, -0.25], [0.5, -0.5]]))


def test_divided_by_the_standard_deviation() -> None:
    got = advantages(REWARDS, PROMPTS)
    # Prompt 0: squares 9/16 + 3/16 = 3/4, over 3 is 1/4, so 1/2; prompt 2: 1/2 over 1.
    deviations = torch.tensor([0.5, 0.0, 0.5, 0.5**0.5], dtype=torch.float64)[:, None] + STD_FLOOR
    plain = expected([[0.75, -0.25], [0, 0], [-0.25, -0.25], [0.5, -0.5]])
    torch.testing.assert_close(got, plain / deviations)


def test_over_the_own_group() -> None:
    got = advantages(REWARDS, PROMPTS, baseline="own", scale="none")
    torch.testing.assert_close(got, expected([[0.5, -0.5], [0, 0], [0, 0], [0.5, -0.5]]))
    scaled = advantages(REWARDS, PROMPTS, baseline="own")
    assert scaled[0, 0] == pytest.approx(0.5 / (0.5**0.5 + STD_FLOOR))


def test_over_the_other_groups_only() -> None:
    got = advantages(REWARDS[[0, 2]], PROMPTS[[0, 2]], baseline="others", scale="none")
    # Group 0 against the mean 0 of group 2; group 2 against the mean 1/2 of group 0.
    torch.testing.assert_close(got, expected([[1.0, 0.0], [-0.5, -0.5]]))
    scaled = advantages(REWARDS[[0, 2]], PROMPTS[[0, 2]], baseline="others")
    torch.testing.assert_close(scaled, got / (0.5 + STD_FLOOR))  # of all four rollouts


def test_leaving_the_row_out() -> None:
    got = advantages(REWARDS, PROMPTS, scale="none", leave_one_out=True)
    third = 1 / 3
    torch.testing.assert_close(
        got, expected([[1.0, -third], [0, 0], [-third, -third], [1.0, -1.0]])
    )
    own = advantages(REWARDS, PROMPTS, baseline="own", scale="none", leave_one_out=True)
    torch.testing.assert_close(own, expected([[1.0, -1.0], [0, 0], [0, 0], [1.0, -1.0]]))


def test_shared_credit_gives_every_row_its_groups_mean() -> None:
    got = advantages(REWARDS, PROMPTS, scale="none", credit="group")
    torch.testing.assert_close(got, expected([[0.25, 0.25], [0, 0], [-0.25, -0.25], [0, 0]]))
    others = advantages(
        REWARDS[[0, 2]], PROMPTS[[0, 2]], baseline="others", scale="none", credit="group"
    )
    torch.testing.assert_close(others, expected([[0.5, 0.5], [-0.5, -0.5]]))


def test_groups_without_variance_are_found_by_prompt() -> None:
    # Group 2 has equal rewards, but its prompt's other group does not.
    assert without_variance(REWARDS, PROMPTS).tolist() == [False, True, False, False]


def test_a_group_without_variance_is_one_whose_advantages_are_all_zero() -> None:
    one = torch.zeros(2, dtype=torch.long)
    even = torch.tensor([[1.0, 0.0], [0.0, 1.0]])  # rows differ, the groups' means do not
    assert without_variance(even, one).tolist() == [False, False]
    assert without_variance(even, one, credit="group").tolist() == [True, True]
    assert not advantages(even, one, credit="group").any()
    flat = torch.tensor([[1.0, 1.0], [0.0, 1.0]])  # the first has none of its own
    assert without_variance(flat, one).tolist() == [False, False]
    assert without_variance(flat, one, baseline="own").tolist() == [True, False]
    assert not advantages(flat, one, baseline="own")[0].any()


def test_the_order_of_groups_does_not_matter() -> None:
    order = torch.tensor([3, 0, 2, 1])
    for baseline in ("prompt", "own"):
        got = advantages(REWARDS, PROMPTS, baseline=baseline)
        again = advantages(REWARDS[order], PROMPTS[order], baseline=baseline)
        torch.testing.assert_close(again, got[order])


def plainly(
    rewards: torch.Tensor, prompts: torch.Tensor, baseline: str, scale: str, leave_one_out: bool
) -> torch.Tensor:
    """Row by row, from the definition: every row against every other."""
    found = torch.zeros_like(rewards)
    count, width = rewards.shape
    for p, w in itertools.product(range(count), range(width)):
        own = [(p, v) for v in range(width)]
        of_prompt = [(q, v) for q in range(count) for v in range(width) if prompts[q] == prompts[p]]
        spread = own if baseline == "own" else of_prompt
        peers = [at for at in of_prompt if at[0] != p] if baseline == "others" else spread
        if leave_one_out:
            peers = [at for at in peers if at != (p, w)]
        found[p, w] = rewards[p, w] - torch.stack([rewards[at] for at in peers]).mean()
        if scale == "std":
            found[p, w] /= torch.stack([rewards[at] for at in spread]).std() + STD_FLOOR
    return found


@pytest.mark.parametrize("leave_one_out", [False, True])
@pytest.mark.parametrize("scale", ["std", "none"])
@pytest.mark.parametrize("baseline", ["prompt", "own", "others"])
def test_advantages_are_what_the_definition_says(
    baseline: Any, scale: Any, leave_one_out: bool
) -> None:
    generator = torch.Generator().manual_seed(5)
    for groups, width in itertools.product([2, 5, 11], [2, 3]):
        rewards = torch.randn(groups, width, generator=generator, dtype=torch.float64)
        # Numbers with gaps, out of order; each prompt twice at least.
        prompts = torch.tensor([7, 3, 7, 3, 90, 90, 7, 3, 90, 3, 3])[:groups]
        if groups < 4:
            prompts = torch.tensor([7, 7])
        elif groups == 5:
            prompts = torch.tensor([90, 3, 90, 3, 3])
        got = advantages(
            rewards, prompts, baseline=baseline, scale=scale, leave_one_out=leave_one_out
        )
        expected = plainly(rewards, prompts, baseline, scale, leave_one_out)
        torch.testing.assert_close(got, expected, atol=1e-12, rtol=0)


def test_variance_is_that_of_the_set_at_any_place() -> None:
    """Fails where a set's number is taken for a group's."""
    rewards = torch.tensor([[0.0, 0.0], [3.0, 3.0], [3.0, 3.0], [0.0, 1.0], [3.0, 3.0]])
    prompts = torch.tensor([9, 4, 4, 9, 6])
    assert without_variance(rewards, prompts).tolist() == [False, True, True, False, True]
    assert without_variance(rewards, prompts, baseline="own").tolist() == [True] * 3 + [False, True]


@pytest.mark.parametrize("baseline", ["prompt", "own", "others"])
def test_work_and_memory_grow_with_the_groups_and_not_with_their_pairs(baseline: Any) -> None:
    """Fails where a tensor holds pairs of groups, and where each group is held against all in a
    loop."""
    made = []
    for count in (300, 2400):
        rewards, prompts = torch.rand(count, 3), torch.arange(count // 2).repeat(2)
        with Largest() as largest:
            advantages(rewards, prompts, baseline=baseline)
            without_variance(rewards, prompts, baseline=baseline)
        assert largest.elements <= rewards.numel()
        made.append(largest.total)
    assert made[1] <= 8 * made[0]
