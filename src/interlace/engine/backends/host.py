"""The modules that a backend runs: a twin of the user's model, or the model itself for a moment.

A step needs the model in evaluation mode, with our attention, perhaps with packed products. The
user's model must never show it: another thread may train it, generate with it, or run an engine of
its own. So a twin is made: the same classes and the very same parameters, hooks and attributes in
module objects of our own, which takes a millisecond and no memory. What a trainer puts in place of
a parameter is seen at once, since the dictionaries of parameters and hooks are the same ones.

Where module objects cannot be told from the model (accelerate's dispatch, FSDP, a forward that was
replaced), the model itself is used, under a lock of its own, and put back after each pass.
"""

from __future__ import annotations

import copy
import functools
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import nn

from interlace.attached import SHARDED

Patch = tuple[nn.Module, str, Any]  # an attribute of a module, and what takes its place

_locks: weakref.WeakKeyDictionary[nn.Module, threading.RLock] = weakref.WeakKeyDictionary()
_locks_lock = threading.Lock()


class Twin:
    """Modules of our own with the model's weights, in evaluation mode."""

    def __init__(self, model: nn.Module) -> None:
        self.model = _twin_of(model)
        self._named = _implementations(self.model)

    def patch(self, patches: Sequence[Patch]) -> None:
        """Put attributes of the twin's modules in place, for good."""
        for module, attribute, value in patches:
            module.__dict__[attribute] = value

    @contextmanager
    def ready(self, attention: str | None) -> Iterator[None]:
        """For a pass with this attention implementation; None is the model's own."""
        for config, own in self._named:
            config._attn_implementation_internal = own if attention is None else attention
        yield


class Borrowed:
    """The model itself, changed during a pass only, and by one thread at a time."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._patches: Sequence[Patch] = ()
        self._undo: list[tuple[dict[str, Any], str, Any]] = []
        with _locks_lock:
            self._lock = _locks.setdefault(model, threading.RLock())

    def patch(self, patches: Sequence[Patch]) -> None:
        """Put attributes of the model's modules in place whenever it is used."""
        self._patches = patches

    @contextmanager
    def ready(self, attention: str | None) -> Iterator[None]:
        """For a pass with this attention implementation; None is the model's own."""
        with self._lock:
            try:
                for module in self.model.modules():
                    if module.training:
                        self._set(module, "training", False)
                for config, own in _implementations(self.model):
                    self._set(config, "_attn_implementation_internal", attention or own)
                for patch in self._patches:
                    self._set(*patch)
                yield
            finally:
                try:
                    self._restore()
                except BaseException:  # an interrupt in the middle of it: to the end all the same
                    self._restore()
                    raise

    def _set(self, owner: Any, name: str, value: Any) -> None:
        self._undo.append((owner.__dict__, name, owner.__dict__.get(name, _ABSENT)))
        owner.__dict__[name] = value

    def _restore(self) -> None:
        while self._undo:
            attributes, name, before = self._undo[-1]
            if before is _ABSENT:
                attributes.pop(name, None)
            else:
                attributes[name] = before
            self._undo.pop()


_ABSENT = object()


# Types of most attributes: what holds no module. Dictionaries are those of parameters and hooks.
_SHARED = frozenset((bool, int, float, str, type(None), dict, OrderedDict, set, torch.Tensor))


def host_of(model: nn.Module) -> Twin | Borrowed:
    """A twin of the model if it can have one, else the model itself."""
    return Twin(model) if can_have_twin(model) else Borrowed(model)


def can_have_twin(model: nn.Module) -> bool:
    """Whether module objects of our own would compute what the model computes."""
    return not any(map(_holds_itself, model.modules()))


def _holds_itself(module: nn.Module) -> bool:
    """Whether something outside the module's attributes acts on this very object."""
    if hasattr(module, "_hf_hook") or isinstance(module, torch.jit.ScriptModule):
        return True
    if any(cls.__name__ in SHARDED for cls in type(module).__mro__):
        return True
    # A method bound to the module can be bound to its twin, as accelerate's for mixed precision;
    # what else a replaced forward does, nobody can tell.
    forward = module.__dict__.get("forward")
    return forward is not None and getattr(forward, "__self__", None) is not module


def _twin_of(model: nn.Module) -> nn.Module:
    modules = list(model.modules())
    twins: dict[int, nn.Module] = {id(m): object.__new__(type(m)) for m in modules}
    configs: dict[int, Any] = {}  # deepcopy's memory: a configuration in two places stays one
    for module in modules:
        own = dict(module.__dict__)
        for name, value in module.__dict__.items():
            if type(value) not in _SHARED:
                own[name] = _with_twins(value, twins, configs)
        own["_modules"] = {
            name: None if child is None else twins[id(child)]
            for name, child in module._modules.items()
        }
        own["_buffers"] = dict(module._buffers)  # some rotary embeddings replace theirs
        for name in ("_forward_hooks", "_forward_pre_hooks"):
            if hooks := module.__dict__[name]:
                on_own = ((key, functools.partial(_on_own, module, hooks, key)) for key in hooks)
                own[name] = OrderedDict(on_own)
        own["training"] = False
        own["_compiled_call_impl"] = None  # which would call the model's own modules
        twins[id(module)].__dict__.update(own)
    return twins[id(model)]


def _on_own(module: nn.Module, hooks: dict[int, Any], key: int, twin: nn.Module, *args: Any) -> Any:
    """A user's hook, called with the user's module, as long as it is there."""
    return hooks[key](module, *args) if key in hooks else None


def _with_twins(value: Any, twins: dict[int, nn.Module], configs: dict[int, Any]) -> Any:
    """An attribute as the twin has it: modules and bound methods are the twins', configurations
    are copies, and all else is shared."""
    if isinstance(value, nn.Module):
        return twins.get(id(value), value)
    if isinstance(value, MethodType) and id(value.__self__) in twins:
        return MethodType(value.__func__, twins[id(value.__self__)])
    if isinstance(value, functools.partial):
        return functools.partial(
            _with_twins(value.func, twins, configs),
            *(_with_twins(v, twins, configs) for v in value.args),
            **{k: _with_twins(v, twins, configs) for k, v in value.keywords.items()},
        )
    if type(value) in (list, tuple) and any(isinstance(v, nn.Module) for v in value):
        return type(value)(_with_twins(v, twins, configs) for v in value)
    if hasattr(value, "_attn_implementation_internal"):
        return copy.deepcopy(value, configs)
    return value


def _implementations(model: nn.Module) -> list[tuple[Any, Any]]:
    """Every configuration that the modules read, with the attention that it names."""
    found = {id(c): c for m in model.modules() if (c := getattr(m, "config", None)) is not None}
    return [
        (config, config._attn_implementation_internal)
        for config in found.values()
        if hasattr(config, "_attn_implementation_internal")
    ]
