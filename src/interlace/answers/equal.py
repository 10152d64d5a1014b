r"""Equality of formulas through math-verify, where it is installed (the `math` extra).

math-verify parses LaTeX into SymPy and compares there: `\sqrt{8}` is `2\sqrt{2}`, `(x+1)^2` is
`x^2+2x+1`. SymPy's time is unbounded in its input, so it runs in `verifier_pool`, and only short
formulas without towers of powers or long numbers go in. What is decided is asked once; what is not
decided within the bounds is neither equal nor different, and is asked anew.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import re
from fractions import Fraction

from interlace.answers.normalise import normalise_answer
from interlace.verifier_pool import Refusal, verifier_pool

MAX_FORMULA = 200
MAX_DEPTH = 8
MAX_POWER = 1000

_FORMULA = re.compile(
    r"\\[A-Za-z{]|[\^+*/=<>]|\d\(|[0-9][A-Za-z]\b|[\[(][^()]*,|[A-Za-z)]-|-[A-Za-z(]"
)
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}")
_FUNCTION = re.compile(r"\b(?:sin|cos|tan|cot|sec|csc|log|ln|exp|sqrt|arcsin|arccos|arctan)\b")
_COSTLY = re.compile(r"!|[0-9]{13}|\*\*|\\(?:i*int|oint|sum|prod|lim|d?t?binom|choose|uparrow)")
_EXPONENT = re.compile(r"([)\]}])?\^\s*(?:([A-Za-z]|[0-9]++)|\{([^{}^]*)\})(?!\s*\^)")
_SYMBOL_COMMAND = re.compile(r"\\(?:pi|theta|alpha|beta|lambda|omega)\b ?")


class _Undecided(Exception):
    """An exception, since those are not cached."""


def symbolically_equal(left: str, right: str) -> bool | None:
    r"""Whether two short answers with different normal forms are equal as formulas.

    Args:
        left: An answer as a row wrote it.
        right: Another.

    Returns:
        True only if math-verify is installed, at least one of the two is a formula, and math-verify
        finds them equal in both orders; None if that was not decided within the bounds.

    >>> symbolically_equal("yes", "no")
    False
    """
    outcome = compare(left, right)
    return None if isinstance(outcome, Refusal) else outcome


def compare(left: str, right: str) -> bool | Refusal:
    """As `symbolically_equal`, with the reason where it is not decided."""
    forms = normalise_answer(left), normalise_answer(right)
    if None in forms or all(isinstance(form, Fraction) for form in forms):
        return False  # numbers are exact: 0.333 is not 1/3
    first, second = (_latex(form) for form in forms)
    if first is None or second is None or not _installed():
        return False
    try:
        return _ask(*sorted((first, second)))
    except _Undecided as undecided:
        return Refusal(str(undecided))


def _latex(form: Fraction | str | None) -> str | None:
    """The form as LaTeX that is safe to hand over; None for words and for what may take long."""
    if isinstance(form, Fraction):
        text = str(form.numerator)
        if form.denominator != 1:
            text = rf"\frac{{{form.numerator}}}{{{form.denominator}}}"
        return text if len(text) <= MAX_FORMULA and not _COSTLY.search(text) else None
    if form is None or len(form) > MAX_FORMULA or not form.isascii():
        return None
    if not _FORMULA.search(form) or _WORD.search(_FUNCTION.sub("", form)):
        return None
    if _COSTLY.search(form) or _depth(form) > MAX_DEPTH or _power(form) > MAX_POWER:
        return None
    return form


def _depth(text: str) -> int:
    deepest = level = 0
    for character in text:
        level += (character in "({[") - (character in ")}]")
        deepest = max(deepest, level)
    return deepest


def _power(text: str) -> float:
    """A bound on the highest power that the numbers in exponents can multiply up to.

    Powers of huge numbers would only end at the bound of processor time, and with the child.
    """
    if text.count("^") != len(exponents := _EXPONENT.findall(text)):
        return math.inf  # a tower of powers, or an exponent that is no simple text
    largest, on_brackets = 1, 1
    for bracket, character, inside in exponents:
        written = _SYMBOL_COMMAND.sub("x", character or inside)
        if "\\" in written or "." in written:
            return math.inf
        # Each number plus one: then the product also bounds sums of them.
        value = math.prod(int(digits) + 1 for digits in re.findall("[0-9]+", written))
        if bracket:
            on_brackets *= value
        else:
            largest = max(largest, value)
    return float(largest * on_brackets)


@functools.cache
def _installed() -> bool:
    return importlib.util.find_spec("math_verify") is not None


@functools.lru_cache(maxsize=65536)
def _ask(first: str, second: str) -> bool:
    outcome = verifier_pool().ask("interlace.answers.math_child:equal", left=first, right=second)
    if isinstance(outcome, Refusal):
        raise _Undecided(outcome.reason)
    return bool(outcome)
