"""From rewards of whole groups to advantages. Computed before any split or sharding.

Axes: P groups, W width. A prompt owns M groups; its samples are all their rows, M*W.

A row's tokens change its siblings' rewards, so baselines that contain or leave out single rows of
the own group are biased for coupled rows; baselines from other groups of the prompt are not
(METHOD.md, "Training", 3). All are here, to be compared.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from interlace.errors import ConfigError

Baseline = Literal["prompt", "own", "others"]
Scale = Literal["std", "none"]
Credit = Literal["row", "group"]

STD_FLOOR = 1e-4  # added to a standard deviation, as TRL does


def advantages(
    rewards: Float[Tensor, "P W"],
    prompts: Int[Tensor, " P"],
    *,
    baseline: Baseline = "prompt",
    scale: Scale = "std",
    leave_one_out: bool = False,
    credit: Credit = "row",
) -> Float[Tensor, "P W"]:
    """How much better each row did than was to be expected of its prompt. Equations (25), (26).

    Args:
        rewards: Reward of each row.
        prompts: Number of the prompt that each group answers; groups with the same number share a
            prompt.
        baseline: Samples whose mean is subtracted: all of the prompt ("prompt"), the own group
            ("own"), or the prompt's other groups ("others").
        scale: Scale: "std" divides by the standard deviation of the samples that the row belongs
            to: the own group's for "own", else all of the prompt's (never the others' alone, which
            can be zero where the own group is the only one with a reward).
        leave_one_out: Whether the baseline leaves out the row itself (RLOO); "others" does so
            already.
        credit: Receiver of a reward: "row" gives a row its own reward, "group" gives every row its
            group's mean reward, the set objective in which a row also answers for what it did to
            its siblings.

    Returns:
        `[P, W]`; zero throughout for a prompt whose samples all have the same reward.

    Raises:
        ConfigError: for a choice without meaning here: other groups where a prompt has one, shared
            credit against the own group, or a reward that is not a number.
    """
    if not torch.isfinite(rewards).all():
        bad = int((~torch.isfinite(rewards)).sum())
        raise ConfigError(
            f"Every row needs a finite reward; {bad} of {rewards.numel()} are not. A reward "
            f"function "
            "that does not apply to a row gives 0, or leaves the row to the other functions."
        )
    if credit == "group" and baseline == "own":
        raise ConfigError(
            "With credit='group' all rows of a group have one reward, so baseline='own' makes "
            "every "
            "advantage zero. Use baseline='prompt' or 'others'."
        )
    refuse_left_out_copies(credit, leave_one_out)
    if credit == "group":
        rewards = rewards.mean(dim=1, keepdim=True).expand_as(rewards)
    sets = _sets(prompts, baseline)
    groups = _sum_over(torch.ones_like(sets), sets)  # in each group's set
    if baseline == "others" and bool((groups < 2).any()):
        lonely = prompts[groups < 2]
        raise ConfigError(
            f"baseline='others' needs at least two groups a prompt; prompt {int(lonely[0])} has "
            f"one. "
            "Raise `num_generations` to a multiple of the width above it, or use baseline='prompt'."
        )
    total, count = _total(rewards, sets), (groups * rewards.shape[1])[:, None]
    if baseline == "others":
        mean = (total - rewards.sum(dim=1, keepdim=True)) / (count - rewards.shape[1])
    elif leave_one_out:
        _refuse_lone_samples(count)
        mean = (total - rewards) / (count - 1)
    else:
        mean = total / count
    gained = rewards - mean
    if scale == "std":
        squares = _total((rewards - total / count) ** 2, sets)
        gained = gained / ((squares / (count - 1).clamp(min=1)).sqrt() + STD_FLOOR)
    return gained


def refuse_left_out_copies(credit: Credit, leave_one_out: bool) -> None:
    """Raise if a row's reward would stay in the baseline that is to leave it out.

    Raises:
        ConfigError: for shared credit with leave-one-out.
    """
    if credit == "group" and leave_one_out:
        raise ConfigError(
            "With credit='group' all rows of a group have one reward, so leaving out a row leaves "
            "its reward in. Set leave_one_out=False; baseline='others' leaves out the whole group."
        )


def without_variance(
    rewards: Float[Tensor, "P W"],
    prompts: Int[Tensor, " P"],
    *,
    baseline: Baseline = "prompt",
    credit: Credit = "row",
) -> Bool[Tensor, " P"]:
    """Groups whose rows all have the reward that they are held against: they teach nothing.

    Args:
        rewards: Reward of each row.
        prompts: Number of the prompt that each group answers.
        baseline: Baseline as in `advantages`: the own group alone for "own", else all of the
            prompt.
        credit: Receiver as in `advantages`.
    """
    if credit == "group":
        rewards = rewards.mean(dim=1, keepdim=True)
    sets = _sets(prompts, baseline)
    low, high = rewards.amin(dim=1), rewards.amax(dim=1)
    lowest = low.scatter_reduce(0, sets, low, "amin", include_self=False)[sets]
    highest = high.scatter_reduce(0, sets, high, "amax", include_self=False)[sets]
    return lowest == highest


def _sets(prompts: Int[Tensor, " P"], baseline: Baseline) -> Int[Tensor, " P"]:
    """Which samples a group is compared with: numbers from 0, one a set."""
    if baseline == "own":
        return torch.arange(len(prompts), device=prompts.device)
    return torch.unique(prompts, return_inverse=True)[1]


def _sum_over(values: Shaped[Tensor, " P"], sets: Int[Tensor, " P"]) -> Shaped[Tensor, " P"]:
    """Each group's sum over all groups of its set."""
    return torch.zeros_like(values).index_add(0, sets, values)[sets]


def _total(values: Float[Tensor, "P W"], sets: Int[Tensor, " P"]) -> Float[Tensor, "P 1"]:
    """The sum over all rows of each group's set."""
    return _sum_over(values.sum(dim=1), sets)[:, None]


def _refuse_lone_samples(count: Int[Tensor, "P 1"]) -> None:
    if bool((count < 2).any()):
        raise ConfigError(
            "leave_one_out needs at least two samples in the baseline's set; at width 1 with "
            "baseline='own' there is one. Use baseline='prompt', or leave_one_out=False."
        )
