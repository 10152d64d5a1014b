"""A decode step in one call of compiled code: native.cpp, built by the system's compiler when it is
first asked for, for the very processor, and kept in a folder of the user's.

Axes: R live rows, N tokens of a call, I inputs, O outputs, D hidden size, C head dim, V vocabulary.

Weights, keys and values, embedding and rotary positions are those of the cpu backend, and so is the
rule by which packed weights follow a trainer. A prompt goes through the same function as there,
its products by the compiled code, so that weights are packed once. What the code does not
know goes through the cpu backend, and `report` says so.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from ctypes import POINTER, Structure, c_char_p, c_float, c_int32, c_int64, c_void_p
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from interlace.coupling.base import Coupling
from interlace.coupling.bridge import BridgeBlock
from interlace.engine.backends.cpu import CPUBackend, PackedWeights
from interlace.engine.backends.flat import (
    FlatLayer,
    FlatModel,
    Product,
    joined_bias,
    number_eps,
    why_not_flat,
)
from interlace.engine.backends.hf import Borrowed, Patch, Twin
from interlace.engine.kv import Slot, Store
from interlace.engine.sampling import Sampled, has_filters
from interlace.engine.types import SamplingParams

log = logging.getLogger("interlace.engine")

SWITCH = "INTERLACE_NATIVE"  # "1": backend="auto" chooses it where it can
_FLAGS = "INTERLACE_NATIVE_FLAGS"  # further flags for the compiler
_SOURCE = Path(__file__).with_name("native.cpp")
_COMPILERS = ("g++", "clang++", "c++")
_LANES = 16  # outputs of a block of weights
_CHUNK = 32  # rows that read their prompt together, on one thread
_SHORTEST = 8  # of several threads
_MOST_DIM = 512  # of a head
_STILL_ROTARY = ("default", "linear", "llama3", "yarn")  # no length changes their frequencies
_TURNS = 256  # positions by which their table grows
_SECONDS = 300  # for a compiler


# The compiled code --------------------------------------------------------------------------------


@functools.cache
def library() -> ctypes.CDLL | str:
    """The compiled code, or why there is none."""
    try:
        flags = os.environ.get(_FLAGS, "").split()
        return _declared(ctypes.CDLL(str(build(flags))))
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)


def build(flags: Sequence[str] = (), folder: Path | None = None) -> Path:
    """The code compiled for this processor, with further `flags`, from the folder where it was left
    before; by default the user's.

    Raises:
        OSError: if there is no compiler, or it fails.
    """
    own = os.environ.get("CXX")
    names = [own, *_COMPILERS] if own else _COMPILERS
    compilers = [found for name in names if (found := shutil.which(name))]
    if not compilers:
        raise FileNotFoundError(f"no compiler: none of $CXX, {', '.join(_COMPILERS)}")
    openmp = sorted(map(str, Path(torch.__file__).parent.glob("lib/libgomp*")))  # one for both
    command = [
        *(compilers[0], "-std=c++17", "-O3", "-march=native", "-fopenmp", "-fPIC", "-shared"),
        *("-Wno-psabi", *flags, str(_SOURCE), *openmp, "-Wl,--as-needed"),
    ]
    digest = hashlib.sha256(_SOURCE.read_bytes() + repr((command, _processor())).encode())
    if folder is None:
        from interlace.models.gguf import cache_folder

        folder = cache_folder() / "native"
    target = folder / f"{digest.hexdigest()[:24]}.so"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as work:
            made = Path(work) / "made.so"
            _run([*command, "-o", str(made)])
            made.replace(target)
    return target


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    if done.returncode:
        first = (done.stderr.strip().splitlines() or ["no message"])[0]
        raise OSError(f"{command[0]} failed: {first}")


def _processor() -> str:
    """What the compiler's -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return f"{platform.machine()} {platform.processor()}"


