"""An attached model: what it carries and how to find that, what it and its layers run, and the
class swap that gives it to them: a live module gets a subclass of its own class, and has it taken
away again.

docs/decisions/0001-class-swap.md says why this and not hooks or wrappers.

Axes: R rows, S positions.
"""

from __future__ import annotations

import functools
import inspect
import threading
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from interlace.coupling.attention import serving
from interlace.coupling.base import AT_MODEL, WITHIN_ATTENTION, Coupling
from interlace.coupling.config import CouplingConfig
from interlace.coupling.registry import coupling_class
from interlace.errors import AttachError, GroupError
from interlace.generate_hf import GroupedGeneration
from interlace.rows import Groups, Owners, Rows
from interlace.save_pretrained import WholeSaving

# Base classes that FSDP2 mixes into a module, and that FSDP1 wraps one in.
SHARDED = ("FSDPModule", "FullyShardedDataParallel")

# The coupling of the pass in hand that computes rows in several streams.
_streaming: ContextVar[Coupling | None] = ContextVar("interlace_streaming", default=None)


class Handle:
    """What an attachment shares with its model and with every layer that carries a block.

    A copied model gets one of its own, on which nothing is switched off.

    Attributes:
        disabled: Number of `disabled()` contexts that are open.
    """

    def __init__(self, model: PreTrainedModel | None = None) -> None:
        self.disabled = 0
        self._lock = threading.Lock()
        # Weak: the model holds its attachment, and large models must go when they are let go.
        self._model = None if model is None else weakref.ref(model)

    def switch(self, by: int) -> None:
        """Open or close a context, from any thread."""
        with self._lock:
            self.disabled += by

    def follow(self, model: PreTrainedModel) -> None:
        """Belong to `model`, unless the one it belonged to is still there."""
        if self._model is None or self._model() is None:
            self._model = weakref.ref(model)

    @property
    def model(self) -> PreTrainedModel | None:
        """The model; None when it is gone."""
        return None if self._model is None else self._model()

    def __reduce__(self) -> tuple[Any, ...]:
        return Handle, ()  # for copies and pickles


@dataclass(frozen=True)
class Attachment:
    """What is attached to a model: the resolved configuration, and the paths of the layers that
    carry blocks."""

    config: CouplingConfig
    layer_names: tuple[str, ...]
    handle: Handle = field(default_factory=Handle, repr=False, compare=False)

    @functools.cached_property
    def coupling(self) -> type[Coupling]:
        """The class of the kind: what it does, and what it needs."""
        return coupling_class(self.config.kind)

    @property
    def block_names(self) -> list[str]:
        """Paths of the blocks in the model, the prefixes of every new parameter's name: those of
        layers in order, then that of the model as a whole."""
        kind = self.config.kind
        at_model = [kind] if set(self.coupling.seats) & set(AT_MODEL) else []
        return [*(f"{name}.{kind}" for name in self.layer_names), *at_model]

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Within this context the model is its base model, bit for bit: blocks are skipped.

        Forward passes, `generate` and engines go by it, in every thread that uses the model;
        `groups` are checked and have no effect. Contexts nest. A backward pass through gradient
        checkpoints computes layers again, so it belongs into the context, too.

        >>> import torch, interlace
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 32}
        >>> heads = {"num_hidden_layers": 2, "num_attention_heads": 2}
        >>> model = LlamaForCausalLM(LlamaConfig(**sizes, **heads))
        >>> attachment = interlace.attach(model, interlace.BridgeConfig(parameter_share=0.05))
        >>> with attachment.disabled():
        ...     logits = model(torch.tensor([[7, 5, 3]])).logits  # the base model's
        """
        self.handle.switch(1)
        try:
            yield
        finally:
            self.handle.switch(-1)

    def print_trainable_parameters(self) -> None:
        """Print how many parameters train and how many there are, as PEFT prints it.

        Raises:
            AttachError: if the model is gone.
        """
        model = self.handle.model
        if model is None:
            raise AttachError(
                "The model of this attachment is gone, so its parameters cannot be counted. Keep "
                "it for as long as the attachment is used."
            )
        trained, all_of_them = model.num_parameters(only_trainable=True), model.num_parameters()
        print(
            f"trainable params: {trained:,d} || all params: {all_of_them:,d} || "
            f"trainable%: {100 * trained / all_of_them:.4f}"
        )


def is_attached(model: nn.Module) -> bool:
    """Whether `model` carries blocks."""
    return hasattr(base_model_of(model), "interlace_attachment")


def get_attachment(model: nn.Module) -> Attachment:
    """What is attached to `model`.

    Raises:
        AttachError: if nothing is.
    """
    base = base_model_of(model)
    attachment = getattr(base, "interlace_attachment", None)
    if not isinstance(attachment, Attachment):
        raise AttachError(
            f"This {type(base).__name__} has no blocks; call interlace.attach(model, "
            "BridgeConfig())."
        )
    attachment.handle.follow(base)
    return attachment


def new_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The attached blocks' parameters with their names in the Hugging Face model: what a warm-up
    trains."""
    base = base_model_of(model)
    for block_name in get_attachment(base).block_names:
        for name, parameter in base.get_submodule(block_name).named_parameters():
            yield f"{block_name}.{name}", parameter


