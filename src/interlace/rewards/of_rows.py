"""Rewards that look at one completion at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from interlace.answers.extract import final_part
from interlace.errors import RewardError
from interlace.rewards.base import Completion, Reward, Rewards, column, judged, text_of
from interlace.tasks.base import Task, marked_answer, tagged
from interlace.tasks.equations import find_equations


class Correctness(Reward):
    """1 for a correct completion, else 0. Column: `examples`.

    Args:
        task: Judges the completions.
        partial: Whether the verdict's score is the reward instead, with its partial credit.
    """

    def __init__(self, task: Task, *, partial: bool = False) -> None:
        super().__init__()
        self.task = task
        self.partial = partial

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Completion], **columns: Any
    ) -> Rewards:
        """See `Reward`."""
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
        task: Exposes the steps; None for the equations in the text.
    """

    def __init__(self, task: Task | None = None) -> None:
        super().__init__()
        self.task = task

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Completion], **columns: Any
    ) -> Rewards:
        """See `Reward`."""
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

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Completion], **columns: Any
    ) -> Rewards:
        """See `Reward`."""
        texts = (final_part(text_of(completion)) for completion in completions)
        return [float(bool(tagged(text) or marked_answer(text))) for text in texts]


class Length(Reward):
    """The soft punishment of overlong completions of DAPO (arXiv 2503.14476, equation 13).

    0 up to `limit - margin`, then falling linearly to -1 at `limit`, and -1 beyond.

    Args:
        limit: The longest completion.
        margin: Where the punishment begins, counted back from `limit`.
        unit: "tokens" (column `completion_ids`) or "characters".

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

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Completion], **columns: Any
    ) -> Rewards:
        """See `Reward`."""
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
