"""Finds in a group, and how they spread: read off the texts alone.

A response is four tries of ten tokens, so try k of every row stands in the same columns. A find is
a try whose expression hits the target; a row that has one writes it again. A row's find is the
same as a sibling's earlier one if the expression is, but for the order of what may be swapped
(canonical form; `experiments/01-countdown/finds.py` compares the text). Whether it was taken over,
the texts do not say: rows alone, which see nobody, have such finds as well, by chance.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

from interlace.tasks.base import Example, Task
from interlace.tasks.tiny_countdown import TRIES, TRY_TOKENS, tries_of

Mark = Literal["miss", "first", "same", "unseen", "own", "again"]
Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True)
class Try:
    """One try of one row.

    Attributes:
        tokens: its tokens, the model's verdict left out.
        form: the expression in canonical form; None if it is none.
        hit: whether it reaches the target.
    """

    tokens: tuple[str, ...]
    form: str | None
    hit: bool


class Found:
    """The tries of a group's rows.

    Args:
        task: that judges them.
        example: the problem.
        texts: the rows' responses.
        coupled: whether the rows saw each other.
    """

    def __init__(
        self, task: Task, example: Example, texts: list[str], coupled: bool = True
    ) -> None:
        self.coupled = coupled
        self.rows = [_tries(task, example, text) for text in texts]
        hits = [k for row in self.rows for k, one in enumerate(row) if one.hit]
        self.first = min(hits, default=None)

    def mark(self, row: int, k: int) -> Mark:
        """What a try is: a miss; a find again, in a row that had one; a find of the group's first
        round of finds; the same as an earlier find of a sibling, seen or unseen; or one of its own.
        """
        one = self.rows[row][k]
        if not one.hit:
            return "miss"
        if any(t.hit for t in self.rows[row][:k]):
            return "again"
        if k == self.first:
            return "first"
        before = {t.form for r in self.rows if r is not self.rows[row] for t in r[:k] if t.hit}
        if one.form not in before:
            return "own"
        return "same" if self.coupled else "unseen"

    def count(self, mark: Mark) -> int:
        """How many tries are marked so."""
        return sum(
            self.mark(r, k) == mark for r, row in enumerate(self.rows) for k in range(len(row))
        )


def choose(groups: Mapping[Name, Found]) -> Name:
    """The group that shows spreading best: one row finds first, and most others write the same."""

    def worth(name: Name) -> tuple[int, int, int]:
        found = groups[name]
        same, finders = found.count("same"), found.count("first")
        return (same if finders == 1 else 0, same, -finders)

    return max(groups, key=worth)


def following(groups: Iterable[Found]) -> dict[str, list[int]]:
    """How often a row without a find hits at its next try, as [hits, tries]: `after` a sibling has
    hit at an earlier try, and `before` any has."""
    counts = {"after": [0, 0], "before": [0, 0]}
    for found in groups:
        for row in found.rows:
            for k, one in enumerate(row[1:], 1):
                if any(t.hit for t in row[:k]):
                    break
                seen = any(t.hit for r in found.rows if r is not row for t in r[:k])
                entry = counts["after" if seen else "before"]
                entry[0] += one.hit
                entry[1] += 1
    return counts


def _tries(task: Task, example: Example, text: str) -> list[Try]:
    found = []
    for one in tries_of(text)[:TRIES]:
        verdict = task.verify(example, one)
        tokens = tuple(one.split())[: TRY_TOKENS - 1]
        found.append(Try(tokens, verdict.answer, verdict.correct))
    return found
