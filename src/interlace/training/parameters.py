"""Which weights train, with which learning rate."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from interlace.attaching import is_attached, new_parameters
from interlace.errors import ConfigError, MissingDependencyError
from interlace.training.arguments import GroupArguments
from interlace.training.distributed import unwrapped


def choose_parameters(model: nn.Module, args: GroupArguments) -> None:
    """Mark what trains (`requires_grad`), adding LoRA adapters if they are asked for.

    Raises:
        ConfigError: if new weights are to train and there are none.
    """
    attached = is_attached(model)
    if args.train == "new" and not attached:
        raise ConfigError(
            "train='new' trains the attached blocks' weights, and nothing is attached. Attach "
            "blocks (attach: bridge), or use train='all'."
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
