"""Attach a coupling to a loaded Hugging Face model, in place, and take it off again; where
blocks go, and whether a model can carry them.

Each decoder layer that carries a block gets a child under the kind's name and a dynamic subclass of
its own class, whose forward calls the original and then the block; the model gets a subclass that
checks groups, serves `generate`, and carries the seats of the model as a whole. Why a class swap
and not hooks or wrappers: docs/decisions/0001-class-swap.md.

Axes: R rows, S positions.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from interlace.attached import (
    SHARDED,
    Attachment,
    DecoderWithStreams,
    Handle,
    LayerWithBlock,
    ModelWithBlocks,
    base_model_of,
    get_attachment,
    is_attached,
    swap,
    unswap,
)
from interlace.coupling.attention import use_coupled_attention, use_own_attention
from interlace.coupling.base import WITHIN_ATTENTION, Coupling, places
from interlace.coupling.config import CouplingConfig
from interlace.coupling.registry import coupling_class
from interlace.errors import AttachError
from interlace.generate_hf import forget_groups
from interlace.save_pretrained import warn_of_adapters

SHARE_WARNING = 0.10
# Data types in which a layer computes; a quantised weight is stored in others.
COMPUTE_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def attach(model: nn.Module, config: CouplingConfig, *, seed: int | None = None) -> Attachment:
    """Add fresh blocks to `model` in place; until trained they change nothing (W_O is zero).
    Equation (10).

    Args:
        model: Model to attach to: a loaded Hugging Face causal language model, or PEFT's wrapper.
        config: Configuration of the kind, such as `BridgeConfig` or `GatedConfig`.
        seed: Seed of the new weights alone; without it they come from torch's global generator.

    Returns:
        What was attached, with the dimensions resolved.

    Raises:
        AttachError: if the model has blocks already, or its architecture cannot carry them.
        ConfigError: if the configuration names layers that the model lacks.
    """
    if not isinstance(config, CouplingConfig):
        raise AttachError(
            "config says the kind and its sizes, such as a BridgeConfig or a PMatchConfig; got "
            f"{type(config).__name__}."
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
    layers = [spot for spot in spots if spot is not None]
    coupling.check(base.config.get_text_config(decoder=True), base.get_decoder(), layers)
    blocks = _build_blocks(base, decoder, config, spots, seed)
    share = sum(p.numel() for block in blocks for p in block.parameters()) / base_parameters
    if share > SHARE_WARNING and asked_share is None:
        warnings.warn(
            f"The blocks add {share:.1%} to the base model's {base_parameters:,} parameters; the "
            "paper adds 2.8 to 5.1 %. For a small model pass parameter_share=0.05, which picks the "
            "dimensions.",
            stacklevel=2,
        )
    if set(coupling.seats) & set(WITHIN_ATTENTION):
        use_coupled_attention(base)
    if "streams" in coupling.seats:
        swap(base.get_decoder(), DecoderWithStreams, config.kind)
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
    if set(attachment.coupling.seats) & set(WITHIN_ATTENTION):
        use_own_attention(base)
    if "streams" in attachment.coupling.seats:
        unswap(base.get_decoder())
    unswap(base)
    del base.interlace_attachment
    forget_groups(base)


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
            block = coupling_class(config.kind).build(
                config, sizes, spot, device=draw_on, dtype=torch.float32
            )
            blocks.append(block.to(device=device, dtype=dtype).train(layer.training))
    return blocks


@contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # the CPU's alone
        yield


# Where blocks go ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Decoder:
    """The layers of a model's decoder, in order, and the hidden size D between them."""

    layers: list[nn.Module]
    names: list[str]
    hidden_size: int


