"""The sections of a recipe: which options they have, which of them belong elsewhere, and how they
become the trainers' arguments."""

from __future__ import annotations

import dataclasses
import os
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from interlace.errors import ConfigError
from interlace.training.arguments import GroupArguments, GRPOConfig, WarmupConfig
from interlace.training.trl_fields import RENAMED, refusal, synonyms
from interlace.training.values import fit, nearest

# Hugging Face's options that decide what comes out, in the order in which a recipe shows them.
DECISIVE = (
    "learning_rate",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
    "num_train_epochs",
    "max_steps",
    "optim",
    "optim_args",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "bf16",
    "fp16",
    "tf32",
    "gradient_checkpointing",
    "use_cpu",
    "save_strategy",
    "save_steps",
    "save_total_limit",
    "logging_steps",
    "report_to",
)
# Options that change nothing in the result but rounding: a run may go on with others.
OPERATIONAL = frozenset(
    {
        *("micro_rows", "max_rows", "gradient_checkpointing", "gradient_checkpointing_kwargs"),
        *("save_strategy", "save_steps", "save_total_limit", "logging_steps"),
        *("logging_strategy", "logging_first_step", "log_level", "log_level_replica"),
        *("log_on_each_node", "report_to", "run_name", "project", "trackio_space_id"),
        *("eval_strategy", "eval_steps", "eval_delay", "eval_on_start"),
        *("eval_widths", "num_generations_eval", "guard_every", "prompt_once"),
        *("disable_tqdm", "log_completions", "use_cpu", "ddp_timeout", "ddp_backend", "debug"),
        *("dataloader_num_workers", "dataloader_pin_memory", "skip_memory_metrics"),
    }
)
# Options of TrainingArguments that a recipe sets elsewhere, or that have no effect here.
ELSEWHERE = {
    "output_dir": "the recipe's output_dir holds both stages; set it there",
    "seed": "the recipe's seed is that of both stages; set it there",
    "data_seed": "the recipe's seed orders the problems, too; set it there",
    "resume_from_checkpoint": "the same command goes on from the last checkpoint by itself",
    "do_train": "`interlace train` trains",
    "local_rank": "the launcher sets it",
    "hub_token": "the run folder keeps the recipe; use `hf auth login`, or HF_TOKEN",
    "per_device_train_batch_size": "{batch} is the batch, over all processes; micro_rows bounds "
    "the rows of a forward pass",
    "gradient_accumulation_steps": "{batch} is the batch; micro_rows splits it, whole groups at a "
    "time",
    "reward_weights": "grpo.rewards holds names and weights",
    "correct_reward": "the task judges",
}
# Whole families that the trainers never read.
WITHOUT_EFFECT = (
    *("eval_accumulation", "eval_do", "eval_use", "do_eval", "do_predict", "per_device_eval"),
    *("bf16_full", "fp16_full", "batch_eval"),
    *("include_", "label_names", "length_column", "load_best", "metric_for", "greater_is"),
    *("prediction_loss", "dataloader_drop", "dataloader_in_order", "remove_unused"),
)
ALIASES = {
    "activation_checkpointing": "gradient_checkpointing",
    "activation_checkpointing_kwargs": "gradient_checkpointing_kwargs",
}
SYNONYMS = {
    **synonyms(),
    "lr": "learning_rate",
    "kl_coef": "kl_weight",
    "group_size": "width",
    "epochs": "num_train_epochs",
    "steps": "max_steps",
    "batch_size": "prompts_per_rollout",
}
OWN = {"task": str, "task_options": dict[str, Any]}
TOP = ("model", "load", "attach", "blocks", "output_dir", "seed")


@dataclass(frozen=True)
class Section:
    """A section's dataclass, the types of its options, the one that is its batch, and what it
    trains by default."""

    config: type[GroupArguments]
    hints: Mapping[str, Any]
    batch: str
    train: str

    @property
    def own(self) -> list[str]:
        """The options that Hugging Face's `TrainingArguments` lack, as they are declared."""
        theirs = {f.name for f in dataclasses.fields(TrainingArguments)}
        left_out = theirs | set(ELSEWHERE)
        return [f.name for f in dataclasses.fields(self.config) if f.name not in left_out]


def _section(config: type[GroupArguments], batch: str) -> Section:
    hints = typing.get_type_hints(config)
    names = [f.name for f in dataclasses.fields(config) if f.init]
    train = next(f.default for f in dataclasses.fields(config) if f.name == "train")
    return Section(config, {n: hints[n] for n in names}, batch, str(train))


