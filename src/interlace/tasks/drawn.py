"""Problems that are drawn rather than read: distinct, split by hash, the same on every machine.

Python's `hash` changes from process to process and `random`'s derived methods may change between
versions, so splits and draws are built on SHA-256 here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, Unpack

from interlace.errors import TaskError
from interlace.tasks.base import Example, Split, Task, TaskOptions

T = TypeVar("T")
HashSplit = Literal["train", "test"]

HELD_OUT = 5  # one problem in five
SIZE = 500
MAX_SIZE = 1_000_000
PATIENCE = 4000  # draws in a row without a new problem, after which there are no more


def digest(*parts: object) -> str:
    """SHA-256 of the parts' texts, as 64 hexadecimal digits.

    >>> digest("countdown", 7)[:12]
    'ea30f6314e7a'
    """
    text = "\x1f".join(str(part) for part in parts)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def split_of(canonical: str) -> HashSplit:
    """The split that a problem belongs to, by its canonical form alone: a fifth is held out.

    Problems with the same canonical form are on the same side, whatever seed drew them.
    """
    return "test" if int(digest("split", canonical), 16) % HELD_OUT == 0 else "train"


class Draw:
    """A stream of draws that follows from its key.

    >>> Draw("key", 0).below(100) == Draw("key", 0).below(100)
    True
    """

    def __init__(self, *key: object) -> None:
        self._key = key
        self._count = 0

    def below(self, stop: int) -> int:
        """A whole number from 0 to `stop - 1`; 256 bits make the remainder's bias negligible."""
        self._count += 1
        return int(digest(*self._key, self._count), 16) % stop

    def between(self, low: int, high: int) -> int:
        """A whole number from `low` to `high`, both included."""
        return low + self.below(high - low + 1)

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self.below(2**53) < probability * 2**53

    def choice(self, items: Sequence[T]) -> T:
        """One of the items."""
        return items[self.below(len(items))]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """The items in a drawn order (Fisher-Yates)."""
        order = list(items)
        for last in range(len(order) - 1, 0, -1):
            other = self.below(last + 1)
            order[last], order[other] = order[other], order[last]
        return order


@dataclass(frozen=True)
class Problem:
    """One drawn problem; `canonical` decides whether two are the same, and the split."""

    canonical: str
    question: str
    answer: str
    data: Mapping[str, Any]

    def to_example(self, name: str) -> Example:
        """The problem as an example of the task with this name."""
        identity = example_id(name, self.canonical)
        return Example(identity, self.question, self.answer, dict(self.data))


class DrawnOptions(TaskOptions, total=False):
    """What tasks with drawn problems take."""

    size: int | None
    seed: int
    split: Split


class DrawnTask(Task):
    """A task whose problems are drawn; a smaller size gives the first problems of a larger one.

    Args:
        name: Name of the task; part of the examples' ids.
        draw: Function that makes one problem of a stream of draws, or None to draw again.
        size: Number of problems; None for 500, or all there are if that is fewer.
        seed: Seed of the draws. Splits are disjoint for all seeds and options, since they depend on
            a problem's canonical form only.
        split: "train", "test" (held out) or "all".
        **options: Those of `Task`.

    Raises:
        TaskError: if there are not that many problems.
    """

    def __init__(
        self,
        name: str,
        draw: Callable[[Draw], Problem | None],
        *,
        size: int | None = None,
        seed: int = 0,
        split: Split = "test",
        **options: Unpack[TaskOptions],
    ) -> None:
        if size is not None:
            check_count("size", size, 1, MAX_SIZE)
        wanted = size or SIZE
        found: dict[str, Problem] = {}
        attempt = last_new = 0
        while len(found) < wanted:
            attempt += 1
            if attempt - last_new > PATIENCE:
                if size is None and found:
                    break
                raise TaskError(
                    f"{name!r} with these options has about {len(found)} problems in the split "
                    f"{split!r} (no new one in {PATIENCE} draws); {size} were asked for. Ask for "
                    "fewer, or widen its options."
                )
            problem = draw(Draw("problem", name, seed, attempt))
            if problem is None or problem.canonical in found:
                continue
            if split not in ("all", split_of(problem.canonical)):
                continue
            last_new = attempt
            found[problem.canonical] = problem
        examples = [problem.to_example(name) for problem in found.values()]
        super().__init__(name, examples, split=split, **options)


def example_id(name: str, canonical: str) -> str:
    """The id of a problem: the same for the same problem, whatever options drew it."""
    return f"{name}-{digest('id', canonical)[:16]}"


def check_count(name: str, value: object, low: int = 1, high: int | None = None) -> None:
    """Refuses what is no whole number from `low` to `high`."""
    fits = isinstance(value, int) and not isinstance(value, bool) and value >= low
    if not fits or (high is not None and isinstance(value, int) and value > high):
        bounds = f"at least {low}" if high is None else f"from {low} to {high}"
        raise TaskError(f"{name} is a whole number, {bounds}; got {value!r:.40}.")
