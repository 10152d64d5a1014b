"""Countdown as the packaged tiny models read and write it, tokens set apart by spaces.

    prompt      3 7 8 -> 45 :
    response    ( 7 - 3 ) * 8 = 32 ; ( 7 + 8 ) * 3 = 45 yes ( 7 + 8 ) * 3 = 45 yes ...

A response holds four tries of ten tokens, the last of each what the model holds of it: ";" for a
miss, "yes" for a hit, which it then writes again. The last expression counts, as in any countdown
text, whatever the model says of it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Unpack

from interlace.errors import TaskError
from interlace.tasks.base import Example, Split, TaskOptions
from interlace.tasks.countdown import CountdownRule, problem_of
from interlace.tasks.drawn import Draw, Problem, check_count, digest, split_of
from interlace.tasks.splicing import Row, Try, splice_rows

TEMPLATE = "{numbers[0]} {numbers[1]} {numbers[2]} -> {target} :"
MAX_NUMBER, LARGEST_NUMBER, MAX_TARGET = 9, 25, 100
TRIES, TRY_TOKENS = 4, 10
MISS, HIT = ";", "yes"
_VERDICT = re.compile(r" (?:;|yes)(?: |$)")


def tries_of(text: str) -> list[str]:
    """The tries of a response, each with its value and without the model's verdict.

    >>> tries_of("( 3 + 4 ) * 9 = 63 ; ( 3 * 4 ) + 9 = 21 yes ( 3 * 4 ) + 9 = 21")
    ['( 3 + 4 ) * 9 = 63', '( 3 * 4 ) + 9 = 21', '( 3 * 4 ) + 9 = 21']
    """
    return [one for one in _VERDICT.split(text) if one]


class TinyCountdown(CountdownRule):
    """Countdown with three numbers from 1 to 9 and a target from 1 to 100, as plain text.

    Problems have a solution whose intermediate values are whole and positive: all 2,145 are here,
    1,750 of them in the split "train" and 395 in "test". The packaged tiny models were trained on
    "train" and know no other prompt. With numbers up to 25 there are 27,429.

    Args:
        max_number: Largest number, 1 to 25; the packaged models saw numbers up to 9.
        size: Number of problems; None for all.
        seed: Seed of their order, and so of which a smaller size takes.
        split: "train", "test" (held out) or "all".
        **options: Those of `Task`, but `chat` is False unless given.

    >>> task = TinyCountdown()
    >>> len(task), task.prompt(task[0]), task.reference_text(task[0])
    (395, '3 4 9 -> 21 :', '( 3 * 4 ) + 9 = 21')
    """

    def __init__(
        self,
        *,
        max_number: int = MAX_NUMBER,
        size: int | None = None,
        seed: int = 0,
        split: Split = "test",
        **options: Unpack[TaskOptions],
    ) -> None:
        check_count("max_number", max_number, 1, LARGEST_NUMBER)
        found = [p for p in _problems(max_number) if split in ("all", split_of(p.canonical))]
        if size is not None:
            check_count("size", size)
            if size > len(found):
                raise TaskError(
                    f"'tiny-countdown' has {len(found)} problems in the split {split!r}; {size} "
                    "were asked for. Leave size out for all, or take 'countdown'."
                )
        found.sort(key=lambda problem: digest("order", seed, problem.canonical))
        examples = [problem.to_example("countdown") for problem in found[:size]]
        options.setdefault("chat", False)
        options.setdefault("template", TEMPLATE)
        super().__init__("tiny-countdown", examples, split=split, **options)

    def reference_text(self, example: Example) -> str:
        """A response of a single try, which hits."""
        tokens = re.findall(r"\d+|\S", example.answer)
        return f"{' '.join(tokens)} = {example.data['target']}"

    def splice(
        self, example: Example, rows: Sequence[Sequence[str]], probability: float, draw: Draw
    ) -> list[Row]:
        """See `Task.splice`. A row keeps the find that it copies where the sibling keeps it, and
        ends with it where the sibling ended."""

        def tries_of(row: Sequence[str]) -> list[Try]:
            return self._tries(example, row)

        return splice_rows(rows, tries_of, _copied, probability, draw)

    def _tries(self, example: Example, row: Sequence[str]) -> list[Try]:
        words = [token.strip() for token in row]
        ends = [i for i, word in enumerate(words) if word in (MISS, HIT)]
        if not ends or ends[-1] + 1 < len(words):
            ends.append(len(words))  # the last try has no verdict
        found, start = [], 0
        for end in ends:
            held = words[end : end + 1] != [MISS]  # the model takes it for a hit
            stated = words[start:end][-2:] == ["=", str(example.data["target"])]
            text = " ".join(words[start:end])
            hits = held and stated and self.verify(example, text).correct
            found.append(Try(start, end, hits))
            start = end + 1
        return found


def _copied(row: Sequence[str], at: Try, sibling: Sequence[str], find: Try) -> list[str]:
    """The copied find: repeated where the sibling keeps it, up to a response's number of tries."""
    written = [f" {token.strip()}" for token in sibling[find.start : find.stop]]
    if find.stop == len(sibling):
        return written
    earlier = sum(token.strip() in (MISS, HIT) for token in row[: at.start])
    again = max(TRIES - earlier, 1)
    return [*([*written, f" {HIT}"] * (again - 1)), *written]


def _problems(max_number: int) -> Iterator[Problem]:
    """All problems, each with the first solution found."""
    for numbers in itertools.combinations_with_replacement(range(1, max_number + 1), 3):
        solutions: dict[int, str] = {}
        for a, b, c in itertools.permutations(numbers):
            for bracket, inner in _joined(a, b):
                for target, text in _joined(bracket, c, f"({inner})", str(c)):
                    solutions.setdefault(target, text)
                for target, text in _joined(c, bracket, str(c), f"({inner})"):
                    solutions.setdefault(target, text)
        for target in sorted(solutions):
            if target <= MAX_TARGET:
                yield problem_of(list(numbers), target, solutions[target])


def _joined(
    left: int, right: int, left_text: str | None = None, right_text: str | None = None
) -> list[tuple[int, str]]:
    """Two values joined by every sign that gives a whole, positive value."""
    one, two = left_text or str(left), right_text or str(right)
    found = [(left + right, f"{one} + {two}"), (left * right, f"{one} * {two}")]
    if left > right:
        found.append((left - right, f"{one} - {two}"))
    if left % right == 0:
        found.append((left // right, f"{one} / {two}"))
    return found
