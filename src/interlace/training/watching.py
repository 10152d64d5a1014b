"""How much the blocks add to what goes through them, while a model trains."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from interlace.attaching import get_attachment, is_attached

WIDE = (torch.float32, torch.float64)


@contextlib.contextmanager
def watching_blocks(model: nn.Module, note: Callable[[float, float], None]) -> Iterator[None]:
    """Within this context the blocks of an attached model are watched; at its end `note` is given
    the mean over the blocks of the norm of what they add over the norm of their input, and a count
    of 1. Where no hook saw a block, as in the graph of a compiled model, both are 0: that can
    happen in one process and not in another, and all must note the same names.

    Args:
        model: the unwrapped model; without blocks nothing is noted.
        note: `Tally.mean` with its name; is called once.
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
