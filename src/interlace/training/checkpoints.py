"""Checkpoints that are there whole or not at all, and what a finished run leaves."""

from __future__ import annotations

import copy
import os
import re
import shutil
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from interlace.attaching import is_attached
from interlace.errors import CheckpointError
from interlace.files import writing
from interlace.saving.checkpoint import save
from interlace.training.arguments import Train

WEIGHTS = "trained.safetensors"
RESULT = "model"
PARTIAL = ".partial-"
_NAME = re.compile(r"checkpoint-([0-9]+)")


def last_checkpoint(folder: Path) -> Path | None:
    """The latest checkpoint. All are complete: one gets its name when it is; what a kill left
    half-written is deleted here."""
    if not folder.is_dir():
        return None
    for entry in folder.iterdir():
        if entry.name.startswith(PARTIAL):
            shutil.rmtree(entry, ignore_errors=True)
    found = [(int(m[1]), e) for e in folder.iterdir() if (m := _NAME.fullmatch(e.name))]
    return max(found)[1] if found else None


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder has a checkpoint's name."""
    return _NAME.fullmatch(folder.name) is not None


def step_of(checkpoint: Path) -> int:
    """The optimizer step after which a checkpoint was written."""
    return int(checkpoint.name.rpartition("-")[2])


def publish(partial: Path, final: Path) -> None:
    """Give a checkpoint its name, once its files are on the disk."""
    for entry in sorted(partial.rglob("*")):
        if entry.is_file():
            descriptor = os.open(entry, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
    if final.exists():
        shutil.rmtree(final)
    os.replace(partial, final)


def write_trained(model: nn.Module, folder: Path) -> None:
    """Write the weights that train; the others are those of the source."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {n: p.detach().cpu().contiguous() for n, p in _trained(model).items()}
    safetensors.torch.save_file(tensors, folder / WEIGHTS)


@torch.no_grad()
def read_trained(model: nn.Module, folder: Path) -> None:
    """Put the weights of a checkpoint into the model that trains.

    Raises:
        CheckpointError: if they are not those that train.
    """
    try:
        tensors = safetensors.torch.load_file(folder / WEIGHTS)
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"The checkpoint {folder} cannot be read: {error}") from error
    own = _trained(model)
    if own.keys() != tensors.keys():
        other = sorted(own.keys() ^ tensors.keys())
        raise CheckpointError(
            f"The checkpoint {folder} holds other weights than those that train now; first "
            f"{other[0]}. Resume with the recipe that wrote it, or use another output_dir."
        )
    for name, parameter in own.items():
        value = tensors[name].to(parameter.device)
        if isinstance(parameter, DTensor):
            value = distribute_tensor(value, parameter.device_mesh, parameter.placements)
        parameter.copy_(value)


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {n: p for n, p in model.named_parameters() if p.requires_grad}


def save_result(model: PreTrainedModel, folder: Path, train: Train, tokenizer: Any) -> Path:
    """Write what `interlace.load` reads: blocks alone where only they trained, else all weights.

    LoRA adapters are added to the weights that they adapt, in a copy.
    """
    if train == "lora":
        model = _merged(model)
    if is_attached(model):
        return save(model, folder, full=train != "new", tokenizer=tokenizer)
    with writing(folder) as partial:
        model.save_pretrained(partial)
        if tokenizer is not None:
            tokenizer.save_pretrained(partial)
    return folder


def _merged(model: PreTrainedModel) -> PreTrainedModel:
    from peft.tuners.tuners_utils import BaseTunerLayer

    model = copy.deepcopy(model)
    for path, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            merge: Any = module
            merge.merge()
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, module.get_base_layer())
    for extra in ("peft_config", "_hf_peft_config_loaded"):
        vars(model).pop(extra, None)
    return model
