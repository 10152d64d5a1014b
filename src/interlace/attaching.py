"""Attach blocks to a loaded Hugging Face model, in place, and take them off again.

Each decoder layer gets a child (`bridge` or `pmatch`) and a dynamic subclass of its own class,
whose forward calls the original and then the block; the model gets a subclass that checks groups
and serves `generate`. Why a class swap and not hooks or wrappers:
docs/decisions/0001-class-swap.md.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from interlace.coupling.bridge import BridgeBlock
from interlace.coupling.config import BlockConfig
from interlace.coupling.pmatch import PMatchBlock
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
from interlace.rows import Groups, Rows
from interlace.swap import Swapped, swap, unswap

SHARE_WARNING = 0.10

BLOCKS: dict[str, Callable[..., nn.Module]] = {
    "bridge": BridgeBlock,
    "pmatch": PMatchBlock,
}


@dataclass(frozen=True)
class Attachment:
    """What is attached to a model: the resolved configuration, and the paths of the layers that
    carry blocks."""

    config: BlockConfig
    layer_names: tuple[str, ...]

    @property
    def block_names(self) -> list[str]:
        """Paths of the blocks in the model, the prefixes of every new parameter's name."""
        return [f"{name}.{self.config.kind}" for name in self.layer_names]


class LayerWithBlock(Swapped, nn.Module):
    """Mixed into a decoder layer's class: the layer's own forward, then its block."""

    def forward(self, *args: Any, groups: Rows | None = None, **kwargs: Any) -> Any:
        # `groups` goes no further: attention kernels must not see it.
        output = super().forward(*args, **kwargs)
        if groups is None:
            groups = Groups(width=1)
        block = self.get_submodule(self._interlace_kind)
        if not torch.compiler.is_compiling():
            groups._reached.append(id(block))
        hidden = output[0] if isinstance(output, tuple) else output
        if hidden.ndim != 3:
            raise AttachError(
                f"{type(self).__name__} passes hidden states of shape {list(hidden.shape)} on, not "
                f"[rows, positions, hidden size], so this architecture cannot carry blocks."
            )
        hidden = block(hidden, groups)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


class ModelWithBlocks(Swapped, GroupedGeneration):
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
        groups.check(*_call_shape(args, kwargs))
        base: Any = super()
        if torch.compiler.is_compiling():
            return base.forward(*args, groups=groups, **kwargs)
        watched = groups.watched()
        output = base.forward(*args, groups=watched, **kwargs)
        if len(set(watched._reached)) < len(self.interlace_attachment.layer_names):
            _check_reached(self, watched)
        return output

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        raise AttachError(
            "save_pretrained would write files that from_pretrained loads without the attached "
            "blocks. Use interlace.save(model, folder) for the new weights, interlace.save(model, "
            "folder, full=True) for all, or interlace.detach(model) first to save the base model."
        )

    def push_to_hub(self, *args: Any, **kwargs: Any) -> None:
        raise AttachError(
            "push_to_hub would upload files that from_pretrained loads without the attached "
            "blocks. Use interlace.save(model, folder, push_to='user/name'), or "
            "interlace.detach(model) first to upload the base model."
        )


def attach(model: nn.Module, config: BlockConfig, *, seed: int | None = None) -> Attachment:
    """Add fresh blocks to `model` in place; until trained they change nothing (W_O is zero).

    Args:
        model: a loaded Hugging Face causal language model, or PEFT's wrapper of one.
        config: `BridgeConfig` or `PMatchConfig`.
        seed: seeds the new weights alone; without it they come from torch's global generator.

    Returns:
        What was attached, with the dimensions resolved.

    Raises:
        AttachError: if the model has blocks already, or its architecture cannot carry them.
        ConfigError: if the configuration names layers that the model lacks.
    """
    if not isinstance(config, BlockConfig):
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
    indices = config.layer_indices(len(decoder.layers))
    share = config.parameters_per_layer(decoder.hidden_size) * len(indices) / base_parameters
    if share > SHARE_WARNING and asked_share is None:
        warnings.warn(
            f"The blocks add {share:.1%} to the base model's {base_parameters:,} parameters; the "
            "paper adds 2.8 to 5.1 %. For a small model pass parameter_share=0.05, which picks the "
            "dimensions.",
            stacklevel=2,
        )
    blocks = _build_blocks(base, decoder, config, indices, seed)
    for index, block in zip(indices, blocks, strict=True):
        layer = decoder.layers[index]
        layer.add_module(config.kind, block)
        swap(layer, LayerWithBlock, config.kind)
    swap(base, ModelWithBlocks, config.kind)
    attachment = Attachment(config, tuple(decoder.names[i] for i in indices))
    base.interlace_attachment = attachment
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
            unswap(layer)
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
    return attachment


def new_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The attached blocks' parameters with their names in the Hugging Face model: what a warm-up
    trains."""
    base = base_model_of(model)
    for block_name in get_attachment(base).block_names:
        for name, parameter in base.get_submodule(block_name).named_parameters():
            yield f"{block_name}.{name}", parameter


def count_parameters(model: nn.Module) -> int:
    """Parameters of `model`, tied weights once; a quantised weight counts the values it stands
    for."""
    count = getattr(model, "num_parameters", None)
    return int(count()) if callable(count) else sum(p.numel() for p in model.parameters())


def _build_blocks(
    model: PreTrainedModel,
    decoder: Decoder,
    config: BlockConfig,
    indices: list[int],
    seed: int | None,
) -> list[nn.Module]:
    blocks: list[nn.Module] = []
    with _seeded(seed):
        for index in indices:
            layer = decoder.layers[index]
            device, dtype = block_device(layer), block_dtype(model, layer)
            # Drawn on the CPU in fp32, so that a seed gives the same weights on every device and in
            # every dtype.
            draw_on = device if device.type == "meta" else torch.device("cpu")
            block = BLOCKS[config.kind](
                config, decoder.hidden_size, device=draw_on, dtype=torch.float32
            )
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
