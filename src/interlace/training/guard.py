"""The guard of invariant I7: log-probabilities while sampling are those of the training pass.

It runs on the first micro-batch of every rollout, because nothing else shows a late alive mask, a
split group or stale weights: accuracy does not. In fp32 the pass that trains is compared as it is;
a gap that fp32's own rounding may explain is looked at again in float64 (decision 0012). In lower
precision one group is sampled again in fp32 in the first rollout and every `guard_every`-th; in
between the gap is held against the last one that was found clean, and what the batch says against
what the engine recorded, which is exact. A gap that is far larger, and any of what vLLM sampled,
which cannot be sampled again as it was, is held against the rounding of the training pass: its
distance from that pass in a wider type, on the same tokens.

Axes: P groups, W width, T completion positions.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interlace.attached import is_attached, new_parameters, not_finite
from interlace.engine.engine import Engine
from interlace.engine.types import GroupOutput
from interlace.errors import GuardError
from interlace.training.batch import GroupBatch, collate
from interlace.training.scoring import score
from interlace.training.trainer import LARGEST
from interlace.training.weights import without_autocast

if TYPE_CHECKING:
    from interlace.training.grpo import GRPOTrainer

LARGEST_GAP = 1e-4  # in nats, in fp32
# Where fp32 itself is coarser than that (large logits), a gap is looked at again in float64, as one
# in lower precision is in fp32, if its mean is at most so many times that of the pass's rounding:
# single tokens that are hardly ever drawn are rounded more in one pass than in the other.
ROUNDINGS, COARSEST_GAP = 4.0, 1e-2
# In lower precision, between two exact checks: a gap, mean or largest, of so many times that of the
# last exactly checked rollout is checked exactly, and a mean of so many more is held against the
# pass's rounding, too. It is no error by itself: other tokens may be rounded so much more.
SUSPICIOUS, FAR = 3.0, 10.0


@dataclass(frozen=True)
class Gap:
    """Absolute differences of sampled and recomputed log-probabilities, in nats, over the tokens
    that count."""

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
    return _gap((again - batch.sampled_logprobs.to(again.dtype)).abs()[batch.completion_mask])


def _gap(differences: Tensor) -> Gap:
    if not differences.numel():
        return Gap(0.0, 0.0, 0)
    return Gap(float(differences.max()), float(differences.mean()), differences.numel())


def check_gap(gap: Gap) -> None:
    """Raise if a gap is too large for fp32."""
    if not gap.largest <= LARGEST_GAP:
        raise _too_large(gap, f"they may differ by {LARGEST_GAP:.2g}")


def _too_large(gap: Gap, rule: str) -> GuardError:
    return GuardError(
        "The log-probabilities of the training pass differ from those of sampling by up to "
        f"{gap.largest:.2g} nats (mean {gap.mean:.2g}, {gap.tokens} tokens); {rule}. Ratios and "
        "advantages would be wrong without any other sign. Usual "
        "causes: an alive mask that is late or that is the completion mask, a group split over "
        "micro-batches or shuffled, weights that changed after sampling, dropout in either pass, "
        "or another temperature."
    )


def is_suspicious(gap: Gap, clean: Gap) -> bool:
    """Whether a gap in lower precision is larger than noise like that of a clean one makes it."""
    pairs = (gap.mean, clean.mean), (gap.largest, clean.largest)
    return any(not now <= SUSPICIOUS * before for now, before in pairs)


def check_finite(model: nn.Module) -> None:
    """Raise if a block's weights are not finite: its outputs may be, and mean nothing."""
    broken = not_finite(new_parameters(model)) if is_attached(model) else []
    if broken:
        raise GuardError(
            f"{len(broken)} weights of the blocks hold numbers that are not finite, first "
            f"{broken[0]}: the training has diverged. Go back to an earlier checkpoint, with a "
            "lower learning rate or max_grad_norm."
        )


def check_record(batch: GroupBatch) -> None:
    """Raise unless a batch says what the engine recorded, to the token: all rows in order, and
    siblings seeing each until its last token was sampled.

    No rounding hides a fault here, in any precision.
    """
    rows = [(g.prompt_token_ids, c.token_ids) for g in batch.outputs for c in g.completions]
    alive_for = [count for group in batch.outputs for count in group.alive_positions()]
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
    engine: Engine,
    group: GroupOutput,
    *,
    temperature: float,
    forbidden: Sequence[int],
    pad_token_id: int,
) -> Gap:
    """Where noise hides a late mask: the gap of a group that is sampled again, with both passes in
    a wider type: the engine's model is a copy in fp32 of one in lower precision, or in float64 of
    one in fp32."""
    again = engine.generate([group.prompt_token_ids], group.params)
    batch = collate(again, pad_token_id).to(next(engine.model.parameters()).device)
    return measure_gap(engine.model, batch, temperature=temperature, forbidden=forbidden)


Rounding = Callable[[torch.dtype], Gap | None]  # of the training pass; in a wider type
Exact = Callable[[torch.dtype], None]  # raises if a group is not the same in a wider type


