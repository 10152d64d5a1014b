"""GRPO over coupled groups: Bridge, P-Match and RLVR-only through the same code.

The objective is GRPO's; what is special is that every log-probability (sampled, old, new,
reference) is that of whole groups with the alive mask of sampling, because a row's distribution
depends on its siblings, and that gradients of a row reach its siblings.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from interlace.attached import base_model_of, get_attachment, is_attached, unwrapped
from interlace.errors import AttachError, CheckpointError, ConfigError
from interlace.saving.vllm import refuse_for_vllm
from interlace.training.arguments import GRPOConfig
from interlace.training.batch import GroupBatch, collate
from interlace.training.guard import RolloutGuard, check_finite
from interlace.training.logging import Journal, show_in_tensorboard
from interlace.training.losses import denominator, policy_loss
from interlace.training.rollout import RolledGroup, Sampler, describe, draw, weigh
from interlace.training.scoring import Scores, score
from interlace.training.trainer import LARGEST, SMALLEST, GroupTrainer

COMPLETIONS = "completions.jsonl"


class GRPOTrainer(GroupTrainer):
    """Trains a model with GRPO on groups whose rows see each other.

    Takes the arguments of `GroupTrainer`, which are TRL's: the model has Bridge blocks, P-Match
    blocks, or nothing attached (RLVR-only).

    Raises:
        ConfigError: for options that contradict each other or the number of processes.
        GuardError: while training, if sampling and training disagree (invariant I7).
    """

    config_class = GRPOConfig
    args: GRPOConfig

    def make_ready(self) -> None:
        args = self.args
        args.prompts_of_process(args.world_size)
        if args.sibling_dropout and is_attached(self.model):
            attachment = get_attachment(self.model)
            config = attachment.config
            if not attachment.coupling.hides or config.reads != "position":
                raise ConfigError(
                    "sibling_dropout hides siblings from Bridge blocks that read them at the same "
                    f"position; these are {config.kind} blocks and read {config.reads!r}. Leave it "
                    "out, or attach BridgeConfig(reads='position')."
                )
        if args.rollout_backend == "vllm":
            self._check_that_vllm_can()
        # What each step asks of the options, which are checked and do not change any more.
        self._widths, self._loss = args.drawn_widths, args.loss_config
        self._steps_per_rollout = args.steps_per_rollout
        self._judge = self.judge_of(self.task, args)
        self._guard = RolloutGuard(self)
        self._mini_batches: list[list[GroupBatch]] = []  # the last one of each is the spare one
        self._completions = Journal(self.folder / COMPLETIONS)
        self._shown: list[dict[str, Any]] = []  # of the rollout that was sampled last
        self._reference: nn.Module | None = None
        if args.kl_weight:
            self._reference = _frozen_copy(unwrapped(self.model))
            self._reference.to(args.device)

    def _check_that_vllm_can(self) -> None:
        if self.args.world_size > 1:
            raise ConfigError(
                f"rollout_backend='vllm' samples in one process; there are {self.args.world_size}. "
                "Use rollout_backend='engine'."
            )
        try:
            refuse_for_vllm(base_model_of(self.model))
        except (AttachError, CheckpointError) as error:
            raise ConfigError(f"rollout_backend='vllm' cannot be: {error}") from error

    def new_sampler(self, model: nn.Module) -> Sampler:
        """Interlace's engine, or vLLM's on a copy of the model."""
        args = self.args
        if args.rollout_backend == "engine":
            return super().new_sampler(model)
        from interlace_vllm.rollouts import VllmSampler

        sampler: Sampler = VllmSampler(
            model, self.tokenizer, max_rows=args.max_rows, options=args.rollout_options
        )
        return sampler

    def resumable_every(self, args: Any) -> int:
        return int(args.steps_per_rollout)

    def steps_per_epoch(self, args: Any) -> float:
        return len(self.task) / args.prompts_per_rollout * float(args.steps_per_rollout)

    def parts_of(self, step: int) -> tuple[Sequence[GroupBatch], GroupBatch]:
        number, within = divmod(step, self._steps_per_rollout)
        if within == 0:
            self._begin_rollout(number)
        *parts, spare = self._mini_batches[within % self.args.mini_batches]
        return parts, spare

    def weight_of(self, part: GroupBatch) -> float:
        mask = part.completion_mask
        return denominator(self.args.loss, mask, self.args.max_new_tokens)

    def loss_of(
        self, model: nn.Module, part: GroupBatch, denominator: float, first: bool
    ) -> Tensor:
        assert part.advantages is not None
        config = self._loss
        scores = self._score(model, part, entropy=True)
        within = self.state.global_step % self._steps_per_rollout
        if self.args.guard and first and within == 0:
            model, logprobs = unwrapped(self.model), scores.logprobs.detach()
            with self.timed("guard"):
                self._guard.check(model, part, logprobs, fp32=self._in_fp32())
        old = part.old_logprobs
        if old is None:  # the model is the one that sampled
            old = scores.logprobs.detach()
            self._keep_old(part, old)
        parts = policy_loss(
            scores.logprobs,
            old,
            part.advantages,
            part.completion_mask,
            config,
            denominator,
            reference_logprobs=part.reference_logprobs,
            entropy=scores.entropy,
        )
        tokens = parts.tokens if part.counts else 0
        self.tally.mean("clip_fraction", parts.clipped if tokens else 0.0, tokens)
        self.tally.mean("entropy", parts.entropy if tokens else 0.0, tokens)
        if config.kl_weight:
            self.tally.mean("kl", parts.kl if tokens else 0.0, tokens)
        self.tally.extreme("ratio/min", parts.ratio_min, SMALLEST)
        self.tally.extreme("ratio/max", parts.ratio_max, LARGEST)
        self.tally.total("tokens/train", tokens)
        return parts.loss

    def derived(self, logs: dict[str, float]) -> dict[str, float]:
        for phase, counted, seconds in (
            ("rollout", "tokens/rollout", ("rollout",)),
            ("train", "tokens/train", ("score", "backward")),
        ):
            spent = sum(logs.get(f"seconds/{name}", 0.0) for name in seconds)
            if spent and logs.get(counted):
                logs[f"tokens_per_second/{phase}"] = logs[counted] / spent
        return logs

    def rewind(self, step: int) -> None:
        super().rewind(step)
        self._completions.rewind(step)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """Write what the step has sampled: as of its metrics, there is a line once it is made."""
        step = self.state.global_step
        for group in self._shown:
            self._completions.add(step, group)
        if self._shown:
            show_in_tensorboard(self.callback_handler.callbacks, self._shown, step)
        self._shown = []
        super()._maybe_log_save_evaluate(*args, **kwargs)

    # One rollout.

    def _begin_rollout(self, number: int) -> None:
        args = self.args
        share = args.prompts_per_rollout // args.mini_batches
        mine = [
            range(start + args.process_index, start + share, args.world_size)
            for start in range(0, args.prompts_per_rollout, share)
        ]
        positions = [position for own in mine for position in own]
        asked = draw(self.task, args, number, positions, self._widths)
        with self.timed("rollout"), self.sampling_model() as model:
            check_finite(model)
            groups = self.sampler(model).generate(
                asked.prompts, asked.params, sample_ids=asked.sample_ids
            )
        with self.timed("verify"):
            rolled = self._judge(groups, asked.owners, self.tally, self.state)
            weigh(rolled, args, self.tally)
            widths = dict.fromkeys(self._widths)
            each = widths if len(widths) > 1 else ()
            describe(rolled, each, self.task.normalise, self.tally)
        if self.is_world_process_zero() and args.log_completions:
            shown = rolled[: args.log_completions]
            self._shown = [{"rollout": number, **entry.to_dict()} for entry in shown]
        self._mini_batches = [
            self._parts([entry for entry in rolled if entry.position in own]) for own in mine
        ]
        with self.timed("score"):
            self._score_before()

    def _parts(self, rolled: Sequence[RolledGroup]) -> list[GroupBatch]:
        """Groups of one width, of similar length, at most `micro_rows` rows at a time; and the
        smallest, as the spare one."""
        by_width: dict[int, list[RolledGroup]] = defaultdict(list)
        for entry in rolled:
            if entry.kept:
                by_width[entry.width].append(entry)
        parts = []
        for width, entries in sorted(by_width.items()):
            entries = sorted(entries, key=lambda e: -e.length)
            most = len(entries) if self.args.micro_rows is None else self.args.micro_rows // width
            starts = range(0, len(entries), most)
            parts += [self._part(entries[start : start + most]) for start in starts]
        spare = self._part([min(rolled, key=lambda e: e.length * e.width)])
        return [*parts, replace(spare, counts=False)]

    def _part(self, entries: Sequence[RolledGroup]) -> GroupBatch:
        batch = collate([e.group for e in entries], self.pad_token_id)
        gains = torch.stack([e.advantages for e in entries if e.advantages is not None])
        old = None if self._recomputes() else batch.sampled_logprobs
        return replace(batch, advantages=gains, old_logprobs=old).to(self.args.device)

    def _recomputes(self) -> bool:
        wanted = self.args.old_logprobs
        return wanted == "recomputed" or (wanted == "auto" and not self._in_fp32())

    def _in_fp32(self) -> bool:
        wide = next(unwrapped(self.model).parameters()).dtype in (torch.float32, torch.float64)
        return wide and self.accelerator.mixed_precision == "no"

    def _keep_old(self, part: GroupBatch, old: Tensor) -> None:
        """For later passes over the same tokens."""
        first = self._mini_batches[0]
        for place, own in enumerate(first[:-1]):
            if own is part:
                first[place] = replace(part, old_logprobs=old)

    @torch.no_grad()
    def _score_before(self) -> None:
        """Log-probabilities under the model that sampled, and under the reference.

        The first mini-batch's own pass gives the former: nothing has been learned before it.
        """
        for number, batches in enumerate(self._mini_batches):
            again = self._recomputes() and number > 0
            if not again and self._reference is None:
                continue
            passes = int(self.reduce(torch.tensor([float(len(batches) - 1)]), "max"))
            for index in range(passes):  # sharded models need as many passes on every process
                place = min(index, len(batches) - 1)
                with self.compute_loss_context_manager():
                    batches[place] = self._scored(batches[place], again)

    def _scored(self, batch: GroupBatch, again: bool) -> GroupBatch:
        if again:
            batch = replace(batch, old_logprobs=self._score(self.model_wrapped, batch).logprobs)
        if self._reference is None:
            return batch
        with self.accelerator.autocast():  # as the model that trains
            scores = self._score(self._reference, batch)
        return replace(batch, reference_logprobs=scores.logprobs)

    def _score(self, model: nn.Module, batch: GroupBatch, entropy: bool = False) -> Scores:
        return score(
            model,
            batch,
            temperature=self.args.temperature,
            forbidden=self.forbidden,
            entropy=entropy,
            entropy_gradients=self.args.entropy_weight != 0,
            prompt_once=self.args.prompt_once,
        )


def _frozen_copy(model: nn.Module) -> nn.Module:
    """The model as it is now. What does not train is shared, not copied: where only new weights
    train, the reference costs as much memory as they do."""
    shared: dict[int, Any] = {id(p): p for p in model.parameters() if not p.requires_grad}
    return copy.deepcopy(model, shared).eval().requires_grad_(False)