def not_finite(parameters: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Names of those that hold a NaN or an infinity; of a sharded weight this process's part
    counts.

    Attention that is computed in one kernel can swallow them: the outputs are finite, and wrong. So
    weights are looked at where they come from and once a rollout, rather than the outputs.
    """
    parts = ((name, getattr(value, "_local_tensor", value).detach()) for name, value in parameters)
    return [name for name, part in parts if not bool(torch.isfinite(part).all())]


def base_model_of(model: nn.Module) -> PreTrainedModel:
    """The Hugging Face model inside `model`, which may be one itself or a PEFT wrapper around one.

    Raises:
        AttachError: if there is none.
    """
    get_base_model = getattr(model, "get_base_model", None)
    inner = get_base_model() if callable(get_base_model) else model
    if not isinstance(inner, PreTrainedModel):
        raise AttachError(
            "Blocks attach to a Hugging Face causal language model (or PEFT's wrapper of one); got "
            f"{type(model).__name__}. Unwrap compiled or distributed models first, and attach "
            "before wrapping."
        )
    return inner


def unwrapped(model: nn.Module) -> nn.Module:
    """The Hugging Face model inside data-parallel and compile wrappers."""
    while (
        inner := getattr(model, "module", None) or getattr(model, "_orig_mod", None)
    ) is not None:
        model = inner
    return base_model_of(model)


# What they run -----------------------------------------------------------------------------------


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


class LayerWithBlock(Swapped, nn.Module):
    """Mixed into a decoder layer's class: the layer's own forward, then its block."""

    _interlace_handle: Any  # that of its `Attachment`

    def forward(self, *args: Any, groups: Rows | None = None, **kwargs: Any) -> Any:
        # `groups` goes no further: attention kernels must not see it.
        if self._interlace_handle.disabled:
            return super().forward(*args, **kwargs)
        if groups is None:
            groups = Groups(width=1)
        block: Any = self.get_submodule(self._interlace_kind)
        if not torch.compiler.is_compiling():
            groups._reached.append(id(block))
        if not set(block.seats) & set(WITHIN_ATTENTION):
            output = super().forward(*args, **kwargs)
        else:
            with serving(block, groups):
                output = super().forward(*args, **kwargs)
        if "layer" not in block.seats:
            return output
        hidden = output[0] if isinstance(output, tuple) else output
        if hidden.ndim != 3:
            raise AttachError(
                f"{type(self).__name__} passes hidden states of shape {list(hidden.shape)} on, not "
                f"[rows, positions, hidden size], so this architecture cannot carry blocks."
            )
        hidden = block(hidden, groups)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


class DecoderWithStreams(Swapped, nn.Module):
    """Mixed into a decoder's class: every row in several streams through all layers, and one after
    the last norm; where a pass of the model says so."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        base: Any = super()
        coupling = _streaming.get()
        if coupling is None:
            return base.forward(*args, **kwargs)
        count = _call_shape(args, kwargs)[0]
        # Rows see no siblings, and layers note in the same record that the pass came by.
        streams = Groups(width=1)
        streams._reached = kwargs.pop("groups")._reached
        spread = functools.partial(_spread, coupling, count)
        given = {name: spread(value) for name, value in kwargs.items() if name != "past_key_values"}
        output = base.forward(*map(spread, args), groups=streams, **(kwargs | given))
        if isinstance(output, tuple):
            return (coupling.together(output[0]), *output[1:])
        output.last_hidden_state = coupling.together(output.last_hidden_state)
        return output


class ModelWithBlocks(Swapped, GroupedGeneration, WholeSaving):
    """Mixed into the model's class: checks the groups of a call, and that the call reached every
    block."""

    presented = ("forward", "prepare_inputs_for_generation")
    interlace_attachment: Any  # an `Attachment`

    def forward(self, *args: Any, groups: Rows | None = None, **kwargs: Any) -> Any:
        if groups is None:
            groups = Groups(width=1)
        elif not isinstance(groups, Rows):
            raise GroupError(
                "groups is an interlace.Groups, such as Groups(width=8); got "
                f"{type(groups).__name__}."
            )
        rows, positions = _call_shape(args, kwargs)
        groups.check(rows, positions)
        if self.interlace_attachment.config.reads != "position":
            _check_reach(groups, positions, kwargs.get("past_key_values"))
        if self.interlace_attachment.handle.disabled:
            base: Any = super()
            return base.forward(*args, **kwargs)
        if torch.compiler.is_compiling():
            return self._through_seats(groups, args, kwargs)
        watched = groups.watched()
        output = self._through_seats(watched, args, kwargs)
        expected = len(self.interlace_attachment.layer_names) + (self._own_coupling is not None)
        if len(set(watched._reached)) < expected:
            _check_reached(self, watched)
        return output

    @property
    def _own_coupling(self) -> Any:
        """The coupling that stands at the model as a whole; None for kinds that do not."""
        model: Any = self
        return model._modules.get(self._interlace_kind)

    def _through_seats(self, rows: Rows, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The base model's forward, with the seats of the model as a whole before and after."""
        base: Any = super()
        coupling = self._own_coupling
        if coupling is None:
            return base.forward(*args, groups=rows, **kwargs)
        if not torch.compiler.is_compiling():
            rows._reached.append(id(coupling))
        if "input" in coupling.seats:
            args, kwargs = _fed(self, coupling, rows, args, kwargs)
        if "streams" in coupling.seats:
            token = _streaming.set(coupling)
            try:
                return base.forward(*args, groups=rows, **kwargs)
            finally:
                _streaming.reset(token)
        if "head" not in coupling.seats:
            return base.forward(*args, groups=rows, **kwargs)
        positions = _call_shape(args, kwargs)[1]
        return _headed(coupling, rows, positions, base.forward(*args, groups=rows, **kwargs))


def _spread(coupling: Coupling, count: int, value: Any) -> Any:
    """A decoder's argument for all streams, if it has one entry for each of the `count` rows."""
    if isinstance(value, dict):
        return {name: _spread(coupling, count, part) for name, part in value.items()}
    is_of_rows = isinstance(value, Tensor) and value.ndim > 1 and value.shape[0] == count
    return coupling.spread(value) if is_of_rows else value


def _call_shape(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, int]:
    """Rows and positions of a forward call, from its input ids or embeddings."""
    tokens = args[0] if args else kwargs.get("input_ids")
    if tokens is None:
        tokens = kwargs.get("inputs_embeds")
    if not isinstance(tokens, Tensor):
        raise GroupError(
            "The forward call has neither input_ids nor inputs_embeds, so its rows cannot be "
            "counted."
        )
    return tokens.shape[0], tokens.shape[1]


def _check_reach(groups: Rows, positions: int, cache: Any) -> None:
    """Refuse a pass with Hugging Face's cache in which rows would read what nobody has kept.

    Raises:
        GroupError: unless rows have no siblings, or no column belongs to a completion.
    """
    if not isinstance(groups, Groups) or groups.width == 1 or groups.continues:
        return
    start = groups.completion_start
    if (
        cache is None
        or not cache.get_seq_length()
        or (start is not None and positions <= min(start))
    ):
        return
    raise GroupError(
        "These blocks read what siblings wrote at earlier positions, which a pass with Hugging "
        "Face's cache does not give them. Pass whole sequences with use_cache=False; "
        "model.generate and Engine keep it."
    )


def _fed(
    model: Any, coupling: Coupling, rows: Rows, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a forward call with the input seat's embeddings in place of the tokens."""
    kwargs = dict(kwargs)
    tokens = args[0] if args else kwargs.pop("input_ids", None)
    embeddings = kwargs.pop("inputs_embeds", None)
    if embeddings is None:
        embeddings = model.get_input_embeddings()(tokens)
    form = coupling.input_step if isinstance(rows, Owners) else coupling.input
    return (None, *args[1:])[: len(args)], kwargs | {"inputs_embeds": form(embeddings, rows)}


def _headed(coupling: Coupling, rows: Rows, positions: int, output: Any) -> Any:
    """The output of a forward call with the head seat's logits.

    Raises:
        GroupError: if the base model has made a loss of its own logits, or logits of positions that
            cannot be told.
    """
    if getattr(output, "loss", None) is not None:
        raise GroupError(
            f"With labels the base model computes a loss of its own logits, before "
            f"{coupling.kind} changes them. Leave labels out and compute the loss of the logits."
        )
    logits = output[0] if isinstance(output, tuple) else output.logits
    kept = rows.columns(positions - logits.shape[1], None)
    changed = coupling.head(logits, kept)
    if isinstance(output, tuple):
        return (changed, *output[1:])
    output.logits = changed
    return output


def _check_reached(model: PreTrainedModel, watched: Rows) -> None:
    """Raise if a forward pass went by an eager block."""
    reached = set(watched._reached)
    names = model.interlace_attachment.block_names
    modules = dict(model.named_modules())  # which may lack a block, with its layer
    missed = [name for name in names if id(modules.get(name)) not in reached]
    compiled = any(
        m._compiled_call_impl is not None or type(m).__name__ == "OptimizedModule"
        for m in model.modules()
    )
    if missed and not compiled:  # a compiled layer leaves no trace of its pass
        raise AttachError(
            f"The forward pass of {type(model).__name__} did not reach {len(missed)} of its "
            f"{len(names)} blocks, first {missed[0]}: its layers were skipped or replaced, or "
            "do not get the `groups` argument. Results would silently miss the blocks; detach them "
            "or restore the layers."
        )


# The swap ----------------------------------------------------------------------------------------


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
