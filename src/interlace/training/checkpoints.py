"""Checkpoints that are there whole or not at all, and what a finished run leaves.

A checkpoint is not trusted because it has a name. `checksums.json`, written last, holds the SHA-256
of its files; a resumed run checks them all, and one that is damaged gives way to the one before.
Optimizer, schedule and random states are files of torch: they are read with `weights_only=True`,
here as by transformers, so that no code in them runs.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel, TrainerState
from transformers.trainer_pt_utils import safe_globals

from interlace.attaching import is_attached
from interlace.errors import CheckpointError, RunError
from interlace.files import writing
from interlace.jsonl import read_object
from interlace.locks import locked_folder
from interlace.saving.checkpoint import save
from interlace.training.arguments import Train

SEAL = "checksums.json"
SCHEMA = "interlace.training-checkpoint/1"
STATE = "trainer_state.json"
WEIGHTS = "trained.safetensors"
RESULT = "model"
PARTIAL = ".partial-"
_NAME = re.compile(r"checkpoint-([0-9]+)")


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep other runs out of a run's folder until the end of this one, whatever ends it.

    Raises:
        RunError: if another run is at work there, or the folder cannot be made.
    """
    refusal = RunError(
        f"Another run is at work in {folder}; two would mix their logs and delete each other's "
        "checkpoints. Wait for it, or choose another output_dir."
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held_open = ExitStack()
        held_open.enter_context(locked_folder(folder, refusal))
    except OSError as error:
        raise RunError(f"The run folder {folder} cannot be written: {error}.") from error
    with held_open:
        yield


def all_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, the latest first. What a kill left half-written is deleted here."""
    if not folder.is_dir():
        return []
    for entry in folder.iterdir():
        if entry.name.startswith(PARTIAL):
            shutil.rmtree(entry, ignore_errors=True)
    found = [(int(m[1]), e) for e in folder.iterdir() if (m := _NAME.fullmatch(e.name))]
    return [entry for _, entry in sorted(found, reverse=True)]


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder has a checkpoint's name."""
    return _NAME.fullmatch(folder.name) is not None


def step_of(checkpoint: Path) -> int:
    """The optimizer step after which a checkpoint was written."""
    return int(checkpoint.name.rpartition("-")[2])


def publish(partial: Path, final: Path) -> None:
    """Give a checkpoint its name, once its files and their checksums are on the disk."""
    files = [entry for entry in sorted(partial.rglob("*")) if entry.is_file()]
    sums = {entry.relative_to(partial).as_posix(): _digest(entry) for entry in files}
    seal = partial / SEAL
    seal.write_text(json.dumps({"schema": SCHEMA, "sha256": sums}, indent=1) + "\n")
    for entry in (*files, seal):
        descriptor = os.open(entry, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    if final.exists():
        shutil.rmtree(final)
    os.replace(partial, final)


def best_checkpoint(folder: Path, model: nn.Module | None) -> Path | None:
    """The latest checkpoint that is whole, or None where a run begins.

    Damaged ones after it are moved aside with a warning: the run goes on from an earlier step.

    Args:
        folder: Folder of the run.
        model: Model that trains; None if its weights are saved in shards.

    Raises:
        CheckpointError: if there are checkpoints and all are damaged.
    """
    faults: list[str] = []
    damaged: list[Path] = []
    for checkpoint in all_checkpoints(folder):
        fault = _fault_of(checkpoint, model)
        if fault is None:
            for entry, reason in zip(damaged, faults, strict=True):
                target = folder / f"damaged-{entry.name}"
                shutil.rmtree(target, ignore_errors=True)
                entry.rename(target)
                warnings.warn(
                    f"{reason}. It is now {target.name}, and the run goes on from "
                    f"{checkpoint.name}.",
                    stacklevel=2,
                )
            return checkpoint
        damaged.append(checkpoint)
        faults.append(f"The checkpoint {checkpoint} is damaged: {fault}")
    if faults:
        raise CheckpointError(
            f"{'; '.join(faults)}. There is no other to go on from: begin anew with --restart, "
            "which moves the folder aside, or choose another output_dir."
        )
    return None


def check(checkpoint: Path, model: nn.Module | None) -> None:
    """Raise unless a checkpoint is whole.

    Raises:
        CheckpointError: naming what is damaged.
    """
    if fault := _fault_of(checkpoint, model):
        raise CheckpointError(
            f"The checkpoint {checkpoint} is damaged: {fault}. Go on from another one."
        )


def _fault_of(checkpoint: Path, model: nn.Module | None) -> str | None:
    """What is wrong with a checkpoint; None if nothing is."""
    try:
        if (checkpoint / SEAL).exists():
            _check_sums(checkpoint)
        else:  # of 0.1, which wrote no checksums
            _check_readable(checkpoint, model)
        _check_complete(checkpoint, sharded=model is None)
        _check_state(checkpoint)
    except CheckpointError as error:
        return str(error)
    except OSError as error:
        return f"it cannot be read: {error}"
    return None


def _check_sums(checkpoint: Path) -> None:
    content = read_object(checkpoint / SEAL, CheckpointError, "It lists the checkpoint's files")
    sums = content.get("sha256")
    if not isinstance(sums, dict) or content.get("schema") != SCHEMA:
        raise CheckpointError(f"its {SEAL} is no list of files that this release can read")
    for name, expected in sums.items():
        path = checkpoint / name
        if not path.is_file():
            raise CheckpointError(f"{name} is missing")
        if _digest(path) != expected:
            raise CheckpointError(f"{name} is not what was written (its SHA-256 differs)")


def _check_complete(checkpoint: Path, sharded: bool) -> None:
    names = [STATE] if sharded else [STATE, WEIGHTS, "optimizer.pt", "scheduler.pt"]
    for name in names:
        if not (checkpoint / name).is_file():
            raise CheckpointError(f"{name} is missing")
    if not any(checkpoint.glob("rng_state*.pth")):
        raise CheckpointError("rng_state.pth is missing")


def _check_state(checkpoint: Path) -> None:
    values = read_object(checkpoint / STATE, CheckpointError, "It says how far the run was")
    fits = (
        values.get("global_step") == step_of(checkpoint)
        and isinstance(values.get("log_history"), list)
        and isinstance(values.get("stateful_callbacks"), dict)
    )
    try:
        TrainerState(**values)
    except Exception as error:
        raise CheckpointError(f"{STATE} is no state of a trainer: {error}") from error
    if not fits:
        raise CheckpointError(f"{STATE} is not that of step {step_of(checkpoint)}")


def _check_readable(checkpoint: Path, model: nn.Module | None) -> None:
    """Read all files of a checkpoint without checksums, unpickling nothing."""
    for path in (*checkpoint.glob("*.pt"), *checkpoint.glob("*.pth")):
        try:
            with safe_globals(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # as damage has it: of zip files, of pickles, of tensors
            raise CheckpointError(f"{path.name} cannot be read: {first_line(error)}") from error
    if model is None or not (checkpoint / WEIGHTS).is_file():
        return
    own = _trained(model)
    for name, tensor in _stored(checkpoint).items():
        if name in own and (misfit := _misfit(name, tensor, own[name])):
            raise CheckpointError(misfit)


def first_line(error: Exception) -> str:
    """What went wrong in a line: torch's messages go on with advice to unpickle."""
    return str(error).partition("\n")[0][:200] or type(error).__name__


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


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
    tensors = _stored(folder)
    own = _trained(model)
    if own.keys() != tensors.keys():
        other = sorted(own.keys() ^ tensors.keys())
        raise CheckpointError(
            f"The checkpoint {folder} holds other weights than those that train now; first "
            f"{other[0]}. Resume with the recipe that wrote it, or use another output_dir."
        )
    for name, parameter in own.items():
        if misfit := _misfit(name, tensors[name], parameter):
            raise CheckpointError(
                f"The checkpoint {folder} is of another model: {misfit}. Resume with the recipe "
                "that wrote it, or use another output_dir."
            )
    for name, parameter in own.items():
        value = tensors[name].to(parameter.device)
        if isinstance(parameter, DTensor):
            value = distribute_tensor(value, parameter.device_mesh, parameter.placements)
        parameter.copy_(value)


def _stored(folder: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(folder / WEIGHTS)
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{folder / WEIGHTS} cannot be read: {error}") from error


def _misfit(name: str, tensor: Tensor, parameter: nn.Parameter) -> str | None:
    """What is wrong with a stored tensor: copying would broadcast its shape and round its type."""
    if tensor.shape == parameter.shape and tensor.dtype == parameter.dtype:
        return None
    return (
        f"{name} is {tensor.dtype} of shape {list(tensor.shape)} there, and "
        f"{parameter.dtype} of shape {list(parameter.shape)} here"
    )


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