def _declared(lib: ctypes.CDLL) -> ctypes.CDLL:
    lib.interlace_decode.argtypes = [c_void_p, c_void_p]
    lib.interlace_apply.argtypes = [c_void_p] * 4 + [c_int64, c_int32, c_int32]
    lib.interlace_draw.argtypes = [c_void_p]
    lib.interlace_features.restype = c_char_p
    for name in ("interlace_decode", "interlace_apply"):
        getattr(lib, name).restype = None
    return lib


class _Product(Structure):
    _fields_ = [
        *((name, c_void_p) for name in ("weight", "bias", "norm")),
        *(("eps", c_float), ("inputs", c_int32), ("parts", c_int32), ("outputs", c_int32 * 3)),
    ]


class _Block(Structure):
    _fields_ = [
        *((name, _Product) for name in ("qkv", "output")),
        *((name, c_int32) for name in ("heads", "kv_heads", "dim")),
    ]


class _Layer(Structure):
    _fields_ = [
        *((name, _Product) for name in ("qkv", "output", "gate_up", "down")),
        *((name, c_void_p) for name in ("head_norms", "head_eps")),
        ("scale", c_float),
        *((name, c_int32) for name in ("heads", "kv_heads", "dim", "window")),
        ("block", POINTER(_Block)),
    ]


class _Model(Structure):
    _fields_ = [
        *(("layers", POINTER(_Layer)), ("head", _Product)),
        *((name, c_int32) for name in ("count", "is_bf16")),
    ]


class _Store(Structure):
    _fields_ = [
        ("data", c_void_p),
        *((name, c_int64) for name in ("next_half", "next_place", "next_head")),
    ]


class _Step(Structure):
    _fields_ = [
        *((name, c_int32) for name in ("rows", "threads", "has_blocks")),
        *((name, c_void_p) for name in ("x", "cos", "sin")),
        *((name, _Store) for name in ("own", "shared")),
        *((name, c_void_p) for name in ("lengths", "prompts", "prompt_lengths", "turns")),
        *((name, c_void_p) for name in ("chunks", "order")),
        *((name, c_int32) for name in ("chunk_count", "set_count")),
        *((name, c_void_p) for name in ("readers", "read", "reader_rows", "read_rows")),
        *((name, c_void_p) for name in ("skips", "logits")),
    ]


class _Draws(Structure):
    _fields_ = [
        *(("logits", c_void_p), ("next", c_int64)),
        *((name, c_int32) for name in ("rows", "vocabulary", "forbidden_count", "threads")),
        *(("forbidden", c_void_p), ("uniform", c_void_p), ("temperature", c_float)),
        *((name, c_void_p) for name in ("tokens", "logprobs", "sampled_logprobs")),
    ]


# Weights ------------------------------------------------------------------------------------------


