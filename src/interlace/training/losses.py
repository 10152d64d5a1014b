"""The policy loss over whole groups, in the field's usual kinds.

Axes: P groups, W width, T completion positions. The completion mask is True where a token counts,
the one that finished the row included.

A batch's loss is a sum over its tokens divided by one denominator of the whole (global) batch, so
that micro-batches and processes add up to it exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interlace.errors import ConfigError

Kind = Literal["token", "sequence", "dr_grpo"]
RatioLevel = Literal["token", "sequence"]


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
    """A loss, and sums over tokens to report; divide by `tokens` of all micro-batches.

    Attributes:
        loss: Loss to call `backward` on; already divided by the batch's denominator.
        tokens: Number of completion tokens here.
        clipped: Number of them whose ratio was clipped.
        kl: Sum of the KL estimate.
        entropy: Sum of the entropies.
        ratio_min: Smallest ratio.
        ratio_max: Largest ratio.
    """

    loss: Float[Tensor, ""]
    tokens: int
    clipped: float
    kl: float
    entropy: float
    ratio_min: float
    ratio_max: float


def denominator(kind: Kind, completion_mask: Bool[Tensor, "P W T"], max_completion: int) -> float:
    """What a whole batch's sums are divided by; add it up over the batch's parts and processes.
    Equation (28).

    Args:
        kind: Kind of the loss.
        completion_mask: Mask of (a part of) the batch.
        max_completion: Number of tokens that a completion could have had at most.
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

    Raises:
        ConfigError: for a weight without what it weighs.
    """
    if config.kl_weight and reference_logprobs is None:
        raise ConfigError(
            f"kl_weight={config.kl_weight} needs the reference's log-probabilities; pass "
            "reference_logprobs, or set kl_weight to 0."
        )
    if config.entropy_weight and entropy is None:
        raise ConfigError(
            f"entropy_weight={config.entropy_weight} needs the entropies; pass entropy, from "
            "score(..., entropy=True, entropy_gradients=True), or set entropy_weight to 0."
        )
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
    if config.kl_weight and reference_logprobs is not None:
        gap = (reference_logprobs - logprobs) * keep
        divergence = gap.exp() - gap - 1
        if config.kl_corrected:
            divergence = divergence * token_ratio
        per_token = per_token + config.kl_weight * divergence
    if config.entropy_weight and entropy is not None:
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
