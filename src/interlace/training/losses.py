"""From rewards of whole groups to a loss: advantages, and the policy loss in its usual kinds.

Axes: P groups, W width, T completion positions. A prompt owns M groups; its samples are all their
rows, M*W. The completion mask is True where a token counts, the one that finished the row included.

Advantages are computed before any split or sharding. A row's tokens change its siblings' rewards,
so baselines that contain or leave out single rows of the own group are biased for coupled rows;
baselines from other groups of the prompt are not (METHOD.md, "Training", 3). All are here, to be
compared.

A batch's loss is a sum over its tokens divided by one denominator of the whole (global) batch, so
that micro-batches and processes add up to it exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

Baseline = Literal["prompt", "own", "others"]
Scale = Literal["std", "none"]
Credit = Literal["row", "group"]

STD_FLOOR = 1e-4  # added to a standard deviation, as TRL does
Kind = Literal["token", "sequence", "dr_grpo"]
RatioLevel = Literal["token", "sequence"]


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

    `GRPOConfig` refuses choices without meaning: other groups where a prompt has one, and shared
    credit against the own group.
    """
    if credit == "group":
        rewards = rewards.mean(dim=1, keepdim=True).expand_as(rewards)
    sets = _sets(prompts, baseline)
    groups = _sum_over(torch.ones_like(sets), sets)  # in each group's set
    total, count = _total(rewards, sets), (groups * rewards.shape[1])[:, None]
    if baseline == "others":
        mean = (total - rewards.sum(dim=1, keepdim=True)) / (count - rewards.shape[1])
    elif leave_one_out:
        mean = (total - rewards) / (count - 1)
    else:
        mean = total / count
    gained = rewards - mean
    if scale == "std":
        squares = _total((rewards - total / count) ** 2, sets)
        gained = gained / ((squares / (count - 1).clamp(min=1)).sqrt() + STD_FLOOR)
    return gained


def without_variance(
    rewards: Float[Tensor, "P W"],
    prompts: Int[Tensor, " P"],
    *,
    baseline: Baseline = "prompt",
    credit: Credit = "row",
) -> Bool[Tensor, " P"]:
    """Groups whose rows all have the reward that they are held against (of the own group for "own",
    else of the prompt): they teach nothing. The arguments are those of `advantages`."""
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


@dataclass(frozen=True)
class LossConfig:
    """Which loss.

    Args:
        kind: Kind of the sum: "token" is one over all tokens of the batch divided by their number
            (DAPO), "sequence" the mean over rows of each row's mean (the first GRPO), "dr_grpo" the
            sum divided by rows times the longest completion allowed (Dr. GRPO).
        clip_low: Distance below 1 at which a token's ratio is clipped.
        clip_high: Distance above 1 at which a token's ratio is clipped.
        ratio_level: Level of ratios: "token", or "sequence" for one ratio a row, the exponential of
            the mean difference of its log-probabilities (GSPO).
        kl_weight: Weight of the KL to the reference (Schulman's k3 estimate); 0 for none.
        entropy_weight: Weight of the entropy bonus, which is normalised as the rest of a token's
            loss is; 0 for none.
        kl_corrected: Whether to multiply a token's k3 by its own ratio, at either `ratio_level`:
            then its value and its gradient are, in expectation, those of KL(model, reference), as
            in DeepSeek-V3.2 (arXiv 2512.02556). Without it, as in the first GRPO, the gradient is
            that of KL(reference, model), even where all ratios are 1.
    """

    kind: Kind = "token"
    clip_low: float = 0.2
    clip_high: float = 0.28
    ratio_level: RatioLevel = "token"
    kl_weight: float = 0.0
    entropy_weight: float = 0.0
    kl_corrected: bool = True


@dataclass(frozen=True)
class LossParts:
    """A loss, and sums over tokens to report; divide by `tokens` of all micro-batches."""

    loss: Float[Tensor, ""]  # already divided by the batch's denominator
    tokens: int  # of completions
    clipped: float  # tokens whose ratio was clipped
    kl: float
    entropy: float
    ratio_min: float
    ratio_max: float


def denominator(kind: Kind, completion_mask: Bool[Tensor, "P W T"], max_completion: int) -> float:
    """What a whole batch's sums are divided by; add it up over the batch's parts and processes.
    Equation (28).
    """
    rows = completion_mask.shape[0] * completion_mask.shape[1]
    if kind == "token":
        return float(completion_mask.sum())
    return float(rows if kind == "sequence" else rows * max_completion)


def policy_loss(
    logprobs: Float[Tensor, "P W T"],
    old_logprobs: Float[Tensor, "P W T"],
    advantages: Float[Tensor, "P W"],
    completion_mask: Bool[Tensor, "P W T"],
    config: LossConfig,
    batch_denominator: float,
    *,
    reference_logprobs: Float[Tensor, "P W T"] | None = None,
    entropy: Float[Tensor, "P W T"] | None = None,
) -> LossParts:
    """The clipped policy-gradient loss of (a part of) a batch. Equations (27), (28).

    Args:
        logprobs: Log-probabilities of the sampled tokens under the model that trains, with
            gradients.
        old_logprobs: Log-probabilities under the model that sampled.
        advantages: Advantages, one for each row.
        completion_mask: Mask, True where a token counts.
        config: Configuration of the loss.
        batch_denominator: Result of `denominator` for the whole batch, all parts and processes.
        reference_logprobs: Log-probabilities under the frozen reference; needed if `kl_weight` is
            not 0.
        entropy: Entropy of each position's distribution; needed if `entropy_weight` is not 0.
    """
    keep = completion_mask.to(logprobs.dtype)
    lengths = keep.sum(dim=2, keepdim=True).clamp(min=1)
    difference = (logprobs - old_logprobs) * keep
    token_ratio = ratio = difference.exp()
    if config.ratio_level == "sequence":
        ratio = (difference.sum(dim=2, keepdim=True) / lengths).exp().expand_as(logprobs)
    clipped = ratio.clamp(1 - config.clip_low, 1 + config.clip_high)
    gain = advantages.unsqueeze(-1)
    per_token = -torch.minimum(ratio * gain, clipped * gain)
    divergence = torch.zeros_like(per_token)
    if config.kl_weight:
        assert reference_logprobs is not None
        gap = (reference_logprobs - logprobs) * keep
        divergence = gap.exp() - gap - 1
        if config.kl_corrected:
            divergence = divergence * token_ratio
        per_token = per_token + config.kl_weight * divergence
    if config.entropy_weight:
        assert entropy is not None
        per_token = per_token - config.entropy_weight * entropy
    if config.kind == "sequence":
        per_token = per_token / lengths
    loss = (per_token * keep).sum() / batch_denominator
    with torch.no_grad():
        took = (ratio * gain > clipped * gain) & completion_mask
        live = ratio[completion_mask]
        return LossParts(
            loss=loss,
            tokens=int(completion_mask.sum()),
            clipped=float(took.sum()),
            kl=float((divergence * keep).sum()),
            entropy=0.0 if entropy is None else float((entropy * keep).sum()),
            ratio_min=float(live.min()) if live.numel() else 1.0,
            ratio_max=float(live.max()) if live.numel() else 1.0,
        )
