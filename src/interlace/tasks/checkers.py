r"""How an answer is compared with a reference: as a number, a formula, a letter, or a text.

- number: exact equality of the values. An answer is a number in any form that `normalise_answer`
  of `interlace.answers` knows (`1,000`, `\frac12`, `3\times10^4`, "50%" is 50), an arithmetic
  expression ("144/2"), or words around exactly one number ("72 clips").
- math: number, where both are; else equal normal forms; else `symbolically_equal`, as in votes.
  `2\sqrt{2}` is `\sqrt{8}`.
- choice: a letter, alone or dressed ("(C)", "C.", "\text{C}", "C) 12 m"), or a choice's whole text.
- exact: equal normal forms, so case, blanks and LaTeX dressing do not matter.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Literal, get_args

from interlace.answers import normalise_answer
from interlace.answers.arithmetic import value_of
from interlace.answers.equal import compare
from interlace.answers.normalise import undress
from interlace.errors import TaskError, require
from interlace.tasks.base import Verdict
from interlace.verifier_pool import Refusal

CheckerName = Literal["number", "math", "choice", "exact"]
Checker = Callable[[str, str], Verdict]

# Possessive quantifiers ("++"): each word is split in one way only, so a mismatch shows at once.
_AMONG_WORDS = re.compile(
    r"(?:[A-Za-z]{2,}+ ++|[$\u20ac\u00a3])*+([-\u2212]?[0-9][0-9,]*+(?:\.[0-9]++)?)"
    r"(?:[ -]*+(?:[A-Za-z]{2,}+|%))*+"
)
_LETTER = re.compile(
    r"(?:(?:option|choice|answer)\s+)?(?:\(([A-Z])\).*|([A-Z])(?:[).:,]\s.*)?)", re.DOTALL
)


def number_of(answer: str) -> Fraction | None:
    """The exact value of an answer that is a number; None for another.

    >>> number_of("72 clips"), number_of(r"\\frac{144}{2}"), number_of("x = 1,000"), number_of("2x")
    (Fraction(72, 1), Fraction(72, 1), Fraction(1000, 1), None)
    """
    form = normalise_answer(answer)
    if isinstance(form, Fraction):
        return form
    if form is None:
        return None
    value = value_of(form)
    if value is not None:
        return value
    found = _AMONG_WORDS.fullmatch(undress(answer))
    if found is None:
        return None
    alone = normalise_answer(found[1])
    return alone if isinstance(alone, Fraction) else None


def check_number(reference: str, answer: str) -> Verdict:
    """By value, exactly."""
    expected, given = number_of(reference), number_of(answer)
    if given is None:
        return _verdict(False, answer, "is no number")
    return _verdict(given == expected, _shown(given, answer), f"expected {reference:.40}")


def check_math(reference: str, answer: str) -> Verdict:
    """By value or as formulas; see this module's head."""
    expected, given = number_of(reference), number_of(answer)
    if expected is not None and given is not None:
        return check_number(reference, answer)
    if normalise_answer(reference) == normalise_answer(answer):
        return _verdict(True, answer, "")
    outcome = compare(reference, answer)
    if isinstance(outcome, Refusal):
        return _verdict(False, answer, outcome.reason)
    return _verdict(outcome, answer, f"expected {reference:.40}")


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
    found = _LETTER.fullmatch(str(form).upper() if alone else answer.strip(" *_$`\n"))
    letter = found and (found[1] or found[2])
    if not letter or (choices and ord(letter) - ord("A") >= len(choices)):
        return None
    return letter


def get_checker(name: str, references: Sequence[str]) -> Checker:
    """The checker of a name, fit for these references.

    Args:
        name: "number", "math", "choice" or "exact".
        references: Every reference answer. If all are numbers, "math" is "number", so that no
            extra package is needed.

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
    formula = next((text for text in references if number_of(text) is None), None)
    if formula is None:
        return check_number
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
