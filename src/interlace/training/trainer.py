"""What both trainers share: batches of whole groups on `transformers.Trainer`.

A step takes the parts of a batch (whole groups of one width each), runs forward and backward over
them one by one, and lets Hugging Face's loop do the rest: clipping, optimizer, schedule, logging,
callbacks. Runs and checkpoints are in `training/checkpoints.py`. What a step learns from follows
from the run's seed and the step's number alone, so a resumed run is the uninterrupted one.

Several processes: each feeds its own groups; losses are sums divided by one denominator of the
whole batch, so gradients are added up over processes, not averaged.
"""

from __future__ import annotations

import contextlib
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, ProgressCallback, TrainerCallback

from interlace import huge_pages
from interlace.attached import get_attachment, is_attached, unwrapped
from interlace.engine.engine import Engine
from interlace.engine.request import forbidden_token_ids, stop_ids_of
from interlace.engine.types import SamplingParams
from interlace.errors import ConfigError, reading
from interlace.tasks.base import Task
from interlace.training.arguments import GroupArguments
from interlace.training.batch import GroupBatch
from interlace.training.checkpoints import ResumableTrainer
from interlace.training.data import (
    NamedReward,
    RowsTask,
    as_task,
    check_call,
    given_rewards,
    model_and_tokenizer,
    settled_args,
    take_adapters,
)
from interlace.training.logging import Journal, ProgressBar
from interlace.training.rollout import Judge, Sampler, Verdicts, measure
from interlace.training.weights import (
    Skeleton,
    choose_parameters,
    gathered,
    optimizer_groups,
    split_parameters,
    warn_of_lost_steps,
    without_autocast,
)

Reduce = Callable[[Tensor, str], Tensor]  # (values, "sum" or "max") -> over all processes
LARGEST, SMALLEST = "max", "min"


