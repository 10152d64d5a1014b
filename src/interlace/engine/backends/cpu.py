"""Weights packed for oneDNN on the CPU: 1.5 to 2 times a plain product at the row counts of
decoding; and a Bridge block's decode step in as few operator calls as torch has.

A model of a family that flat.py knows is one function, with few products and few operators beside
them; another keeps its modules, whose linears are packed one by one. Packed copies are taken from
the model's weights when a call begins and taken anew when those have changed, because a trainer
samples from the very weights that it trains.

Axes: R rows, S positions, N tokens of a call, I inputs, O outputs, D hidden size, H query heads, G
key-value heads, C head dim.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from interlace import huge_pages
from interlace.coupling.base import Coupling
from interlace.coupling.bridge import BridgeBlock
from interlace.engine.backends.flat import (
    FlatBackend,
    Product,
    eps_of,
    flatten,
    joined_bias,
    normalised,
    why_not_flat,
)
from interlace.engine.backends.hf import Borrowed, Patch, Twin, can_have_twin, is_of_libraries
from interlace.engine.kv import fused_cpu
from interlace.errors import GenerationError
from interlace.rows import Owners, Rows


class CPUBackend(FlatBackend):
    """The portable backend on packed products: one function where the model's family is known, else
    a twin whose linears and blocks use them."""

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
        self._packed_host = self._flat = None
        if can_have_twin(self.model):
            twin = Twin(self.model)
            base: Any = twin.model.get_submodule(self._base_path)
            is_flat = why_not_flat(base) is None and _is_of_one_type(base)
            with self.packed.anew():
                twin.patch(self.packed.refresh(twin.model, blocks_only=is_flat))
                self._flat = flatten(base, self.packed.product) if is_flat else None
            self._packed_host = twin

    def _host_of_pass(self) -> Twin | Borrowed:
        return self._packed_host or super()._host_of_pass()


_PACKABLE = (torch.bfloat16, torch.float32)
# A plain fp32 product of fewer rows is a matrix-vector product, which is as fast without packing.
_FEWEST_FP32_ROWS = 4


@dataclass
class _Made:
    what: Any
    nbytes: int
    versions: list[tuple[int, int]]
    sums: list[Tensor]


class PackedWeights:
    """Packed copies of a model's weights, kept from call to call by name, and made anew when one of
    the weights has changed."""

    def __init__(self) -> None:
        self._made: dict[Hashable, _Made] = {}
        self._before: dict[Hashable, _Made] = {}
        self._new: list[huge_pages.Span] = []

    @property
    def nbytes(self) -> int:
        """What the copies take, in bytes."""
        return sum(made.nbytes for made in self._made.values())

    @contextmanager
    def anew(self) -> Iterator[None]:
        """Within this context all copies are asked for; others are let go."""
        self._before, self._made = self._made, {}
        try:
            yield
            if self._new:  # what was kept lies there already
                huge_pages.collapse(self._new)
        finally:
            self._before, self._new = {}, []

    def of(self, name: Hashable, weights: Sequence[Tensor], make: Callable[[], Any]) -> Any:
        """What `make` makes of these weights, or has made of them before."""
        versions, sums = [_version(w) for w in weights], [_sums(w) for w in weights]
        made = self._before.pop(name, None)
        is_first = made is None
        if made is not None and self._is_stale(made, versions, sums):
            made = None
        if made is None:
            nbytes = sum(w.numel() * w.element_size() for w in weights)
            made = _Made(make(), nbytes, versions, sums)
            # A copy made anew, as after each step of a trainer, does not live to pay for its move.
            if is_first:
                copies = [made.what] if isinstance(made.what, Tensor) else made.what.packed
                self._new += [*map(_span, copies), *((w.data_ptr(), w.nbytes) for w in weights)]
        self._made[name] = made
        return made.what

    def _is_stale(self, made: _Made, versions: list[tuple[int, int]], sums: list[Tensor]) -> bool:
        pairs = zip(made.sums, sums, strict=True) if made.versions == versions else None
        return pairs is None or not all(torch.equal(a, b) for a, b in pairs)

    def product(self, name: str, linears: Sequence[nn.Linear], norm: nn.Module | None) -> Product:
        """One product of linears and the norm before them."""
        norms = [] if norm is None else list(norm.parameters())
        weights = [p for linear in linears for p in linear.parameters()] + norms
        made: Product = self.of(name, weights, lambda: self._pack(linears, norm))
        return made

    def _pack(self, linears: Sequence[nn.Linear], norm: nn.Module | None) -> Product:
        return PackedProduct(linears, norm)

    def refresh(self, model: nn.Module, blocks_only: bool = False) -> list[Patch]:
        """Packed copies for the modules of `model`, or for its blocks alone, and what has them use
        those."""
        patches: list[Patch] = []
        for path, module in model.named_modules():
            names = _packable_weights(module)
            if not names or (blocks_only and not isinstance(module, Coupling)):
                continue
            if isinstance(module, Coupling) and _has_step(module):
                block: Any = module
                make = functools.partial(STEPS[module.kind], block)
                patches.append((module, "step", self.of(path, list(module.parameters()), make)))
                continue
            packed = {name: self._packed(path, module, name) for name in names}
            if isinstance(module, Coupling):
                patches += [(module, name, _PackedWeight.of(own)) for name, own in packed.items()]
            else:
                product = functools.partial(_product, packed[names[0]])
                patches.append((module, "forward", product))
        return patches

    def _packed(self, path: str, module: nn.Module, name: str) -> _Packed:
        weight: Tensor = getattr(module, name)
        bias: Tensor | None = getattr(module, "bias", None)
        reorder = torch.ops.mkldnn._reorder_linear_weight
        packed = self.of((path, name), [weight], lambda: reorder(weight.detach()))
        return _Packed(weight, bias, packed)


@dataclass
class _Packed:
    weight: Tensor
    bias: Tensor | None
    packed: Tensor


class PackedProduct(Product):
    """Linears of one input as one packed product, the weight of the norm before them folded into
    it."""

    def __init__(self, linears: Sequence[Any], norm: Any) -> None:
        weight = torch.cat([linear.weight.detach() for linear in linears])
        if norm is not None:
            weight = weight * norm.weight.detach()
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight)
        self._eps = None if norm is None else eps_of(norm)
        self._bias = joined_bias([n.weight for n in linears], [n.bias for n in linears])

    @property
    def packed(self) -> tuple[Tensor]:
        """The packed copy."""
        return (self._packed,)

    def __call__(
        self, x: Float[Tensor, "N I"], residual: Float[Tensor, "N O"] | None = None
    ) -> Float[Tensor, "N O"]:
        ops: Any = torch.ops.mkldnn
        if self._eps is not None:
            x = normalised(x, self._eps)
        out: Tensor
        if residual is None:
            out = ops._linear_pointwise(x, self._packed, self._bias, "none", [], "")
        else:
            out = ops._linear_pointwise.binary(x, residual, self._packed, self._bias, "add")
        return out


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
    elif type(module) is nn.Linear and _has_torchs_forward(module):
        names = ("weight",)
    else:
        return ()
    weight = getattr(module, names[0])
    plain = type(weight) in (nn.Parameter, Tensor) and weight.device.type == "cpu"
    return names if plain and weight.dtype in _PACKABLE else ()


def _has_torchs_forward(linear: nn.Linear) -> bool:
    return "forward" not in linear.__dict__ and is_of_libraries(nn.Linear.forward)


def _is_of_one_type(model: nn.Module) -> bool:
    types = {parameter.dtype for parameter in model.parameters()}
    return len(types) == 1 and types <= set(_PACKABLE)


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
    if not packed.is_mkldnn:
        return packed.data_ptr(), packed.nbytes
    return int(torch.ops.mkldnn.data_ptr(packed)), int(torch.ops.mkldnn._nbytes(packed))


def _product(packed: _Packed, x: Tensor) -> Tensor:
    if x.dtype == torch.float32 and x.numel() < _FEWEST_FP32_ROWS * x.shape[-1]:
        return F.linear(x, packed.weight, packed.bias)
    result: Any = torch.ops.mkldnn._linear_pointwise(x, packed.packed, packed.bias, "none", [], "")
    return result


class _PackedWeight(Tensor):
    """Stands in for a weight of a block: the same tensor, but `F.linear` takes the packed copy."""

    packed: _Packed

    @classmethod
    def of(cls, packed: _Packed) -> _PackedWeight:
        """That of a packed copy."""
        made = packed.weight.detach().as_subclass(cls)
        made.packed = packed
        return made

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is F.linear and not kwargs:
            x, weight = args
            return _product(weight.packed, x)
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


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
        self._eps = eps_of(block.norm)
        self._per_dim = 1 / block.norm.weight.shape[0]
        self._heads = [block.num_heads, block.num_kv_heads, block.num_kv_heads]
        self._scale = block.head_dim**-0.5

    @property
    def packed(self) -> tuple[Tensor, Tensor]:
        """The packed copies."""
        return self._qkv, self._o

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
