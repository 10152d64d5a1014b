"""The sections of a recipe: which options they have, which of them belong elsewhere, and how they
become the trainers' arguments."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from interlace.configuration import defaults_of, explained
from interlace.errors import ConfigError, nearest, shown
from interlace.training.arguments import GroupArguments, GRPOConfig, WarmupConfig
from interlace.training.trl_fields import RENAMED, refusal, synonyms, without_effect

# Hugging Face's options that decide what comes out, in the order in which a recipe shows them: what
# the trainers' own options explain.
DECISIVE = tuple(
    name
    for _, texts in explained(GroupArguments, TrainingArguments)
    for name in texts
    if name in defaults_of(TrainingArguments)
)
# Options that change nothing in the result but rounding: a run may go on with others.
OPERATIONAL = frozenset(
    {
        *("micro_rows", "max_rows", "gradient_checkpointing", "gradient_checkpointing_kwargs"),
        "rollout_options",
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
    "do_eval": "eval_strategy says when a run measures",
    "do_predict": "`interlace eval` measures a trained model",
    "local_rank": "the launcher sets it",
    "hub_token": "the run folder keeps the recipe; use `hf auth login`, or HF_TOKEN",
    "per_device_train_batch_size": "{batch} is the batch, over all processes; micro_rows bounds "
    "the rows of a forward pass",
    "gradient_accumulation_steps": "{batch} is the batch; micro_rows splits it, whole groups at a "
    "time",
    "reward_weights": "grpo.rewards holds names and weights",
    "correct_reward": "the task judges",
}
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
OWN = ("task", "task_options")  # of the recipe, which a section may have for itself
TOP = ("model", "load", "attach", "blocks", "output_dir", "seed")


@dataclass(frozen=True)
class Section:
    """A section's dataclass, the one of its options that is its batch, and what it trains by
    default."""

    config: type[GroupArguments]
    batch: str

    @property
    def train(self) -> str:
        """What it trains unless it says otherwise."""
        return str(defaults_of(self.config)["train"])

    @property
    def names(self) -> list[str]:
        """All options, those that a recipe may not set included."""
        return [*defaults_of(self.config), *OWN]

    @property
    def own(self) -> list[str]:
        """The options that Hugging Face's `TrainingArguments` lack, as they are declared."""
        left_out = set(defaults_of(TrainingArguments)) | set(ELSEWHERE)
        return [name for name in defaults_of(self.config) if name not in left_out]


SECTIONS: dict[str, Section] = {
    "warmup": Section(WarmupConfig, "groups_per_step"),
    "grpo": Section(GRPOConfig, "prompts_per_rollout"),
}


def options_of(stage: str, values: Mapping[str, Any]) -> Any:
    """The stage's dataclass, checked by its own rules but not by Hugging Face's, which depend on
    this machine's devices and would start its processes.

    Raises:
        ConfigError: for values that contradict each other.
    """
    config = SECTIONS[stage].config
    options = object.__new__(config)
    for name, value in {**defaults_of(config), **values}.items():
        object.__setattr__(options, name, value)
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
    names = defaults_of(config)
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


def refused(stage: str, name: str, value: Any) -> str | None:
    """Why a recipe may not set an option of a section; None if it may."""
    if name in ELSEWHERE:
        return ELSEWHERE[name].format(batch=SECTIONS[stage].batch)
    if (why := refusal(name, value)) is not None:
        return why
    if name not in OPERATIONAL and (why := without_effect(name)) is not None:
        return f"it has no effect, since {why}"
    return None


def unknown_option(stage: str, name: str) -> str:
    """The message for a name that a section does not have."""
    section, other = SECTIONS[stage], "grpo" if stage == "warmup" else "warmup"
    synonym = section.batch if name == "batch_size" else SYNONYMS.get(name)
    if name in RENAMED:
        hint = f" It is called {RENAMED[name]} now."
    elif name in TOP:
        hint = f" {name} stands at the top of a recipe, outside the sections."
    elif name in SECTIONS[other].names:
        hint = f" It is an option of {other}: write {other}.{name}."
    elif synonym in section.names:
        hint = f" Did you mean {synonym!r}?"
    else:
        near = nearest(name, [*section.own, *DECISIVE, *OWN]) or nearest(name, section.names)
        hint = near or f" `interlace train {stage} --help` lists the options."
    return f"The section {stage} has no option {shown(name)}.{hint}"
