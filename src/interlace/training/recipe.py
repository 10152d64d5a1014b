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

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from interlace.coupling.config import CouplingConfig
from interlace.coupling.registry import COUPLINGS, config_from_dict, coupling_class
from interlace.errors import ConfigError
from interlace.tasks.sources import is_file
from interlace.training.recipe_files import find_recipe, merge_overrides, read_yaml
from interlace.training.sections import SECTIONS, check_section, options_of, resolved_section
from interlace.training.values import fit, nearest

Stage = Literal["warmup", "grpo"]
STAGES: tuple[Stage, ...] = ("warmup", "grpo")
METHODS = (*COUPLINGS, "none", "auto")
OWN_WARMUP = "warmup"
BLOCKS = ("auto", OWN_WARMUP, "fresh")
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


@dataclass(frozen=True)
class Recipe:
    """A recipe, checked. Its sections hold what was given; `arguments` adds the defaults.

    Args:
        model: what `interlace.load` takes.
        task: the task's name.
        output_dir: where both stages write.
        load: further options of `interlace.load`; dtype is float32 unless it says otherwise.
        attach: the blocks; "none" for none, "auto" for those that the model has, or else a Bridge
            of the default size.
        blocks: where GRPO takes its blocks from: "warmup" is `<output_dir>/warmup/model`, "fresh"
            untrained ones, "auto" the first if it is there and else the second; or a folder.
        task_options: of the task; `split` is "train" unless they say otherwise.
        seed: of fresh blocks, of the order of problems, and of sampling.
        warmup: given options of `WarmupConfig`; None without the section.
        grpo: given options of `GRPOConfig`; None without the section.
    """

    model: str
    task: str
    output_dir: str
    load: dict[str, Any] = field(default_factory=dict)
    attach: CouplingConfig | Literal["none", "auto"] = "auto"
    blocks: str = "auto"
    task_options: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
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
        """A stage's `WarmupConfig` or `GRPOConfig`, on this machine's devices and processes.

        Raises:
            ConfigError: for values that Hugging Face refuses, or that this machine cannot do.
        """
        from interlace.training.sections import arguments_of

        return arguments_of(stage, self.section(stage), self.folder(stage), self.seed)

    def resolved(self, stage: Stage) -> dict[str, Any]:
        """All that a stage's outcome depends on, defaults included; a recipe for that stage."""
        attach = self.attach
        name, options = self.task_of(stage)
        top: dict[str, Any] = {
            "model": self.model,
            "load": dict(self.load),
            "attach": attach if isinstance(attach, str) else _attach_to_dict(attach),
        }
        if stage == "grpo":
            top["blocks"] = self.blocks
        top |= {
            "task": name,
            "task_options": options,
            "output_dir": self.output_dir,
            "seed": self.seed,
        }
        return top | {stage: resolved_section(stage, self.section(stage))}


def load_recipe(name: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        name: a YAML file, or the name of one that comes with Interlace, such as "tiny".
        overrides: `section.key=value` each; values as YAML.

    Raises:
        ConfigError: for a file that cannot be read, a key that does not exist, or a value that does
            not fit.

    >>> recipe = load_recipe("tiny", ["grpo.width=4", "attach.parameter_share=0.1"])
    >>> recipe.grpo["width"], recipe.attach.parameter_share
    (4, 0.1)
    """
    values = read_yaml(find_recipe(name))
    return parse_recipe(merge_overrides(values, overrides))


def parse_recipe(values: Mapping[str, Any]) -> Recipe:
    """A recipe from plain values, as YAML gives them.

    Raises:
        ConfigError: for a key that does not exist, or a value that does not fit.
    """
    names = [f.name for f in dataclasses.fields(Recipe)]
    for key in values:
        if key not in names:
            raise ConfigError(_unknown_key(str(key), names))
    missing = [name for name in ("model", "task", "output_dir") if values.get(name) is None]
    if missing:
        raise ConfigError(
            f"A recipe says which model, task and output_dir; {' and '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing."
        )
    texts = {n: fit(values[n], str, n) for n in ("model", "task", "output_dir")}
    recipe = Recipe(
        **texts,
        load=_load_options(values.get("load") or {}),
        attach=_attach(values.get("attach", "auto")),
        blocks=fit(values.get("blocks", "auto"), str, "blocks"),
        task_options=fit(values.get("task_options") or {}, dict[str, Any], "task_options"),
        seed=fit(values.get("seed", 0), int, "seed"),
        warmup=_section("warmup", values),
        grpo=_section("grpo", values),
    )
    if recipe.seed < 0:
        raise ConfigError(f"seed is a whole number from 0 on; got {recipe.seed}.")
    return recipe


def _section(stage: Stage, values: Mapping[str, Any]) -> dict[str, Any] | None:
    if stage not in values:
        return None
    return check_section(stage, {} if values[stage] is None else values[stage])


def _unknown_key(key: str, names: Sequence[str]) -> str:
    homes = [stage for stage in STAGES if key in SECTIONS[stage].hints]
    if key in SYNONYMS:
        hint = f" Did you mean {SYNONYMS[key]!r}?"
    elif homes:
        hint = f" It belongs to a section: {' or '.join(f'{home}.{key}' for home in homes)}."
    elif near := nearest(key, names):
        hint = f" Did you mean {near!r}?"
    else:
        hint = f" There are {', '.join(names)}."
    return f"A recipe has no key {key!r}.{hint}"


def _load_options(values: Any) -> dict[str, Any]:
    from inspect import signature

    from interlace.models.loading import load

    options: dict[str, Any] = fit(values, dict[str, Any], "load")
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
                f"interlace.load has no option {name!r}."
                + (f" Did you mean {near!r}?" if near else f" It has {', '.join(known)}.")
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


def _attach(values: Any) -> CouplingConfig | Literal["none", "auto"]:
    if isinstance(values, str):
        values = {"method": values}
    if not isinstance(values, Mapping) or "method" not in values:
        raise ConfigError(
            f"attach is one of {', '.join(METHODS)}, or a mapping such as "
            f"{{method: bridge, parameter_share: 0.05}}; got {values!r}."
        )
    options = dict(values)
    method = options.pop("method")
    if method not in METHODS:
        near = nearest(str(method), METHODS)
        raise ConfigError(
            f"attach.method is one of {', '.join(METHODS)}; got {method!r}."
            + (f" Did you mean {near!r}?" if near else "")
        )
    if method in ("none", "auto"):
        if options:
            raise ConfigError(
                f"attach.method={method} takes no options; got {', '.join(options)}. Options are "
                f"those of {' and '.join(COUPLINGS)}."
            )
        return "none" if method == "none" else "auto"
    known = [f.name for f in dataclasses.fields(coupling_class(method).Config)]
    for name in options:
        if name not in known:
            near = nearest(name, [*known, "method"])
            raise ConfigError(
                f"attach has no option {name!r}."
                + (f" Did you mean {near!r}?" if near else f" It has {', '.join(known)}.")
            )
    if isinstance(share := options.get("parameter_share"), str):
        options["parameter_share"] = fit(share, float, "attach.parameter_share")
    return config_from_dict({"kind": method, **options})


def _attach_to_dict(config: CouplingConfig) -> dict[str, Any]:
    values = config.to_dict()
    method = values.pop("kind")
    if config.parameter_share is not None:
        del values["head_dim"]  # follows from the share
    return {"method": method} | values
