"""What a trainer is given: the model, the options, rewards by name or as functions, and problems
from a task, a task's name, or a plain data set of prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from interlace.errors import ConfigError
from interlace.models.loading import load
from interlace.rewards import (
    CombinedReward,
    Correctness,
    Format,
    PassAtK,
    RewardFunction,
    SelfConsistency,
    StepVerification,
)
from interlace.tasks import get_task
from interlace.tasks.base import Example, Prompt, Split, Task, Verdict
from interlace.training.arguments import GroupArguments
from interlace.user_code import named_function

PROMPT = "prompt"
# Columns that a reward gets from the rollout, so that a data set cannot have them.
RESERVED = frozenset(
    {"prompts", "completions", "examples", "groups", "trainer_state", "log_metric", "log_extra"}
)
LEFT_OUT = frozenset({PROMPT, "completion", "completion_ids"})  # as TRL leaves them out
_IMAGES = frozenset({"image", "images"})


class RowsTask(Task):
    """A plain data set (`datasets.Dataset` or list of mappings): prompts, and columns for the
    rewards. Without a judge only these say what a row is worth.

    Raises:
        ConfigError: for rows without prompts, or columns that a rollout has itself.
    """

    def __init__(self, rows: Any, judge: Callable[[Example, str], Verdict] | None = None) -> None:
        # The base class would hold every row as an example: a Dataset stays on the disk.
        self.name, self.split = "data set", "train"
        self.rows, self.judge = rows, judge
        if len(rows) == 0:
            raise ConfigError("A data set holds at least one prompt; this one has no rows.")
        names = set(getattr(rows, "column_names", None) or (n for row in rows for n in row))
        if PROMPT not in names:
            raise ConfigError(
                f"A data set has the column {PROMPT!r}, a text or a list of messages; this one has "
                f"{', '.join(sorted(map(str, names)))}."
            )
        if taken := sorted(names & (RESERVED | _IMAGES)):
            why = "prompts are text here" if taken[0] in _IMAGES else "rewards get their own"
            raise ConfigError(f"A data set has no column {taken[0]!r}: {why}. Rename it.")
        for index in range(len(rows)) if isinstance(rows, list) else (0,):
            self.prompt(self[index])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        row = dict(self.rows[index])
        asked = row.get(PROMPT)
        question = asked if isinstance(asked, str | list) else str(asked)  # for `prompt` to refuse
        return Example(f"row-{index}", question, str(row.get("answer", "")), row)

    def __iter__(self) -> Iterator[Example]:
        return (self[index] for index in range(len(self)))

    def find(self, example_id: str) -> Example:
        return self[int(example_id.removeprefix("row-"))]  # type: ignore[no-any-return]

    def prompt(self, example: Example) -> Prompt:
        found = example.data.get(PROMPT)
        if isinstance(found, str) and found:
            return found
        if isinstance(found, list) and found and all(map(_is_message, found)):
            return found
        raise ConfigError(
            f"A prompt is a text or a list of messages such as {{'role': 'user', 'content': ...}}; "
            f"{example.id} has {found!r:.60}."
        )

    def verify(self, example: Example, text: str) -> Verdict:
        if self.judge is None:
            raise ConfigError(
                "A plain data set says nothing about right answers. Train on a task, such as "
                "jsonl:FILE, or pass reward_funcs."
            )
        return self.judge(example, text)

    def check(self, example: Example, answer: str) -> Verdict:
        return self.verify(example, answer)


def as_task(source: Any, split: Split, tokenizer: Any) -> Task:
    """The task that problems are drawn from; of one that is named, this split, with prompts as text
    where the tokenizer has no chat template.
    """
    if isinstance(source, Task):
        return source
    if isinstance(source, str):
        task = get_task(source, split=split)
        if task.chat and not getattr(tokenizer, "chat_template", None):
            task = get_task(source, split=split, chat=False)
        return task
    rows = isinstance(source, Sequence) and all(isinstance(row, Mapping) for row in source)
    if rows or (hasattr(source, "column_names") and hasattr(source, "__len__")):
        return RowsTask(source)
    raise ConfigError(
        "train_dataset and eval_dataset are a datasets.Dataset, a list of dicts with the column "
        f"'prompt', a task or its name; got {type(source).__name__}. A data set that is streamed "
        "has no length, and a run could not go on where it stopped: load it whole."
    )


def _is_message(item: Any) -> bool:
    return isinstance(item, Mapping) and "role" in item and "content" in item


# Rewards ------------------------------------------------------------------------------------------

NAMED: dict[str, Callable[[Task], RewardFunction]] = {
    "correctness": Correctness,
    "partial": lambda task: Correctness(task, partial=True),
    "self-consistency": SelfConsistency,
    "steps": StepVerification,
    "format": lambda _: Format(),
    "pass@k": PassAtK,
}
JUDGED = ("correctness", "partial", "pass@k")  # by the task's verifier
SIGNATURE = "f(prompts, completions, **columns) -> list of numbers"


@dataclass(frozen=True)
class NamedReward:
    """One term of the reward."""

    name: str  # in the log: the recipe's name, of a function of your own without its place
    weight: float
    function: RewardFunction


def given_rewards(
    functions: Any, weights: Sequence[float] | None, task: Task, *, warn: bool = True
) -> list[NamedReward]:
    """The rewards that a trainer is given, or that a recipe names: functions with TRL's signature,
    or names (`module:function` and `file.py:function` are imported), one or a list.

    One of several processes warns of a self-consistency reward that stands alone.
    """
    listed = list(functions) if isinstance(functions, list | tuple) else [functions]
    weights = [1.0] * len(listed) if weights is None else list(weights)
    if not listed or len(weights) != len(listed):
        raise ConfigError(
            "reward_funcs are at least one, and reward_weights has one number for each; got "
            f"{len(listed)} and {len(weights)}."
        )
    names = [_name_of(function) for function in listed]
    found = []
    for place, (function, weight, name) in enumerate(zip(listed, weights, names, strict=True)):
        own = name
        if names.count(name) > 1:  # the whole name of two files' functions, else a number
            numbered = f"{name}-{names[: place + 1].count(name)}"
            own = function if isinstance(function, str) else numbered
        found.append(NamedReward(own, float(weight), _reward(function, task)))
    # Tells a self-consistency reward whether correctness stands beside it; else it warns.
    CombinedReward([r.function for r in found], [r.weight for r in found])
    for reward in found:
        if isinstance(reward.function, SelfConsistency) and not warn:
            reward.function.mixed = True
    return found


def _name_of(function: Any) -> str:
    if isinstance(function, str):
        return function.rpartition(":")[2]
    return str(getattr(function, "__name__", type(function).__name__))


def _reward(function: Any, task: Task) -> RewardFunction:
    if isinstance(function, str):
        return _named(function, task)
    if hasattr(function, "parameters") or not callable(function):
        raise ConfigError(
            f"A reward is a function, {SIGNATURE}, or a name ({', '.join(NAMED)}); got "
            f"{type(function).__name__}. Call a reward model inside a function of your own."
        )
    return function  # type: ignore[no-any-return]


def _named(name: str, task: Task) -> RewardFunction:
    if name in JUDGED and isinstance(task, RowsTask):
        raise ConfigError(
            f"The reward {name!r} needs a task's verifier, and a plain data set has none. Train on "
            f"a task, such as jsonl:FILE, or pass a function: reward_funcs=f, {SIGNATURE}."
        )
    if name in NAMED:
        return NAMED[name](task)
    if ":" not in name:
        raise ConfigError(
            f"There is no reward {name!r}. Rewards are {', '.join(NAMED)}, or your own as "
            f"module:function or file.py:function, with the signature {SIGNATURE}."
        )
    return named_function(name, "The reward")


# The call -----------------------------------------------------------------------------------------

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
    """Raise for the order of arguments of version 0.1, and for arguments that have no use here."""
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
    """The options, or default ones that write where TRL's would: `<model>-GRPO`."""
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
    """The model, loaded in float32 if only its name is given, and its tokenizer."""
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
    """Turn TRL's `peft_config` into `train="lora"` with its options."""
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
