r"""How an answer is compared with a reference: as a number, a formula, a letter, or a text.

- number: exact equality of the values, in any form that has one by the rules of
  `interlace.answers.normalise` and `.equal`: `1,000`, `\frac12`, "144/2", "72 clips", `x + y = 72`.
- math: equal as votes see it (`interlace.answers.symbolically_equal`): by value, by normal form, or
  as formulas.
- choice: a letter or a choice's whole text, see `choices`.
- exact: equal normal forms, so case, blanks and LaTeX dressing do not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Literal, get_args

from interlace.answers import normalise_answer
from interlace.answers.equal import compare, number_in
from interlace.errors import TaskError, require
from interlace.tasks.base import Verdict
from interlace.verifier_pool import Refusal

CheckerName = Literal["number", "math", "choice", "exact"]
Checker = Callable[[str, str], Verdict]


def check_number(reference: str, answer: str) -> Verdict:
    """By value, exactly."""
    expected, given = number_in(reference), number_in(answer)
    if given is None:
        return verdict_on(False, answer, "is no number")
    return verdict_on(given == expected, _shown(given, answer), f"expected {reference:.40}")


def check_math(reference: str, answer: str) -> Verdict:
    """As votes compare; see this module's head."""
    value = number_in(answer)
    shown = answer if value is None else _shown(value, answer)
    outcome = compare(reference, answer)
    if isinstance(outcome, Refusal):
        return verdict_on(False, shown, outcome.reason)
    return verdict_on(outcome, shown, f"expected {reference:.40}")


def check_exact(reference: str, answer: str) -> Verdict:
    """By normal form."""
    same = normalise_answer(reference) == normalise_answer(answer)
    return verdict_on(same, answer, f"expected {reference:.40}")


def get_checker(name: str, references: Sequence[str]) -> Checker:
    """The checker of a name, fit for these references.

    Args:
        name: "number", "math" or "exact".
        references: Every reference answer. Where all are numbers, "math" needs no extra package;
            without it, an answer that only math-verify can evaluate is a wrong one.

    Raises:
        TaskError: for another name, or references that the checker cannot compare with.
        MissingDependencyError: if "math" meets a formula and math-verify is not installed.
    """
    if name not in get_args(CheckerName):
        raise TaskError(f"A checker is one of {', '.join(get_args(CheckerName))}; got {name!r}.")
    if name == "exact":
        return check_exact
    formula = next((text for text in references if number_in(text) is None), None)
    if formula is None:
        return check_number if name == "number" else check_math
    if name == "number":
        raise TaskError(
            f"The checker 'number' needs numbers as references; {formula[:60]!r} is none."
        )
    require(
        "math_verify", "math", f"The reference {formula[:60]!r} is a formula, not a number, so it"
    )
    return check_math


def verdict_on(correct: bool, answer: str, reason: str) -> Verdict:
    """The verdict; the reason is for a wrong answer."""
    return Verdict(correct, float(correct), answer, "correct" if correct else reason)


def _shown(value: Fraction, answer: str) -> str:
    """The number as text; as it was written beyond the digits that Python converts at once."""
    huge = max(value.numerator.bit_length(), value.denominator.bit_length()) > 10_000
    return answer if huge else str(value)
