"""Tokens for rows, by inverse CDF from uniforms that depend on nothing but the request.

Axes: R rows, V vocabulary, N forbidden tokens, F forbidden tokens of a row, K likeliest tokens.

A row's uniforms come from (seed, prompt token ids, sample id, row, step), so a group is the same
whatever else is in the batch (invariant I11). Inverse CDF costs one pass over the probabilities;
the usual exponential-noise sampler needs V random numbers a row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, UInt64
from torch import Tensor

from interlace.engine.types import SamplingParams

_GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_BLOCK = 256  # probabilities are summed in blocks, so that only one block needs a running sum

_TOP_P_CANDIDATES = 512
_FAINT = 1e-20  # the share of allowed tokens below which they get their own scale


@dataclass(frozen=True)
class Sampled:
    """One token for each row, with its log-probabilities.

    Attributes:
        tokens: Tokens that were drawn.
        logprobs: Log-probabilities at temperature 1, before anything else; NaN if the row's logits
            are not numbers.
        sampled_logprobs: Log-probabilities under the distribution that was drawn from; 0 when
            greedy, NaN if no token of the row is left to draw.
        top_tokens: Likeliest tokens at temperature 1, if asked for.
        top_logprobs: Log-probabilities of these tokens.
    """

    tokens: Int[Tensor, " R"]
    logprobs: Float[Tensor, " R"]
    sampled_logprobs: Float[Tensor, " R"]
    top_tokens: Int[Tensor, "R K"] | None = None
    top_logprobs: Float[Tensor, "R K"] | None = None


# `sample` as a backend offers it: logits, uniforms, parameters, forbidden tokens and histories.
Sampler = Callable[..., Sampled]


@torch.inference_mode()
def sample(
    logits: Float[Tensor, "R V"],
    uniform: Float[np.ndarray, " R"] | Float[Tensor, " R"],
    params: SamplingParams,
    forbidden: Int[Tensor, " N"],
    histories: Sequence[Sequence[int]] | None = None,
    workspace: Workspace | None = None,
) -> Sampled:
    """Draw one token for each row, from logits in any float type.

    The order is Hugging Face's: repetition penalty, logits processors, temperature, top-k, top-p,
    min-p; forbidden tokens are out from the beginning, and `logprobs` are taken before all of it.
    `histories`, prompt and completion ids of each row, are there if `needs_history(params)`.
    """
    workspace, uniform = workspace or Workspace(), torch.as_tensor(uniform, device=logits.device)
    if logits.dtype == torch.float64 and histories is None:
        # All that follows is in float32; no probability changes, and no digit is lost to a large
        # part that all logits have in common.
        logits = logits - logits.amax(dim=-1, keepdim=True)
    weights, normaliser = weights_of(logits, workspace)
    if histories is not None or params.temperature != 1 or has_filters(params):
        scores = logits.float().clone()
        if histories is not None:
            scores = _with_history(scores, params, histories)
        if params.temperature not in (0, 1):
            scores /= params.temperature
        scores[:, forbidden] = float("-inf")
        if params.temperature == 0:
            best, tokens = scores.max(dim=-1)
            sampled_logprobs = torch.where(best > float("-inf"), 0.0, float("nan"))
        else:
            filtered, _ = weights_of(_filter(scores, params), workspace)
            tokens, sampled_logprobs, _ = inverse_cdf(filtered, uniform)
    else:
        weights[:, forbidden] = 0
        tokens, sampled_logprobs, total = inverse_cdf(weights, uniform)
        if not bool((total >= _FAINT).all()):  # a forbidden token has nearly all the probability
            scores = logits.float().index_fill(1, forbidden, float("-inf"))
            tokens, sampled_logprobs, _ = inverse_cdf(weights_of(scores, workspace)[0], uniform)
    tokens = tokens.clamp_(max=logits.shape[-1] - 1)  # a row that is NaN may point anywhere
    logprobs = pick(logits, tokens).float() - normaliser
    if not params.top_logprobs:
        return Sampled(tokens, logprobs, sampled_logprobs)
    top, ids = logits.float().topk(min(params.top_logprobs, logits.shape[-1]), dim=-1)
    return Sampled(tokens, logprobs, sampled_logprobs, ids, top - normaliser[:, None])


def needs_history(params: SamplingParams) -> bool:
    """Whether sampling depends on the tokens before."""
    return params.repetition_penalty != 1 or bool(params.logits_processors)


def has_filters(params: SamplingParams) -> bool:
    """Whether tokens are left out for what their probabilities are."""
    return bool(params.top_k) or params.top_p < 1 or params.min_p > 0


def _with_history(
    scores: Float[Tensor, "R V"], params: SamplingParams, histories: Sequence[Sequence[int]]
) -> Float[Tensor, "R V"]:
    # The rows of a call may belong to several groups and then differ in length; equal ones go
    # together.
    lengths = [len(h) for h in histories]
    for length in set(lengths):
        rows = [i for i, n in enumerate(lengths) if n == length]
        ids = torch.tensor([histories[i] for i in rows], device=scores.device)
        part = scores[rows]
        if params.repetition_penalty != 1:
            seen = part.gather(1, ids)
            penalty = params.repetition_penalty
            part.scatter_(1, ids, torch.where(seen < 0, seen * penalty, seen / penalty))
        for processor in params.logits_processors:
            part = processor(ids, part)
        scores[rows] = part
    return scores


def _filter(scores: Float[Tensor, "R V"], params: SamplingParams) -> Float[Tensor, "R V"]:
    """Top-k, top-p and min-p, each on what the one before has left."""
    drop = float("-inf")
    if params.top_k:
        least = scores.topk(min(params.top_k, scores.shape[-1]), dim=-1).values[:, -1:]
        scores = scores.masked_fill(scores < least, drop)
    if params.top_p < 1:
        scores = _top_p(scores, params.top_p)
    if params.min_p > 0:
        probabilities = scores.softmax(dim=-1)
        least = probabilities.amax(dim=-1, keepdim=True) * params.min_p
        scores = scores.masked_fill(probabilities < least, drop)
    return scores


def _top_p(scores: Float[Tensor, "R V"], top_p: float) -> Float[Tensor, "R V"]:
    """Keep the fewest most likely tokens whose probabilities reach `top_p`."""
    normaliser = scores.logsumexp(dim=-1, keepdim=True)
    # The set is nearly always small, and finding the largest few costs a tenth of sorting all.
    for candidates in (min(_TOP_P_CANDIDATES, scores.shape[-1]), scores.shape[-1]):
        largest, order = scores.topk(candidates, dim=-1)
        probabilities = (largest - normaliser).exp()
        reached = probabilities.double().cumsum(dim=-1)
        if candidates == scores.shape[-1] or bool((reached[:, -1] >= top_p).all()):
            break
    kept = largest.masked_fill(reached - probabilities >= top_p, float("-inf"))
    return torch.full_like(scores, float("-inf")).scatter_(1, order, kept)


# Uniforms and inverse CDF ------------------------------------------------------------------------


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
    that was drawn from: what `sample` gives without filters. Negative forbidden tokens are gaps. No
    value is looked at, and nothing comes from the host, so that it can be captured."""
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
