"""Spliced groups: rows of a warm-up rewritten so that they show what reading a sibling looks like.

From the column after a sibling's find on, a live row's next try becomes that find with a given
probability. Rows are lists of token texts, one a column, without the end token, so that "after"
means the same as while sampling: what is copied stands in earlier columns of the sibling.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from interlace.tasks.drawn import Draw

if TYPE_CHECKING:
    from interlace.tasks.base import Example, Task

Row = list[str]
_LINE = re.compile(r"\n\s*$")  # ends a line
_SENTENCE = re.compile(r"[.!?] $")  # ends a sentence; without the blank it is perhaps 3.5's point


@dataclass(frozen=True)
class Try:
    """A stretch of a row that a row may write anew."""

    start: int  # its first column
    stop: int  # the column after its last
    hits: bool  # it is a find, by the task's verifier


Tries = Callable[[Sequence[str]], list[Try]]
# What a row, a try of it, a sibling and its find become: the row's tokens from the try on.
Copy = Callable[[Sequence[str], Try, Sequence[str], Try], list[str]]


def splice_rows(
    rows: Sequence[Sequence[str]],
    tries_of: Tries,
    copied: Copy,
    probability: float,
    draw: Draw,
    *,
    again: bool = True,
) -> list[Row]:
    """Rewrite a group's rows in the order of their columns. A row that has found something itself
    stays as it is; so does one that nothing is copied into.

    A row that copied may be copied from `again` only where a copy begins with the find token by
    token.
    """
    found = [list(row) for row in rows]
    tries = [tries_of(row) for row in found]
    first = [next((one for one in own if one.hits), None) for own in tries]
    done: set[int] = set()
    for start, w in sorted((one.start, w) for w, own in enumerate(tries) for one in own):
        own = first[w]
        if w in done or (own is not None and own.start <= start):
            continue
        seen = [(v, find) for v, find in enumerate(first) if v != w and find and find.stop <= start]
        if not seen or not draw.chance(probability):
            continue
        sibling, find = draw.choice(seen)
        at = next(one for one in tries[w] if one.start == start)
        found[w] = [*found[w][:start], *copied(found[w], at, found[sibling], find)]
        first[w] = Try(start, start + find.stop - find.start, True) if again else None
        done.add(w)
    return found


def columns_of(row: Sequence[str]) -> dict[int, int]:
    """The column of every character that a token begins with; the text's end is one, too."""
    starts = [0, *itertools.accumulate(map(len, row))]
    return {start: column for column, start in reversed(list(enumerate(starts)))}


def splice_lines(
    task: Task,
    example: Example,
    rows: Sequence[Sequence[str]],
    probability: float,
    draw: Draw,
    *,
    told: bool = True,
) -> list[Row]:
    """Rewrite free text, such as a chat model's, at the ends of its lines and sentences: once a
    sibling has given a right answer that is marked as one, a row's next line takes it over.

    The row says where the answer comes from, with the sibling's last line before it (`told`), or
    only writes the sibling's line.
    """

    def tries_of(row: Sequence[str]) -> list[Try]:
        found: list[Try] = []
        for start, stop in itertools.pairwise(sorted({0, *_stops(row), len(row)})):
            text, first = "".join(row[:stop]), not any(one.hits for one in found)
            hits = first and task.marked(text) is not None and task.verify(example, text).correct
            found.append(Try(start, stop, hits))
        return found

    def copied(row: Sequence[str], at: Try, sibling: Sequence[str], find: Try) -> list[str]:
        line = list(sibling[find.start : find.stop])
        blank = "" if at.start == 0 or row[at.start - 1][-1:].isspace() else " "
        if not told:
            return [blank + line[0].lstrip(" "), *line[1:]]
        before = "".join(sibling[: find.start]).strip().splitlines()[-1:]
        shown = f"Another attempt found {task.marked(''.join(sibling[: find.stop]))}"
        shown += f"; checking: {before[0]}\n" if before else ".\n"
        return [blank + shown, "".join(line).lstrip()]

    return splice_rows(rows, tries_of, copied, probability, draw, again=not told)


def _stops(row: Sequence[str]) -> list[int]:
    """The columns after the ends of lines and sentences."""
    followed = zip(row, [*row[1:], ""], strict=True)
    return [
        column
        for column, (token, after) in enumerate(followed, 1)
        if _LINE.search(token) or _SENTENCE.search(token + after[:1]) or _SENTENCE.search(token)
    ]