class NativeProduct(Product):
    """Linears of one input in blocks of 16 outputs, and the norm before them."""

    def __init__(
        self, weights: Sequence[Tensor], biases: Sequence[Tensor | None], norm: Any
    ) -> None:
        self._weight = torch.cat([_packed(weight.detach()).flatten() for weight in weights])
        self._type = weights[0].dtype
        bias = joined_bias(weights, biases)
        self._bias = None if bias is None else bias.float()
        self._norm = None if norm is None else norm.weight.detach().float()
        self.outputs = sum(len(weight) for weight in weights)
        self.c = _Product(
            *(_pointer(t) for t in (self._weight, self._bias, self._norm)),
            0.0 if norm is None else number_eps(norm),
            weights[0].shape[1],
            len(weights),
            (c_int32 * 3)(*map(len, weights)),
        )

    @property
    def packed(self) -> tuple[Tensor]:
        """The packed copy."""
        return (self._weight,)

    def __call__(
        self, x: Float[Tensor, "N I"], residual: Float[Tensor, "N O"] | None = None
    ) -> Float[Tensor, "N O"]:
        out = x.new_empty(len(x), self.outputs)
        lib: Any = library()
        x, residual = x.contiguous(), None if residual is None else residual.contiguous()
        places = _pointer(x), _pointer(residual), _pointer(out)
        is_bf16, threads = self._type == torch.bfloat16, torch.get_num_threads()
        lib.interlace_apply(ctypes.byref(self.c), *places, len(x), is_bf16, threads)
        return out


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _packed(weight: Float[Tensor, "O I"]) -> Tensor:
    """`[O/16, K, 16]` words of 32 bits, filled up with zeros."""
    outputs, inputs = weight.shape
    odd = inputs % (4 // weight.element_size())
    padded = F.pad(weight, (0, odd, 0, -outputs % _LANES)).contiguous()
    return padded.view(torch.int32).unflatten(0, (-1, _LANES)).transpose(1, 2).contiguous()


class NativeWeights(PackedWeights):
    """Packed copies for the compiled code.

    Attributes:
        blocks: Products of each Bridge block.
    """

    blocks: dict[nn.Module, tuple[NativeProduct, NativeProduct]]

    def _pack(self, linears: Sequence[nn.Linear], norm: nn.Module | None) -> Product:
        return NativeProduct([n.weight for n in linears], [n.bias for n in linears], norm)

    def refresh(self, model: nn.Module, blocks_only: bool = False) -> list[Patch]:
        if not blocks_only:
            return super().refresh(model)
        blocks = ((name, m) for name, m in model.named_modules() if isinstance(m, BridgeBlock))
        self.blocks = {block: self._block(name, block) for name, block in blocks}
        return []

    def _block(self, name: str, block: BridgeBlock) -> tuple[NativeProduct, NativeProduct]:
        sizes, norm = [block.q_size, block.kv_size, block.kv_size], block.norm
        qkv: NativeProduct = self.of(
            (name, "qkv"),
            [block.qkv_weight, norm.weight],
            lambda: NativeProduct(block.qkv_weight.split(sizes), [None] * 3, norm),
        )
        output: NativeProduct = self.of(
            (name, "o"), [block.o_weight], lambda: NativeProduct([block.o_weight], [None], None)
        )
        return qkv, output


class NativeModel:
    """What the compiled code is told of a flat model, whose products are those of `weights`."""

    def __init__(self, flat: FlatModel, weights: NativeWeights) -> None:
        self.flat = flat
        self._kept: list[Any] = []  # what the pointers point to
        self._table: tuple[Tensor, Tensor] | None = None  # of all positions so far
        layers = (_Layer * len(flat.layers))(*(self._layer(one, weights) for one in flat.layers))
        self._kept.append(layers)
        head: Any = flat.head
        self.vocabulary = head.outputs
        is_bf16 = flat.embedding.weight.dtype == torch.bfloat16
        self.c = _Model(layers, head.c, len(layers), is_bf16)

    def turns(
        self, x: Float[Tensor, "R D"], positions: Int[Tensor, " R"], numbers: list[int]
    ) -> tuple[Tensor, Tensor, list[int]]:
        """Cosines and sines, and each row's place among them: those of all positions, made once,
        where no row's length changes them."""
        if getattr(self.flat.rotary, "rope_type", None) not in _STILL_ROTARY:
            cos, sin = self.flat.turns(x, positions[:, None])
            return cos.contiguous(), sin.contiguous(), list(range(len(numbers)))
        if self._table is None or max(numbers) >= len(self._table[0]):
            size = -(-2 * max(numbers) // _TURNS) * _TURNS
            cos, sin = self.flat.turns(x, torch.arange(max(size, _TURNS))[:, None])
            self._table = cos.contiguous(), sin.contiguous()
        return *self._table, numbers

    def _layer(self, layer: FlatLayer, weights: NativeWeights) -> _Layer:
        products: Any = (layer.qkv, layer.output, layer.gate_up, layer.down)
        norms: list[Tensor | None] = [None, None]
        if layer.head_norms is not None:
            norms = [norm.float().contiguous() for norm in layer.head_norms]
            self._kept.append(norms)
        heads, kv_heads = layer.heads
        dim = products[0].outputs // (heads + 2 * kv_heads)
        return _Layer(
            *(product.c for product in products),
            *map(_pointer, norms),
            layer.scale,
            *(heads, kv_heads, dim, layer.window),
            self._block(layer, weights),
        )

    def _block(self, layer: FlatLayer, weights: NativeWeights) -> Any:
        if layer.block is None:
            return None
        block: Any = layer.block
        products = weights.blocks[block]
        made = _Block(*(p.c for p in products), block.num_heads, block.num_kv_heads, block.head_dim)
        self._kept += [*products, made]
        return ctypes.pointer(made)


# The backend --------------------------------------------------------------------------------------


class NativeBackend(CPUBackend):
    """The cpu backend with steps in compiled code, as far as that knows the model and its blocks.

    Attributes:
        reason: Why steps go through the cpu backend; None where they do not.
    """

    name = "native"
    reason: str | None = None

    def refresh(self) -> None:
        reason = why_not_native(self.base)
        kind = PackedWeights if reason else NativeWeights
        if type(self.packed) is not kind:
            self.packed = kind()
        super().refresh()
        if reason is None and self._flat is None:
            reason = why_not_flat(self.base) or "its weights are of several types"
        self._native = None
        if reason is None:
            assert self._flat is not None
            assert isinstance(self.packed, NativeWeights)
            self._native = NativeModel(self._flat, self.packed)
        self.reason = reason
        _note(reason)

    def _compute_step(
        self, host: Twin | Borrowed, ids: Int[Tensor, " R"], positions: Int[Tensor, " R"]
    ) -> Float[Tensor, "R V"]:
        stores = self._cache.stores()
        if self._native is None or stores is None or self._seen is not None:
            return super()._compute_step(host, ids, positions)
        flat = self._native.flat
        x = flat.embedding(ids).float()
        cos, sin, turns = self._native.turns(x, positions, self._cache.positions)
        logits = x.new_empty(len(ids), self._native.vocabulary)
        rows, has_blocks, skips = self._cache.rows, self._attachment is not None, None
        if self._attachment is not None:
            assert self._owners is not None
            alone = self._attachment.config.skips_alone and self._owners.alone()
            has_blocks = alone is not True and not self._attachment.handle.disabled
            skips = alone if isinstance(alone, Tensor) else None
        chunks, order = _chunks([row.prompt.place for row in rows], torch.get_num_threads())
        readers, read = _sets(rows) if has_blocks else ([], [])
        lists = [
            [row.length for row in rows],
            [row.prompt.place for row in rows],
            [row.prompt.length for row in rows],
            turns,
            *(chunks, order, _offsets(readers), _offsets(read), *map(_joined, (readers, read))),
        ]
        numbers = (c_int32 * sum(map(len, lists)))(*chain.from_iterable(lists))
        places = [ctypes.addressof(numbers) + 4 * place for place in _offsets(lists)]
        step = _Step(
            *(len(rows), torch.get_num_threads(), has_blocks),
            *map(_pointer, (x, cos, sin)),
            *map(_store, stores),
            *places[:6],
            *(len(chunks) - 1, len(readers)),
            *places[6:10],
            *map(_pointer, (skips, logits)),
        )
        lib: Any = library()
        lib.interlace_decode(ctypes.byref(self._native.c), ctypes.byref(step))
        return logits

    def sample(
        self,
        logits: Float[Tensor, "R V"],
        uniform: Float[np.ndarray, " R"],
        params: SamplingParams,
        forbidden: Int[Tensor, " N"],
        histories: Sequence[Sequence[int]] | None = None,
    ) -> Sampled:
        is_plain = histories is None and not has_filters(params) and not params.top_logprobs
        if is_plain and params.temperature > 0 and logits.dtype == torch.float32:
            drawn = draw(logits, uniform, params.temperature, forbidden)
            if drawn is not None:
                return drawn
        return super().sample(logits, uniform, params, forbidden, histories)


def draw(
    logits: Float[Tensor, "R V"],
    uniform: Float[np.ndarray, " R"],
    temperature: float,
    forbidden: Int[Tensor, " N"],
) -> Sampled | None:
    """What `sampling.sample` gives without filters; None if there is no compiled code, a row's
    logits are not numbers, or nothing is left of a row.

    A row's numbers depend on no other row. Sums are finer than the portable ones, so that a token
    is another only where a uniform lies within rounding of two tokens' border.
    """
    lib = library()
    if isinstance(lib, str) or logits.stride(1) != 1:
        return None
    rows, vocabulary = logits.shape
    tokens = torch.empty(rows, dtype=torch.long)
    logprobs, sampled_logprobs = torch.empty(rows), torch.empty(rows)
    uniforms = torch.as_tensor(uniform)
    draws = _Draws(
        *(logits.data_ptr(), logits.stride(0)),
        *(rows, vocabulary, len(forbidden), torch.get_num_threads()),
        *(forbidden.data_ptr(), uniforms.data_ptr(), temperature),
        *map(_pointer, (tokens, logprobs, sampled_logprobs)),
    )
    if lib.interlace_draw(ctypes.byref(draws)):
        return None
    return Sampled(tokens, logprobs, sampled_logprobs)


def why_not_native(base: nn.Module) -> str | None:
    """Why the compiled code does not compute a model's steps: there is none, or it does not know
    the model's blocks. None if it may."""
    lib = library()
    if isinstance(lib, str):
        return lib
    for module in base.modules():
        if isinstance(module, Coupling) and not isinstance(module, BridgeBlock):
            return f"it has no {module.title} blocks"
        if isinstance(module, BridgeBlock) and module.reads != "position":
            return f"its blocks do not read {module.reads}"
        if getattr(module, "head_dim", 0) > _MOST_DIM:
            return f"a head has more than {_MOST_DIM} numbers"
    return None


_noted: list[str] = []


def _note(reason: str | None) -> None:
    if reason is None:
        lib: Any = library()
        line = f"decode steps: compiled code for {lib.interlace_features().decode()}"
    else:
        line = f"decode steps: cpu backend, not compiled code: {reason}"
    if line not in _noted:
        _noted.append(line)
        log.info(line)


def report() -> list[str]:
    """What computed decode steps in this process, in lines."""
    return list(_noted)


def _store(store: Store) -> _Store:
    data = store.data
    return _Store(data.data_ptr(), *(data.stride(axis) for axis in range(3)))


def _chunks(prompts: Sequence[int], threads: int) -> tuple[list[int], list[int]]:
    """Rows in the order of their prompts, and where a part of it begins that reads its prompt
    together: the longer, the less work, the shorter, the more threads have some."""
    longest = max(_CHUNK // threads, _SHORTEST)
    order = sorted(range(len(prompts)), key=prompts.__getitem__)
    starts = [0]
    for place in range(1, len(order)):
        is_same = prompts[order[place]] == prompts[order[place - 1]]
        if not is_same or place - starts[-1] == longest:
            starts.append(place)
    return [*starts, len(order)], order


def _sets(rows: Sequence[Slot]) -> tuple[list[list[int]], list[list[int]]]:
    """Rows that see the same rows, and those that they see, by their places."""
    groups: dict[int, list[Slot]] = {}
    for row in rows:
        groups.setdefault(row.owner, []).append(row)
    seen: dict[tuple[int, ...], list[int]] = {}
    for group in groups.values():
        places = tuple(row.place for row in group)
        for row in group:
            visible = places
            if row.unseen:
                visible = tuple(other.place for other in group if other not in row.unseen)
            seen.setdefault(visible, []).append(row.place)
    return list(seen.values()), [list(places) for places in seen]


def _offsets(lists: Sequence[Sequence[int]]) -> list[int]:
    return [0, *accumulate(map(len, lists))]


def _joined(lists: Sequence[Sequence[int]]) -> list[int]:
    return list(chain.from_iterable(lists))
