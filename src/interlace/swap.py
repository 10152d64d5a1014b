"""Class swap: give a live module a subclass of its own class, and take it away again.

docs/decisions/0001-class-swap.md says why this and not hooks or wrappers.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from torch import nn

from interlace.rows import Rows


class Swapped:
    """Base of what is mixed into the class of a module, in front of that class."""

    # Methods shown with the signature of the class below: tools read it to learn what it takes.
    presented: ClassVar[tuple[str, ...]] = ()

    _interlace_base: ClassVar[Any]
    _interlace_mixin: ClassVar[Any]
    _interlace_kind: ClassVar[str]

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Copying and pickling name the base class, since the swapped one cannot be imported."""
        cls = type(self)
        if "_interlace_base" not in cls.__dict__:  # a subclass, as FSDP makes, has its own ways
            return super().__reduce_ex__(protocol)
        names = cls._interlace_mixin, cls._interlace_base, cls._interlace_kind
        return _revive, names, self.__getstate__()


def swap(module: nn.Module, mixin: Any, kind: str) -> None:
    """Put `mixin`, a subclass of `Swapped`, in front of the class of `module`, in place."""
    base: Any = type(module)
    with _without_accelerate_hook(module):
        module.__class__ = _class_with(mixin, base, kind)


def unswap(module: nn.Module) -> None:
    """Give `module` the class back that it had before `swap`."""
    swapped: Any = type(module)
    with _without_accelerate_hook(module):
        module.__class__ = swapped._interlace_base


@functools.cache
def _class_with(mixin: Any, base: Any, kind: str) -> Any:
    """A subclass of `base` with the mixin in front, under the very same name, so that
    `_no_split_modules`, FSDP wrap policies and Hugging Face's registries, which go by name, still
    match."""
    namespace: dict[str, Any] = {
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
        "_interlace_base": base,
        "_interlace_mixin": mixin,
        "_interlace_kind": kind,
    }
    for name in mixin.presented:
        if hasattr(base, name):
            namespace[name] = _presented_as(getattr(mixin, name), getattr(base, name))
    return type(base.__name__, (mixin, base), namespace)


def _presented_as(own: Any, original: Any) -> Any:
    """The method `own` under the name, docstring and signature of `original`, plus `groups` where
    `own` takes them."""

    @functools.wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return own(self, *args, **kwargs)

    if "groups" in inspect.signature(own).parameters:
        presented: Any = method
        presented.__signature__ = _with_groups(inspect.signature(original))
    return method


def _with_groups(signature: inspect.Signature) -> inspect.Signature:
    parameters = list(signature.parameters.values())
    groups = inspect.Parameter(
        "groups", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Rows | None
    )
    at = next((i for i, p in enumerate(parameters) if p.kind is p.VAR_KEYWORD), len(parameters))
    return signature.replace(parameters=[*parameters[:at], groups, *parameters[at:]])


@contextmanager
def _without_accelerate_hook(module: nn.Module) -> Iterator[None]:
    """Accelerate binds a module's forward when it dispatches the model, which would hide a swapped
    class."""
    hook = getattr(module, "_hf_hook", None)
    if hook is None:
        yield
        return
    old_forward = module.__dict__.pop("_old_forward", None)
    module.__dict__.pop("forward", None)
    del module._hf_hook
    yield
    if old_forward is not None:
        from accelerate.hooks import add_hook_to_module

        add_hook_to_module(module, hook)


def _revive(mixin: Any, base: Any, kind: str) -> Any:
    cls = _class_with(mixin, base, kind)
    return cls.__new__(cls)
