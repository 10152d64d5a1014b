"""Rewards with TRL's signature: `f(prompts, completions, **columns) -> list[float | None]`.

One value a completion; None where the reward does not apply to a row. A completion is a text or,
where the prompt is chat messages, a list of them: `text_of` reads both. Columns are lists with one
entry a completion:

- `examples`: the problem, as an `Example`, its `to_dict()` or its id; None for a row of another
  task, which then gets None.
- `groups`: the index of the group that the completion belongs to, for rewards of whole groups (W
  rows of one prompt that see each other). Completions with equal indices are one group, in the
  order given. A reward built with `width=W` takes each W consecutive completions as a group when
  the column is absent. Under TRL's own trainer each process sees its own completions only, so a
  group must not be spread over processes.
- `completion_ids`: token ids, for lengths in tokens.

    reward = CombinedReward([Correctness(task), SelfConsistency(task)], weights=[1.0, 0.2])
    reward(prompts, completions, examples=examples, groups=[0, 0, 0, 0, 1, 1, 1, 1])
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from interlace.answers import extract_answer, majority_vote, normalise_answer
from interlace.answers.extract import final_part
from interlace.errors import RewardError
from interlace.tasks.base import Example, Task, marked_answer, tagged
from interlace.tasks.equations import find_equations

__all__ = [
    "CombinedReward",
    "Completion",
    "Correctness",
    "Format",
    "Length",
    "PassAtK",
    "Reward",
    "RewardFunction",
    "Rewards",
    "SelfConsistency",
    "StepVerification",
    "text_of",
]

Completion = str | Sequence[Mapping[str, Any]]
Rewards = list[float | None]
RewardFunction = Callable[..., Rewards]


class Reward:
    """A reward function with the name that TRL's trainer logs. A subclass has `reward_rows`."""

    def __init__(self) -> None:
        self.__name__ = type(self).__name__

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Completion], **columns: Any
    ) -> Rewards:
        """One value a completion; None where the reward does not apply.

        Args:
            prompts: Prompts, one a completion; not read.
            completions: Texts or chat messages.
            columns: Columns as in this module's head.

        Raises:
            RewardError: for a column that is needed and absent, or that does not fit.
        """
        return self.reward_rows(completions, columns)

    def reward_rows(self, completions: Sequence[Completion], columns: Mapping[str, Any]) -> Rewards:
        """One value a completion."""
        raise NotImplementedError(
            "A reward needs reward_rows(completions, columns), which was called values before 0.2; "
            f"{type(self).__name__} has none."
        )


class Correctness(Reward):
    """1 for a correct completion, else 0. Column: `examples`.

    Args:
        task: Task that judges the completions.
        partial: Whether the verdict's score is the reward instead, with its partial credit.
    """

    def __init__(self, task: Task, *, partial: bool = False) -> None:
        super().__init__()
        self.task = task
        self.partial = partial

    def reward_rows(self, completions: Sequence[Completion], columns: Mapping[str, Any]) -> Rewards:
        rewards: Rewards = []
        for example, text in judged(self.task, completions, columns):
            if example is None:
                rewards.append(None)
                continue
            verdict = self.task.verify(example, text)
            rewards.append(verdict.score if self.partial else float(verdict.correct))
        return rewards


class StepVerification(Reward):
    """The share of checkable intermediate steps that hold; 0 without any. Equation (24).

    With a task, and `examples`, the steps are `task.steps`; otherwise the distinct equations in the
    text, such as "12 + 7 = 19". True but idle equations count there: combine it with correctness.

    Args:
        task: Task that exposes the steps; None for the equations in the text.
    """

    def __init__(self, task: Task | None = None) -> None:
        super().__init__()
        self.task = task

    def reward_rows(self, completions: Sequence[Completion], columns: Mapping[str, Any]) -> Rewards:
        if self.task is None:
            return [_share(_equations(text_of(completion))) for completion in completions]
        return [
            None if example is None else _share([s.holds for s in self.task.steps(example, text)])
            for example, text in judged(self.task, completions, columns)
        ]


