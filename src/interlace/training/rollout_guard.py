"""The guard of invariant I7 on the rollouts of a run: what it compares, and how exactly.

In fp32 the pass that trains is compared as it is; a gap that fp32's own rounding may explain is
looked at again in float64 (decision 0012). In lower precision one group is sampled again in fp32 in
the first rollout and every `guard_every`-th; in between the gap is held against the last one that
was found clean, and what the batch says against what the engine recorded, which is exact.

Axes: P groups, W width, T completion positions.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interlace.engine.engine import Engine
from interlace.engine.types import GroupOutput
from interlace.errors import GuardError
from interlace.training.arguments import GRPOConfig
from interlace.training.batch import GroupBatch
from interlace.training.guard import (
    COARSEST_GAP,
    LARGEST_GAP,
    WRONG,
    Gap,
    allowed_gap,
    check_gap,
    check_record,
    is_suspicious,
    measure_rounding,
    sample_again,
)
from interlace.training.tally import LARGEST, Tally
from interlace.training.whole import Skeleton, without_autocast


class RolloutGuard:
    """Checks that what was sampled is what is trained; see this module's head.

    Args:
        args: temperature, device and number of the process.
        new_engine: `new_engine(model)` gives such an engine as samples the rollouts.
        forbidden: token ids that sampling excludes.
        pad_token_id: for padding.
        skeleton: of a sharded model; None of one that is whole in every process.
        reduce: `reduce(values, "max")` gives the largest over all processes.
        tally: for the gaps.
    """

    def __init__(
        self,
        args: GRPOConfig,
        new_engine: Callable[[nn.Module], Engine],
        *,
        forbidden: Sequence[int],
        pad_token_id: int,
        skeleton: Skeleton | None,
        reduce: Callable[[Tensor, str], Tensor],
        tally: Tally,
    ) -> None:
        self._args = args
        self._new_engine = new_engine
        self._forbidden = forbidden
        self._pad_token_id = pad_token_id
        self._skeleton = skeleton
        self._reduce = reduce
        self._tally = tally
        self._clean: Gap | None = None  # of the last rollout that was checked exactly when due
        self._unchecked = 0  # rollouts since

    def check(
        self,
        model: nn.Module,
        batch: GroupBatch,
        logprobs: Float[Tensor, "P W T"],
        groups: Sequence[GroupOutput],
        *,
        fp32: bool,
    ) -> None:
        """Every process calls this, once a rollout.

        Args:
            model: the unwrapped model, which is as it was when it sampled; it is not changed.
            batch: what was sampled.
            logprobs: of the pass that trains.
            groups: the batch's; where it must be, that with the largest gap is sampled again.
            fp32: whether weights and passes are in fp32 or wider.

        Raises:
            GuardError: if sampling and training disagree; in every process alike.
        """
        assert batch.sampled_logprobs is not None
        apart = (logprobs - batch.sampled_logprobs).abs() * batch.completion_mask
        off, group = apart[batch.completion_mask], groups[int(apart.amax(dim=(1, 2)).argmax())]
        mean = float(off.mean()) if off.numel() else 0.0
        worst = float(off.max()) if off.numel() else 0.0
        gap = Gap(self._largest(worst), mean, off.numel())
        self._tally.extreme("sampled_gap/max", gap.largest, LARGEST)
        self._tally.mean("sampled_gap/mean", gap.mean * gap.tokens, gap.tokens)
        if fp32:
            self._check_in_fp32(model, batch, logprobs, group, gap)
        else:
            self._check_in_low_precision(model, group, gap)
        self._check_record(batch, groups)

    def _check_in_fp32(
        self,
        model: nn.Module,
        batch: GroupBatch,
        logprobs: Float[Tensor, "P W T"],
        group: GroupOutput,
        gap: Gap,
    ) -> None:
        beyond = LARGEST_GAP < gap.largest <= COARSEST_GAP
        if not beyond or self._args.device.type == "mps":  # which has no float64
            check_gap(gap)
            return
        if self._skeleton is None:
            check_gap(gap, self._allowed_gap(model, batch, logprobs))
        self._check_in_wider(model, group, torch.float64)

    def _check_record(self, batch: GroupBatch, groups: Sequence[GroupOutput]) -> None:
        fault: GuardError | None = None
        try:
            check_record(batch, groups)
        except GuardError as error:
            fault = error
        if self._largest(float(fault is not None)):
            raise fault or GuardError("The guard stopped another process; see what it says.")

    def _check_in_low_precision(self, model: nn.Module, group: GroupOutput, gap: Gap) -> None:
        """Exactly in the first rollout and then seldom; in between against the gap of the last one
        that was checked exactly."""
        now = Gap(gap.largest, self._largest(gap.mean), gap.tokens)
        self._unchecked += 1
        clean = self._clean
        due = clean is None or self._unchecked >= self._args.guard_every
        if clean is not None and clean.mean and not now.mean <= WRONG * clean.mean:
            check_gap(now, WRONG * clean.mean)
        if due or clean is None or is_suspicious(now, clean):
            self._check_in_wider(model, group, torch.float32)
        if due:  # a gap that was suspicious is no measure for the next ones
            self._clean, self._unchecked = now, 0

    def _allowed_gap(
        self, model: nn.Module, batch: GroupBatch, logprobs: Float[Tensor, "P W T"]
    ) -> float:
        own = measure_rounding(
            model,
            batch,
            logprobs,
            temperature=self._args.temperature,
            forbidden=self._forbidden,
        )
        rounding = self._largest(own)
        self._tally.extreme("sampled_gap/rounding", rounding, LARGEST)
        return allowed_gap(rounding)

    def _check_in_wider(self, model: nn.Module, group: GroupOutput, dtype: torch.dtype) -> None:
        """Of a sharded model the first process checks a whole copy, and all hear of it."""
        found = Gap(0.0, 0.0, 0)
        with without_autocast(model):
            copied = self._copy(model, dtype)
            if copied is not None:
                found = sample_again(
                    copied,
                    self._sample_again,
                    group,
                    temperature=self._args.temperature,
                    forbidden=self._forbidden,
                    pad_token_id=self._pad_token_id,
                )
        check_gap(Gap(self._largest(found.largest), found.mean, found.tokens))

    def _copy(self, model: nn.Module, dtype: torch.dtype) -> nn.Module | None:
        if self._skeleton is None:
            return copy.deepcopy(model).to(dtype)
        first, device = self._args.process_index == 0, self._args.device
        return self._skeleton.filled(model, keep=first, device=device, dtype=dtype)

    def _sample_again(self, model: nn.Module, prompt: list[int], params: Any) -> GroupOutput:
        return self._new_engine(model).generate([prompt], params)[0]

    def _largest(self, value: float) -> float:
        """Over all processes."""
        return float(self._reduce(torch.tensor([value], dtype=torch.float64), "max"))
