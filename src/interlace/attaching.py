"""Attach a coupling to a loaded Hugging Face model, in place, and take it off again.

Each decoder layer that carries a block gets a child under the kind's name and a dynamic subclass of
its own class, whose forward calls the original and then the block; the model gets a subclass that
checks groups, serves `generate`, and carries the seats of the model as a whole. Why a class swap
and not hooks or wrappers: docs/decisions/0001-class-swap.md.

Axes: R rows, S positions.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from interlace.attachment import Attachment as Attachment
from interlace.attachment import Handle
from interlace.coupling.attention import serving, use_coupled_attention, use_own_attention
from interlace.coupling.base import Coupling, places
from interlace.coupling.config import CouplingConfig
from interlace.coupling.registry import coupling_class
from interlace.errors import AttachError, GroupError, UnreachedBlockError
from interlace.generate_hf import GroupedGeneration, forget_groups
from interlace.layers import (
    Decoder,
    base_model_of,
    block_device,
    block_dtype,
    check_whole,
    find_decoder,
)
from interlace.rows import Groups, Owners, Rows
from interlace.save_pretrained import WholeSaving, warn_of_adapters
from interlace.swap import Swapped, swap, unswap

SHARE_WARNING = 0.10


class LayerWithBlock(Swapped, nn.Module):
    """Mixed into a decoder layer's class: the layer's own forward, then its block."""

    _interlace_handle: Handle

    def forward(self, *args: Any, groups: Rows | None = None, **kwargs: Any) -> Any:
        # `groups` goes no further: attention kernels must not see it.
        if self._interlace_handle.disabled:
            return super().forward(*args, **kwargs)
        if groups is None:
            groups = Groups(width=1)
        block: Any = self.get_submodule(self._interlace_kind)
        if not torch.compiler.is_compiling():
            groups._reached.append(id(block))
        if "attention" not in block.seats:
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


class ModelWithBlocks(Swapped, GroupedGeneration, WholeSaving):
    """Mixed into the model's class: checks the groups of a call, and that the call reached every
    block."""

    presented = ("forward", "prepare_inputs_for_generation")
    interlace_attachment: Attachment

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
        if "head" not in coupling.seats:
            return base.forward(*args, groups=rows, **kwargs)
        positions = _call_shape(args, kwargs)[1]
        return _headed(coupling, rows, positions, base.forward(*args, groups=rows, **kwargs))


def attach(model: nn.Module, config: CouplingConfig, *, seed: int | None = None) -> Attachment:
    """Add fresh blocks to `model` in place; until trained they change nothing (W_O is zero).
    Equation (10).

    Args:
        model: Model to attach to: a loaded Hugging Face causal language model, or PEFT's wrapper.
        config: Configuration of the kind, such as `BridgeConfig` or `PMatchConfig`.
        seed: Seed of the new weights alone; without it they come from torch's global generator.

    Returns:
        What was attached, with the dimensions resolved.

    Raises:
        AttachError: if the model has blocks already, or its architecture cannot carry them.
        ConfigError: if the configuration names layers that the model lacks.
    """
    if not isinstance(config, CouplingConfig):
        raise AttachError(
            f"config is a BridgeConfig or a PMatchConfig; got {type(config).__name__}."
        )
    base = base_model_of(model)
    if is_attached(base):
        raise AttachError(
            f"This {type(base).__name__} has {base.interlace_attachment.config.kind} blocks "
            "already; call interlace.detach(model) first."
        )
    decoder = find_decoder(base)
    base_parameters = count_parameters(base)
    asked_share = config.parameter_share
    config = config.resolve(decoder.hidden_size, len(decoder.layers), base_parameters)
    coupling = coupling_class(config.kind)
    spots = places(coupling, config.layer_indices(len(decoder.layers)))
    blocks = _build_blocks(base, decoder, config, spots, seed)
    share = sum(p.numel() for block in blocks for p in block.parameters()) / base_parameters
    if share > SHARE_WARNING and asked_share is None:
        warnings.warn(
            f"The blocks add {share:.1%} to the base model's {base_parameters:,} parameters; the "
            "paper adds 2.8 to 5.1 %. For a small model pass parameter_share=0.05, which picks the "
            "dimensions.",
            stacklevel=2,
        )
    if "attention" in coupling.seats:
        use_coupled_attention(base)
    handle = Handle(base)
    for spot, block in zip(spots, blocks, strict=True):
        carrier = base if spot is None else decoder.layers[spot]
        carrier.add_module(config.kind, block)
        if spot is not None:
            swap(carrier, LayerWithBlock, config.kind)
            carrier._interlace_handle = handle
    swap(base, ModelWithBlocks, config.kind)
    names = tuple(decoder.names[spot] for spot in spots if spot is not None)
    base.interlace_attachment = attachment = Attachment(config, names, handle)
    if adapters := base.__dict__.get("peft_config"):
        warn_of_adapters(adapters, config.kind, attached_last=True)
    return attachment


def detach(model: nn.Module) -> None:
    """Take the blocks off again, in place: classes, weights and behaviour are the base model's.

    Raises:
        AttachError: if nothing is attached, or the model was sharded since.
    """
    base = base_model_of(model)
    attachment = get_attachment(base)
    check_whole(base, "Detach")
    modules = dict(base.named_modules())
    for name in attachment.layer_names:
        layer = modules.get(name)
        if isinstance(layer, LayerWithBlock):  # it may have been taken out, or replaced
            delattr(layer, attachment.config.kind)
            del layer._interlace_handle
            unswap(layer)
    if attachment.config.kind in attachment.block_names:
        delattr(base, attachment.config.kind)
    if "attention" in attachment.coupling.seats:
        use_own_attention(base)
    unswap(base)
    del base.interlace_attachment
    forget_groups(base)


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
    """Names of those that hold a NaN or an infinity.

    Attention that is computed in one kernel can swallow them: the outputs are finite, and wrong. So
    weights are looked at where they come from and once a rollout, rather than the outputs.

    Args:
        parameters: Names and weights; of a sharded weight this process's part.
    """
    parts = ((name, getattr(value, "_local_tensor", value).detach()) for name, value in parameters)
    return [name for name, part in parts if not bool(torch.isfinite(part).all())]


def count_parameters(model: nn.Module) -> int:
    """Parameters of `model`, tied weights once; a quantised weight counts the values it stands
    for."""
    count = getattr(model, "num_parameters", None)
    return int(count()) if callable(count) else sum(p.numel() for p in model.parameters())


def _build_blocks(
    model: PreTrainedModel,
    decoder: Decoder,
    config: CouplingConfig,
    spots: list[int | None],
    seed: int | None,
) -> list[Coupling]:
    blocks: list[Coupling] = []
    sizes = model.config.get_text_config(decoder=True)
    with _seeded(seed):
        for spot in spots:
            layer = decoder.layers[-1 if spot is None else spot]
            device, dtype = block_device(layer), block_dtype(model, layer)
            # Drawn on the CPU in fp32, so that a seed gives the same weights on every device and in
            # every dtype.
            draw_on = device if device.type == "meta" else torch.device("cpu")
            block = coupling_class(config.kind).build(config, sizes, spot, draw_on, torch.float32)
            blocks.append(block.to(device=device, dtype=dtype).train(layer.training))
    return blocks


@contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


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
    form = coupling.head_step if isinstance(rows, Owners) else coupling.head
    changed = form(logits, kept)
    if isinstance(output, tuple):
        return (changed, *output[1:])
    output.logits = changed
    return output


def _check_reached(model: PreTrainedModel, watched: Rows) -> None:
    """Raise if a forward pass went by an eager block."""
    reached = set(watched._reached)
    names = get_attachment(model).block_names
    modules = dict(model.named_modules())  # which may lack a block, with its layer
    missed = [name for name in names if id(modules.get(name)) not in reached]
    compiled = any(
        m._compiled_call_impl is not None or type(m).__name__ == "OptimizedModule"
        for m in model.modules()
    )
    if missed and not compiled:  # a compiled layer leaves no trace of its pass
        raise UnreachedBlockError(
            f"The forward pass of {type(model).__name__} did not reach {len(missed)} of its "
            f"{len(names)} blocks, first {missed[0]}: its layers were skipped or replaced, or "
            "do not get the `groups` argument. Results would silently miss the blocks; detach them "
            "or restore the layers."
        )
