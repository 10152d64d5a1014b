"""Countdown: reach a target from given numbers with + - * / and brackets.

Any expression counts whose value is exactly the target and which uses each given number exactly
once (`use_all=False`: at most once). Its numbers are whole and written in ASCII digits, its
intermediate values may be fractions or negative, and it has no powers.

Which expression of a text counts: the marked answer (see `Task.extract`) if it holds a sign, else
the last expression in the text. Of "(3 + 4) * 5 = 35" the first side that holds a sign counts.

Problems are drawn by combining the numbers at random with whole, positive intermediate values, so
each has a solution, kept as the reference. The canonical form is the sorted numbers and the target.
With the default options (three numbers from 1 to 99, targets from 10 to 100) there are 558,101
problems (12,252 with numbers to 20, 1,361 to 9), a fifth of them held out.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator
from typing import Unpack

from interlace.answers.arithmetic import Node, canonical, evaluate, has_power, literals, parse
from interlace.answers.extract import final_part
from interlace.errors import ExpressionError, TaskError
from interlace.tasks.base import Example, Task, Verdict
from interlace.tasks.drawn import Draw, DrawnOptions, DrawnTask, Problem, check_count

MAX_NUMBERS = 8
MAX_RUNS = 500  # stretches of a text that are tried as expressions, from its end

_SIGN = re.compile(r"[-+*/\u00d7\u00b7\u00f7\u2212]|\\(?:times|cdot|div|frac)")
_RUN = re.compile(r"(?:[0-9]++(?:\.[0-9]++)?|[-+*/^() \t\u00d7\u00b7\u00f7\u2212])++")
_MARKER = re.compile(r"\s*+(?:[-*+\u2022]|[0-9]{1,3}[.)])\s++")
_EDGE = " \t\r\n$`*.,;:"


class CountdownRule(Task):
    """Which expression of a text counts, and whether it reaches the target."""

    instruction: str = "End with one line of the form\nAnswer: <expression>"
    use_all: bool = True

    def extract(self, text: str) -> str | None:
        """The expression that counts, by the rule in the module's head; None without one."""
        marked = self.marked(text)
        if marked is not None:
            side = _expression_side(marked)
            if side is not None:
                return side
        runs = (run for line in final_part(text).splitlines()[::-1] for run in _runs(line))
        for run in itertools.islice(runs, MAX_RUNS):
            try:
                parse(run)
            except ExpressionError:
                continue
            return run
        return None

    def normalise(self, answer: str) -> str | None:
        """The canonical expression: 3 + 4*2 and 2*4 + 3 are one vote."""
        try:
            return canonical(parse(answer))
        except ExpressionError:
            return None

    def check(self, example: Example, answer: str) -> Verdict:
        """Whether an expression reaches the target by the rules; canonical in the verdict."""
        try:
            tree = parse(answer)
            form = canonical(tree)
            reason = self._broken_rule(tree, example.data["numbers"])
            if reason is None:
                value = evaluate(tree)
                if value == example.data["target"]:
                    return Verdict(True, 1.0, form, "reaches the target")
                reason = f"gives {value!s:.40}, not {example.data['target']}"
        except ExpressionError as error:
            return Verdict(False, 0.0, None, f"no expression: {error}")
        return Verdict(False, 0.0, form, reason)

    def _broken_rule(self, tree: Node, given: list[int]) -> str | None:
        """The rule that an expression breaks, whatever its value."""
        if has_power(tree):
            return "has a power"
        if any("." in number.text for number in literals(tree)):
            return "has a number that is not whole"
        used = Counter(int(number.value) for number in literals(tree))
        foreign = used - Counter(given)
        unused = Counter(given) - used
        if foreign:
            return f"uses {min(foreign)} more often than given"
        if unused and self.use_all:
            return f"does not use {min(unused)}"
        return None


class Countdown(CountdownRule, DrawnTask):
    """The task; see this module's head for its rule.

    Args:
        numbers: Number of numbers a problem gives, 2 to 8.
        max_number: Largest of them; the smallest is 1.
        min_target: Smallest target.
        max_target: Largest target.
        use_all: Whether every number must be used.
        **options: Those of `DrawnTask`; the template may use `{numbers}` and `{target}`.

    >>> task = Countdown(size=3)
    >>> task[0].data["numbers"], task[0].data["target"], task[0].answer
    ([52, 97, 99], 26, '52 / (99 - 97)')
    >>> task.verify(task[0], "I get " + task[0].answer).correct
    True
    """

    def __init__(
        self,
        *,
        numbers: int = 3,
        max_number: int = 99,
        min_target: int = 10,
        max_target: int = 100,
        use_all: bool = True,
        **options: Unpack[DrawnOptions],
    ) -> None:
        check_count("numbers", numbers, 2, MAX_NUMBERS)
        check_count("max_number", max_number)
        check_count("min_target", min_target)
        if max_target < min_target:
            raise TaskError(f"Targets run from {min_target} to {max_target}: there is none.")
        self.use_all = use_all

        def draw(stream: Draw) -> Problem | None:
            given = [stream.between(1, max_number) for _ in range(numbers)]
            solved = _combine(given, stream)
            if solved is None or not min_target <= solved[0] <= max_target:
                return None
            return problem_of(sorted(given), *solved, use_all)

        super().__init__("countdown", draw, **options)


def _combine(given: list[int], stream: Draw) -> tuple[int, str] | None:
    """Joins two of the numbers at a time; the result and the expression, None where a quotient or
    difference is no positive whole number."""
    pool = [(number, str(number)) for number in given]
    while len(pool) > 1:
        left = pool.pop(stream.below(len(pool)))
        right = pool.pop(stream.below(len(pool)))
        sign = stream.choice("+-*/")
        a, b = left[0], right[0]
        if (sign == "-" and a <= b) or (sign == "/" and a % b):
            return None
        value = {"+": a + b, "-": a - b, "*": a * b, "/": a // b}[sign]
        pool.append((value, f"({left[1]} {sign} {right[1]})"))
    value, text = pool[0]
    return value, text.removeprefix("(").removesuffix(")")


def problem_of(numbers: list[int], target: int, solution: str, use_all: bool = True) -> Problem:
    """The problem with these numbers, sorted, and a solution."""
    listed = ", ".join(map(str, numbers[:-1])) + f" and {numbers[-1]}"
    how_often = "exactly once" if use_all else "at most once"
    return Problem(
        canonical=f"countdown {' '.join(map(str, numbers))} -> {target}",
        question=(
            f"Write an expression that equals {target}. Use each of the numbers {listed} "
            f"{how_often}, and only the signs + - * / and brackets."
        ),
        answer=solution,
        data={"numbers": numbers, "target": target},
    )


def _expression_side(text: str) -> str | None:
    """The first side of an answer, cut at "=", that holds a sign between digits."""
    for side in text.split("="):
        side = side.strip(_EDGE)
        side = side.removeprefix("\\(").removesuffix("\\)").strip(_EDGE)
        if _SIGN.search(side[1:]) and re.search("[0-9]", side):
            return side
    return None


def _runs(line: str) -> Iterator[str]:
    """The stretches of a line that may be expressions with a sign, the last first."""
    marker = _MARKER.match(line)
    for run in _RUN.findall(line, marker.end() if marker else 0)[::-1]:
        text = run.strip(" \t*/+").lstrip(")").rstrip("(-^").strip()  # such as Markdown's stars
        if _SIGN.search(text[1:]):
            yield text
