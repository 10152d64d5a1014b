"""What a model is and what it takes, from its configuration alone: no weights are read or
downloaded.

Axes: W width, U prompt positions, S positions of the whole context.
"""

from __future__ import annotations

import copy
import dataclasses
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, PreTrainedModel

from interlace.attached import new_parameters
from interlace.attaching import attach, count_parameters, find_decoder
from interlace.coupling.config import CouplingConfig
from interlace.coupling.registry import default_config
from interlace.errors import ConfigError, LoadError, reading
from interlace.models.gguf import plain_config
from interlace.models.loading import base_of, check_dtype
from interlace.models.source import DAMAGED, GgufFile, HubModel, SavedBlocks, Source
from interlace.saving.fingerprint import SIZES

MOST_LAYERS = 2_000


@dataclass(frozen=True)
class Memory:
    """Bytes at a width.

    Args:
        base_weights: Bytes of the base model's weights.
        new_weights: Bytes of the blocks' weights.
        cache_shared: Bytes of keys and values of W rows, the prompt's stored once.
        cache_copied: Bytes of the same with the prompt's copied to every row.
    """

    base_weights: int
    new_weights: int
    cache_shared: int
    cache_copied: int


@dataclass(frozen=True)
class Description:
    """What a model is: the base, and the blocks that it has or would get.

    Args:
        id: Name that the user gave.
        base_id: Name of its base model.
        architecture: Class of the base model.
        sizes: Sizes of its configuration.
        base_parameters: Number of the base's parameters, tied weights counted once.
        blocks: Configuration of the blocks, resolved.
        attached: Whether the source has these blocks; else they are what `attach` would add.
        new_parameters: Number of parameters in all blocks together.
        dtype: Data type of the weights.
        notes: Further remarks.
    """

    id: str
    base_id: str | None
    architecture: str
    sizes: dict[str, Any]
    base_parameters: int
    blocks: CouplingConfig
    attached: bool
    new_parameters: int
    dtype: str
    notes: tuple[str, ...]

    @property
    def share(self) -> float:
        """New over base parameters."""
        return self.new_parameters / self.base_parameters

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self) | {"blocks": self.blocks.to_dict(), "share": self.share}


def describe(
    source: Source,
    config: CouplingConfig | None = None,
    *,
    base: str | None = None,
    dtype: str | None = None,
    trust_remote_code: bool = False,
    token: str | None = None,
) -> tuple[Description, PreTrainedModel]:
    """Describe a model without its weights, with the blocks that it has, or that `config` would
    attach (by default `BridgeConfig()`).

    Returns:
        The description, and the model on the meta device, blocks attached.

    Raises:
        LoadError: if the configuration cannot be read.
        ConfigError: if `config` does not fit the model, or it has blocks already.
    """
    saved = source if isinstance(source, SavedBlocks) else None
    if saved is not None and config is not None:
        raise ConfigError(
            f"{saved.id} has {saved.manifest.config.kind} blocks already; leave out the "
            "configuration of new ones."
        )
    plain = base_of(saved, base, token) if saved is not None else source
    assert not isinstance(plain, SavedBlocks)
    recorded = saved.manifest.base.dtype if saved is not None else None
    model = _skeleton(plain, dtype or recorded, trust_remote_code, token)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        base_parameters = count_parameters(model)
        attachment = attach(model, saved.manifest.config if saved else config or default_config())
    notes = [] if saved else [str(w.message) for w in caught]
    if original := getattr(model.config, "dequantised_from", None):
        notes.insert(0, f"The base weights are dequantised from {original}.")
    if quantisation := getattr(model.config, "quantization_config", None):
        method = dict(quantisation).get("quant_method", "some method")
        notes.append(f"The base is quantised ({method}): its weights take less than shown.")
    text = model.config.get_text_config(decoder=True)
    description = Description(
        id=source.id,
        base_id=plain.id,
        architecture=type(model).__name__,
        sizes={k: getattr(text, k, None) for k in SIZES},
        base_parameters=base_parameters,
        blocks=attachment.config,
        attached=saved is not None,
        new_parameters=sum(p.numel() for _, p in new_parameters(model)),
        dtype=str(model.dtype).removeprefix("torch."),
        notes=tuple(notes),
    )
    return description, model


def memory(model: PreTrainedModel, width: int, prompt: int, length: int) -> Memory:
    """What a model with blocks takes at width W, with U prompt positions in a context of S.

    Raises:
        ConfigError: unless W >= 1 and 1 <= U <= S.
    """
    if width < 1 or not 1 <= prompt <= length:
        raise ConfigError(
            f"A context holds its prompt, and a group at least one row: got width {width}, prompt "
            f"{prompt}, length {length}."
        )
    new = sum(p.nbytes for _, p in new_parameters(model))
    rows = cache_bytes(model, length - prompt)
    return Memory(
        base_weights=sum(p.nbytes for p in model.parameters()) - new,
        new_weights=new,
        cache_shared=cache_bytes(model, prompt) + width * rows,
        cache_copied=width * cache_bytes(model, length),
    )


@torch.no_grad()
def cache_bytes(model: PreTrainedModel, length: int) -> int:
    """Bytes of one row's cache after `length` positions: measured on the meta device by running the
    model's own forward, so that windows, shared heads and the like count as they are."""
    if length == 0:
        return 0
    cache = DynamicCache(config=model.config)
    # A mixture's grouped products know no other data type on the meta device.
    half = copy.deepcopy(model).to(torch.bfloat16)
    with torch.device("meta"):
        half(
            input_ids=torch.zeros(1, length, dtype=torch.long),
            attention_mask=torch.ones(1, length, dtype=torch.long),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
    kept = (value for layer in cache.layers for value in vars(layer).values())
    values = sum(v.numel() for v in kept if isinstance(v, Tensor) and v.is_floating_point())
    return values * model.dtype.itemsize


def _skeleton(
    source: HubModel | GgufFile, dtype: str | None, trust_remote_code: bool, token: str | None
) -> PreTrainedModel:
    """The model on the meta device: its shapes without its weights."""
    check_dtype(dtype)
    with reading(LoadError, f"{source.id} cannot be described", DAMAGED):
        if isinstance(source, GgufFile):
            config = plain_config(source.path)
        else:
            config = AutoConfig.from_pretrained(
                source.location,
                revision=source.revision or "main",
                trust_remote_code=trust_remote_code,
                token=token,
            )
        layers = config.get_text_config(decoder=True).num_hidden_layers
        if layers > MOST_LAYERS:  # they are built one by one
            raise LoadError(
                f"{source.id} has a configuration with {layers:.6g} layers; a description builds "
                f"at most {MOST_LAYERS:,}."
            )
        named = dtype not in (None, "auto")
        chosen = getattr(torch, str(dtype)) if named else getattr(config, "dtype", None)
        # Eager attention, since the others look into the mask, which holds no values here.
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                config,
                dtype=chosen or torch.float32,
                attn_implementation="eager",
                trust_remote_code=trust_remote_code,
            )
    find_decoder(model)
    return model.eval()
