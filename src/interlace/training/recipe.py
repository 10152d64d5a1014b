"""Recipes: one YAML file for both stages of training, the warm-up and GRPO.

    model: tiny                  # what interlace.load takes
    load: {dtype: float32}       # its further options
    attach: {method: bridge, parameter_share: 0.05}   # or bridge, pmatch, none
    blocks: auto                 # where GRPO takes its blocks from
    task: countdown
    task_options: {max_number: 9}
    output_dir: runs/tiny-bridge
    seed: 0
    warmup: {...}                # options of WarmupConfig
    grpo: {...}                  # options of GRPOConfig

Each stage writes into its own folder, `<output_dir>/warmup` and `<output_dir>/grpo`. A stage's
section may have a `task` and `task_options` of its own.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import jsonargparse
from transformers import TrainingArguments

from interlace.configuration import Parser, defaults_of, explained, read_yaml
from interlace.coupling.config import CouplingConfig
from interlace.coupling.registry import COUPLINGS, config_from_dict, coupling_class
from interlace.errors import ConfigError, nearest, reading, shown
from interlace.tasks.sources import is_file
from interlace.training.arguments import GroupArguments, GRPOConfig, WarmupConfig
from interlace.training.trl_fields import RENAMED, refusal, synonyms, without_effect

# Inside an installed package; a checkout has them at its root.
PACKAGED = Path(__file__).parents[1] / "recipes"
CHECKOUT = Path(__file__).parents[3] / "recipes"
Stage = Literal["warmup", "grpo"]
STAGES: tuple[Stage, ...] = ("warmup", "grpo")
METHODS = (*COUPLINGS, "none", "auto")
OWN_WARMUP = "warmup"
# Of `from_pretrained`, beside the options that interlace.load names itself.
FURTHER_LOAD = ("quantization_config", "max_memory", "local_files_only", "subfolder", "variant")
SYNONYMS = {
    "base_model": "model",
    "model_name_or_path": "model",
    "dataset": "task",
    "output": "output_dir",
    "sft": "warmup",
    "rl": "grpo",
    "dtype": "load",
    "method": "attach",
    "parameter_share": "attach",
}
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
OPTION_SYNONYMS = {
    **synonyms(),
    "lr": "learning_rate",
    "kl_coef": "kl_weight",
    "group_size": "width",
    "epochs": "num_train_epochs",
    "steps": "max_steps",
    "batch_size": "prompts_per_rollout",
}
OWN = ("task", "task_options")  # of the recipe, which a section may have for itself


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


@dataclass(frozen=True)
class _Top:
    """Keys at the top of a recipe.

    Args:
        model: Model, as `interlace.load` takes it.
        load: Further options of `interlace.load`; dtype is float32 unless they say otherwise.
        attach: Blocks to attach, such as {method: bridge, parameter_share: 0.05}; "none" for none,
            "auto" for those that the model has, or else a Bridge of the default size.
        blocks: Place that GRPO takes its blocks from: "warmup" is `<output_dir>/warmup/model`,
            "fresh" untrained ones, "auto" the first if it is there and else the second; or a
            folder.
        task: Name of the task.
        task_options: Options of the task; `split` is "train" unless they say otherwise.
        output_dir: Path of the folder that both stages write into.
        seed: Seed of fresh blocks, of the order of problems, and of sampling.
    """

    model: str = ""
    load: dict[str, Any] = field(default_factory=dict)
    attach: dict[str, Any] = field(default_factory=lambda: {"method": "auto"})
    blocks: str = "auto"
    task: str = ""
    task_options: dict[str, Any] = field(default_factory=dict)
    output_dir: str = ""
    seed: int = 0


@dataclass(frozen=True)
class _Own:
    """Task of a section, if it has one of its own.

    Args:
        task: Name of the task.
        task_options: Options of the task.
    """

    task: str = ""
    task_options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe(_Top):
    """A recipe, checked. Its sections hold what was given; `arguments` adds the defaults.

    Args:
        attach: Configuration of the blocks; "none" for none, "auto" for those that the model has.
        warmup: Options of `WarmupConfig` that were given; None without the section.
        grpo: Options of `GRPOConfig` that were given; None without the section.
    """

    attach: CouplingConfig | Literal["none", "auto"] = "auto"  # type: ignore[assignment]
    warmup: dict[str, Any] | None = None
    grpo: dict[str, Any] | None = None

    def section(self, stage: Stage) -> dict[str, Any]:
        """The given options of a stage.

        Raises:
            ConfigError: if the recipe lacks the section, or there is nothing for it to train.
        """
        section: dict[str, Any] | None = getattr(self, stage)
        if section is None:
            raise ConfigError(
                f"The recipe has no section {stage!r}. Add one; `{stage}: {{}}` takes all defaults."
            )
        train = section.get("train", SECTIONS[stage].train)
        if self.attach == "none" and train == "new":
            way = "RLVR-only has no warm-up: go on with `interlace train grpo`, or set "
            raise ConfigError(
                f"attach is none, so there are no new weights that {stage}.train=new could train. "
                f"{way if stage == 'warmup' else 'Set '}{stage}.train=all, or attach blocks."
            )
        return section

    def folder(self, stage: Stage) -> Path:
        """Where a stage writes."""
        return Path(self.output_dir).expanduser() / stage

    def task_of(self, stage: Stage) -> tuple[str, dict[str, Any]]:
        """The task of a stage and its options."""
        section = self.section(stage)
        name = section.get("task", self.task)
        inherited = {} if "task" in section else self.task_options
        options = {**inherited, **section.get("task_options", {})}
        # A file is taken as a whole: it need not have splits.
        whole = is_file(str(options.get("data", "")))
        return name, options if whole else {"split": "train", **options}

    def options(self, stage: Stage) -> Any:
        """A stage's options with all defaults, checked as far as this machine does not matter.

        Returns:
            A `WarmupConfig` or `GRPOConfig` to read from; `arguments` gives one to train with.
        """
        return options_of(stage, self.section(stage))

    def arguments(self, stage: Stage) -> Any:
        """A stage's `WarmupConfig` or `GRPOConfig`, which starts this process's part of a
        distributed run.

        Raises:
            ConfigError: for values that Hugging Face refuses, or that this machine cannot do.
        """
        config = SECTIONS[stage].config
        # The older names warn where the newer ones exist.
        newer = {old: new for new, old in ALIASES.items() if new in defaults_of(config)}
        section = self.section(stage).items()
        given = {newer.get(n, n): value for n, value in section if n not in OWN}
        with reading(ConfigError, f"The section {stage} cannot be carried out here"):
            return config(output_dir=os.fspath(self.folder(stage)), seed=self.seed, **given)

    def resolved(self, stage: Stage) -> dict[str, Any]:
        """All that a stage's outcome depends on, defaults included; a recipe for that stage."""
        attach = self.attach
        name, options_of_task = self.task_of(stage)
        top: dict[str, Any] = {
            "model": self.model,
            "load": dict(self.load),
            "attach": attach if isinstance(attach, str) else _attach_to_dict(attach),
            **({"blocks": self.blocks} if stage == "grpo" else {}),
            "task": name,
            "task_options": options_of_task,
            "output_dir": self.output_dir,
            "seed": self.seed,
        }
        section, options = SECTIONS[stage], self.options(stage)
        given = [option for option in self.section(stage) if option not in OWN]
        names = dict.fromkeys([*section.own, *DECISIVE, *given])  # its own, then Hugging Face's
        found = {option: _plain(getattr(options, option)) for option in names}
        found["gradient_checkpointing"] = bool(options.gradient_checkpointing)
        return top | {stage: found}


