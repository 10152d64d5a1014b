"""Pair sum: which two of six numbers add up to the target, one token a character.

    prompt      22 23 11 18 25 16 > 29:
    response    25+22=47;11+18=29!11+18=29!

A response holds three tries of nine tokens, the last of each what the writer holds of it: ";" for a
miss, "!" for a hit, which it then writes again. The last try counts. Numbers are distinct, from 10
to 29, and exactly one pair of them has the sum. A try may also take a number from the target and
look for the rest among the numbers: 29-18=11!
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Unpack

from interlace.errors import TaskError
from interlace.tasks.base import Example, Verdict
from interlace.tasks.drawn import Draw, DrawnOptions, DrawnTask, Problem
from interlace.tasks.splicing import Row, Try, columns_of, splice_rows

TRIES, COUNT, LOW, HIGH = 3, 6, 10, 29
MISS, HIT = ";", "!"
TEMPLATE = "{listed} > {target}:"
TRY = re.compile(r"([0-9]{2})([+-])([0-9]{2})=([0-9]{2})([;!])")
_PAIR = re.compile(r"(?:(?<![0-9])([0-9]{2})\+|-([0-9]{2})=)([0-9]{2})(?![0-9])")


class PairSum(DrawnTask):
    """The task; see this module's head.

    Args:
        subtracts: Of `trace` only: the share of tries that take a number from the target. At least
            one in three of them hits; of those that add up a pair, one in 15.
        **options: Those of `DrawnTask`, but `chat` is False unless given, and the template may use
            `{listed}`, `{numbers}` and `{target}`.

    Raises:
        TaskError: if `subtracts` is no number from 0 to 1.

    >>> task = PairSum(size=2)
    >>> task.prompt(task[0]), task.reference_text(task[0])
    ('15 11 20 29 16 23 > 35:', '20+15=35!20+15=35!20+15=35!')
    """

    def __init__(self, *, subtracts: float = 0.0, **options: Unpack[DrawnOptions]) -> None:
        number = isinstance(subtracts, int | float) and not isinstance(subtracts, bool)
        if not number or not 0 <= subtracts <= 1:
            raise TaskError(f"subtracts is a share, a number from 0 to 1; got {subtracts!r}.")
        self.subtracts = subtracts
        options.setdefault("chat", False)
        options.setdefault("template", TEMPLATE)
        super().__init__("pair-sum", _problem, **options)

    def extract(self, text: str) -> str | None:
        """The last pair in a text that was added up, or that a difference gave (29-18=11)."""
        pairs = _PAIR.findall(text[-200:])
        return "+".join(filter(None, pairs[-1])) if pairs else None

    def normalise(self, answer: str) -> str | None:
        """The pair in order: 11+18 and 18+11 are one vote."""
        found = _PAIR.fullmatch(answer)
        return None if found is None else "+".join(sorted(filter(None, found.groups())))

    def check(self, example: Example, answer: str) -> Verdict:
        """Whether two of the numbers were added up, and to the target."""
        form = self.normalise(answer)
        if form is None:
            return Verdict(False, 0.0, None, "no sum of two numbers")
        pair = [int(number) for number in form.split("+")]
        if len(set(pair) & set(example.data["numbers"])) < 2:
            return Verdict(False, 0.0, form, "does not use two of the numbers")
        right = sum(pair) == example.data["target"]
        return Verdict(right, float(right), form, f"gives {sum(pair)}")

    def reference_text(self, example: Example) -> str:
        """A response that hits at once."""
        return f"{example.answer}={example.data['target']}{HIT}" * TRIES

    def trace(self, example: Example, draw: Draw) -> str:
        """A response of the policy that a first model learns: pairs at random, none of them twice,
        in either order; a hit is kept. One in five is right, more if it `subtracts`."""
        numbers, target = example.data["numbers"], example.data["target"]
        pairs = draw.shuffled(list(itertools.combinations(numbers, 2)))
        taken = draw.shuffled([n for n in numbers if n <= target]) if self.subtracts else []
        tries: list[str] = []
        for pair in pairs[:TRIES]:
            if tries and tries[-1].endswith(HIT):
                tries.append(tries[-1])
                continue
            if taken and draw.chance(self.subtracts):
                first = taken.pop()
                second = target - first
                written = f"{target}-{first}={second:02d}"
            else:
                first, second = draw.shuffled(pair)
                written = f"{first}+{second}={first + second}"
            hit = first != second and second in numbers and first + second == target
            tries.append(written + (HIT if hit else MISS))
        return "".join(tries)

    def splice(
        self, example: Example, rows: Sequence[Sequence[str]], probability: float, draw: Draw
    ) -> list[Row]:
        """See `Task.splice`; a row keeps what it copies."""

        def tries_of(row: Sequence[str]) -> list[Try]:
            at = columns_of(row)
            found = []
            for one in TRY.finditer("".join(row)):
                if one.start() not in at or one.end() not in at:
                    continue  # a token holds parts of two tries
                target = one[4] if one[2] == "+" else one[1]
                stated = one[5] == HIT and int(target) == example.data["target"]
                hits = stated and self.verify(example, one[0]).correct
                found.append(Try(at[one.start()], at[one.end()], hits))
            return found

        return splice_rows(rows, tries_of, _kept, probability, draw)


def _kept(row: Sequence[str], at: Try, sibling: Sequence[str], find: Try) -> list[str]:
    """The copied find, repeated up to a response's number of tries."""
    earlier = len(TRY.findall("".join(row[: at.start])))
    return list(sibling[find.start : find.stop]) * max(TRIES - earlier, 1)


def _problem(stream: Draw) -> Problem | None:
    numbers = stream.shuffled(range(LOW, HIGH + 1))[:COUNT]
    first, second = stream.shuffled(numbers)[:2]
    target = first + second
    if sum(a + b == target for a, b in itertools.combinations(numbers, 2)) > 1:
        return None
    listed = " ".join(map(str, numbers))
    return Problem(
        canonical=f"pair-sum {' '.join(map(str, sorted(numbers)))} > {target}",
        question=f"Which two of the numbers {listed.replace(' ', ', ')} add up to {target}?",
        answer=f"{first}+{second}",
        data={"numbers": numbers, "target": target, "listed": listed},
    )
