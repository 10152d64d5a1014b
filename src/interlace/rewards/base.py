"""What a reward is, and how it reads completions and columns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from interlace.errors import RewardError
from interlace.tasks.base import Example, Task

Completion = str | Sequence[Mapping[str, Any]]
Rewards = list[float | None]
RewardFunction = Callable[..., Rewards]


class Reward(ABC):
    """A reward function with a name, which TRL's trainer logs it by."""

    def __init__(self) -> None:
        self.__name__ = type(self).__name__

    @abstractmethod
    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Completion], **columns: Any
    ) -> Rewards:
        """One value a completion; None where the reward does not apply.

        Args:
            prompts: One a completion; not read.
            completions: Texts or chat messages.
            columns: As in this module's head.

        Raises:
            RewardError: for a column that is needed and absent, or that does not fit.
        """


def text_of(completion: Completion) -> str:
    """The text of a completion; of chat messages, their contents.

    >>> text_of("42"), text_of([{"role": "assistant", "content": "42"}])
    ('42', '42')
    """
    if isinstance(completion, str):
        return completion
    return "\n".join(str(message.get("content") or "") for message in completion)


def column(name: str, columns: Mapping[str, Any], rows: int) -> Sequence[Any]:
    """The values of a column, one a completion.

    Raises:
        RewardError: if it is absent or has another length.
    """
    values = columns.get(name)
    if values is None or len(values) != rows:
        got = "none" if values is None else f"{len(values)}"
        raise RewardError(
            f"This reward needs the column {name!r} with one entry a completion, {rows} in all; "
            f"got {got}. Pass {name}=[...]."
        )
    return values


def judged(
    task: Task, completions: Sequence[Completion], columns: Mapping[str, Any]
) -> list[tuple[Example | None, str]]:
    """Each completion's example and text."""
    entries = column("examples", columns, len(completions))
    return [
        (_example(task, entry), text_of(completion))
        for entry, completion in zip(entries, completions, strict=True)
    ]


def _example(task: Task, entry: object) -> Example | None:
    if entry is None or isinstance(entry, Example):
        return entry
    if isinstance(entry, str):
        return task.find(entry)
    if isinstance(entry, Mapping):
        return Example(**entry)
    raise RewardError(
        f"An entry of 'examples' is an Example, its to_dict() or id; got {entry!r:.60}."
    )


def group_rows(
    completions: Sequence[Completion], columns: Mapping[str, Any], width: int | None
) -> list[list[int]]:
    """The rows of each group."""
    rows = len(completions)
    if columns.get("groups") is None:
        if width is None or width < 1 or rows % width:
            raise RewardError(
                "A reward of whole groups needs the column 'groups', the index of each "
                f"completion's group, or width=W that divides the {rows} completions; got neither "
                f"(width={width!r})."
            )
        return [list(range(start, start + width)) for start in range(0, rows, width)]
    members: dict[Any, list[int]] = {}
    for row, group in enumerate(column("groups", columns, rows)):
        members.setdefault(group, []).append(row)
    return list(members.values())