class Format(Reward):
    """1 for a completion whose answer is marked as one, else 0.

    A mark is `<answer>...</answer>`, or what `interlace.extract_answer` takes for one; a heading is
    none.
    """

    def reward_rows(self, completions: Sequence[Completion], columns: Mapping[str, Any]) -> Rewards:
        texts = (final_part(text_of(completion)) for completion in completions)
        return [float(bool(tagged(text) or marked_answer(text))) for text in texts]


class Length(Reward):
    """The soft punishment of overlong completions of DAPO (arXiv 2503.14476, equation 13).

    0 up to `limit - margin`, then falling linearly to -1 at `limit`, and -1 beyond.

    Args:
        limit: Length of the longest completion.
        margin: Length before `limit` from which on completions are punished.
        unit: Unit of both: "tokens" (column `completion_ids`) or "characters".

    Raises:
        RewardError: if the margin is not from 1 to the limit.
    """

    def __init__(
        self, limit: int, margin: int, *, unit: Literal["tokens", "characters"] = "tokens"
    ) -> None:
        super().__init__()
        if not 1 <= margin <= limit:
            raise RewardError(f"The margin lies within the limit: from 1 to {limit}; got {margin}.")
        self.limit = limit
        self.margin = margin
        self.unit = unit

    def reward_rows(self, completions: Sequence[Completion], columns: Mapping[str, Any]) -> Rewards:
        if self.unit == "tokens":
            measured: Sequence[Any] = column("completion_ids", columns, len(completions))
        else:
            measured = [text_of(completion) for completion in completions]
        start = self.limit - self.margin
        return [-min(max(len(item) - start, 0) / self.margin, 1.0) for item in measured]


def _equations(text: str) -> list[bool]:
    return list({equation.text: equation.holds for equation in find_equations(text)}.values())


def _share(held: Sequence[bool]) -> float:
    return sum(held) / len(held) if held else 0.0


class SelfConsistency(Reward):
    """1 for a completion that gives its group's majority answer, else 0. Needs no reference.
    Equation (23).

    The vote is `interlace.majority_vote`: ties go to the answer seen first, and a completion
    without an answer does not vote and gets 0. Alone this reward is largest when all rows of a
    group copy one another, whatever they say; so it warns unless it is combined with correctness.

    Args:
        task: Task that finds the answers; None for `interlace.answers.extract_answer`.
        width: Width, W, where the column `groups` is absent.
        mixed: Whether it is combined with correctness elsewhere, as with TRL's `reward_weights`;
            `CombinedReward` sees that by itself.
    """

    def __init__(
        self, task: Task | None = None, *, width: int | None = None, mixed: bool = False
    ) -> None:
        super().__init__()
        self.task = task
        self.width = width
        self.mixed = mixed
        self._warned = False

    def reward_rows(self, completions: Sequence[Completion], columns: Mapping[str, Any]) -> Rewards:
        if not self.mixed and not self._warned:
            self._warned = True
            warnings.warn(
                "A self-consistency reward without correctness is maximised by rows that copy one "
                "another. Combine it: CombinedReward([Correctness(task), SelfConsistency(task)], "
                "weights=[1.0, 0.2]); or pass mixed=True if the trainer does.",
                UserWarning,
                stacklevel=2,
            )
        extract = extract_answer if self.task is None else self.task.extract
        normalise = normalise_answer if self.task is None else self.task.normalise
        answers = [extract(text_of(completion)) for completion in completions]
        rewards: Rewards = [0.0] * len(completions)
        for rows in group_rows(completions, columns, self.width):
            vote = majority_vote([answers[row] for row in rows], normalise=normalise)
            for row, first in zip(rows, vote.classes, strict=True):
                rewards[row] = float(first is not None and first == vote.index)
        return rewards


