"""Where blocks go: the decoder layers of a Hugging Face model, and whether that model can carry
blocks."""

from __future__ import annotations

import ast
import inspect
import textwrap
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from interlace.errors import AttachError

# Data types in which a layer computes; a quantised weight is stored in others.
COMPUTE_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

# Base classes that FSDP2 mixes into a module, and that FSDP1 wraps one in.
SHARDED = ("FSDPModule", "FullyShardedDataParallel")


@dataclass(frozen=True)
class Decoder:
    """The layers of a model's decoder, in order, and the hidden size D between them."""

    layers: list[nn.Module]
    names: list[str]
    hidden_size: int


def base_model_of(model: nn.Module) -> PreTrainedModel:
    """The Hugging Face model inside `model`, which may be one itself or a PEFT wrapper around one.

    Raises:
        AttachError: if there is none.
    """
    get_base_model = getattr(model, "get_base_model", None)
    inner = get_base_model() if callable(get_base_model) else model
    if not isinstance(inner, PreTrainedModel):
        raise AttachError(
            f"Blocks attach to a Hugging Face causal language model (or PEFT's wrapper of one); "
            f"got "
            f"{type(model).__name__}. Unwrap compiled or distributed models first, and attach "
            f"before wrapping."
        )
    return inner


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
            f"{type(decoder).__name__}, found "
            f"{len(stacks)}. This architecture is not supported yet; docs/architecture.md says how "
            f"to add one."
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
            f"instead of handing "
            f"them to its {type(layer).__name__}s, so the blocks would never learn which rows form "
            f"a group. "
            "Supported architectures hand **kwargs on (Llama, Qwen, Gemma, GPT-NeoX, OPT and most "
            "others)."
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
