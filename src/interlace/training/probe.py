"""What a model keeps for the backward pass, measured on the meta device: no weights, no data.

Axes: R rows, S positions.

The model's own forward runs at two lengths while autograd's saved tensors are counted. Eager
attention runs there, so bytes a row are a*S + b*S^2, and two lengths give both: b is what eager
attention keeps, and what other implementations do not.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from interlace.attaching import is_attached, new_parameters
from interlace.models.describe import cache_bytes
from interlace.rows import Groups

_SHORT, _LONG = 64, 128


@dataclass(frozen=True)
class Subject:
    """A model as an estimate sees it; bytes in the data types of its weights.

    Args:
        old_parameters: of the base, tied weights once.
        new_parameters: of the blocks.
        trained_old: of the old ones, those that train (adapters included).
        trained_new: of the new ones, those that train.
        weight_bytes: of all weights.
        trained_bytes: of those that train.
        linear_bytes: of the linear layers, which the CPU engine packs.
        layers: decoder layers.
        hidden_size: D.
        vocabulary: V.
        itemsize: bytes of a number, as weights have it.
        per_position: a, bytes kept for the backward pass, a row and position.
        per_square: b, the same for each pair of positions.
        eager: whether attention runs eagerly, so that b counts.
        cache_per_position: bytes of one row's keys and values at one position.
    """

    old_parameters: int
    new_parameters: int
    trained_old: int
    trained_new: int
    weight_bytes: int
    trained_bytes: int
    linear_bytes: int
    layers: int
    hidden_size: int
    vocabulary: int
    itemsize: int
    per_position: float
    per_square: float
    eager: bool
    cache_per_position: float


def probe(
    model: PreTrainedModel, width: int, *, eager: bool = False, mixed: bool = False
) -> Subject:
    """Measure a model on the meta device, `requires_grad` set as it will train.

    Args:
        model: with or without blocks.
        width: W, of its forward pass.
        eager: whether it will run eager attention.
        mixed: whether its passes will run in 16 bits over wider weights; they keep about what
            those of a model in 16 bits keep.
    """
    dtype = torch.bfloat16 if mixed else model.dtype
    new = {id(p) for _, p in new_parameters(model)} if is_attached(model) else set()
    weights = list(model.parameters())
    trained = [p for p in weights if p.requires_grad]
    sizes = model.config.get_text_config(decoder=True)
    short, long = (_saved(model, width, length, dtype) / width for length in (_SHORT, _LONG))
    square = (long - short * _LONG / _SHORT) / (_LONG**2 - _SHORT * _LONG)
    linear = short / _SHORT - square * _SHORT
    return Subject(
        old_parameters=sum(p.numel() for p in weights if id(p) not in new),
        new_parameters=sum(p.numel() for p in weights if id(p) in new),
        trained_old=sum(p.numel() for p in trained if id(p) not in new),
        trained_new=sum(p.numel() for p in trained if id(p) in new),
        weight_bytes=sum(p.nbytes for p in weights),
        trained_bytes=sum(p.nbytes for p in trained),
        linear_bytes=sum(m.weight.nbytes for m in model.modules() if isinstance(m, nn.Linear)),
        layers=sizes.num_hidden_layers,
        hidden_size=sizes.hidden_size,
        vocabulary=sizes.vocab_size,
        itemsize=model.dtype.itemsize,
        per_position=linear,
        per_square=square,
        eager=eager,
        cache_per_position=cache_bytes(model, _LONG) / _LONG,
    )


def _saved(model: PreTrainedModel, rows: int, length: int, dtype: torch.dtype) -> float:
    """Bytes kept for the backward pass by a group's forward in `dtype`, weights left out."""
    try:
        return float(_kept(copy.deepcopy(model).to(dtype).train(), rows, length))
    except RuntimeError:
        if dtype == torch.bfloat16:
            raise
    # A mixture's grouped products know no other data type on the meta device.
    half = copy.deepcopy(model).to(torch.bfloat16).train()
    return _kept(half, rows, length) * dtype.itemsize / 2


def _kept(model: PreTrainedModel, rows: int, length: int) -> int:
    own = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage  # held, so that no other takes its address
        return tensor

    groups = {"groups": Groups(rows)} if is_attached(model) else {}
    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t), torch.device("meta"):
        model(
            input_ids=torch.zeros(rows, length, dtype=torch.long),
            attention_mask=torch.ones(rows, length, dtype=torch.long),
            use_cache=False,
            logits_to_keep=1,
            **groups,
        )
    return sum(storage.nbytes() for storage in kept.values())
