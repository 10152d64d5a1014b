"""Spliced groups: rows of a warm-up rewritten so that they show what reading a sibling looks like.

From the column after a sibling's find on, a live row's next try becomes that find with a given
probability. Rows are lists of token texts, one a column, without the end token, so that "after"
means the same as while sampling: what is copied stands in earlier columns of the sibling.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from interlace.tasks.drawn import Draw

Row = list[str]


@dataclass(frozen=True)
class Try:
    """A stretch of a row that a row may write anew.

    Attributes:
        start: Its first column.
        stop: The column after its last.
        hits: Whether it is a find, by the task's verifier.
    """

    start: int
    stop: int
    hits: bool


def splice_rows(
    rows: Sequence[Sequence[str]],
    tries_of: Callable[[Sequence[str]], list[Try]],
    copied: Callable[[Sequence[str], Try, Sequence[str], Try], list[str]],
    probability: float,
    draw: Draw,
) -> list[Row]:
    """Rewrite a group's rows in the order of their columns.

    A row that has found something itself stays as it is. A row that copied may be copied from.

    Args:
        rows: Token texts of the group's rows, without the end token.
        tries_of: Function that finds a row's tries, in order.
        copied: Function that writes a row from a try of it on: it takes the row, the try, the
            sibling and its find, and returns what follows the row's columns before the try.
        probability: Probability that a try becomes the find of a sibling.
        draw: Stream of draws.

    Returns:
        The rows; those that nothing was copied into are equal to what they were.
    """
    found = [list(row) for row in rows]
    tries = [tries_of(row) for row in found]
    first = [next((one for one in own if one.hits), None) for own in tries]
    moments = sorted((one.start, w) for w, own in enumerate(tries) for one in own)
    for start, w in moments:
        own = first[w]
        if own is not None and own.start <= start:
            continue
        seen = [v for v, find in enumerate(first) if v != w and find and find.stop <= start]
        if not seen or not draw.chance(probability):
            continue
        sibling = draw.choice(seen)
        at, find = next(one for one in tries[w] if one.start == start), first[sibling]
        assert find is not None
        new = copied(found[w], at, found[sibling], find)
        found[w] = found[w][:start] + new
        first[w] = Try(start, start + find.stop - find.start, True)
    return found
