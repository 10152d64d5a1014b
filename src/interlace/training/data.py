"""What a trainer draws its problems from: a task, a task's name, or a plain data set of prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from interlace.errors import ConfigError
from interlace.tasks import get_task
from interlace.tasks.base import Example, Prompt, Split, Task, Verdict

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
        text = asked if isinstance(asked, str) else str(asked)
        return Example(f"row-{index}", text, str(row.get("answer", "")), row)

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
