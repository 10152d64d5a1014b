r"""How an answer is compared with a reference: as a number, a formula, a letter, or a text.

- number: exact equality of the values, in any form that has one by the rules of
  `interlace.answers.normalise` and `.equal`: `1,000`, `\frac12`, "144/2", "72 clips", `x + y = 72`.
- math: equal as votes see it (`interlace.answers.symbolically_equal`): by value, by normal form, or
  as formulas.
- choice: a letter, alone or dressed ("(C)", "C.", "\textbf{(C)}\ 12", "Option C", "C because"), or
  a choice's whole text.
- exact: equal normal forms, so case, blanks and LaTeX dressing do not matter.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Literal, get_args

from interlace.answers import normalise_answer
from interlace.answers.equal import compare, number_in
from interlace.answers.normalise import undress
from interlace.errors import TaskError, require
from interlace.tasks.base import Verdict
from interlace.verifier_pool import Refusal

CheckerName = Literal["number", "math", "choice", "exact"]
Checker = Callable[[str, str], Verdict]

_LETTER = re.compile(
    r"(?:(?i:option|choice|answer)\s+)?"
    r"(?:\(([A-Z])\).*|([A-Z])(?:[).:,](?:\s.*)?|\s+(?:because|since|as|is|[-\u2013\u2014])\s.*)?)",
    re.DOTALL,
)


def check_number(reference: str, answer: str) -> Verdict:
    """By value, exactly."""
    expected, given = number_in(reference), number_in(answer)
    if given is None:
        return _verdict(False, answer, "is no number")
    return _verdict(given == expected, _shown(given, answer), f"expected {reference:.40}")


def check_math(reference: str, answer: str) -> Verdict:
    """As votes compare; see this module's head."""
    value = number_in(answer)
    shown = answer if value is None else _shown(value, answer)
    outcome = compare(reference, answer)
    if isinstance(outcome, Refusal):
        return _verdict(False, shown, outcome.reason)
    return _verdict(outcome, shown, f"expected {reference:.40}")


def check_exact(reference: str, answer: str) -> Verdict:
    """By normal form."""
    same = normalise_answer(reference) == normalise_answer(answer)
    return _verdict(same, answer, f"expected {reference:.40}")


def check_choice(reference: str, answer: str, choices: Sequence[str] = ()) -> Verdict:
    """By letter, or by the text of one of the `choices` (of A, B, ... in order)."""
    letter = choice_letter(answer, choices)
    if letter is None:
        return _verdict(False, answer, "is none of the choices")
    return _verdict(letter == reference.strip().upper(), letter, f"expected {reference:.40}")


def choice_letter(answer: str, choices: Sequence[str] = ()) -> str | None:
    r"""The letter that an answer names; None if it names none, or one beyond the choices.

    >>> choice_letter(r"\text{(c)}"), choice_letter("B) 12 m"), choice_letter("a dog")
    ('C', 'B', None)
    """
    form = normalise_answer(answer)
    texts = [normalise_answer(choice) for choice in choices]
    if form is not None and texts.count(form) == 1:
        return chr(ord("A") + texts.index(form))
    # Letters of either case where nothing else is there: "a dog" is no choice.
    alone = isinstance(form, str) and len(form) == 1
    found = _LETTER.fullmatch(str(form).upper() if alone else undress(answer)) or (
        _LETTER.fullmatch(answer.strip(" *_$`\n"))
    )
    letter = found and (found[1] or found[2])
    if not letter or (choices and ord(letter) - ord("A") >= len(choices)):
        return None
    return letter


def get_checker(name: str, references: Sequence[str]) -> Checker:
    """The checker of a name, fit for these references.

    Args:
        name: "number", "math", "choice" or "exact".
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
    if name == "choice":
        return check_choice
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


def _verdict(correct: bool, answer: str, reason: str) -> Verdict:
    return Verdict(correct, float(correct), answer, "correct" if correct else reason)


def _shown(value: Fraction, answer: str) -> str:
    """The number as text; as it was written beyond the digits that Python converts at once."""
    huge = max(value.numerator.bit_length(), value.denominator.bit_length()) > 10_000
    return answer if huge else str(value)
