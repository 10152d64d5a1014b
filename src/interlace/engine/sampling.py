"""Tokens drawn for rows, as their requests want it.

Axes: R rows, V vocabulary, N forbidden tokens, K likeliest tokens.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interlace.engine.backends.base import Ahead, is_out_of_memory
from interlace.engine.inverse_cdf import Workspace, inverse_cdf, pick, uniforms, weights_of
from interlace.engine.request import Request
from interlace.engine.state import Drawn, Row, RunningGroup
from interlace.engine.types import SamplingParams
from interlace.errors import GenerationError

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


@torch.inference_mode()
def sample(
    logits: Float[Tensor, "R V"],
    uniform: Float[np.ndarray, " R"] | Float[Tensor, " R"],
    params: SamplingParams,
    forbidden: Int[Tensor, " N"],
    histories: Sequence[Sequence[int]] | None = None,
    workspace: Workspace | None = None,
) -> Sampled:
    """Draw one token for each row.

    The order is Hugging Face's: repetition penalty, logits processors, temperature, top-k, top-p,
    min-p; forbidden tokens are out from the beginning, and `logprobs` are taken before all of it.

    Args:
        logits: Logits of the model, in any float type.
        uniform: Random number in [0, 1) for each row.
        params: Parameters of sampling, the same for all these rows.
        forbidden: Tokens that are never drawn.
        histories: Prompt and completion ids of each row, if `needs_history(params)`.
        workspace: Memory kept from step to step by whoever samples; None takes some anew.
    """
    workspace, uniform = workspace or Workspace(), torch.as_tensor(uniform, device=logits.device)
    if logits.dtype == torch.float64 and histories is None:
        # All that follows is in float32; no probability changes, and no digit is lost to a large
        # part that all logits have in common.
        logits = logits - logits.amax(dim=-1, keepdim=True)
    weights, normaliser = weights_of(logits, workspace)
    if params.temperature == 0 or histories is not None or _reshapes(params):
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


def _reshapes(params: SamplingParams) -> bool:
    return params.temperature != 1 or bool(params.top_k) or params.top_p < 1 or params.min_p > 0


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


@dataclass
class Drawing:
    """What a step has given: each row's token, and the groups for which it could not."""

    tokens: dict[Row, Drawn] = field(default_factory=dict)
    failed: dict[RunningGroup, Exception] = field(default_factory=dict)


def draw(rows: Sequence[Row], logits: Float[Tensor, "R V"], workspace: Workspace) -> Drawing:
    """Draw for each row; rows that are sampled alike, in one call.

    A group whose logits are not numbers, or whose logits processors raise, fails alone. Only want
    of memory is raised: then nothing has been drawn, and the step can be done again.
    """
    alike: dict[Hashable, list[int]] = {}
    for place, row in enumerate(rows):
        alike.setdefault(row.group.request.sampling_key, []).append(place)
    drawing = Drawing()
    for places in alike.values():
        part = logits if len(places) == len(rows) else logits[places]
        _draw_alike([rows[place] for place in places], part, workspace, drawing)
    return _without_failed(drawing)


def _without_failed(drawing: Drawing) -> Drawing:
    for group in drawing.failed:
        for row in group.rows:
            drawing.tokens.pop(row, None)
    return drawing


def needs_host(request: Request) -> bool:
    """Whether drawing for a request, or the end of its rows, is more than a backend can do by
    itself: filters and processors, stop strings, and all that is recorded of a step."""
    params = request.params
    filters = bool(params.top_k) or params.top_p < 1 or params.min_p > 0
    recorded = params.top_logprobs > 0 or params.record_attention is not None
    reads_text = bool(params.stop) or params.consensus is not None
    return filters or needs_history(params) or recorded or reads_text


def ahead_of(row: Row) -> Ahead:
    """What a backend needs to know of a row to go on with it by itself."""
    request = row.group.request
    return Ahead(
        token=row.tokens[-1],
        length=len(row.tokens) - 1,
        key=int(row.key.astype(np.int64)),
        temperature=request.params.temperature,
        forbidden=request.forbidden.tolist(),
        stops=sorted(request.stop_ids),
    )


def drawing_of(rows: Sequence[Row], values: Sequence[Sequence[float]]) -> Drawing:
    """What a backend has drawn by itself: of each row the token and its log-probabilities."""
    drawing = Drawing()
    for row, (token, logprob, sampled) in zip(rows, values, strict=True):
        if logprob != logprob or sampled != sampled:
            drawing.failed[row.group] = _cannot_draw(row, logits_are_numbers=logprob == logprob)
        drawing.tokens[row] = Drawn(int(token), logprob, sampled, None)
    return _without_failed(drawing)


def _draw_alike(
    rows: Sequence[Row], logits: Float[Tensor, "R V"], workspace: Workspace, drawing: Drawing
) -> None:
    try:
        drawing.tokens.update(zip(rows, _sampled(rows, logits, workspace), strict=True))
    except Exception as error:
        if is_out_of_memory(error):
            raise
        groups = dict.fromkeys(row.group for row in rows)
        if len(groups) == 1:
            drawing.failed[rows[0].group] = error
            return
        for group in groups:  # each alone, so that only those fail that have to
            places = [place for place, row in enumerate(rows) if row.group is group]
            _draw_alike([rows[place] for place in places], logits[places], workspace, drawing)


def _sampled(
    rows: Sequence[Row], logits: Float[Tensor, "R V"], workspace: Workspace
) -> list[Drawn]:
    request = rows[0].group.request
    histories = None
    if needs_history(request.params):
        histories = [row.group.request.token_ids + row.tokens for row in rows]
    keys = np.array([row.key for row in rows], dtype=np.uint64)
    steps = np.array([len(row.tokens) for row in rows])
    uniform = uniforms(keys, steps)
    sampled = sample(logits, uniform, request.params, request.forbidden, histories, workspace)
    logprobs, sampled_logprobs = sampled.logprobs.tolist(), sampled.sampled_logprobs.tolist()
    tops: list[list[tuple[int, float]]] | list[None] = [None] * len(rows)
    if sampled.top_tokens is not None and sampled.top_logprobs is not None:
        pairs = zip(sampled.top_tokens.tolist(), sampled.top_logprobs.tolist(), strict=True)
        tops = [list(zip(ids, values, strict=True)) for ids, values in pairs]
    for row, logprob, sampled_logprob in zip(rows, logprobs, sampled_logprobs, strict=True):
        if logprob != logprob or sampled_logprob != sampled_logprob:
            raise _cannot_draw(row, logits_are_numbers=logprob == logprob)
    return list(map(Drawn, sampled.tokens.tolist(), logprobs, sampled_logprobs, tops))


def _cannot_draw(row: Row, logits_are_numbers: bool) -> GenerationError:
    where = f"prompt {row.group.request.index}, row {row.index}, step {len(row.tokens)}"
    if logits_are_numbers:
        return GenerationError(
            f"No token is left to sample at {where}: logits processors and forbidden tokens have "
            "taken all of them. Look at params.logits_processors; PAD and BOS are never sampled "
            "unless they are stop ids."
        )
    return GenerationError(
        f"The model's logits are not numbers (NaN or infinite) at {where}. Look for weights or "
        "activations that overflow; a wider dtype (bfloat16, float32) may help."
    )