def find_decoder(model: PreTrainedModel) -> Decoder:
    """The decoder layers of `model`.

    Raises:
        AttachError: for an encoder-decoder, for a model whose layers cannot be told, or for one
            whose forward pass does not hand keyword arguments to its layers, so that `groups` would
            be lost on the way, or for one that is sharded already.
    """
    name = type(model).__name__
    if model.config.is_encoder_decoder:
        raise AttachError(
            f"{name} is an encoder-decoder; blocks attach to decoder-only language models."
        )
    if model.get_output_embeddings() is None:
        raise AttachError(
            f"{name} has no language-model head, so it samples no responses; load the model with "
            "AutoModelForCausalLM (or interlace.load)."
        )
    text_config = model.config.get_text_config(decoder=True)
    decoder = model.get_decoder()
    stacks = [
        child
        for child in decoder.children()
        if isinstance(child, nn.ModuleList) and len(child) == text_config.num_hidden_layers
    ]
    if len(stacks) != 1 or len(stacks[0]) == 0:
        raise AttachError(
            f"{name}: expected one list of {text_config.num_hidden_layers} layers in "
            f"{type(decoder).__name__}, found {len(stacks)}. This architecture is not supported "
            "yet; docs/architecture.md says how to add one."
        )
    check_whole(model, "Attach")
    _check_passes_kwargs(name, decoder, stacks[0][0])
    names = {id(module): path for path, module in model.named_modules()}
    layers = list(stacks[0])
    return Decoder(layers, [names[id(layer)] for layer in layers], text_config.hidden_size)


def check_whole(model: PreTrainedModel, what: str) -> None:
    """Blocks attached to shards would be whole on every process and their gradients not averaged.

    Raises:
        AttachError: if FSDP has sharded `model` or a part of it.
    """
    for path, module in model.named_modules():
        if any(cls.__name__ in SHARDED for cls in type(module).__mro__):
            raise AttachError(
                f"{type(model).__name__} is sharded already, at {path or 'its root'}, and blocks "
                f"are sharded with their layers. {what} before sharding."
            )


def _check_passes_kwargs(name: str, decoder: nn.Module, layer: nn.Module) -> None:
    """`groups` travels as a keyword argument through the decoder's forward; some architectures
    swallow it there."""
    takes_kwargs = any(
        p.kind is inspect.Parameter.VAR_KEYWORD
        for p in inspect.signature(type(decoder).forward).parameters.values()
    )
    if not takes_kwargs or not _calls_with_double_star(type(decoder)):
        raise AttachError(
            f"{name} is not supported: {type(decoder).__name__}.forward swallows keyword arguments "
            f"instead of handing them to its {type(layer).__name__}s, so the blocks would never "
            "learn which rows form a group. Supported architectures hand **kwargs on (Llama, Qwen, "
            "Gemma, GPT-NeoX, OPT and most others)."
        )


def _calls_with_double_star(decoder_class: type[nn.Module]) -> bool:
    """Whether any call in the class's forward passes `**something` on; True when its source cannot
    be read."""
    try:
        source = textwrap.dedent(inspect.getsource(inspect.unwrap(decoder_class.forward)))
    except (OSError, TypeError):
        return True
    calls = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    return any(keyword.arg is None for call in calls for keyword in call.keywords)


def block_device(layer: nn.Module) -> torch.device:
    """The device on which `layer` computes, also when accelerate keeps its weights elsewhere."""
    for module in layer.modules():  # the hooks may sit on the layer or on its parts alone
        hook = getattr(module, "_hf_hook", None)
        execution_device = getattr(hook, "execution_device", None)
        if execution_device is not None:
            return torch.device(execution_device)
    return next(layer.parameters()).device


def block_dtype(model: PreTrainedModel, layer: nn.Module) -> torch.dtype:
    """The data type in which `layer` computes: that of its norms, which no quantiser touches."""
    if getattr(model, "hf_quantizer", None) is None:
        return next((p.dtype for p in layer.parameters() if p.dtype in COMPUTE_DTYPES), model.dtype)
    norms = (p.dtype for p in layer.parameters() if p.dtype in COMPUTE_DTYPES and p.ndim == 1)
    return next(norms, model.dtype)
