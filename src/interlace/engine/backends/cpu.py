"""Weights packed for oneDNN on the CPU: 1.5 to 2 times a plain product at the row counts of
decoding; and a Bridge block's decode step in as few operator calls as torch has.

Packed copies are taken from the model's weights when a call begins and taken anew when those have
changed, because a trainer samples from the very weights that it trains.

Axes: R rows, I inputs, O outputs, D hidden size, H query heads, G key-value heads, C head dim.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from interlace import huge_pages
from interlace.coupling.base import Coupling
from interlace.coupling.bridge import BridgeBlock
from interlace.engine.backends.hf import Borrowed, HFBackend, Patch, Twin, can_have_twin
from interlace.engine.kv import fused_cpu
from interlace.errors import GenerationError
from interlace.rows import Owners, Rows


class CPUBackend(HFBackend):
    """The portable backend on a twin whose linears and blocks use packed products."""

    name = "cpu"

    def __init__(self, model: nn.Module, prefill_chunk: int) -> None:
        super().__init__(model, prefill_chunk)
        reason = why_not_packed(self.base)
        if reason is not None:
            raise GenerationError(
                f"The cpu backend packs weights for oneDNN, and {reason}. Use backend='hf', or "
                "'auto', which chooses."
            )
        self.packed = PackedWeights()
        self._packed_host: Twin | None = None

    def refresh(self) -> None:
        super().refresh()
        self._packed_host = None
        if can_have_twin(self.model):
            twin = Twin(self.model)
            twin.patch(self.packed.refresh(twin.model))
            self._packed_host = twin

    def _host_of_pass(self) -> Twin | Borrowed:
        return self._packed_host or super()._host_of_pass()


_PACKABLE = (torch.bfloat16, torch.float32)
# A plain fp32 product of fewer rows is a matrix-vector product, which is as fast without packing.
_FEWEST_FP32_ROWS = 4


@dataclass
class _Packed:
    weight: Tensor
    bias: Tensor | None
    packed: Tensor
    version: tuple[int, int]
    sums: Tensor


@dataclass
class _Step:
    step: BridgeStep
    versions: list[tuple[int, int]]
    sums: list[Tensor]


class PackedWeights:
    """Packed copies of a model's linear weights, kept from call to call by their modules' paths."""

    def __init__(self) -> None:
        self._packed: dict[tuple[str, str], _Packed] = {}
        self._steps: dict[str, _Step] = {}

    @property
    def nbytes(self) -> int:
        """What the copies take, in bytes."""
        linears = sum(p.weight.numel() * p.weight.element_size() for p in self._packed.values())
        return linears + sum(s.step.nbytes for s in self._steps.values())

    def refresh(self, model: nn.Module) -> list[Patch]:
        """Compare every weight with the one that was packed, pack those that have changed, and
        return what has the modules of `model` use them."""
        fresh: dict[tuple[str, str], _Packed] = {}
        steps: dict[str, _Step] = {}
        patches: list[Patch] = []
        for path, module in model.named_modules():
            names = _packable_weights(module)
            if names and isinstance(module, Coupling) and _has_step(module):
                steps[path] = self._fresh_step(path, module)
                patches.append((module, "step", steps[path].step))
                continue
            for name in names:
                fresh[path, name] = self._fresh(path, module, name)
            if isinstance(module, Coupling) and names:
                products = {name: fresh[path, name] for name in names}
                patches.append((module, "_linear", functools.partial(_block_product, products)))
            elif names:
                product = functools.partial(_product, fresh[path, names[0]])
                patches.append((module, "forward", product))
        # What was kept lies there already.
        new = [p for key, p in fresh.items() if self._packed.get(key) is not p]
        copies = [packed.packed for packed in new]
        for path, step in steps.items():
            copies += step.step.packed if self._steps.get(path) is not step else ()
        weights = [packed.weight for packed in new]
        huge_pages.collapse([*map(_span, copies), *((w.data_ptr(), w.nbytes) for w in weights)])
        self._packed, self._steps = fresh, steps
        return patches

    def _fresh_step(self, path: str, block: Any) -> _Step:
        weights = list(block.parameters())
        versions = [_version(weight) for weight in weights]
        sums = [_sums(weight) for weight in weights]
        kept = self._steps.get(path)
        if (
            kept is not None
            and kept.versions == versions
            and all(map(torch.equal, kept.sums, sums))
        ):
            return kept
        return _Step(STEPS[block.kind](block), versions, sums)

    def _fresh(self, path: str, module: nn.Module, name: str) -> _Packed:
        weight: Tensor = getattr(module, name)
        bias: Tensor | None = getattr(module, "bias", None)
        version = _version(weight)
        sums = _sums(weight)
        kept = self._packed.get((path, name))
        if kept is not None and kept.version == version and torch.equal(kept.sums, sums):
            kept.weight, kept.bias = weight, bias
            return kept
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach())
        return _Packed(weight, bias, packed, version, sums)


def why_not_packed(model: nn.Module) -> str | None:
    """Why a model's weights cannot be packed: torch lacks the private operators that this needs, or
    weights are not on the CPU. None if they can."""
    operators = ("_reorder_linear_weight", "_linear_pointwise", "_nbytes", "data_ptr")
    if not torch.backends.mkldnn.is_available() or not all(
        hasattr(torch.ops.mkldnn, name) for name in operators
    ):
        return "this build of torch has no such operators"
    elsewhere = {p.device.type for p in model.parameters()} - {"cpu"}
    return f"weights lie on {', '.join(sorted(elsewhere))}" if elsewhere else None


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


def _has_step(block: Coupling) -> bool:
    return block.kind in STEPS and block.reads == "position"


def _version(weight: Tensor) -> tuple[int, int]:
    return weight.data_ptr(), 0 if weight.is_inference() else weight._version


def _sums(weight: Tensor) -> Tensor:
    """Sums of a weight's bits over rows and over columns: they show a change that bypassed torch's
    version counter, as one through `.data` does, of a single element too. They cost about as much
    as two decode steps read."""
    rows = weight.detach().contiguous().view(1 if weight.ndim == 1 else weight.shape[0], -1)
    size = rows.shape[1] * rows.element_size()
    words = next(t for t in (torch.int64, torch.int32, torch.int16) if size % t.itemsize == 0)
    bits = rows.view(words)
    return torch.cat([bits.sum(0), bits.sum(1)])


def _span(packed: Tensor) -> huge_pages.Span:
    """Where a packed copy lies."""
    return int(torch.ops.mkldnn.data_ptr(packed)), int(torch.ops.mkldnn._nbytes(packed))


def _product(packed: _Packed, x: Tensor) -> Tensor:
    if x.dtype == torch.float32 and x.numel() < _FEWEST_FP32_ROWS * x.shape[-1]:
        return F.linear(x, packed.weight, packed.bias)
    result: Any = torch.ops.mkldnn._linear_pointwise(x, packed.packed, packed.bias, "none", [], "")
    return result


def _block_product(products: dict[str, _Packed], x: Tensor, weight: str) -> Tensor:
    return _product(products[weight], x)


class BridgeStep:
    """Stands in for one Bridge block's `step`.

    At one token a row the block's arithmetic is nothing and its calls are everything. Here the
    norm's weight is folded into W_Q, W_K, W_V, its scale is applied after the product (one number a
    row commutes with it), and the residual is added by the last product. Otherwise it is
    `BridgeBlock.layer`.
    """

    def __init__(self, block: BridgeBlock) -> None:
        self._block = block
        norm = block.norm.weight.detach()
        folded = (block.qkv_weight.detach().float() * norm.float()).to(norm.dtype)
        self._qkv = torch.ops.mkldnn._reorder_linear_weight(folded)
        self._o = torch.ops.mkldnn._reorder_linear_weight(block.o_weight.detach())
        self._eps = torch.full((1,), float(block.norm.eps or 0), dtype=torch.float32)
        self._per_dim = 1 / block.norm.weight.shape[0]
        self._heads = [block.num_heads, block.num_kv_heads, block.num_kv_heads]
        self._scale = block.head_dim**-0.5

    @property
    def packed(self) -> tuple[Tensor, Tensor]:
        """The packed copies."""
        return self._qkv, self._o

    @property
    def nbytes(self) -> int:
        """What the packed copies take, in bytes."""
        weights = (self._block.qkv_weight, self._block.o_weight)
        return sum(w.numel() * w.element_size() for w in weights)

    def __call__(self, x: Float[Tensor, "R S D"], rows: Rows) -> Float[Tensor, "R S D"]:
        """X + Bridge(Norm(X)), as the block itself computes it where this is not a decode step."""
        if x.shape[1] != 1 or not isinstance(rows, Owners):
            return self._block.layer(x, rows)
        ops: Any = torch.ops.mkldnn
        length = torch.linalg.vector_norm(x, 2, -1, True, dtype=torch.float32)
        scale = torch.addcmul(self._eps, length, length, value=self._per_dim).rsqrt_()
        qkv = ops._linear_pointwise(x, self._qkv, None, "none", [], "").mul_(scale)
        heads = qkv.view(1, x.shape[0], -1, self._block.head_dim).transpose(1, 2)
        q, k, v = heads.split(self._heads, 1)
        mask = rows.additive_mask(x.dtype)
        mixed = fused_cpu(q, k, v, 0.0, False, attn_mask=mask, scale=self._scale)[0]
        mixed = mixed.transpose(1, 2).reshape(x.shape[0], 1, -1)
        result: Tensor = ops._linear_pointwise.binary(mixed, x, self._o, None, "add")
        return result


# The kinds whose decode step has a packed form.
STEPS = {BridgeBlock.kind: BridgeStep} if fused_cpu is not None else {}
