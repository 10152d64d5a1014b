"""The guard of invariant I7: log-probabilities while sampling are those of the training pass.

It runs on the first micro-batch of every rollout, because nothing else shows a late alive mask, a
split group or stale weights: accuracy does not.

Axes: P groups, W width, T completion positions.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interlace.engine.types import GroupOutput
from interlace.errors import GuardError
from interlace.training.batch import GroupBatch, collate
from interlace.training.scoring import score

LARGEST_GAP = 1e-4  # in nats, in fp32
# Where fp32 itself is coarser than that (large logits), a gap of so many times its own rounding is
# looked at again in float64, as one in lower precision is in fp32.
ROUNDINGS, COARSEST_GAP = 4.0, 1e-2
# In lower precision, between two exact checks: a gap, mean or largest, of so many times that of the
# last exactly checked rollout is checked exactly, and a mean of so many more is an error.
SUSPICIOUS, WRONG = 3.0, 10.0


@dataclass(frozen=True)
class Gap:
    """Sampled against recomputed log-probabilities, over the tokens that count.

    Attributes:
        largest: the largest absolute difference, in nats.
        mean: the mean absolute difference.
        tokens: how many were compared.
    """

    largest: float
    mean: float
    tokens: int


@torch.no_grad()
def measure_gap(
    model: nn.Module, batch: GroupBatch, *, temperature: float, forbidden: Sequence[int]
) -> Gap:
    """How far the training pass is from what the engine recorded for the same tokens.

    Equation (29).
    """
    assert batch.sampled_logprobs is not None
    again = score(model, batch, temperature=temperature, forbidden=forbidden).logprobs
    difference = (again - batch.sampled_logprobs.to(again.dtype)).abs()[batch.completion_mask]
    if not difference.numel():
        return Gap(0.0, 0.0, 0)
    return Gap(float(difference.max()), float(difference.mean()), difference.numel())


@torch.no_grad()
def measure_rounding(
    model: nn.Module,
    batch: GroupBatch,
    logprobs: Float[Tensor, "P W T"],
    *,
    temperature: float,
    forbidden: Sequence[int],
) -> float:
    """How far the training pass in fp32 is from itself in float64 on the same tokens, at most.

    A fault of masks, groups or weights is in both precisions alike, so it does not enter.

    Args:
        model: the model that trains; it is copied, not changed.
        batch: what was scored.
        logprobs: its scores in fp32.
        temperature: as in sampling.
        forbidden: as in sampling.
    """
    wide = copy.deepcopy(model).double()
    exact = score(wide, batch, temperature=temperature, forbidden=forbidden).logprobs
    off = (exact - logprobs.double()).abs()[batch.completion_mask]
    return float(off.max()) if off.numel() else 0.0


def allowed_gap(rounding: float) -> float:
    """The largest gap that rounding explains, in nats."""
    return min(max(LARGEST_GAP, ROUNDINGS * rounding), COARSEST_GAP)


def check_gap(gap: Gap, largest: float = LARGEST_GAP) -> None:
    """Raise if a gap is too large for fp32.

    Raises:
        GuardError: with the gap, and what makes such gaps.
    """
    if gap.largest <= largest and gap.largest == gap.largest:
        return
    raise GuardError(
        "The log-probabilities of the training pass differ from those of sampling by up to "
        f"{gap.largest:.2g} nats (mean {gap.mean:.2g}, {gap.tokens} tokens); they may differ by "
        f"{largest:.2g}. Ratios and advantages would be wrong without any other sign. Usual "
        "causes: an alive mask that is late or that is the completion mask, a group split over "
        "micro-batches or shuffled, weights that changed after sampling, dropout in either pass, "
        "or another temperature."
    )


def is_suspicious(gap: Gap, clean: Gap) -> bool:
    """Whether a gap in lower precision is larger than noise like that of a clean one makes it."""
    pairs = (gap.mean, clean.mean), (gap.largest, clean.largest)
    return any(not now <= SUSPICIOUS * before for now, before in pairs)


def check_record(batch: GroupBatch, groups: Sequence[GroupOutput]) -> None:
    """Raise unless a batch says what the engine recorded, to the token: all rows in order, and
    siblings seeing each until its last token was sampled.

    No rounding hides a fault here, in any precision.

    Args:
        batch: what trains.
        groups: what the engine gave for it.

    Raises:
        GuardError: with the first row that differs.
    """
    rows = [(g.prompt_token_ids, c.token_ids) for g in groups for c in g.completions]
    alive_for = [count for group in groups for count in group.alive_positions()]
    alive, attention = batch.alive.flatten(0, 1).cpu(), batch.attention_mask.cpu()
    ids = batch.input_ids.cpu()
    for row, (prompt, completion) in enumerate(rows):
        start = int(attention[row].int().argmax())
        # Nothing sees the columns of a row's padding, whatever the mask says of them.
        own = alive[row, start:]
        seen = torch.arange(len(own)) < alive_for[row]
        if ids[row, attention[row]].tolist() != [*prompt, *completion] or not own.equal(seen):
            raise GuardError(
                f"The tokens or the alive mask of row {row} of a batch that is to train differ "
                f"from those of sampling: the engine recorded {len(prompt) + len(completion)} "
                f"tokens, alive for {alive_for[row]}. Usual causes: an alive mask that is late or "
                "that is the completion mask, a group split over micro-batches or shuffled."
            )


def sample_again(
    model: nn.Module,
    generate: Callable[[nn.Module, list[int], Any], GroupOutput],
    group: GroupOutput,
    *,
    temperature: float,
    forbidden: Sequence[int],
    pad_token_id: int,
) -> Gap:
    """Where noise hides a late mask: the gap of a group that is sampled again, with both passes in
    a wider type.

    Args:
        model: a copy in fp32 of a model in lower precision, or in float64 of one in fp32.
        generate: `generate(model, prompt_token_ids, params)` with the very engine that samples.
        group: one of the rollout's groups, for its prompt and parameters.
        temperature: as in sampling.
        forbidden: as in sampling.
        pad_token_id: for padding.
    """
    again = generate(model, group.prompt_token_ids, group.params)
    batch = collate([again], pad_token_id).to(next(model.parameters()).device)
    return measure_gap(model, batch, temperature=temperature, forbidden=forbidden)
