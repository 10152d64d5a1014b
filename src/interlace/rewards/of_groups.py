"""Rewards that look at a whole group: W completions of one prompt that see each other."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

from interlace.answers import extract_answer, majority_vote, normalise_answer
from interlace.errors import RewardError
from interlace.rewards.base import Completion, Reward, Rewards, group_rows, judged, text_of
from interlace.tasks.base import Task


class SelfConsistency(Reward):
    """1 for a completion that gives its group's majority answer, else 0. Needs no reference.
    Equation (23).

    The vote is `interlace.majority_vote`: ties go to the answer seen first, and a completion
    without an answer does not vote and gets 0. Alone this reward is largest when all rows of a
    group copy one another, whatever they say; so it warns unless it is combined with correctness.

    Args:
        task: Finds the answers; None for `interlace.answers.extract_answer`.
        width: W, where the column `groups` is absent.
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

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Completion], **columns: Any
    ) -> Rewards:
        """See `Reward`."""
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
        task: Judges the completions.
        k: Rows looked at; None for the whole group.
        width: W, where the column `groups` is absent.
    """

    def __init__(self, task: Task, *, k: int | None = None, width: int | None = None) -> None:
        super().__init__()
        self.task = task
        self.k = k
        self.width = width

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Completion], **columns: Any
    ) -> Rewards:
        """See `Reward`."""
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