class _Parser(Parser):
    """As every parser, with a recipe's words in errors."""

    def __init__(self) -> None:
        super().__init__("recipe", "", "")
        self.dashed = False
        declare(self, STAGES)

    def read(self, values: Mapping[str, Any], place: str) -> jsonargparse.Namespace:
        """As any parser does; a method alone, and an empty section, are mappings."""
        whole = dict(values)
        if isinstance(whole.get("attach"), str):
            whole["attach"] = {"method": whole["attach"]}
        whole |= {stage: {} for stage in STAGES if stage in whole and whole[stage] is None}
        return super().read(whole, place)

    def unknown(self, name: str) -> str:
        """As any parser does."""
        stage, dot, option = name.removeprefix("--").partition(".")
        return unknown_option(stage, option) if dot and stage in STAGES else _unknown_key(stage)

    def _check(self, found: jsonargparse.Namespace) -> None:
        super()._check(found)
        for name, value in found.items():
            stage, _, option = name.partition(".")
            if stage in STAGES and (why := refused(stage, option, value)) is not None:
                raise ConfigError(f"{self.place}{name} is not set here: {why}.")


@functools.cache
def _declared() -> _Parser:
    return _Parser()


def _parser() -> _Parser:
    """A parser for one recipe. Its 300 options are declared once, since that takes longer than
    reading; what belongs to one recipe, its place and its words, each copy has of its own."""
    return copy.copy(_declared())


