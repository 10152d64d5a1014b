r"""When two answers with different normal forms are equal all the same; for verdicts and votes.

- Of an equation the right side counts where the other answer is none: `x + y = 72` is 72. But
  `x^2 = 4` is not `x = 4`.
- Words around one number are looked through where the other answer is a number: "72 clips" is 72,
  and so is `72\text{ cm}^2`; "72 clips" is not "72 hours". Words that make another number of it are
  not: "half of 72", "72 thousand". Nor are letters that may be factors: `2ab`, `5m`.
- A number in some base, `1011_2`, is its digits without a base, and differs from `1011_3`.
- Lists, points and intervals are equal where they are of one kind and their members are equal.
- Formulas are left to math-verify, where it is installed (the `math` extra): LaTeX is parsed into
  SymPy and compared there, `\sqrt{8}` with `2\sqrt{2}`, `(x+1)^2` with `x^2+2x+1`. It rounds, so
  decimals go in as fractions.

SymPy's time is unbounded in its input, so it runs in `verifier_pool`, and only short formulas
without towers of powers go in. What is decided is asked once; what is not decided within the bounds
is neither equal nor different, and is asked anew.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from interlace.answers.arithmetic import value_of
from interlace.answers.normalise import (
    MAX_CHARACTERS,
    form_of,
    items_of,
    kind_of,
    normalise_answer,
    sides,
    undress,
)
from interlace.verifier_child import Answer
from interlace.verifier_pool import Refusal, verifier_pool

MAX_FORMULA = 300
MAX_MEMBERS = 16
MAX_DEPTH = 8
MAX_POWER = 1000

_FORMULA = re.compile(
    r"\\[A-Za-z{]|[\^+*/=<>|]|\d\(|[0-9][A-Za-z]\b|sqrt|[\[(][^()]*,|[A-Za-z)]-|-[A-Za-z(]"
)
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}")
_FUNCTION = re.compile(
    r"(?<![A-Za-z])(?:(?:arc)?(?:sin|cos|tan)|cot|sec|csc|log|ln|exp|sqrt)(?![A-Za-z])"
    r"|\{[pbBvV]?matrix\}"
)
_DECIMAL = re.compile(r"[0-9]*\.[0-9]+")
_COSTLY = re.compile(r"!!|\*\*|\\uparrow|[0-9]\)?_|'")  # digits in a base and primes are misread
_EXPONENT = re.compile(r"([)\]}])?\^\s*(?:([A-Za-z]|[0-9]++)|\{([^{}^]*)\})(?!\s*\^)")
# Possessive quantifiers ("++"): each word is split in one way only, so a mismatch shows at once.
_UNIT = r"(?:[A-Za-z]{2,}+|[mshgl](?![A-Za-z]))"
# Without a blank only well-known ones: 2ab and 5m are products. The Chinese ones left out count.
_GLUED = (
    r"(?:(?:[ckm]m|[km]g|m[il]|ft|in|lbs?|oz|hrs?|mins?|secs?|[km]ph|st|nd|rd|th)(?![A-Za-z])"
    r"|(?:(?![万亿千百十半])[\u4e00-\u9fff])++)"
)
_POWER = r"(?:\^\{?[23]\}?)?"
# What is for each of something: "a day", "/day"; not "a half", and not the quotient 18/x.
_EACH = (
    r"(?:(?: an?+ |/)(?:second|sec|minute|min|hour|hr|day|night|week|month|year|person|piece)"
    r"(?![A-Za-z]))"
)
_AMONG_WORDS = re.compile(
    r"(?:(?:[A-Za-z]{2,}+(?:'s)?+|[aAiI](?![A-Za-z]))(?:: *+| ++)|[$\u20ac\u00a3])*+"
    r"(-?(?:[0-9][0-9,]*+(?:\.[0-9]++)?(?:/[0-9]++)?))"
    rf"(?:(?:[ -]++{_UNIT}|[ -]*+{_GLUED}){_POWER}(?:/[A-Za-z]++{_POWER})?|{_EACH}|[ -]*+%)*+"
)
# Words that make another number of the one beside them.
_OTHERWISE = re.compile(
    r"\b(?:not?|minus|negative|half|halves|twice|double|triple|thrice|root|squared|cubed|hundred|"
    r"repeating|recurring|"
    r"thousand|[mbtr]+illion|thirds|(?:four|fif|six|seven|eigh|nin|ten|hundred|thousand)ths|"
    r"pi|sqrt|log|ln|exp|sin|cos|tan|cot|sec|csc)\b|\b(?:than|over|under|above|below)\b.*[0-9]"
    r"|\b(?:third|quarter|fourth|fifth|sixth|seventh|eighth|ninth|tenth)s?\s+of\b"
)
_UNIT_TEXT = re.compile(
    r"\s*\$?((?:[^A-Za-z\\]|\\[A-Za-z]++)+?)(?:\\[,;:! ])*+\\(?:text|mathrm|mbox)\{([^{}]*)\}"
    r"(?:\^\{?([23])\}?)?[\s.$]*"
)
# Not arithmetic: dates and the like.
_DATE = re.compile(r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}|[0-9]{1,2}/[0-9]{1,2}/[0-9]{2,4}|0[0-9]+[-/].*")
_BASED = re.compile(r"([0-9]\w*)_\{[0-9]+\}")
# An inverse, which would be read as a power.
_INVERSE = re.compile(r"(?<![A-Za-z\\])([fghFGH])\^(?:\{-1\}|-1)(?=\()")
_SYMBOL_COMMAND = re.compile(r"\\(?:pi|theta|alpha|beta|lambda|omega)\b ?")


Form = Fraction | str | None


class _Undecided(Exception):
    """An exception, since those are not cached."""


def symbolically_equal(left: str, right: str) -> bool | None:
    r"""Whether two short answers are equal.

    Args:
        left: An answer as a row wrote it.
        right: Another.

    Returns:
        True if they are equal by the rules in this module's head, of formulas in both orders; None
        if that was not decided within the bounds.

    >>> symbolically_equal("yes", "no")
    False
    """
    outcome = compare(left, right)
    return None if isinstance(outcome, Refusal) else outcome


def compare(left: str, right: str) -> bool | Refusal:
    """As `symbolically_equal`, with the reason where it is not decided."""
    forms = normalise_answer(left), normalise_answer(right)
    whole = [form for form in forms if _right(form) == form]
    if len(whole) == 1:
        first, second = (undress(text[:MAX_CHARACTERS]) for text in (left, right))
        if min(len(sides(first)), len(sides(second))) > 1:
            # y = 2x + 1 was read as 2x + 1, which y - 2x = 1 does not say; as equations they are
            # equal. x = 4 was read as 4, which x^2 = 4 does not say.
            return False if _value(whole[0]) is not None else _symbolic(first, second)
    outcome = _same(*forms)
    return outcome if outcome is True else _without_units(left, right) or outcome


def _without_units(left: str, right: str) -> bool | Refusal:
    r"""Of constants such as `2\sqrt{3}\text{ cm}`, of which one or both have a unit."""
    found = [_UNIT_TEXT.fullmatch(text[:MAX_CHARACTERS]) for text in (left, right)]
    units = {(unit[2].strip(), unit[3]) for unit in found if unit}
    if len(units) != 1 or any(_OTHERWISE.search(name) for name, _ in units):
        return False
    constants = [unit[1] if unit else text for unit, text in zip(found, (left, right), strict=True)]
    return _same(normalise_answer(constants[0]), normalise_answer(constants[1]))


def number_in(answer: str) -> Fraction | None:
    r"""The exact value of an answer that is a number, by the rules above; None for another.

    >>> number_in("72 clips"), number_in(r"x + y = \frac{144}{2}"), number_in("2x")
    (Fraction(72, 1), Fraction(72, 1), None)
    """
    form = _right(normalise_answer(answer))
    value = _value(form)
    return _among_words(form) if value is None else value


def _value(form: Form) -> Fraction | None:
    """The exact value of a form that has one."""
    if isinstance(form, Fraction):
        return form
    if form is None or len(form) > MAX_CHARACTERS or _DATE.fullmatch(form):
        return None
    return value_of(form)


def _among_words(form: Form) -> Fraction | None:
    if not isinstance(form, str) or len(form) > MAX_CHARACTERS or _OTHERWISE.search(form):
        return None
    found = _AMONG_WORDS.fullmatch(form)
    value = None if found is None else normalise_answer(found[1])
    return value if isinstance(value, Fraction) else None


def _right(form: Form) -> Form:
    """The right side of an equation; all else as it is."""
    if not isinstance(form, str) or len(form) > MAX_CHARACTERS:
        return form
    if kind_of(form) or len(sides(form)) < 2:
        return form
    return form_of(sides(form)[-1])


def _same(left: Form, right: Form) -> bool | Refusal:
    if left is None or right is None:
        return False
    if kind_of(left) != kind_of(right) or left == right:
        return left == right
    if kind_of(left):
        return _same_members(left, right)
    if (_right(left) == left) != (_right(right) == right):
        return _same(_right(left), _right(right))
    values = [_value(form) for form in (left, right)]
    if None not in values:
        return values[0] == values[1]  # exact: 0.333 is not 1/3, and 0.1 + 0.2 is 0.3
    for one, other in ((left, right), (right, left)):
        if isinstance(one, Fraction) and (value := _among_words(other)) is not None:
            return value == one
        based = _BASED.fullmatch(str(other)) if isinstance(other, str) else None
        if based:
            return based[1] == str(one)
    return _symbolic(left, right)


def _same_members(left: Form, right: Form) -> bool | Refusal:
    """Of two lists, in any order, or of two pairs, in theirs."""
    first, second = items_of(str(left)), items_of(str(right))
    if len(first) != len(second) or len(first) > MAX_MEMBERS:
        return False
    refusal: Refusal | None = None
    for place, item in enumerate(first):
        others = second if kind_of(left) == "list" else second[place : place + 1]
        outcomes = [(_same_member(item, other), other) for other in others]
        found = next((other for outcome, other in outcomes if outcome is True), None)
        if found is not None and kind_of(left) == "list":
            second.remove(found)
        elif found is None:
            undecided = [outcome for outcome, _ in outcomes if isinstance(outcome, Refusal)]
            if not undecided:
                return False
            refusal = undecided[0]
    return True if refusal is None else refusal


def _same_member(left: str, right: str) -> bool | Refusal:
    # Of "x=1, y=2" the names count: members are no equations to be read by their right sides.
    name, sign, value = left.partition("=")
    other_name, other_sign, other_value = right.partition("=")
    if sign or other_sign:
        both = name == other_name and sign == other_sign
        return both and _same(normalise_answer(value), normalise_answer(other_value))
    return _same(normalise_answer(left), normalise_answer(right))


def _symbolic(left: Form, right: Form) -> bool | Refusal:
    first, second = _latex(left), _latex(right)
    if first is None or second is None or not _installed():
        return False
    try:
        return _ask(*sorted((first, second)))
    except _Undecided as undecided:
        return Refusal(str(undecided))


def _latex(form: Form) -> str | None:
    """The form as LaTeX that is safe to hand over; None for words and for what may take long."""
    if isinstance(form, Fraction):
        text = str(form.numerator)
        if form.denominator != 1:
            text = rf"\frac{{{form.numerator}}}{{{form.denominator}}}"
        return text if len(text) <= MAX_FORMULA and not _COSTLY.search(text) else None
    if form is None or len(form) > MAX_FORMULA or not form.isascii():
        return None
    if not _FORMULA.search(form) or _WORD.search(_FUNCTION.sub("", form)) or _DATE.fullmatch(form):
        return None
    form = _DECIMAL.sub(  # a float would be rounded
        lambda m: r"\frac{{{}}}{{{}}}".format(*Fraction(m[0]).as_integer_ratio()), form
    )
    form = _INVERSE.sub(r"\1_{-1}", form)
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
    outcome = verifier_pool().ask(
        "interlace.answers.equal:formulas_equal", left=first, right=second
    )
    if isinstance(outcome, Refusal):
        raise _Undecided(outcome.reason)
    return bool(outcome)


def formulas_equal(left: str, right: str) -> Answer:
    """Whether two LaTeX formulas are equal, in both orders; asked in a child of `verifier_pool`.

    What cannot be read equals nothing. math-verify's own verdict depends on the order: one way,
    {1, 2} passes for 1 < x < 2.
    """
    complex_too, parse, verify = _math_verify()

    def answer() -> bool:
        try:
            real = not (complex_too(left) or complex_too(right))
            first, second = parse(left, real), parse(right, real)
            if _multiples(first, second):
                return True
            if _unsolvable(first) and _unsolvable(second):
                return False
            return verify(first, second) and verify(second, first)
        except MemoryError:
            raise
        except Exception:  # a parser on model text fails in countless ways
            return False

    return answer


def _unsolvable(formula: Any) -> bool:
    """Of an equation. To math-verify, which compares solutions, all such are equal."""
    from sympy import Eq, solve

    return isinstance(formula, Eq) and not solve(formula, formula.free_symbols)


def _multiples(first: Any, second: Any) -> bool:
    from sympy import Eq, simplify

    if not (isinstance(first, Eq) and isinstance(second, Eq)):
        return False
    factor = simplify((first.lhs - first.rhs) / (second.lhs - second.rhs))
    return bool(factor.is_number and factor.is_finite and factor.is_nonzero)


@functools.cache
def _math_verify() -> tuple[
    Callable[[str], bool], Callable[[str, bool], Any], Callable[[Any, Any], bool]
]:
    import logging

    from latex2sympy2_extended.latex2sympy2 import ConversionConfig, latex2sympy
    from latex2sympy2_extended.math_normalization import NormalizationConfig
    from math_verify import verify as verify_math
    from math_verify.grader import should_treat_as_complex

    logging.disable(logging.CRITICAL)  # it warns that its own timer is off
    # Its `parse` would take a trailing t or h for a unit, primes for quotes, and one case for both.
    repaired = NormalizationConfig(basic_latex=False, malformed_operators=True, boxed="none")
    as_written = ConversionConfig(lowercase_symbols=False)

    def parse(formula: str, real: bool) -> Any:
        return latex2sympy(
            formula,
            is_real=real,
            normalization_config=repaired,
            conversion_config=as_written,
        )

    def verify(gold: Any, given: Any) -> bool:
        # What is nearer than this is equal; what `MAX_POWER` admits is further apart.
        return bool(
            verify_math(gold, given, numeric_precision=MAX_POWER + 100, timeout_seconds=None)
        )

    verify(
        parse(r"\sqrt{8}", True), parse(r"2\sqrt{2}", True)
    )  # imports what a first verdict would
    return should_treat_as_complex, parse, verify
