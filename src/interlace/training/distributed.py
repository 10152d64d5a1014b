"""A model without what wraps it, sharded or cast: what one process can save, sample, compare."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from interlace.layers import base_model_of


class Skeleton:
    """A model's modules without its weights, made before it is sharded, which cannot be copied.

    Args:
        model: Model, not yet sharded; it is not changed.
    """

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

        Every process calls this, since weights are gathered together.

        Args:
            model: Model that is sharded.
            keep: Whether this process wants it; the others get None and hold one weight at a time.
            device: Device of the copy.
            dtype: Data type of the copy; None for that of each weight.
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


def gradient_norm(parameters: Iterable[nn.Parameter]) -> float:
    """The Euclidean norm of all gradients together; of sharded ones, of the whole."""
    grads = [p.grad for p in parameters if p.grad is not None]
    if not grads:
        return 0.0
    norm: Tensor = torch.nn.utils.get_total_norm(grads)
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


def unwrapped(model: nn.Module) -> nn.Module:
    """The Hugging Face model inside data-parallel and compile wrappers."""
    while (
        inner := getattr(model, "module", None) or getattr(model, "_orig_mod", None)
    ) is not None:
        model = inner
    return base_model_of(model)
