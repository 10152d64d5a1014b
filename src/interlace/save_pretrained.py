"""Plain `model.save_pretrained(folder)`, which `transformers.Trainer` calls for its checkpoints.

It writes what `interlace.save(model, folder, full=True)` writes: `interlace.load` reads it, Trainer
resumes from it, and Hugging Face's `from_pretrained` refuses it, since it would give the base model
without its blocks (docs/decisions/0019-checkpoints-of-trainer.md).
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from interlace.errors import AttachError

_WAYS_OUT = (
    "Use interlace.save(model, folder, full=True) for all weights, interlace.save(model, folder) "
    "for the new ones, or interlace.detach(model) first to save the base model."
)
# Arguments of Hugging Face's that ask for what a save does anyway.
_MET: dict[str, tuple[Any, ...]] = {
    "push_to_hub": (False, None),
    "safe_serialization": (True, None),
    "token": (None,),
    "variant": (None,),
}


class WholeSaving:
    """The part of an attached model's class that writes it where Hugging Face asks for that."""

    @property
    def peft_config(self) -> Any:
        """Configurations of adapters, which PEFT notes on every model that it puts some into."""
        if "peft_config" not in vars(self):
            raise AttributeError(f"{type(self).__name__} has no adapters")
        return vars(self)["peft_config"]

    @peft_config.setter
    def peft_config(self, value: Any) -> None:
        model: Any = self
        warn_of_adapters(value, model.interlace_attachment.config.kind, attached_last=False)
        vars(self)["peft_config"] = value

    @peft_config.deleter
    def peft_config(self) -> None:
        del vars(self)["peft_config"]

    def save_pretrained(
        self,
        save_directory: Any,
        is_main_process: bool = True,
        state_dict: dict[str, Tensor] | None = None,
        **options: Any,
    ) -> None:
        """Write base and blocks as `interlace.load` reads them.

        Args:
            save_directory: Folder to write into; an earlier save in it is replaced.
            is_main_process: Whether this process is the one that writes.
            state_dict: Weights of this model, as Trainer may pass them along.
            **options: Further arguments of Hugging Face's `save_pretrained`, refused unless they
                ask for what is done anyway.

        Raises:
            AttachError: for arguments that would be ignored, and for a sharded model.
        """
        import interlace  # saving stands above this module; the root's lazy names stand outside

        model: Any = self
        _check_options(options)
        _check_whole(model)
        if state_dict is not None:
            _check_own(model, state_dict)
        if is_main_process:
            interlace.save(model, save_directory, full=True)

    def push_to_hub(self, *args: Any, **kwargs: Any) -> None:
        """Refused: `interlace.save` pushes what `interlace.load` reads."""
        raise AttachError(
            "push_to_hub would upload files that from_pretrained loads without the attached "
            "blocks. Use interlace.save(model, folder, push_to='user/name'), or "
            "interlace.detach(model) first to upload the base model."
        )


def warn_of_adapters(peft_config: Any, kind: str, *, attached_last: bool) -> None:
    """Warn where PEFT's own checkpoints will hold its adapters and leave the blocks out in silence;
    of blocks that were attached last, PEFT knows nothing."""
    configs = [c for c in dict(peft_config).values() if not getattr(c, "inference_mode", False)]
    kept = [kind in (getattr(c, "modules_to_save", None) or ()) for c in configs]
    if not configs or (all(kept) and not attached_last):
        return
    first = "Attach the blocks before the adapters, and pass" if attached_last else "Pass"
    warnings.warn(
        f"PEFT saves its adapters alone, in checkpoints of Trainer too, and not the {kind} blocks "
        f"of this model. {first} LoraConfig(..., modules_to_save=[{kind!r}]), which trains the "
        "blocks and saves them with the adapters, or save them with interlace.save(model, folder).",
        stacklevel=3,
    )


def _check_options(options: dict[str, Any]) -> None:
    unmet = [n for n, value in options.items() if n not in _MET or value not in _MET[n]]
    if unmet:
        named = ", ".join(f"{name}={options[name]!r}" for name in unmet)
        raise AttachError(
            f"save_pretrained on an attached model writes a full save of Interlace, so {named} "
            f"would be without effect. {_WAYS_OUT}"
        )


def _check_whole(model: nn.Module) -> None:
    if any(hasattr(parameter, "full_tensor") for parameter in model.parameters()):
        raise AttachError(
            f"save_pretrained runs on one process, and this {type(model).__name__} is sharded "
            "over several. Call interlace.save(model, folder, full=True) on each of them; Trainer "
            "resumes a sharded model from sharded checkpoints (SHARDED_STATE_DICT)."
        )


def _check_own(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Refuse weights that are not the model's: they would not be written."""
    for name, parameter in model.named_parameters():
        if name not in state or not torch.equal(state[name].to(parameter.device), parameter):
            raise AttachError(
                "save_pretrained on an attached model writes the model's own weights, and the "
                f"state_dict it got has another {name}, or none. Load the weights into the model "
                f"first. {_WAYS_OUT}"
            )
