"""What every option of a stage means, from the docstrings of the classes that define them."""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
from typing import Any

from interlace.training.arguments import GroupArguments
from interlace.training.sections import DECISIVE, SECTIONS
from interlace.training.values import wanted

# Hugging Face's options, in a line each.
THEIRS = {
    "learning_rate": "of the old weights, and of the new ones unless new_learning_rate is given",
    "lr_scheduler_type": "how learning rates change: linear, cosine, constant, polynomial ...",
    "lr_scheduler_kwargs": "options of the schedule, such as {lr_end: 1.0e-7, power: 1.0}",
    "warmup_steps": "optimizer steps in which learning rates rise from 0; below 1, a share of all",
    "num_train_epochs": "passes over the task's problems, unless max_steps is given",
    "max_steps": "optimizer steps; -1 follows num_train_epochs",
    "optim": "the optimizer: adamw_torch_fused, adamw_torch, sgd, adafactor ...",
    "optim_args": "options of the optimizer, such as 'momentum=0.9'",
    "weight_decay": "of the optimizer",
    "adam_beta1": "of AdamW",
    "adam_beta2": "of AdamW",
    "adam_epsilon": "of AdamW",
    "max_grad_norm": "gradients are clipped to this norm; 0 for not at all",
    "bf16": "passes that train run in bfloat16, over weights of load.dtype",
    "fp16": "the same in float16",
    "tf32": "let float32 products round their factors, on GPUs that can",
    "gradient_checkpointing": "compute activations again in the backward pass, to save memory",
    "use_cpu": "train on the CPU even where there is a GPU",
    "save_strategy": "when to write checkpoints: steps, epoch, or 'no' (in quotes)",
    "save_steps": "optimizer steps between two checkpoints",
    "save_total_limit": "checkpoints to keep",
    "logging_steps": "optimizer steps between two lines of the log",
    "report_to": "tensorboard, wandb, trackio, a list of them, or none",
}


def explain(stage: str) -> str:
    """The options of a stage, as `section.name  type (default)` and a line of what they do."""
    section = SECTIONS[stage]
    texts = described(section.config) | THEIRS
    lines = [f"options of the section {stage}:"]
    for name in [*section.own, *DECISIVE]:
        lines += _entry(f"{stage}.{name}", section.hints[name], _default(section.config, name))
        lines += textwrap.wrap(texts[name], 94, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(
        [
            *lines,
            "",
            "Further options are those of Hugging Face's TrainingArguments, under the same names.",
        ]
    )


def described(config: type[Any]) -> dict[str, str]:
    """Option -> its text in the docstrings of a class and of those it derives from.

    >>> from interlace.training.arguments import WarmupConfig
    >>> described(WarmupConfig)["samples"]
    'responses sampled a problem.'
    """
    found: dict[str, str] = {}
    for kind in reversed(config.__mro__):
        if issubclass(kind, GroupArguments):
            found |= _arguments(inspect.getdoc(kind) or "")
    return found


def _arguments(docstring: str) -> dict[str, str]:
    """The entries of a docstring's "Args"."""
    body = re.search(r"^Args:\n((?:[ \t]+.*\n?|\n)+)", docstring, re.M)
    entries = re.findall(
        r"^    (\w+): ((?:.*\n?)(?:^ {8}.*\n?)*)", body.group(1) if body else "", re.M
    )
    return {name: " ".join(text.split()) for name, text in entries}


def _entry(name: str, hint: Any, default: Any) -> list[str]:
    return [f"  {name}", f"      {wanted(hint)}; default {_as_yaml(default)}"]


def _default(config: type[Any], name: str) -> Any:
    option = next(f for f in dataclasses.fields(config) if f.name == name)
    if option.default_factory is not dataclasses.MISSING:
        return option.default_factory()
    return getattr(option.default, "value", option.default)


def _as_yaml(value: Any) -> str:
    import yaml

    return yaml.safe_dump(value, default_flow_style=True).removesuffix("\n...\n").strip()