class Tally:
    """Means (sum over count), extremes and seconds by name.

    Every process must note the same names in a step, since they are added up position by position;
    note a count of 0 where a process has nothing to say.
    """

    def __init__(self) -> None:
        self._within: list[float] = []  # of each phase that runs, the seconds of phases within it
        self._clear()

    def _clear(self) -> None:
        self._sums: dict[str, list[float]] = {}
        self._totals: dict[str, float] = {}
        self._extremes: dict[tuple[str, str], float] = {}
        self.seconds: dict[str, float] = {}

    def mean(self, name: str, total: float, count: float = 1.0) -> None:
        """Add to what will be logged as total over count."""
        entry = self._sums.setdefault(name, [0.0, 0.0])
        entry[0] += total
        entry[1] += count

    def total(self, name: str, value: float) -> None:
        """Add to what will be logged as a sum."""
        self._totals[name] = self._totals.get(name, 0.0) + value

    def extreme(self, name: str, value: float, kind: str) -> None:
        """Keep the largest or smallest value."""
        known = self._extremes.get((name, kind), value)
        self._extremes[name, kind] = max(known, value) if kind == LARGEST else min(known, value)

    @contextlib.contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the seconds within to a phase, those of a phase within it left out."""
        start = time.perf_counter()
        self._within.append(0.0)
        try:
            yield
        finally:
            spent, others = time.perf_counter() - start, self._within.pop()
            self.seconds[phase] = self.seconds.get(phase, 0.0) + spent - others
            if self._within:
                self._within[-1] += spent

    def collect(self, reduce: Reduce) -> dict[str, float]:
        """Everything as numbers to log, over all processes; the tally is empty afterwards."""
        logs: dict[str, float] = {}
        means, totals = sorted(self._sums), sorted(self._totals)
        sums = [self._totals[n] for n in totals]
        for name in means:
            sums += self._sums[name]
        found = _reduced(sums, "sum", reduce)
        logs |= dict(zip(totals, found, strict=False))
        for index, name in enumerate(means):
            total, count = found[len(totals) + 2 * index :][:2]
            if count:
                logs[name] = total / count
        keys, phases = sorted(self._extremes), sorted(self.seconds)
        signs = [1.0 if kind == LARGEST else -1.0 for _, kind in keys]
        peaks = [s * self._extremes[k] for s, k in zip(signs, keys, strict=True)]
        found = _reduced(peaks + [self.seconds[p] for p in phases], "max", reduce)
        logs |= {name: s * v for (name, _), s, v in zip(keys, signs, found, strict=False)}
        logs |= {f"seconds/{p}": v for p, v in zip(phases, found[len(keys) :], strict=True)}
        self._clear()
        return logs


def _reduced(values: list[float], how: str, reduce: Reduce) -> list[float]:
    return reduce(torch.tensor(values, dtype=torch.float64), how).tolist() if values else []


METRICS = "metrics.jsonl"


class GroupTrainer(ResumableTrainer):
    """Base of the trainers; see this module's head. Names and order of the arguments are TRL's.

    Args:
        model: Model, attached or not, which trains in place; or what `interlace.load` takes, such
            as a hub id.
        reward_funcs: Function with TRL's signature, name of a reward, or list of them; None for
            what the options name.
        args: Options.
        train_dataset: Problems: a `datasets.Dataset` or list of dicts with the column `prompt`
            (text or messages; other columns reach the rewards by name), a task, or a task's name
            (its split "train").
        eval_dataset: Problems to measure on, likewise (of a named task the split "test"), or a
            dict of several.
        processing_class: Tokenizer of the model; without it the model's own is looked for.
        callbacks: Hugging Face callbacks to add.
        optimizers: Optimizer and schedule of your own, or None for each.
        peft_config: PEFT's `LoraConfig`, for new weights and adapters: `train="lora"`.
        **other: Further arguments of TRL's trainers, which are refused.

    Raises:
        ConfigError: for what cannot be trained on, or options that contradict each other.
    """

    config_class: type[GroupArguments]
    optimizer: Any
    control: Any
    eval_tasks: dict[str, Task]  # problems to measure on by name; one without a name has ""
    _sampler: Sampler | None = None

    def __init__(
        self,
        model: PreTrainedModel | str | Path,
        reward_funcs: Any = None,
        args: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        *,
        callbacks: Sequence[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        peft_config: Any = None,
        **other: Any,
    ) -> None:
        check_call(type(self).__name__, reward_funcs, other)
        args = settled_args(type(self).__name__, self.config_class, args, model)
        if train_dataset is None:
            raise ConfigError("A trainer needs train_dataset: a data set, a list of dicts, a task.")
        model, tokenizer = model_and_tokenizer(model, processing_class)
        self.task = as_task(train_dataset, "train", tokenizer)
        self.tally = Tally()
        self._reward_funcs = reward_funcs
        self._take_evaluation(args, eval_dataset, tokenizer)
        take_adapters(args, peft_config)
        choose_parameters(model, args)
        self._by_epochs = args.max_steps <= 0
        self.settle_steps(args)
        # On several GPUs one process would get Hugging Face's DataParallel, which splits groups.
        args._n_gpu = min(int(args.n_gpu), 1)
        super().__init__(
            model=model,
            args=args,
            processing_class=tokenizer,
            eval_dataset=self.eval_tasks or None,
            callbacks=list(callbacks or ()),
            optimizers=optimizers,
        )
        for own in list(self.callback_handler.callbacks):
            if type(own) is ProgressCallback:
                self.remove_callback(own)
                self.add_callback(ProgressBar)
        self.tokenizer, self.train_dataset = tokenizer, train_dataset
        self.skeleton = Skeleton(model) if self.is_fsdp_enabled else None
        # DeepSpeed, and accelerate's FSDP in mixed precision, keep weights of 32 bits of their own.
        wide = self.is_fsdp_enabled and self.accelerator.mixed_precision != "no"
        if self.is_world_process_zero() and not (self.is_deepspeed_enabled or wide):
            warn_of_lost_steps(model, args)
        self.model_accepts_loss_kwargs = False
        params = SamplingParams()
        self.forbidden = forbidden_token_ids(
            model, tokenizer, stop_ids_of(model, tokenizer, params)
        )
        self.pad_token_id = _pad_id(model, tokenizer)
        self._journal = Journal(self.folder / METRICS)
        # Of the optimizer's groups, which checkpoints bring back as they were, without names.
        self._group_names: list[str] = []
        self._rates: dict[str, float] = {}  # of the last step's old and new weights
        self._trained: Any = ()  # old and new weights that train, with their names
        self._has_moved = False
        self.make_ready()

    def settle_steps(self, args: Any) -> None:
        """Turn epochs into optimizer steps, and those into whole rollouts."""
        if self._by_epochs:
            args.max_steps = max(round(args.num_train_epochs * self.steps_per_epoch(args)), 1)
        every = self.resumable_every(args)
        args.max_steps = -(-args.max_steps // every) * every

    # What a trainer says.

    def make_ready(self) -> None:
        """What a trainer needs besides, at the end of the construction."""

    @abstractmethod
    def steps_per_epoch(self, args: Any) -> float:
        """Optimizer steps in which everything there is to draw from is seen once."""

    @abstractmethod
    def parts_of(self, step: int) -> tuple[Sequence[GroupBatch], GroupBatch]:
        """This process's parts for an optimizer step, and a small one to feed if it has too few."""

    @abstractmethod
    def weight_of(self, part: GroupBatch) -> float:
        """The part's share of the loss's denominator."""

    @abstractmethod
    def loss_of(
        self, model: nn.Module, part: GroupBatch, denominator: float, first: bool
    ) -> Tensor:
        """The part's loss, divided by the whole batch's denominator."""

    # What Hugging Face's loop asks.

    def get_train_dataloader(self) -> DataLoader[Any]:
        """One ticket a step, the same on every process; the step's number says the rest."""
        return DataLoader([{"ticket": step} for step in range(self.args.max_steps)])  # type: ignore[arg-type]

    def training_step(
        self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None
    ) -> Tensor:
        """Forward and backward over all parts of this optimizer step."""
        self._move_to_huge_pages()
        model.train()
        parts, spare = self.parts_of(self.state.global_step)
        weight = torch.tensor([sum(map(self.weight_of, parts))], dtype=torch.float64)
        denominator = max(float(self.reduce(weight, "sum")), 1.0)
        passes = int(self.reduce(torch.tensor([float(len(parts))]), "max"))
        if passes > 1 and self.is_deepspeed_enabled:
            raise ConfigError(
                f"DeepSpeed steps after every backward, and this batch has {passes} parts. Use one "
                "width and no micro_rows, or FSDP2."
            )
        total = torch.zeros((), device=self.args.device)
        for index in range(passes):
            part = parts[index] if index < len(parts) else spare
            with self._syncing(model, last=index == passes - 1):
                with self.compute_loss_context_manager(), self.timed("score"):
                    note = partial(self.tally.mean, "block_output_over_input")
                    watched = measuring_blocks(unwrapped(self.model), note)
                    with watched if index == 0 else contextlib.nullcontext():
                        loss = self.loss_of(model, part, denominator, index == 0)
                    loss = loss if part.counts else loss * 0
                with self.timed("backward"):
                    # Reducers average over processes; the loss is a share of the sum.
                    self.accelerator.backward(loss * self.args.world_size)
            total += loss.detach()
        self._rates = {
            f"learning_rate/{name}": float(group["lr"])
            # An optimizer of the user's own has groups of its own.
            for name, group in zip(self._group_names, self.optimizer.param_groups, strict=False)
        }
        self._note_gradients(model)
        return total * self.args.world_size

    def _note_gradients(self, model: nn.Module) -> None:
        """Norms of the gradients of old and of new weights."""
        if not self._trained:  # once they lie where they are trained, sharded or not
            self._trained = split_parameters(self.accelerator.unwrap_model(model))
        scaler = self.accelerator.scaler  # of fp16, whose gradients are not unscaled yet
        scale = 1.0 if scaler is None else float(scaler.get_scale())
        for name, pairs in zip(("old", "new"), self._trained, strict=True):
            grads = [p.grad for _, p in pairs if p.grad is not None]
            norm: Any = torch.nn.utils.get_total_norm(grads) if grads else 0.0
            norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
            self.tally.mean(f"gradient_norm/{name}", float(norm) / scale)

    def create_optimizer(self, model: Any = None) -> Any:
        """With learning rates of their own for old and new weights."""
        if self.optimizer is None:
            model = self.model if model is None else model
            decayed = self.get_decay_parameter_names(model)
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, model)
            self._group_names, groups = optimizer_groups(model, self.args, decayed)
            name = getattr(self.args.optim, "value", self.args.optim)
            with reading(ConfigError, f"optim={name} does not take these options"):
                self.optimizer = kind(groups, **options)
        return self.optimizer

    def create_scheduler(self, *args: Any, **kwargs: Any) -> Any:
        """Hugging Face's schedule, by name."""
        kind = getattr(self.args.lr_scheduler_type, "value", self.args.lr_scheduler_type)
        given = self.args.lr_scheduler_kwargs
        with reading(
            ConfigError, f"lr_scheduler_type={kind} does not take lr_scheduler_kwargs={given}"
        ):
            return super().create_scheduler(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what was tallied since the last time; keep it all in metrics.jsonl."""
        trained = "loss" in logs
        if trained:
            logs |= self.derived(self.tally.collect(self.reduce))
            logs |= self._rates
        super().log(logs, start_time)
        # The summary at the end is of this process's steps alone.
        kept = trained or any(name.startswith("eval_") for name in logs)
        if kept and self.is_world_process_zero():
            numbers = {k: v for k, v in logs.items() if isinstance(v, int | float)}
            self._journal.add(self.state.global_step, numbers)

    def rewind(self, step: int) -> None:
        super().rewind(step)
        self._journal.rewind(step)

    def derived(self, logs: dict[str, float]) -> dict[str, float]:
        """Numbers that follow from those tallied."""
        return logs

    def _move_to_huge_pages(self) -> None:
        """Weights and the optimizer's states, once those are there: every step reads them all."""
        states = list(self.optimizer.state.values())
        if self._has_moved or not states:
            return
        self._has_moved = True
        tensors = [*self.model.parameters(), *(t for state in states for t in state.values())]
        plain = [t for t in tensors if type(t) in (Tensor, nn.Parameter) and t.device.type == "cpu"]
        huge_pages.collapse([(t.data_ptr(), t.nbytes) for t in plain])

    # Rewards and evaluation.

    def _take_evaluation(self, args: GroupArguments, given: Any, tokenizer: Any) -> None:
        """Keep the problems to measure on, and check that they can be."""
        named = given if isinstance(given, dict) else {} if given is None else {"": given}
        self.eval_tasks = {n: as_task(own, "test", tokenizer) for n, own in named.items()}
        strategy = getattr(args.eval_strategy, "value", args.eval_strategy)
        if strategy != "no" and not named:
            raise ConfigError(
                f"eval_strategy={strategy} needs eval_dataset: problems to measure on."
            )
        # Also before training, so that a reward that does not fit shows here.
        self._eval_judges = {n: self.judge_of(t, args) for n, t in self.eval_tasks.items()}

    def _rewards(self, task: Task, args: GroupArguments) -> list[NamedReward]:
        first = args.process_index == 0
        if self._reward_funcs is None:
            named = getattr(args, "rewards", {"correctness": 1.0})  # the warm-up names none
            return given_rewards(list(named), list(named.values()), task, warn=first)
        weights = getattr(args, "reward_weights", None)
        return given_rewards(self._reward_funcs, weights, task, warn=first)

    def judge_of(self, task: Task, args: GroupArguments) -> Judge:
        """Verdicts and rewards for what is sampled of these problems."""
        verdicts = Verdicts(task)
        correct = args.correct_reward if isinstance(task, RowsTask) else None
        return Judge(verdicts, self._rewards(verdicts.task, args), correct)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """pass@1, votes, coverage and rewards at `eval_widths`, logged and returned.

        Args:
            eval_dataset: Problems instead of the trainer's, as there.
            ignore_keys: Not read.
            metric_key_prefix: Beginning of every metric's name.

        Raises:
            ConfigError: if there is nothing to measure on.
        """
        if eval_dataset is not None:
            self._take_evaluation(self.args, eval_dataset, self.tokenizer)
        if not self.eval_tasks:
            raise ConfigError("An evaluation needs eval_dataset: problems to measure on.")
        found: dict[str, float] = {}
        for name, task in self.eval_tasks.items():
            if len(task) < self.args.world_size:
                raise ConfigError(
                    "An evaluation needs a problem for each process; got "
                    f"{len(task)} problems for {self.args.world_size} processes."
                )
            with self.sampling_model() as model:
                sampler, judge = self.sampler(model), self._eval_judges[name]
                for width in self.args.eval_widths or self.args.widths:
                    tally = Tally()
                    measure(sampler, task, judge, self.args, width, tally, self.state)
                    parts = (metric_key_prefix, name, f"width_{width}/")
                    head = "_".join(filter(None, parts))
                    found |= {head + k: value for k, value in tally.collect(self.reduce).items()}
        self.log(dict(found))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, found)
        return found

    # Sampling.

    def sampler(self, model: nn.Module) -> Sampler:
        """What samples from the modules that train, as they are now."""
        if self._sampler is None:
            self._sampler = self.new_sampler(model)
        return self._sampler

    def new_sampler(self, model: nn.Module) -> Sampler:
        """The engine on the modules that train."""
        return self.new_engine(model)

    def new_engine(self, model: nn.Module) -> Engine:
        """An engine of Interlace's on a model."""
        return Engine(model, self.tokenizer, max_rows=self.args.max_rows)

    @contextlib.contextmanager
    def sampling_model(self) -> Iterator[nn.Module]:
        """The very modules that train, whole, and without the autocast that accelerate wraps around
        their forward pass: the engine's packed products take the weights' own type."""
        model, nothing = unwrapped(self.model), contextlib.nullcontext()
        casts = self.args.device.type == "cpu" and self.accelerator.mixed_precision != "no"
        plain = without_autocast(model) if casts else nothing
        with plain, gathered(self.model) if dist.is_initialized() else nothing:
            yield model

    # Several processes.

    def reduce(self, values: Tensor, how: str) -> Tensor:
        """Values summed or maximised over all processes."""
        if self.args.world_size == 1:
            return values
        on_device = values.to(self.args.device)
        operation = dist.ReduceOp.SUM if how == "sum" else dist.ReduceOp.MAX
        dist.all_reduce(on_device, operation)
        return on_device.cpu()

    @contextlib.contextmanager
    def _syncing(self, model: nn.Module, last: bool) -> Iterator[None]:
        """Gradients travel between processes with the last part only; sharded ones with each."""
        if last or isinstance(model, FSDPModule) or self.args.world_size == 1:
            yield
        else:
            with self.accelerator.no_sync(model):
                yield

    @contextlib.contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add to a phase's seconds."""
        with self.tally.timed(phase):
            yield
            if self.args.device.type == "cuda":
                torch.cuda.synchronize()