class RolloutGuard:
    """Checks that what was sampled is what is trained; see this module's head."""

    def __init__(self, trainer: GRPOTrainer) -> None:
        self._trainer = trainer
        self._clean: Gap | None = None  # of the last rollout that was checked exactly when due
        self._unchecked = 0  # rollouts since

    def check(
        self, model: nn.Module, batch: GroupBatch, logprobs: Float[Tensor, "P W T"], *, fp32: bool
    ) -> None:
        """Every process calls this, once a rollout, with the unwrapped model as it was when it
        sampled, and the log-probabilities of the pass that trains, in fp32 or wider or not.

        Raises:
            GuardError: if sampling and training disagree; in every process alike.
        """
        assert batch.sampled_logprobs is not None
        apart = (logprobs - batch.sampled_logprobs).abs() * batch.completion_mask
        group = batch.outputs[int(apart.amax(dim=(1, 2)).argmax())]
        gap = _gap(apart[batch.completion_mask])
        gap = Gap(self._largest(gap.largest), gap.mean, gap.tokens)
        self._trainer.tally.extreme("sampled_gap/max", gap.largest, LARGEST)
        self._trainer.tally.mean("sampled_gap/mean", gap.mean * gap.tokens, gap.tokens)
        check = self._check_in_fp32 if fp32 else self._check_in_low_precision
        rounding = partial(self._rounding, model, batch, logprobs)
        check(gap, rounding, partial(self._check_in_wider, model, group))
        self._check_record(batch)

    def _check_in_fp32(self, gap: Gap, rounding_in: Rounding, check_in: Exact) -> None:
        beyond = LARGEST_GAP < gap.largest <= COARSEST_GAP
        if not beyond or self._trainer.args.device.type == "mps":  # which has no float64
            check_gap(gap)
            return
        self._check_rounding(gap, rounding_in(torch.float64))
        if not self._is_sampled_elsewhere:
            check_in(torch.float64)

    def _check_in_low_precision(self, gap: Gap, rounding_in: Rounding, check_in: Exact) -> None:
        """Exactly in the first rollout and then seldom; in between against the gap of the last one
        that was checked exactly."""
        now = Gap(gap.largest, self._largest(gap.mean), gap.tokens)
        self._unchecked += 1
        clean = self._clean
        due = clean is None or self._unchecked >= self._trainer.args.guard_every
        suspicious = clean is None or is_suspicious(now, clean)
        far = clean is not None and not now.mean <= FAR * clean.mean
        if far or ((due or suspicious) and self._is_sampled_elsewhere):
            self._check_rounding(gap, rounding_in(torch.float32))
        if (due or suspicious) and not self._is_sampled_elsewhere:
            check_in(torch.float32)
        if due:  # a gap that was suspicious is no measure for the next ones
            self._clean, self._unchecked = now, 0

    def _check_rounding(self, gap: Gap, rounding: Gap | None) -> None:
        """Raise, in every process alike, if a gap's mean is not what the rounding of the training
        pass explains: in the process where it is most, of those that have a copy to ask."""
        tiny = torch.finfo(torch.float32).tiny
        times = 0.0 if rounding is None else gap.mean / max(rounding.mean, tiny)
        largest = self._largest(0.0 if rounding is None else rounding.largest)
        self._trainer.tally.extreme("sampled_gap/rounding", largest, LARGEST)
        times = self._largest(times)
        if not times <= ROUNDINGS:
            raise _too_large(
                gap,
                f"the mean may be {ROUNDINGS:g} times what the training pass rounds, and is "
                f"{times:.2g} times that",
            )

    def _check_record(self, batch: GroupBatch) -> None:
        fault: GuardError | None = None
        try:
            check_record(batch)
        except GuardError as error:
            fault = error
        if self._largest(float(fault is not None)):
            raise fault or GuardError("The guard stopped another process; see what it says.")

    @torch.no_grad()
    def _rounding(
        self,
        model: nn.Module,
        batch: GroupBatch,
        logprobs: Float[Tensor, "P W T"],
        dtype: torch.dtype,
    ) -> Gap | None:
        """How far the training pass is from itself in a wider type on the same tokens; None where
        there is no copy.

        A fault of masks, groups or weights is in both precisions alike, so it does not enter.
        """
        with without_autocast(model):
            wide = self._copy(model, dtype)
        if wide is None:
            return None
        exact = score(wide, batch, **self._sampling()).logprobs
        return _gap((exact - logprobs.to(dtype)).abs()[batch.completion_mask])

    @property
    def _is_sampled_elsewhere(self) -> bool:
        return self._trainer.args.rollout_backend != "engine"

    def _check_in_wider(self, model: nn.Module, group: GroupOutput, dtype: torch.dtype) -> None:
        """Of a sharded model the first process checks a whole copy, and all hear of it."""
        found = Gap(0.0, 0.0, 0)
        with without_autocast(model):
            copied = self._copy(model, dtype)
            if copied is not None:
                engine, pad = self._trainer.new_engine(copied), self._trainer.pad_token_id
                found = sample_again(engine, group, pad_token_id=pad, **self._sampling())
        check_gap(Gap(self._largest(found.largest), found.mean, found.tokens))

    def _copy(self, model: nn.Module, dtype: torch.dtype) -> nn.Module | None:
        """The model in a wider type; of a sharded one, in the first process alone."""
        skeleton, args = self._trainer.skeleton, self._trainer.args
        if skeleton is None:
            return copy.deepcopy(model).to(dtype)
        first = args.process_index == 0
        return skeleton.filled(model, keep=first, device=args.device, dtype=dtype)

    def _sampling(self) -> dict[str, Any]:
        return {
            "temperature": self._trainer.args.temperature,
            "forbidden": self._trainer.forbidden,
        }

    def _largest(self, value: float) -> float:
        """Over all processes."""
        return float(self._trainer.reduce(torch.tensor([value], dtype=torch.float64), "max"))