class PassAtK(Reward):
    """Every completion of a group gets the group's pass@k. Column: `examples`.

    pass@k = 1 - C(n - c, k) / C(n, k) for n completions, c of them correct (arXiv 2107.03374). With
    k = n it is 1 as soon as one row is correct: it rewards sets that cover, not rows that agree.

    Args:
        task: Task that judges the completions.
        k: Number of rows looked at; None for the whole group.
        width: Width, W, where the column `groups` is absent.
    """

    def __init__(self, task: Task, *, k: int | None = None, width: int | None = None) -> None:
        super().__init__()
        self.task = task
        self.k = k
        self.width = width

    def reward_rows(self, completions: Sequence[Completion], columns: Mapping[str, Any]) -> Rewards:
        read = judged(self.task, completions, columns)
        rewards: Rewards = [None] * len(completions)
        for rows in group_rows(completions, columns, self.width):
            pairs = [(example, text) for example, text in map(read.__getitem__, rows) if example]
            if len(pairs) < len(rows):
                continue
            correct = sum(self.task.verify(example, text).correct for example, text in pairs)
            k = len(rows) if self.k is None else self.k
            if not 1 <= k <= len(rows):
                raise RewardError(f"pass@k looks at 1 to W rows; got k = {k} and W = {len(rows)}.")
            missed = math.comb(len(rows) - correct, k) / math.comb(len(rows), k)
            for row in rows:
                rewards[row] = 1.0 - missed
        return rewards


class CombinedReward(Reward):
    """The weighted sum of rewards. Each gets every completion and column, so whole groups.

    A member's None counts as nothing; where all are None the sum is None.

    Args:
        rewards: Members: rewards of this module, or functions with the same signature.
        weights: Weights, one finite number a member; None for 1 each.

    Raises:
        RewardError: for no member, or weights that do not fit.
    """

    def __init__(
        self, rewards: Sequence[RewardFunction], weights: Sequence[float] | None = None
    ) -> None:
        super().__init__()
        self.rewards = tuple(rewards)
        self.weights = (1.0,) * len(self.rewards) if weights is None else tuple(weights)
        if not self.rewards or len(self.weights) != len(self.rewards):
            raise RewardError(
                "A combined reward has one weight a member, and at least one member; got "
                f"{len(self.rewards)} members and {len(self.weights)} weights."
            )
        if not all(math.isfinite(weight) for weight in self.weights):
            raise RewardError(f"Weights are finite numbers; got {list(self.weights)}.")
        pairs = zip(self.rewards, self.weights, strict=True)
        if any(isinstance(own, Correctness | PassAtK) and weight > 0 for own, weight in pairs):
            _mark_mixed(self.rewards)

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Completion], **columns: Any
    ) -> Rewards:
        totals: Rewards = [None] * len(completions)
        for reward, weight in zip(self.rewards, self.weights, strict=True):
            values = reward(prompts, completions, **columns)
            if len(values) != len(completions):
                raise RewardError(
                    f"A reward returns one value a completion; {reward!r} returned {len(values)} "
                    f"for {len(completions)}."
                )
            for row, value in enumerate(values):
                if value is not None:
                    totals[row] = (totals[row] or 0.0) + weight * value
        return totals


def _mark_mixed(rewards: Sequence[RewardFunction]) -> None:
    for own in rewards:
        if isinstance(own, SelfConsistency):
            own.mixed = True
        elif isinstance(own, CombinedReward):
            _mark_mixed(own.rewards)


def text_of(completion: Completion) -> str:
    """The text of a completion; of chat messages, their contents.

    >>> text_of("42"), text_of([{"role": "assistant", "content": "42"}])
    ('42', '42')
    >>> text_of([{"role": "assistant", "content": [{"type": "text", "text": "42"}]}])
    '42'
    """
    if isinstance(completion, str):
        return completion
    return "\n".join(_content(message.get("content")) for message in completion)


def _content(value: Any) -> str:
    if isinstance(value, list):  # of parts: {"type": "text", "text": ...}
        return "".join(str(part.get("text") or "") for part in value if isinstance(part, Mapping))
    return "" if value is None else str(value)


def column(name: str, columns: Mapping[str, Any], rows: int) -> Sequence[Any]:
    """The values of a column, one a completion."""
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
