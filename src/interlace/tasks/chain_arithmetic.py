"""Chain arithmetic: several operations in a row, each of them a step that can be checked.

    (7 + 5) * 3 - 4   ->   7 + 5 = 12,   12 * 3 = 36,   36 - 4 = 32

Numbers have exactly `digits` digits, running values are from 0 to 10^6, the answer is a whole
number. The canonical form is the expression with its terms and factors sorted, so 7 + 5 - 3 and
5 - 3 + 7 are one problem, and on one side of the split. So many problems there are with + and -:

    steps       1        2           3          4
    digits=1    90       590         3,088      13,530
    digits=2    8,190    495,770     22,678,803
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

from interlace.answers.arithmetic import canonical, parse
from interlace.answers.extract import MAX_TEXT
from interlace.errors import TaskError
from interlace.tasks.base import Example, Step, Verdict
from interlace.tasks.checkers import check_number
from interlace.tasks.drawn import Draw, DrawnOptions, DrawnTask, Problem, check_count
from interlace.tasks.equations import Equation, find_equations
from interlace.tasks.splicing import Row, splice_lines

MAX_VALUE = 10**6
MAX_STEPS = 20
MAX_DIGITS = 3


class ChainArithmetic(DrawnTask):
    """The task; see this module's head.

    Args:
        digits: Number of digits of each number, 1 to 3.
        steps: Number of operations in a problem, 1 to 20.
        operations: Signs that may occur, out of "+-*".
        **options: Those of `DrawnTask`; the template may use `{expression}`.

    >>> task = ChainArithmetic(digits=1, steps=2, size=3)
    >>> task[0].question, task[0].answer
    ('What is 5 - 2 + 6?', '9')
    >>> [step.text for step in task.steps(task[0], "First 5 - 2 = 4.")]
    ['5 - 2 = 3', '3 + 6 = 9', '5 - 2 = 4']
    """

    instruction: str = (
        "Do one operation at a time, each on its own line as an equation, and end with one line "
        "of the form\nAnswer: <number>"
    )

    def __init__(
        self,
        *,
        digits: int = 1,
        steps: int = 3,
        operations: str = "+-",
        **options: Unpack[DrawnOptions],
    ) -> None:
        check_count("digits", digits, 1, MAX_DIGITS)
        check_count("steps", steps, 1, MAX_STEPS)
        if not operations or set(operations) - set("+-*"):
            raise TaskError(f"operations are one or more of +, - and *; got {operations!r}.")

        def draw(stream: Draw) -> Problem | None:
            return _problem(stream, digits, steps, operations)

        super().__init__("chain-arithmetic", draw, **options)

    def reference_text(self, example: Example) -> str:
        """The steps, then the answer."""
        return "\n".join([*example.data["steps"], f"Answer: {example.answer}"])

    def check(self, example: Example, answer: str) -> Verdict:
        """Whether the answer is the result."""
        return check_number(example.answer, answer)

    def steps(self, example: Example, text: str) -> list[Step]:
        """The operations of the problem, then the wrong equations that were written.

        An operation holds if its equation was written, in whichever order of its numbers. Right
        equations that the problem does not ask for are left out: they earn nothing.
        """
        written = find_equations(text[-MAX_TEXT:])
        done = {_key(equation) for equation in written}
        asked = [(line, find_equations(line)[0]) for line in example.data["steps"]]
        steps = [Step(line, _key(equation) in done) for line, equation in asked]
        wrong = {equation.text: None for equation in written if not equation.holds}
        return steps + [Step(line, False) for line in wrong]

    def splice(
        self, example: Example, rows: Sequence[Sequence[str]], probability: float, draw: Draw
    ) -> list[Row]:
        """See `Task.splice`. The next line of a row becomes the line with a sibling's right answer,
        and the row ends."""
        return splice_lines(self, example, rows, probability, draw, told=False)


def _key(equation: Equation) -> tuple[str, object]:
    return equation.left, equation.value


def _problem(stream: Draw, digits: int, steps: int, operations: str) -> Problem | None:
    low, high = 10 ** (digits - 1), 10**digits - 1
    value = stream.between(low, high)
    expression, is_sum = str(value), False
    lines = []
    for _ in range(steps):
        sign, number = stream.choice(operations), stream.between(low, high)
        result = {"+": value + number, "-": value - number, "*": value * number}[sign]
        if not 0 <= result <= MAX_VALUE:
            return None
        lines.append(f"{value} {sign} {number} = {result}")
        expression = f"({expression})" if sign == "*" and is_sum else expression
        expression, is_sum = f"{expression} {sign} {number}", sign != "*"
        value = result
    return Problem(
        canonical=f"chain {canonical(parse(expression))}",
        question=f"What is {expression}?",
        answer=str(value),
        data={"expression": expression, "steps": lines},
    )
