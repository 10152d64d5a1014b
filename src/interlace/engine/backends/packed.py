"""Weights packed for oneDNN on the CPU: 1.5 to 2 times a plain product at the row counts of
decoding.

Packed copies are taken from the model's weights when a call begins and taken anew when those have
changed, because a trainer samples from the very modules that it trains.

Axes: R rows, I inputs, O outputs.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from interlace.coupling.base import Coupling
from interlace.coupling.bridge import BridgeBlock
from interlace.engine.backends.bridge_step import BridgeStep
from interlace.engine.partial_attention import fused_cpu

_PACKABLE = (torch.bfloat16, torch.float32)
# The kinds whose decode step has a packed form, which stands in for `step`.
STEPS = {BridgeBlock.kind: BridgeStep} if fused_cpu is not None else {}
# A plain fp32 product of fewer rows is a matrix-vector product, which is as fast without packing.
_FEWEST_FP32_ROWS = 4


@dataclass
class _Packed:
    weight: Tensor
    bias: Tensor | None
    packed: Tensor
    version: tuple[int, int]
    samples: Tensor


@dataclass
class _Step:
    step: BridgeStep
    versions: list[tuple[int, int]]
    samples: list[Tensor]


class PackedWeights:
    """Packed copies of a model's linear weights: `refresh` makes stale ones anew, `active` uses
    them."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._packed: dict[tuple[int, str], _Packed] = {}
        self._steps: dict[int, _Step] = {}
        self._replacements: list[tuple[nn.Module, str, Any]] = []

    @property
    def nbytes(self) -> int:
        """What the copies take, in bytes."""
        linears = sum(p.weight.numel() * p.weight.element_size() for p in self._packed.values())
        return linears + sum(s.step.nbytes for s in self._steps.values())

    def refresh(self) -> None:
        """Compare every weight with the one that was packed, and pack those that have changed."""
        fresh: dict[tuple[int, str], _Packed] = {}
        steps: dict[int, _Step] = {}
        self._replacements = []
        for module in self._model.modules():
            names = _packable_weights(module)
            if names and isinstance(module, Coupling) and module.kind in STEPS:
                steps[id(module)] = self._fresh_step(module)
                self._replacements.append((module, "step", steps[id(module)].step))
                continue
            for name in names:
                fresh[id(module), name] = self._fresh(module, name)
            if isinstance(module, Coupling) and names:
                products = {name: fresh[id(module), name] for name in names}
                product = functools.partial(_block_product, products)
                self._replacements.append((module, "_linear", product))
            elif names:
                product = functools.partial(_product, fresh[id(module), names[0]])
                self._replacements.append((module, "forward", product))
        self._packed, self._steps = fresh, steps

    @contextmanager
    def active(self) -> Iterator[None]:
        """Within this context the model's linears use their packed weights."""
        try:
            for module, attribute, product in self._replacements:
                module.__dict__[attribute] = product
            yield
        finally:
            self.restore()

    def restore(self) -> None:
        """Have the linears use their own weights again."""
        for module, attribute, _ in self._replacements:
            module.__dict__.pop(attribute, None)

    def _fresh_step(self, block: Any) -> _Step:
        weights = list(block.parameters())
        versions = [_version(weight) for weight in weights]
        samples = [_samples(weight) for weight in weights]
        kept = self._steps.get(id(block))
        if (
            kept is not None
            and kept.versions == versions
            and all(map(torch.equal, kept.samples, samples))
        ):
            return kept
        return _Step(STEPS[block.kind](block), versions, samples)

    def _fresh(self, module: nn.Module, name: str) -> _Packed:
        weight: Tensor = getattr(module, name)
        bias: Tensor | None = getattr(module, "bias", None)
        version = _version(weight)
        samples = _samples(weight)
        kept = self._packed.get((id(module), name))
        if kept is not None and kept.version == version and torch.equal(kept.samples, samples):
            kept.weight, kept.bias = weight, bias
            return kept
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach())
        return _Packed(weight, bias, packed, version, samples)


def can_pack(model: nn.Module) -> bool:
    """Whether torch has the private operators that this needs, and the model is on the CPU."""
    return (
        torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and all(p.device.type == "cpu" for p in model.parameters())
    )


def _packable_weights(module: nn.Module) -> tuple[str, ...]:
    if isinstance(module, Coupling):
        if not module.PROJECTIONS:
            return ()
        names = module.PROJECTIONS
    elif type(module) is nn.Linear and "forward" not in module.__dict__:
        names = ("weight",)
    else:
        return ()
    weight = getattr(module, names[0])
    plain = type(weight) in (nn.Parameter, Tensor) and weight.device.type == "cpu"
    return names if plain and weight.dtype in _PACKABLE else ()


def _version(weight: Tensor) -> tuple[int, int]:
    return weight.data_ptr(), 0 if weight.is_inference() else weight._version


def _samples(weight: Tensor) -> Tensor:
    """Elements along diagonals, at least one of every row and column: they show a change that
    bypassed torch's version counter, as one through `.data` does."""
    if weight.ndim == 1:
        return weight.detach().clone()
    weight = weight.detach() if weight.shape[0] <= weight.shape[1] else weight.detach().t()
    return torch.cat([weight.diagonal(k) for k in range(0, weight.shape[1], weight.shape[0])])


def _product(packed: _Packed, x: Tensor) -> Tensor:
    if x.dtype == torch.float32 and x.numel() < _FEWEST_FP32_ROWS * x.shape[-1]:
        return F.linear(x, packed.weight, packed.bias)
    result: Any = torch.ops.mkldnn._linear_pointwise(x, packed.packed, packed.bias, "none", [], "")
    return result


def _block_product(products: dict[str, _Packed], x: Tensor, weight: str) -> Tensor:
    return _product(products[weight], x)
