"""What a user hands to a trainer, in TRL's names and order, as the trainer uses it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from interlace.errors import ConfigError
from interlace.models.loading import load
from interlace.training.arguments import GroupArguments

# Arguments of TRL's trainers that these have no use for.
REFUSED = {
    "tokenizer": "it is called processing_class",
    "task": "it is called train_dataset",
    "reward_processing_classes": "a reward is a function; call a reward model inside of one",
    "quantization_config": "load the model yourself: interlace.load(name, quantization_config=...)",
    "tools": "rows call no tools",
    "rollout_func": "the engine samples whole groups",
    "environment_factory": "rows call no tools",
    "data_collator": "groups are collated whole",
    "compute_metrics": "eval_dataset is measured by the task's verifier and the rewards",
}
NEW_CALL = (
    "{name}(model, reward_funcs, args, train_dataset=task, processing_class=tokenizer); "
    "reward_funcs=None takes args.rewards, as a recipe names them"
)


def check_call(name: str, reward_funcs: Any, other: Mapping[str, Any]) -> None:
    """Raise for the order of arguments of version 0.1, and for arguments that have no use here.

    Raises:
        ConfigError: with the new call, or the reason.
        TypeError: for an argument that neither TRL nor Interlace has.
    """
    new = NEW_CALL.format(name=name)
    if isinstance(reward_funcs, PreTrainedTokenizerBase):
        raise ConfigError(
            f"The second argument of {name} is reward_funcs, as in TRL, and no longer the "
            f"tokenizer: {new}."
        )
    for argument, value in other.items():
        if argument not in REFUSED:
            raise TypeError(f"{name} has no argument {argument!r}: {new}.")
        if value is not None:
            raise ConfigError(f"{name} takes no {argument}: {REFUSED[argument]}. The call: {new}.")


def settled_args(name: str, config: type[GroupArguments], args: Any, model: Any) -> Any:
    """The options, or default ones that write where TRL's would: `<model>-GRPO`.

    Raises:
        ConfigError: for options of another class.
    """
    if args is None:
        source = str(model if isinstance(model, str | Path) else model.config._name_or_path)
        kind = name.removesuffix("Trainer")
        return config(output_dir=f"{Path(source).name or 'model'}-{kind}")
    if not isinstance(args, config):
        raise ConfigError(
            f"args is an interlace.{config.__name__}, which takes TRL's names of options, too; got "
            f"{type(args).__module__}.{type(args).__name__}."
        )
    return args


def model_and_tokenizer(model: Any, tokenizer: Any) -> tuple[PreTrainedModel, Any]:
    """The model, loaded in float32 if only its name is given, and its tokenizer.

    Raises:
        ConfigError: if the model comes without a tokenizer, and its own cannot be found.
        LoadError: if a name cannot be loaded.
    """
    if isinstance(model, str | Path):
        return load(model, dtype="float32", tokenizer=tokenizer)
    if tokenizer is not None:
        return model, tokenizer
    source = str(getattr(model.config, "_name_or_path", ""))
    try:
        return model, AutoTokenizer.from_pretrained(source)
    except Exception as error:  # transformers and tokenizers raise what they like
        raise ConfigError(
            f"The model does not say where its tokenizer is (name_or_path={source!r}): "
            f"{type(error).__name__}. Pass processing_class=tokenizer."
        ) from error


def take_adapters(args: GroupArguments, peft_config: Any) -> None:
    """Turn TRL's `peft_config` into `train="lora"` with its options.

    Raises:
        ConfigError: for adapters of another kind, or options in both places.
    """
    if peft_config is None:
        return
    kind = getattr(peft_config.peft_type, "value", peft_config.peft_type)
    if kind != "LORA":
        raise ConfigError(f"peft_config is a LoraConfig; got one of {kind}.")
    if args.lora:
        raise ConfigError("peft_config and args.lora both say which adapters; pass one of them.")
    chosen = peft_config.to_dict()
    plain = type(peft_config)().to_dict()
    args.train = "lora"
    args.lora = {
        name: value
        for name, value in chosen.items()
        if value != plain.get(name) and name not in ("peft_type", "task_type")
    }
