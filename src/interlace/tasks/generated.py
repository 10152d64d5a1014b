"""Problems that are drawn rather than read: distinct, and split by hash."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from interlace.errors import TaskError
from interlace.tasks.base import Example, Split
from interlace.tasks.seeds import Draw, digest, split_of

SIZE = 500
PATIENCE = 4000  # draws in a row without a new problem, after which there are no more


@dataclass(frozen=True)
class Problem:
    """One drawn problem; `canonical` decides whether two are the same, and the split."""

    canonical: str
    question: str
    answer: str
    data: Mapping[str, Any]


def draw_examples(
    name: str,
    draw: Callable[[Draw], Problem | None],
    *,
    split: Split,
    size: int | None,
    seed: int,
) -> list[Example]:
    """`size` distinct problems of a split.

    A smaller size gives the first problems of a larger one. Splits are disjoint for all seeds and
    options, since they depend on a problem's canonical form only.

    Args:
        name: Of the task; part of the examples' ids.
        draw: One problem from a stream of draws, or None to draw again.
        split: "train", "test", or "all" for both mixed.
        size: How many problems; None for `SIZE`, or all there are if that is fewer.
        seed: Chooses which.

    Raises:
        TaskError: if there are not that many.
    """
    if size is not None:
        check_count("size", size)
    wanted = size or SIZE
    found: dict[str, Example] = {}
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
        found[problem.canonical] = Example(
            id=example_id(name, problem.canonical),
            question=problem.question,
            answer=problem.answer,
            data=dict(problem.data),
        )
    return list(found.values())


def example_id(name: str, canonical: str) -> str:
    """The id of a problem: the same for the same problem, whatever options drew it."""
    return f"{name}-{digest('id', canonical)[:16]}"


def check_count(name: str, value: object, low: int = 1, high: int | None = None) -> None:
    """Refuses what is no whole number from `low` to `high`.

    Raises:
        TaskError: if it is not.
    """
    fits = isinstance(value, int) and not isinstance(value, bool) and value >= low
    if not fits or (high is not None and isinstance(value, int) and value > high):
        bounds = f"at least {low}" if high is None else f"from {low} to {high}"
        raise TaskError(f"{name} is a whole number, {bounds}; got {value!r}.")