def declare(parser: Parser, stages: Sequence[str]) -> None:
    """Declare the options of a recipe with these sections."""
    for stage in stages:
        config = SECTIONS[stage].config
        parser.add_options(config, under=stage, silent=TrainingArguments)
    parser.add_options(_Top)
    for stage in stages:
        parser.add_options(_Own, under=stage)


def load_recipe(name: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        name: Path of a YAML file, or name of a recipe that comes with Interlace, such as "tiny".
        overrides: Overrides, `section.key=value` each; the last one wins.

    Raises:
        ConfigError: for a file that cannot be read, a key that does not exist, or a value that does
            not fit.

    >>> recipe = load_recipe("tiny", ["grpo.width=4", "attach.parameter_share=0.1"])
    >>> recipe.grpo["width"], recipe.attach.parameter_share
    (4, 0.1)
    """
    for text in overrides:
        if not text.partition("=")[1]:
            raise ConfigError(
                "An override is section.key=value, such as grpo.learning_rate=1e-5; got "
                f"{shown(text)}."
            )
    whole = [re.sub(r"^attach=([\w-]+)$", r"attach={method: \1}", text) for text in overrides]
    path, parser = find_recipe(name), _parser()
    values = read_yaml(path, "model: tiny")
    found = parser.override(parser.read(values, str(path)), [f"--{text}" for text in whole])
    return _recipe(found, values)


def parse_recipe(values: Mapping[str, Any]) -> Recipe:
    """A recipe from its keys and values, as YAML reads them."""
    return _recipe(_parser().read(values, "recipe"), values)


def packaged_recipes() -> dict[str, Path]:
    """Name -> file of the recipes that come with Interlace."""
    folder = PACKAGED if PACKAGED.is_dir() else CHECKOUT
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_recipe(name: str | os.PathLike[str]) -> Path:
    """The file of a recipe: a path, or the name of one that comes with Interlace."""
    text = os.fspath(name)
    path, known = Path(text).expanduser(), packaged_recipes()
    if path.is_file():
        return path
    if text in known:
        return known[text]
    if path.is_dir():
        raise ConfigError(f"A recipe is a YAML file; {text} is a folder.")
    raise ConfigError(
        f"There is no recipe {shown(text)}: neither a file, nor one of those that come with "
        f"Interlace ({', '.join(known)}).{nearest(path.stem, known)}"
    )


def _recipe(found: jsonargparse.Namespace, written: Mapping[str, Any]) -> Recipe:
    values = found.as_dict()
    missing = [name for name in ("model", "task", "output_dir") if not values.get(name)]
    if missing:
        raise ConfigError(
            f"A recipe says which model, task and output_dir; {' and '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing."
        )
    for stage in STAGES:
        if stage in written or values.get(stage):
            given = values.get(stage) or {}
            values[stage] = {ALIASES.get(name, name): value for name, value in given.items()}
            options_of(stage, values[stage])
    values["load"] = _load_options(values.get("load", {}))
    values["attach"] = _attach(values.get("attach", {"method": "auto"}))
    recipe = Recipe(**values)
    if recipe.seed < 0:
        raise ConfigError(f"seed is a whole number from 0 on; got {recipe.seed}.")
    return recipe


def _unknown_key(key: str) -> str:
    names = [option.name for option in dataclasses.fields(Recipe)]
    homes = [f"{stage}.{key}" for stage in STAGES if key in SECTIONS[stage].names]
    if key in SYNONYMS:
        hint = f" Did you mean {SYNONYMS[key]!r}?"
    elif homes:
        hint = f" It belongs to a section: {' or '.join(homes)}."
    else:
        hint = nearest(key, names) or f" There are {', '.join(names)}."
    return f"A recipe has no key {shown(key)}.{hint}"


def _load_options(options: dict[str, Any]) -> dict[str, Any]:
    from inspect import signature

    from interlace.models.loading import load

    known = [n for n in signature(load).parameters if n not in ("source", "token", "options")]
    for name in options:
        if name == "token":
            raise ConfigError(
                "A recipe is copied into the run folder, so it holds no hub token. Use `hf auth "
                "login`, or the environment variable HF_TOKEN."
            )
        if name not in (*known, *FURTHER_LOAD):
            near = nearest(name, (*known, *FURTHER_LOAD))
            raise ConfigError(
                f"interlace.load has no option {shown(name)}."
                + (near or f" It has {', '.join(known)}.")
            )
    if options.get("dtype") == "auto":
        options["dtype"] = None  # the checkpoint's own
    elif "dtype" in options:
        _check_dtype(options["dtype"])
    elif "quantization_config" not in options:
        # A checkpoint's own 16 bits would round small steps of the optimizer to nothing.
        options["dtype"] = "float32"
    return options


def _check_dtype(name: Any) -> None:
    import torch

    if name is None:
        return
    kind = getattr(torch, name, None) if isinstance(name, str) else None
    if not isinstance(kind, torch.dtype) or not kind.is_floating_point:
        raise ConfigError(
            f"load.dtype is float32, bfloat16, float16 or auto (the checkpoint's); got {name!r}."
        )


def _attach(options: dict[str, Any]) -> CouplingConfig | Literal["none", "auto"]:
    method = options.pop("method", None)
    if method not in METHODS:
        raise ConfigError(
            f"attach.method is one of {', '.join(METHODS)}; got {shown(method)}."
            f"{nearest(str(method), METHODS)}"
        )
    if method in ("none", "auto"):
        if options:
            raise ConfigError(
                f"attach.method={method} takes no options; got {', '.join(options)}. Options are "
                f"those of {' and '.join(COUPLINGS)}."
            )
        return cast('Literal["none", "auto"]', method)
    known = [f.name for f in dataclasses.fields(coupling_class(method).Config)]
    for name in options:
        if name not in known:
            raise ConfigError(
                f"attach has no option {shown(name)}."
                + (nearest(name, [*known, "method"]) or f" It has {', '.join(known)}.")
            )
    return config_from_dict({"kind": method, **options})


def _attach_to_dict(config: CouplingConfig) -> dict[str, Any]:
    values = config.to_dict()
    method = values.pop("kind")
    if config.parameter_share is not None:
        del values["head_dim"]  # follows from the share
    return {"method": method} | values


# The sections ------------------------------------------------------------------------------------


def options_of(stage: str, values: Mapping[str, Any]) -> Any:
    """The stage's dataclass, checked by its own rules but not by Hugging Face's, which depend on
    this machine's devices and would start its processes.
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
    synonym = section.batch if name == "batch_size" else OPTION_SYNONYMS.get(name)
    if name in RENAMED:
        hint = f" It is called {RENAMED[name]} now."
    elif name in defaults_of(_Top):
        hint = f" {name} stands at the top of a recipe, outside the sections."
    elif name in SECTIONS[other].names:
        hint = f" It is an option of {other}: write {other}.{name}."
    elif synonym in section.names:
        hint = f" Did you mean {synonym!r}?"
    else:
        near = nearest(name, [*section.own, *DECISIVE, *OWN]) or nearest(name, section.names)
        hint = near or f" `interlace train {stage} --help` lists the options."
    return f"The section {stage} has no option {shown(name)}.{hint}"
