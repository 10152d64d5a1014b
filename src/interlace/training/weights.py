"""The weights of a run: which of them train, with which learning rate, and the model that holds
them without what wraps it, sharded or cast: what one process can save, sample, compare."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from interlace.attached import is_attached, new_parameters, unwrapped
from interlace.errors import ConfigError, MissingDependencyError
from interlace.training.arguments import GroupArguments


def choose_parameters(model: nn.Module, args: GroupArguments) -> None:
    """Mark what trains (`requires_grad`), adding LoRA adapters if they are asked for."""
    attached = is_attached(model)
    if args.train == "new" and not attached:
        raise ConfigError(
            "train='new' trains the attached blocks' weights, and nothing is attached. Attach "
            "blocks (attach: bridge), or use train='all'."
        )
    if args.train == "new" and not any(True for _ in new_parameters(model)):
        raise ConfigError(
            "train='new' trains the attached blocks' weights, and these blocks have none. Attach "
            "blocks that have (LaneRoPEConfig(learned=True)), or use train='all'."
        )
    for parameter in model.parameters():
        parameter.requires_grad_(args.train == "all")
    if args.train == "lora":
        _add_lora(model, args.lora, int(args.seed))
    if attached:
        for _, parameter in new_parameters(model):
            parameter.requires_grad_(True)
    _without_dropout(model)


def _add_lora(model: nn.Module, options: dict[str, Any], seed: int) -> None:
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise MissingDependencyError("train='lora' needs peft: pip install peft") from error
    # In place: a wrapper would come between the engine and the modules that train.
    config = LoraConfig(**{"target_modules": "all-linear", **options})
    with (
        warnings.catch_warnings(),
        torch.random.fork_rng(devices=[]),
    ):  # the same adapters in every process and every try
        torch.manual_seed(seed)
        # Its own checkpoints hold the blocks, too.
        warnings.filterwarnings("ignore", message="PEFT saves its adapters alone")
        inject_adapter_in_model(config, model)


def _without_dropout(model: nn.Module) -> None:
    """Dropout would make the training pass another model than the one that sampled (I7)."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def warn_of_lost_steps(model: nn.Module, args: GroupArguments) -> None:
    """Warn where weights of 16 bits are too coarse for the learning rate.

    AdamW moves a weight by about the learning rate. In bfloat16 neighbouring numbers are 1/256 to
    1/128 of their size apart, so a smaller step than half of that rounds back to where it was.
    """
    lost = count = 0
    slowest = float("inf")
    for pairs, rate in zip(split_parameters(model), learning_rates(args), strict=True):
        for _, weight in pairs if rate > 0 else []:
            if weight.dtype in (torch.float16, torch.bfloat16):
                least = torch.finfo(weight.dtype).eps / 4  # of its size, what surely rounds back
                own = int((weight.detach().abs().float() * least > rate).sum())
                slowest = min(slowest, rate) if own else slowest
                lost += own
                count += weight.numel()
    if lost:
        warnings.warn(
            f"{lost:,} of {count:,} weights that train in 16 bits are too large to be moved by a "
            f"step of their learning rate ({slowest:g}): it rounds to nothing. Load the "
            "model with dtype='float32' (in a recipe, load.dtype=float32) and set bf16=true, which "
            "runs the passes in bfloat16.",
            stacklevel=3,
        )


def learning_rates(args: GroupArguments) -> tuple[float, float]:
    """Of the old and of the new weights."""
    new = args.new_learning_rate
    return args.learning_rate, args.learning_rate if new is None else new


def split_parameters(
    model: nn.Module,
) -> tuple[list[tuple[str, nn.Parameter]], list[tuple[str, nn.Parameter]]]:
    """The old and the new weights among those that train, with their names."""
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    if not is_attached(base := unwrapped(model)):
        return trained, []
    new = {id(p) for _, p in new_parameters(base)}
    return (
        [(n, p) for n, p in trained if id(p) not in new],
        [(n, p) for n, p in trained if id(p) in new],
    )


def optimizer_groups(
    model: nn.Module, args: GroupArguments, decayed: Iterable[str]
) -> tuple[list[str], list[dict[str, Any]]]:
    """Parameter groups for the optimizer: old and new weights, with and without weight decay; and
    for each group which of the two, "old" or "new"."""
    decayed = set(decayed)
    names, groups = [], []
    for name, pairs, learning_rate in zip(
        ("old", "new"), split_parameters(model), learning_rates(args), strict=True
    ):
        for decay, chosen in (
            (args.weight_decay, [p for n, p in pairs if n in decayed]),
            (0.0, [p for n, p in pairs if n not in decayed]),
        ):
            if chosen:
                names.append(name)
                groups.append({"params": chosen, "weight_decay": decay, "lr": learning_rate})
    return names, groups


class Skeleton:
    """A model's modules without its weights, made before it is sharded, which cannot be copied."""

    def __init__(self, model: nn.Module) -> None:
        empty: dict[int, object] = {
            id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad)
            for p in model.parameters()
        }
        self._modules = copy.deepcopy(model, empty)

    @torch.no_grad()
    def filled(
        self,
        model: nn.Module,
        *,
        keep: bool,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> nn.Module | None:
        """The whole model with the weights that the sharded one has now.

        Every process calls this, since weights are gathered together; those that do not keep it get
        None, and hold one weight at a time.
        """
        sharded = dict(model.named_parameters(remove_duplicate=False))
        weights: dict[int, object] = {}
        for name, empty in self._modules.named_parameters():  # tied ones once, and they stay tied
            weight = sharded[name]
            whole = weight.full_tensor() if isinstance(weight, DTensor) else weight
            if keep:
                value = whole.detach().to(device, dtype or whole.dtype, copy=True)
                weights[id(empty)] = nn.Parameter(value, requires_grad=empty.requires_grad)
        if not keep:
            return None
        found = copy.deepcopy(self._modules, weights)
        for module in found.modules():
            for name, buffer in module.named_buffers(recurse=False):
                module._buffers[name] = buffer.to(device)
        return found


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Within this context sharded weights are whole: gathered once, not at every token."""
    shards = [m for m in model.modules() if isinstance(m, FSDPModule)]
    for shard in shards:
        shard.set_reshard_after_forward(False, recurse=False)
        shard.unshard()
    try:
        yield
    finally:
        for index, shard in enumerate(shards):
            shard.set_reshard_after_forward(index > 0, recurse=False)
            shard.reshard()


@contextmanager
def without_autocast(model: nn.Module) -> Iterator[nn.Module]:
    """Take away the autocast that accelerate wraps around a model's forward pass."""
    cast = vars(model).pop("forward", None)
    try:
        yield model
    finally:
        if cast is not None:
            vars(model)["forward"] = cast
