"""Runs on `transformers.Trainer` that go on where they were stopped.

A checkpoint is there whole or not at all, holds the weights that train and all that the rest of the
run depends on, and falls on a step at which a run can go on. What a run leaves in the end is a
folder that `interlace.load` reads.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import rotate_checkpoints

from interlace.errors import CheckpointError, ConfigError
from interlace.training import checkpoints
from interlace.training.arguments import GroupArguments
from interlace.training.parameters import unwrapped
from interlace.training.whole import Skeleton


class ResumableTrainer(Trainer):
    """The part of a trainer that concerns runs and checkpoints; see this module's head.

    Args:
        model: the model, attached or not; it trains in place.
        tokenizer: its tokenizer, saved beside the result.
        args: the options.
        callbacks: further Hugging Face callbacks.
        optimizers: optimizer and schedule of your own, or None for each.
        eval_dataset: problems to measure on.
    """

    args: GroupArguments
    model: PreTrainedModel

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Any,
        args: GroupArguments,
        *,
        callbacks: Sequence[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        eval_dataset: Any = None,
    ) -> None:
        base: Any = super()
        base.__init__(
            model=model,
            args=args,
            processing_class=tokenizer,
            eval_dataset=eval_dataset,
            callbacks=list(callbacks or ()),
            optimizers=optimizers,
        )
        self.tokenizer = tokenizer
        self.folder = Path(str(args.output_dir))
        self.skeleton = Skeleton(model) if self.is_fsdp_enabled else None
        self._owes_checkpoint = False
        self.folder_is_held = False

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
            self.train(resume_from_checkpoint=bool(checkpoints.all_checkpoints(self.folder)))
            return self.save_model()

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Hugging Face's loop, without writing the result: see `run` and `save_model`.

        Args:
            resume_from_checkpoint: Checkpoint to go on from; True for the last one in `output_dir`.
            *args: Hugging Face's further arguments.
            **kwargs: Hugging Face's further arguments.

        Returns:
            Hugging Face's `TrainOutput`.

        Raises:
            ConfigError: if there is no checkpoint, or it lies beyond the run's end.
        """
        with self._holding_folder():
            return self._train(self._checkpoint(resume_from_checkpoint), *args, **kwargs)

    def _train(self, last: Path | None, *args: Any, **kwargs: Any) -> Any:
        self.prepare()
        step = 0 if last is None else checkpoints.step_of(last)
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
        base: Any = super()
        return base.train(None if last is None else str(last), *args, **kwargs)

    @contextmanager
    def _holding_folder(self) -> Iterator[None]:
        """Keep other runs out of the folder, unless whoever called does so already."""
        if self.folder_is_held or not self.is_world_process_zero():
            yield
            return
        with checkpoints.held(self.folder):
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
                best = checkpoints.best_checkpoint(self.folder, self._whole_model())
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
        if wanted is True:
            found = self._last_checkpoint()
        else:
            found = Path(wanted)
            if found.is_dir() and checkpoints.is_checkpoint(found):
                checkpoints.check(found, self._whole_model())
        if found is None or not found.is_dir() or not checkpoints.is_checkpoint(found):
            known = checkpoints.all_checkpoints(self.folder)
            raise ConfigError(
                f"resume_from_checkpoint is a folder checkpoint-N, or True for the last one in "
                f"output_dir; got {str(wanted)!r}, and {self.folder} "
                + ("has some." if known else "has none.")
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
            base: Any = super()
            return base.save_model(output_dir, _internal_call=True)
        chosen = None if output_dir is None else Path(output_dir)
        if chosen is None or chosen.resolve() == self.folder.resolve():
            chosen = self.folder / checkpoints.RESULT
        return self._save_result(chosen)

    def _save_result(self, folder: Path) -> Path:
        model: Any = unwrapped(self.model)
        first = self.is_world_process_zero()
        if self.skeleton is not None:
            model = self.skeleton.filled(model, keep=first)
        if first:
            try:
                checkpoints.save_result(model, folder, self.args.train, self.tokenizer)
            except (OSError, SafetensorError) as error:
                raise CheckpointError(
                    f"The trained model could not be written into {folder}: {error}. Make room and "
                    "run the same command again: it goes on from the last checkpoint."
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
        base: Any = super()
        base._maybe_log_save_evaluate(*args, **kwargs)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        name = f"checkpoint-{self.state.global_step}"
        unfinished = self.folder / f"{checkpoints.PARTIAL}{name}"
        try:
            self._write_checkpoint(str(unfinished))
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                checkpoints.publish(unfinished, self.folder / name)
        except (OSError, RuntimeError, SafetensorError) as error:  # as each file's writer has it
            shutil.rmtree(unfinished, ignore_errors=True)  # it would go on filling the disk
            kept = checkpoints.all_checkpoints(self.folder)
            raise CheckpointError(
                f"The checkpoint of step {self.state.global_step} could not be written: {error}. "
                f"The last good one is {kept[0].name if kept else 'none'}; make room and run the "
                "same command again to go on from there."
            ) from error
        if self.args.should_save:
            self._drop_old_checkpoints()
        self.accelerator.wait_for_everyone()

    def _drop_old_checkpoints(self) -> None:
        rotate_checkpoints(str(self.folder), save_total_limit=self.args.save_total_limit)

    def _write_checkpoint(self, folder: str) -> None:
        base: Any = self
        base.save_model(folder, _internal_call=True)
        base._save_optimizer_and_scheduler(folder)
        base._save_scaler(folder)
        base._save_rng_state(folder)
        if self.args.should_save:
            for callback in [*self.callback_handler.callbacks, self.control]:
                if isinstance(callback, ExportableState):
                    self.state.stateful_callbacks[type(callback).__name__] = callback.state()
            self.state.save_to_json(str(Path(folder) / "trainer_state.json"))

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        # Sharded weights are saved and read with their optimizer, by accelerate.
        if self.args.should_save and output_dir is not None and not self.is_fsdp_enabled:
            checkpoints.write_trained(self.model, Path(output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            base: Any = super()
            base._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            checkpoints.read_trained(self.model, Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        base: Any = super()
        with _reading(checkpoint):
            base._load_optimizer_and_scheduler(checkpoint)
            if checkpoint is not None and not self.is_fsdp_enabled:
                _check_moments(self.optimizer)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        base: Any = super()
        with _reading(checkpoint):
            base._load_rng_state(checkpoint)


@contextmanager
def _reading(checkpoint: str | None) -> Iterator[None]:
    """Whatever a file of a checkpoint makes its reader raise is one error of ours."""
    try:
        yield
    except Exception as error:
        raise CheckpointError(
            f"The checkpoint {checkpoint} cannot be gone on with: {checkpoints.first_line(error)}. "
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