SECTIONS: dict[str, Section] = {
    "warmup": _section(WarmupConfig, "groups_per_step"),
    "grpo": _section(GRPOConfig, "prompts_per_rollout"),
}


def check_section(stage: str, values: Any) -> dict[str, Any]:
    """A section's values with the types that its options have.

    Raises:
        ConfigError: for an option that does not exist, belongs elsewhere or contradicts another,
            and for a value that does not fit.
    """
    section = SECTIONS[stage]
    if not isinstance(values, Mapping):
        raise ConfigError(f"The section {stage} holds options by name; got {values!r}.")
    hints = {**section.hints, **OWN}
    checked: dict[str, Any] = {}
    for key, value in values.items():
        written = str(key)
        if written not in hints:
            raise ConfigError(_unknown_option(stage, written))
        if (why := _refused(written, value, section)) is not None:
            raise ConfigError(f"{stage}.{written} is not set here: {why}.")
        name = ALIASES.get(written, written)
        checked[name] = fit(value, hints[written], f"{stage}.{written}")
    options_of(stage, checked)
    return checked


def options_of(stage: str, values: Mapping[str, Any]) -> Any:
    """The stage's dataclass, checked by its own rules but not by Hugging Face's, which depend on
    this machine's devices and would start its processes.

    Raises:
        ConfigError: for values that contradict each other.
    """
    config = SECTIONS[stage].config
    options = object.__new__(config)
    for option in dataclasses.fields(config):
        default = option.default
        if option.default_factory is not dataclasses.MISSING:
            default = option.default_factory()
        object.__setattr__(options, option.name, values.get(option.name, default))
    try:
        options._check()
    except ConfigError as error:
        raise ConfigError(f"In the section {stage}: {error}") from None
    return options


def arguments_of(stage: str, values: Mapping[str, Any], folder: Path, seed: int) -> Any:
    """The trainer's arguments, which starts this process's part of a distributed run.

    Raises:
        ConfigError: for values that Hugging Face refuses, or that this machine cannot do.
    """
    config = SECTIONS[stage].config
    names = {f.name for f in dataclasses.fields(config)}
    # The older names warn where the newer ones exist.
    newer = {old: new for new, old in ALIASES.items() if new in names}
    given = {newer.get(n, n): value for n, value in values.items() if n not in OWN}
    try:
        return config(output_dir=os.fspath(folder), seed=seed, **given)
    except ConfigError:
        raise
    except (ValueError, TypeError, ImportError, RuntimeError, OSError) as error:
        raise ConfigError(f"The section {stage} cannot be carried out here: {error}") from error


def resolved_section(stage: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Every option of the section that matters, defaults included: first its own, then Hugging
    Face's."""
    section = SECTIONS[stage]
    options = options_of(stage, values)
    given = [name for name in values if name not in OWN]
    names = dict.fromkeys([*section.own, *DECISIVE, *given])
    found = {name: _plain(getattr(options, name)) for name in names}
    return found | {"gradient_checkpointing": bool(options.gradient_checkpointing)}


def _plain(value: Any) -> Any:
    return getattr(value, "value", value)  # enumerations by their word


def _refused(name: str, value: Any, section: Section) -> str | None:
    if name in ELSEWHERE:
        return ELSEWHERE[name].format(batch=section.batch)
    if (why := refusal(name, value)) is not None:
        return why
    if name.startswith("hub_"):
        return "nothing is pushed while training; interlace.save(..., push_to=) pushes the result"
    if name.startswith(WITHOUT_EFFECT):
        return "these trainers never read it; `interlace eval` measures a trained model"
    return None


def _unknown_option(stage: str, name: str) -> str:
    known = SECTIONS[stage].hints
    other = "grpo" if stage == "warmup" else "warmup"
    candidates = [*SECTIONS[stage].own, *DECISIVE, *OWN]
    synonym = SYNONYMS.get(name)
    if name == "batch_size":
        synonym = SECTIONS[stage].batch
    if name in RENAMED:
        hint = f" It is called {RENAMED[name]} now."
    elif name in TOP:
        hint = f" {name} stands at the top of a recipe, outside the sections."
    elif name in SECTIONS[other].hints:
        hint = f" It is an option of {other}: write {other}.{name}."
    elif synonym in known:
        hint = f" Did you mean {synonym!r}?"
    elif near := nearest(name, candidates) or nearest(name, known):
        hint = f" Did you mean {near!r}?"
    else:
        hint = f" `interlace train {stage} --help` lists the options."
    return f"The section {stage} has no option {name!r}.{hint}"
