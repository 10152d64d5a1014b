"""What a trainer is given and what it draws: the model, the options, and problems from a task, a
task's name, or a plain data set of prompts.

Prompts, widths and seeds follow from the run's seed and the rollout's number alone, so that a
resumed run draws what an uninterrupted one does, on any number of processes.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import random
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from interlace.errors import ConfigError
from interlace.models.loading import load
from interlace.tasks import get_task
from interlace.tasks.base import Example, Prompt, Split, Task, Verdict
from interlace.training.arguments import GroupArguments

PROMPT = "prompt"
# Columns that a reward gets from the rollout, so that a data set cannot have them.
RESERVED = frozenset(
    {"prompts", "completions", "examples", "groups", "trainer_state", "log_metric", "log_extra"}
)
_LEFT_OUT = frozenset({PROMPT, "completion", "completion_ids"})  # as TRL leaves them out
_IMAGES = frozenset({"image", "images"})


class RowsTask(Task):
    """A plain data set: prompts, and columns for the rewards.

    Args:
        rows: `datasets.Dataset` or list of mappings, each with a prompt: a text or messages.
        judge: Function that gives the verdict on a text, for what needs one; None where only
            rewards say what a row is worth.

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
    """The task that problems are drawn from.

    Args:
        source: Task, name of one, `datasets.Dataset`, or list of mappings.
        split: Part of a task that is named: "train" or "test".
        tokenizer: Tokenizer of the model; without a chat template a named task's prompts are text.

    Raises:
        ConfigError: for something else.
        TaskError: for a name that no task has.
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


def columns_of(task: Task, examples: Sequence[Example]) -> dict[str, list[Any]]:
    """What rewards get by name, one value an example: a data set's columns, or what a task knows of
    its problems."""
    if isinstance(task, RowsTask):
        rows = [dict(example.data) for example in examples]
    else:
        rows = [{**e.data, "question": e.question, "answer": e.answer} for e in examples]
    names = dict.fromkeys(n for row in rows for n in row if n not in _LEFT_OUT | RESERVED)
    return {name: [row.get(name) for row in rows] for name in names}


def as_completion(prompt: Any, text: str) -> Any:
    """A completion as TRL hands it to rewards: messages where the prompt is messages."""
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]


def _is_message(item: Any) -> bool:
    return isinstance(item, Mapping) and "role" in item and "content" in item


def draw_indices(seed: int, count: int, start: int, stop: int) -> list[int]:
    """Positions `start:stop` of an endless stream: one shuffle of `range(count)` after the other.

    >>> first = draw_indices(0, 5, 0, 5)
    >>> sorted(first), draw_indices(0, 5, 3, 5) == first[3:]
    ([0, 1, 2, 3, 4], True)
    """
    found: list[int] = []
    for epoch in range(start // count, -(-stop // count)):
        offset = epoch * count
        first, last = max(start - offset, 0), max(min(stop - offset, count), 0)
        found += _shuffled(seed, count, epoch)[first:last]
    return found


@functools.lru_cache(maxsize=4)  # a run asks for one stream, epoch after epoch
def _shuffled(seed: int, count: int, epoch: int) -> array[int]:
    order = list(range(count))
    random.Random(f"{seed}:order:{epoch}").shuffle(order)
    return array("q", order)


def draw_width(seed: int, rollout: int, position: int, widths: Sequence[int]) -> int:
    """The width of a rollout's prompt."""
    return random.Random(f"{seed}:width:{rollout}:{position}").choice(list(widths))


def draw_hidden(
    seed: int, place: tuple[int, int, int], width: int, probability: float
) -> list[tuple[int, int]]:
    """Pairs (row, sibling) of a group of which the row does not see the sibling.

    Args:
        seed: Seed of the run.
        place: Number of the rollout, the prompt's position in it, and the group's number.
        width: W.
        probability: Probability of each pair.
    """
    draw = random.Random(f"{seed}:hidden:{place}")
    pairs = itertools.permutations(range(width), 2)
    return [pair for pair in pairs if draw.random() < probability] if probability else []


def sampling_seed(seed: int, rollout: int) -> int:
    """The engine's seed for a rollout: the run's, with the rollout mixed in (invariant I11)."""
    digest = hashlib.sha256(f"{seed}:sampling:{rollout}".encode()).digest()
    return int.from_bytes(digest[:6], "big")


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