def _pad_id(model: PreTrainedModel, tokenizer: Any) -> int:
    for source in (tokenizer, model.config):
        found = getattr(source, "pad_token_id", None)
        if isinstance(found, int):
            return found
    return 0  # nothing attends to it, and it counts nowhere


WIDE = (torch.float32, torch.float64)


@contextlib.contextmanager
def measuring_blocks(model: nn.Module, note: Callable[[float, float], None]) -> Iterator[None]:
    """Within this context the blocks of an attached model are watched; at its end `note` is given
    the mean over the blocks of the norm of what they add over the norm of their input, and a count
    of 1. Where no hook saw a block, as in the graph of a compiled model, both are 0: that can
    happen in one process and not in another, and all must note the same names.
    """
    if not is_attached(model):
        yield
        return
    ratios: list[Tensor] = []
    blocks = [model.get_submodule(name) for name in get_attachment(model).block_names]
    own = set(map(id, blocks))

    @torch.no_grad()
    def compare(block: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        if id(block) not in own:
            return  # a copy of the model, such as the guard's, takes the hooks along
        x = inputs[0].detach()
        # In 16 bits a small addition is lost in the sum, so it is computed again by itself.
        added = output.detach() - x if output.dtype in WIDE else block.added(*inputs)
        ratios.append(added.float().norm() / x.float().norm())

    handles = [block.register_forward_hook(compare) for block in blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    note(float(torch.stack(ratios).mean()) if ratios else 0.0, float(bool(ratios)))
