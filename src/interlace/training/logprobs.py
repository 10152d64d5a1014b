"""Log-probabilities of sampled tokens from hidden states, without the logits of all positions.

Axes: N positions, D hidden size, V vocabulary.

Logits are made for a chunk of positions at a time, and made again for the backward pass unless they
are few: `[N, V]` in fp32 is the largest tensor of a training step by far. With y the logits as they
are sampled from, of token i at one position:

    log p = y_i - lse(y)                H = lse(y) - sum_v p_v y_v
    d log p / dy_v = [v = i] - p_v      dH / dy_v = -p_v (log p_v + H)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

CHUNK_BYTES = 2**26  # of a chunk's logits in fp32; a pass holds about three such tensors
KEPT_BYTES = 2**28  # up to so much, all logits are kept for the backward pass
# Not minus infinity, which times a probability of 0 is no number.
FORBIDDEN = -1e30


@dataclass(frozen=True)
class Tail:
    """What a model does with what its head gives: z -> cap tanh(scale z / cap), or scale z.

    Args:
        scale: Factor of the logits.
        cap: Bound that the logits are softly held to; infinite for none.
    """

    scale: float = 1.0
    cap: float = math.inf

    def __call__(self, z: Tensor) -> Tensor:
        """The model's logits; `z` is overwritten where that saves memory."""
        if self.scale != 1:
            z = z.mul_(self.scale)
        return z if math.isinf(self.cap) else z.div_(self.cap).tanh_().mul_(self.cap)


@dataclass(frozen=True)
class Distribution:
    """What is sampled from, given the head's output.

    Args:
        tail: What the model does with what its head gives.
        temperature: Divisor of the logits, above 0.
        forbidden: Token ids that are not sampled, sorted or not.
        entropy: Whether entropies are wanted.
        entropy_gradients: Whether gradients flow through them.
    """

    tail: Tail = Tail()
    temperature: float = 1.0
    forbidden: tuple[int, ...] = ()
    entropy: bool = False
    entropy_gradients: bool = False

    def of_logits(self, logits: Float[Tensor, "N V"]) -> Float[Tensor, "N V"]:
        """Logits of the model to those that are sampled from, in fp32 or wider."""
        wide = logits if logits.dtype == torch.float64 else logits.float()
        if self.temperature != 1:
            wide = wide / self.temperature
        if self.forbidden:
            ids = torch.as_tensor(self.forbidden, device=wide.device)
            wide = wide.index_fill(1, ids, FORBIDDEN)
        return wide


def sampled_logprobs(
    hidden: Float[Tensor, "N D"],
    weight: Float[Tensor, "V D"],
    bias: Float[Tensor, " V"] | None,
    ids: Int[Tensor, " N"],
    distribution: Distribution,
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """Each token's log-probability and its position's entropy (zeros where it is not asked for).

    Args:
        hidden: What the head is given.
        weight: Weight of the head.
        bias: Bias of the head, if it has one.
        ids: Tokens that were sampled.
        distribution: What they were sampled from.
    """
    logprobs, entropy = _FromHidden.apply(hidden, weight, bias, ids, distribution)
    return logprobs, entropy if distribution.entropy_gradients else entropy.detach()


class _FromHidden(torch.autograd.Function):
    """See the module's head."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        ids: Tensor,
        distribution: Distribution,
    ) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        normaliser = torch.empty(len(hidden), dtype=wide, device=hidden.device)
        logprobs, entropy = torch.empty_like(normaliser), torch.zeros_like(normaliser)
        backward = any(ctx.needs_input_grad)
        few = len(hidden) * len(weight) * wide.itemsize <= KEPT_BYTES
        kept: list[Tensor] = []
        for rows in _chunks(len(hidden), len(weight) * wide.itemsize):
            y = _logits(hidden[rows], weight, bias, distribution)
            normaliser[rows] = y.logsumexp(dim=1)
            logprobs[rows] = y.gather(1, ids[rows, None])[:, 0] - normaliser[rows]
            if distribution.entropy:
                p = (y - normaliser[rows, None]).exp_()
                entropy[rows] = normaliser[rows] - torch.einsum("nv,nv->n", p, y)
            if backward and few:
                kept.append(y)
        ctx.save_for_backward(hidden, weight, bias, ids, normaliser, entropy, *kept)
        ctx.distribution = distribution
        return logprobs, entropy

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, by_logprobs: Tensor, by_entropy: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, ids, normaliser, entropy, *kept = ctx.saved_tensors
        distribution: Distribution = ctx.distribution
        wanted = ctx.needs_input_grad
        to_hidden = torch.empty_like(hidden) if wanted[0] else None
        # A sum over chunks keeps its digits in fp32 only.
        to_weight = torch.zeros_like(weight, dtype=normaliser.dtype) if wanted[1] else None
        to_bias = normaliser.new_zeros(len(weight)) if wanted[2] else None
        for number, rows in enumerate(_chunks(len(hidden), len(weight) * normaliser.itemsize)):
            y = kept[number] if kept else _logits(hidden[rows], weight, bias, distribution)
            dz = _by_logits(
                y, normaliser[rows, None], ids[rows], by_logprobs[rows], distribution,
                (by_entropy[rows], entropy[rows]) if distribution.entropy_gradients else None,
            )  # fmt: skip
            if to_bias is not None:
                to_bias += dz.sum(dim=0)
            dz = dz.to(weight.dtype)
            if to_hidden is not None:
                torch.mm(dz, weight, out=to_hidden[rows])
            if to_weight is not None and to_weight.dtype == weight.dtype:
                to_weight.addmm_(dz.t(), hidden[rows])
            elif to_weight is not None:
                to_weight += dz.t() @ hidden[rows]
        return (
            to_hidden,
            None if to_weight is None else to_weight.to(weight.dtype),
            None if to_bias is None else to_bias.to(bias.dtype),
            None,
            None,
        )


def _logits(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, distribution: Distribution
) -> Tensor:
    return distribution.of_logits(distribution.tail(F.linear(hidden, weight, bias)))


def _by_logits(
    y: Tensor,
    normaliser: Tensor,
    ids: Tensor,
    by_logprobs: Tensor,
    distribution: Distribution,
    by_entropy: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """The gradient by what the head gave, from the logits that were sampled from."""
    if by_entropy is None:
        gradient = (y - normaliser).exp_().mul_(-by_logprobs[:, None])
    else:
        by, entropy = by_entropy
        logp = y - normaliser
        factor = (logp + entropy[:, None]).mul_(by[:, None]).add_(by_logprobs[:, None])
        gradient = logp.exp_().mul_(factor).neg_()
    gradient.scatter_add_(1, ids[:, None], by_logprobs[:, None])
    tail, temperature = distribution.tail, distribution.temperature
    if not math.isinf(tail.cap):
        # Forbidden tokens have no gradient, and what they hold is no value of tanh.
        saturation = (y * (temperature / tail.cap)).clamp_(-1, 1)
        gradient.mul_(1 - saturation.square_())
    scale = tail.scale / temperature
    return gradient if scale == 1 else gradient.mul_(scale)


def _chunks(positions: int, bytes_each: int) -> list[slice]:
    size = max(CHUNK_BYTES // bytes_each, 1)
    return [slice(start, start + size) for start in range(0, positions, size)]
