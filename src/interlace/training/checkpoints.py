"""Runs on `transformers.Trainer` that go on where they were stopped.

A checkpoint is there whole or not at all, holds the weights that train and all that the rest of the
run depends on, and falls on a step at which a run can go on. It is not trusted because it has a
name: `checksums.json`, written last, holds the SHA-256 of its files; a resumed run checks them all,
and one that is damaged gives way to the one before. Optimizer, schedule and random states are files
of torch: they are read with `weights_only=True`, here as by transformers, so that no code in them
runs. What a run leaves in the end is a folder that `interlace.load` reads.
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
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel, Trainer, TrainerState
from transformers.trainer_callback import ExportableState
from transformers.trainer_pt_utils import safe_globals
from transformers.trainer_utils import rotate_checkpoints

from interlace.attached import is_attached, unwrapped
from interlace.errors import CheckpointError, ConfigError, RunError, reading
from interlace.files import locked_folder, naming, writing
from interlace.jsonl import read_object
from interlace.saving.checkpoint import save
from interlace.training.arguments import GroupArguments, Train
from interlace.training.weights import Skeleton

SEAL = "checksums.json"
SCHEMA = "interlace.training-checkpoint/1"
STATE = "trainer_state.json"
WEIGHTS = "trained.safetensors"
RESULT = "model"
PARTIAL = ".partial-"
TORN = ("unexpected pos", "PytorchStreamWriter", "inline_container")  # torch, of a short write
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
        held_open = ExitStack()
        with naming(folder):
            folder.mkdir(parents=True, exist_ok=True)
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
    """The latest checkpoint that is whole, or None where a run begins. The model is None if its
    weights are saved in shards.

    Damaged ones after it are moved aside with a warning: the run goes on from an earlier step.

    Raises:
        CheckpointError: if there are checkpoints and all are damaged.
    """
    damaged: dict[Path, str] = {}
    for checkpoint in all_checkpoints(folder):
        fault = _fault_of(checkpoint, model)
        if fault is not None:
            damaged[checkpoint] = f"The checkpoint {checkpoint} is damaged: {fault}"
            continue
        for entry, reason in damaged.items():
            target = folder / f"damaged-{entry.name}"
            shutil.rmtree(target, ignore_errors=True)
            entry.rename(target)
            warnings.warn(
                f"{reason}. It is now {target.name}, and the run goes on from {checkpoint.name}.",
                stacklevel=2,
            )
        return checkpoint
    if damaged:
        raise CheckpointError(
            f"{'; '.join(damaged.values())}. There is no other to go on from: begin anew with "
            "--restart, which moves the folder aside, or choose another output_dir."
        )
    return None


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
    """Put the weights of a checkpoint into the model that trains."""
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
    with reading(CheckpointError, f"{folder / WEIGHTS} cannot be read"):
        return safetensors.torch.load_file(folder / WEIGHTS)


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


class ResumableTrainer(Trainer):
    """The part of a trainer that concerns runs and checkpoints; see this module's head."""

    args: GroupArguments
    model: PreTrainedModel
    tokenizer: Any
    skeleton: Skeleton | None = None  # of a model that is sharded
    folder_is_held = False
    _owes_checkpoint = False

    @property
    def folder(self) -> Path:
        """Folder of the run."""
        return Path(str(self.args.output_dir))

    # What a trainer says.

    def prepare(self) -> None:
        """Make ready what the run's length depends on."""

    def resumable_every(self, args: Any) -> int:
        """Optimizer steps from one at which a run can go on to the next."""
        return 1

    def rewind(self, step: int) -> None:
        """Take back what a killed run wrote after its last checkpoint, that of `step`."""

    # Runs.

    def run(self) -> Path:
        """Train, from the last checkpoint if there is one, and write the result.

        Returns:
            The folder that `interlace.load` reads.

        Raises:
            RunError: if another run is at work in the folder.
            CheckpointError: if there are checkpoints, and none is whole.
        """
        with self._holding_folder():
            self.train(resume_from_checkpoint=bool(all_checkpoints(self.folder)))
            return self.save_model()

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Hugging Face's loop, without writing the result: see `run` and `save_model`.

        Args:
            resume_from_checkpoint: Checkpoint to go on from; True for the last one in `output_dir`.
            *args: Arguments handed on to Hugging Face's `train`.
            **kwargs: Arguments handed on to Hugging Face's `train`.

        Returns:
            Hugging Face's `TrainOutput`.

        Raises:
            ConfigError: if there is no checkpoint, or it lies beyond the run's end.
        """
        with self._holding_folder():
            return self._train(self._checkpoint(resume_from_checkpoint), *args, **kwargs)

    def _train(self, last: Path | None, *args: Any, **kwargs: Any) -> Any:
        self.prepare()
        step = 0 if last is None else step_of(last)
        if self.args.max_steps < step:
            raise ConfigError(
                f"{self.folder} holds checkpoint-{step}, beyond the {self.args.max_steps} steps of "
                "this run: going on would give the longer run's model. Ask for as many steps as "
                "before, use another output_dir, or begin anew with --restart."
            )
        if self.is_world_process_zero():
            self.rewind(step)
            self._drop_old_checkpoints()
        self.accelerator.wait_for_everyone()
        return super().train(None if last is None else str(last), *args, **kwargs)

    @contextmanager
    def _holding_folder(self) -> Iterator[None]:
        """Keep other runs out of the folder, unless whoever called does so already."""
        if self.folder_is_held or not self.is_world_process_zero():
            yield
            return
        with held(self.folder):
            self.folder_is_held = True
            try:
                yield
            finally:
                self.folder_is_held = False

    def _last_checkpoint(self) -> Path | None:
        """The checkpoint to go on from; the first process looks, and tells the others."""
        said: list[str | None] = [None, None]
        if self.is_world_process_zero():
            try:
                best = best_checkpoint(self.folder, self._whole_model())
                said[0] = None if best is None else str(best)
            except CheckpointError as error:
                said[1] = str(error)
        if self.args.world_size > 1:
            broadcast_object_list(said)
        if said[1] is not None:
            raise CheckpointError(said[1])
        return None if said[0] is None else Path(said[0])

    def _checkpoint(self, wanted: Any) -> Path | None:
        if not wanted:
            return None
        found = self._last_checkpoint() if wanted is True else Path(wanted)
        if found is None or not found.is_dir() or not _NAME.fullmatch(found.name):
            known = all_checkpoints(self.folder)
            raise ConfigError(
                f"resume_from_checkpoint is a folder checkpoint-N, or True for the last one in "
                f"output_dir; got {str(wanted)!r}, and {self.folder} "
                + ("has some." if known else "has none.")
            )
        if wanted is not True and (fault := _fault_of(found, self._whole_model())):
            raise CheckpointError(
                f"The checkpoint {found} is damaged: {fault}. Go on from another one."
            )
        return found

    def _whole_model(self) -> Any:
        """The model, unless its weights are saved in shards."""
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        return None if sharded else self.model

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: `interlace.save` pushes what `interlace.load` reads."""
        raise ConfigError(
            "Push the trained model with interlace.save(trainer.model, folder, push_to='user/name')"
            ", which writes what interlace.load reads."
        )

    def save_model(self, output_dir: Any = None, _internal_call: bool = False) -> Any:
        """Write the trained model, as `interlace.load` reads it.

        Args:
            output_dir: Folder to write into; `<output_dir>/model` without it, and where it is the
                run's own folder, which holds other things.

        Returns:
            The folder.
        """
        if _internal_call:  # a part of a checkpoint
            return super().save_model(output_dir, _internal_call=True)
        chosen = None if output_dir is None else Path(output_dir)
        if chosen is None or chosen.resolve() == self.folder.resolve():
            chosen = self.folder / RESULT
        return self._save_result(chosen)

    def _save_result(self, folder: Path) -> Path:
        model: Any = unwrapped(self.model)
        first = self.is_world_process_zero()
        if self.skeleton is not None:
            model = self.skeleton.filled(model, keep=first)
        if first:
            try:
                save_result(model, folder, self.args.train, self.tokenizer)
            except (OSError, SafetensorError) as error:
                raise CheckpointError(
                    f"The trained model could not be written into {folder}: {error}. Once there "
                    "is room, the same command goes on from the last checkpoint."
                ) from error
        self.accelerator.wait_for_everyone()
        return folder

    # Checkpoints.

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        # What was tallied is in no checkpoint, so it is logged before; and a checkpoint that falls
        # between two steps at which a run can go on is written at the second.
        self._owes_checkpoint |= self.control.should_save
        whole = self.state.global_step % self.resumable_every(self.args) == 0
        self.control.should_save = self._owes_checkpoint and whole
        if self.control.should_save:
            self._owes_checkpoint = False
            self.control.should_log = True
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        name = f"checkpoint-{self.state.global_step}"
        unfinished = self.folder / f"{PARTIAL}{name}"
        try:
            self._write_checkpoint(str(unfinished))
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                publish(unfinished, self.folder / name)
        except (OSError, RuntimeError, SafetensorError) as error:  # as each file's writer has it
            shutil.rmtree(unfinished, ignore_errors=True)  # it would go on filling the disk
            kept = all_checkpoints(self.folder)
            why = first_line(error)
            if any(word in why for word in TORN):
                why = f"torch could not write all of a file, as on a full disk ({why})"
            raise CheckpointError(
                f"The checkpoint of step {self.state.global_step} could not be written: {why}. "
                f"The last good one is {kept[0].name if kept else 'none'}; make room and run the "
                "same command again to go on from there."
            ) from error
        if self.args.should_save:
            self._drop_old_checkpoints()
        self.accelerator.wait_for_everyone()

    def _drop_old_checkpoints(self) -> None:
        rotate_checkpoints(str(self.folder), save_total_limit=self.args.save_total_limit)

    def _write_checkpoint(self, folder: str) -> None:
        self.save_model(folder, _internal_call=True)
        self._save_optimizer_and_scheduler(folder)
        self._save_scaler(folder)
        self._save_rng_state(folder)
        if self.args.should_save:
            for callback in [*self.callback_handler.callbacks, self.control]:
                if isinstance(callback, ExportableState):
                    self.state.stateful_callbacks[type(callback).__name__] = callback.state()
            self.state.save_to_json(str(Path(folder) / "trainer_state.json"))

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        # Sharded weights are saved and read with their optimizer, by accelerate.
        if self.args.should_save and output_dir is not None and not self.is_fsdp_enabled:
            write_trained(self.model, Path(output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            read_trained(self.model, Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with _reading(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)
            if checkpoint is not None and not self.is_fsdp_enabled:
                _check_moments(self.optimizer)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with _reading(checkpoint):
            super()._load_rng_state(checkpoint)


@contextmanager
def _reading(checkpoint: str | None) -> Iterator[None]:
    """Whatever a file of a checkpoint makes its reader raise is one error of ours."""
    try:
        yield
    except Exception as error:
        raise CheckpointError(
            f"The run cannot go on from {checkpoint}: {first_line(error)}. "
            "Move it away to go on from the one before, or begin anew with --restart."
        ) from error


def _check_moments(optimizer: Any) -> None:
    """Raise for moments of another shape than their weight's: arithmetic would broadcast them."""
    state = getattr(optimizer, "optimizer", optimizer).state
    for parameter, values in state.items():
        for name in ("exp_avg", "exp_avg_sq"):
            moment = values.get(name) if isinstance(values, dict) else None
            if isinstance(moment, Tensor) and moment.shape != parameter.shape:
                raise CheckpointError(
                    f"optimizer.pt has {name} of shape {list(moment.shape)} for a weight of shape "
                    f"{list(parameter.shape)}"
                )
