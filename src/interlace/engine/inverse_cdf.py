"""Uniforms that depend on nothing but the request, and tokens drawn from them by inverse CDF.

Axes: R rows, V vocabulary, F forbidden tokens.

A row's uniforms come from (seed, prompt token ids, sample id, row, step), so a group is the same
whatever else is in the batch (invariant I11). Inverse CDF costs one pass over the probabilities;
the usual exponential-noise sampler needs V random numbers a row.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int, UInt64
from torch import Tensor

_GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_BLOCK = 256  # probabilities are summed in blocks, so that only one block needs a running sum


class Workspace:
    """The same memory at every step: fresh megabytes cost more in page faults than the
    arithmetic."""

    def __init__(self) -> None:
        self._store: Tensor | None = None

    def get(self, rows: int, columns: int, device: torch.device) -> Float[Tensor, "R padded"]:
        """Room for so many numbers, with whatever stands there."""
        store = self._store
        if store is None or store.numel() < rows * columns or store.device != device:
            store = torch.empty(rows * columns, dtype=torch.float32, device=device)
            self._store = store
        return store[: rows * columns].view(rows, columns)


def uniforms(
    keys: UInt64[np.ndarray, " R"], steps: Int[np.ndarray, " R"]
) -> Float[np.ndarray, " R"]:
    """A number in [0, 1) for each row at its step (SplitMix64, the row's key its seed).

    Equation (14).
    """
    x = keys + (steps.astype(np.uint64) + np.uint64(1)) * np.uint64(_GOLDEN)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(_FIRST)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(_SECOND)
    return ((x ^ (x >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53


def uniforms_on_device(keys: Int[Tensor, " R"], steps: Int[Tensor, " R"]) -> Float[Tensor, " R"]:
    """`uniforms`, to the bit, of keys whose bits are those of signed numbers: torch computes with
    no others."""
    x = keys + (steps + 1) * _signed(_GOLDEN)
    x = (x ^ _shifted(x, 30)) * _signed(_FIRST)
    x = (x ^ _shifted(x, 27)) * _signed(_SECOND)
    return _shifted(x ^ _shifted(x, 31), 11).double() * 2.0**-53


def _signed(number: int) -> int:
    return number - 2**64 if number >= 2**63 else number


def _shifted(x: Int[Tensor, " R"], by: int) -> Int[Tensor, " R"]:
    return (x >> by) & ((1 << (64 - by)) - 1)


def weights_of(
    scores: Float[Tensor, "R V"], workspace: Workspace
) -> tuple[Float[Tensor, "R padded"], Float[Tensor, " R"]]:
    """exp(scores - max) for each row, padded with zeros to whole blocks, and the log of the sum of
    exp(scores)."""
    rows, vocabulary = scores.shape
    weights = workspace.get(rows, -(-vocabulary // _BLOCK) * _BLOCK, scores.device)
    weights[:, vocabulary:].zero_()
    kept = weights[:, :vocabulary]
    kept.copy_(scores)
    top = kept.amax(dim=-1, keepdim=True)
    kept.sub_(top).exp_()
    return weights, top[:, 0] + weights.sum(dim=-1).log()


def inverse_cdf(
    weights: Float[Tensor, "R padded"], uniform: Float[Tensor, " R"]
) -> tuple[Int[Tensor, " R"], Float[Tensor, " R"], Float[Tensor, " R"]]:
    """The token at which the cumulated weight passes `uniform` of the whole, its log-probability,
    and the whole."""
    rows = weights.shape[0]
    blocks = weights.view(rows, -1, _BLOCK)
    cumulated = blocks.sum(dim=-1).double().cumsum(dim=-1)
    total = cumulated[:, -1:]
    target = uniform[:, None] * total
    block = torch.searchsorted(cumulated, target, right=True).clamp_(max=blocks.shape[1] - 1)
    before = cumulated.gather(1, (block - 1).clamp_(min=0))
    rest = target - before.masked_fill_(block == 0, 0.0)
    inside = blocks[torch.arange(rows, device=weights.device), block[:, 0]]
    index = torch.searchsorted(inside.double().cumsum(dim=-1), rest, right=True)
    # Rounding can carry the target past the block's last positive weight; that token is meant.
    last = _BLOCK - 1 - inside.flip(-1).gt(0).int().argmax(dim=-1, keepdim=True)
    tokens = (block * _BLOCK + torch.minimum(index, last))[:, 0]
    share = pick(weights, tokens).double() / total[:, 0]
    return tokens, share.log().float(), total[:, 0]


def pick(values: Float[Tensor, "R V"], tokens: Int[Tensor, " R"]) -> Float[Tensor, " R"]:
    """Each row's value at its token."""
    return values.gather(1, tokens[:, None])[:, 0]


def draw_on_device(
    logits: Float[Tensor, "R V"],
    uniform: Float[Tensor, " R"],
    temperature: Float[Tensor, " R"],
    forbidden: Int[Tensor, "R F"],
    workspace: Workspace,
) -> tuple[Int[Tensor, " R"], Float[Tensor, " R"], Float[Tensor, " R"]]:
    """A token for each row, its log-probability at temperature 1, and that under the distribution
    that was drawn from: what `sampling.sample` gives without filters. No value is looked at, and
    nothing comes from the host, so that it can be captured.

    Args:
        logits: Logits of the model.
        uniform: Random number in [0, 1) for each row.
        temperature: Divisor of each row's logits; 0 is greedy.
        forbidden: Tokens that each row never gets; negative numbers are gaps.
        workspace: Memory.
    """
    vocabulary = logits.shape[1]
    _, normaliser = weights_of(logits, workspace)
    scores = torch.nn.functional.pad(logits.float(), (0, 1))  # a column for the gaps
    scores.scatter_(1, forbidden.masked_fill(forbidden < 0, vocabulary), float("-inf"))
    scores = scores[:, :vocabulary]
    best, likeliest = scores.max(dim=-1)
    is_greedy = temperature == 0
    scaled = scores / temperature.masked_fill(is_greedy, 1.0)[:, None]
    tokens, sampled, _ = inverse_cdf(weights_of(scaled, workspace)[0], uniform)
    tokens = torch.where(is_greedy, likeliest, tokens).clamp(max=vocabulary - 1)
    certain = best - best  # 0, or NaN where nothing is left
    logprobs = pick(logits, tokens).float() - normaliser
    return tokens, logprobs, torch.where(is_greedy, certain, sampled)
