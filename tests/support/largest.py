"""How large the tensors get that a piece of code makes."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operator makes.

    Args:
        last_axis: Size of the last axis of those that are looked at; None for all.
    """

    def __init__(self, last_axis: int | None = None) -> None:
        super().__init__()
        self.elements, self._last_axis = 0, last_axis

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple) else (out,):
            if isinstance(tensor, torch.Tensor) and self._counts(tensor):
                self.elements = max(self.elements, tensor.numel())
        return out

    def _counts(self, tensor: torch.Tensor) -> bool:
        return self._last_axis is None or (tensor.ndim > 0 and tensor.shape[-1] == self._last_axis)
