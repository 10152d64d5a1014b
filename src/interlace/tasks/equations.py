"""Equations between numbers in free text: "12 + 7 = 19", "<<48/2=24>>", "$3 × 4 = $12".

An equation is an arithmetic expression with at least one sign, "=", and a number. What precedes the
expression on its line must not be an operand of it: "x - 3 + 4 = 7" states nothing that can be
checked. What follows the number must not belong to it either: "4/3 = 1 and 1/3", "1/2 = 50%" and
"9/3 = 3x" are left out, since a step that is not understood should be neither right nor wrong. A
right side with d decimals holds when it is the left side rounded to d decimals.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from fractions import Fraction

from interlace.answers.arithmetic import Node, Number, canonical, evaluate, parse
from interlace.errors import ExpressionError

MAX_SIGNS = 1000  # "=" looked at in one text
MAX_SIDE = 200  # characters of a left side
MAX_OPEN = 4  # unmatched brackets that may precede a left side

_SIGNS = r"\-+*/^\u00d7\u00b7\u00f7\u2212\u2013"
_LEFT_REVERSED = re.compile(rf"[0-9.,() \t${_SIGNS}]+")
# Bounded and possessive throughout: what follows "=" may be 100 kB of blanks or digits. After the
# number there is no further digit, letter or operand: no 5A, 1 1/2, 3/x, 20%, 6:48, "1 and 1/3".
_RIGHT = re.compile(
    r"[ \t]{0,9}+(?:\$[ \t]{0,9}+)?"
    r"([-\u2212]?(?:[0-9]{1,3}(?:,[0-9]{3}){1,12}+(?!,?[0-9])|[0-9]{1,40}+))(\.[0-9]{1,40}+)?"
    rf"(?![\w%^:]|[.,][0-9])(?![ \t]{{0,9}}(?:[%(0-9]|and[ \t(]{{1,9}}[0-9]{{1,3}}/|cents?\b))"
    rf"(?!\s{{0,9}}[{_SIGNS}]\s{{0,9}}[\w($])"
)
_MARKER = re.compile(r"[ \t]*(?:[-*+\u2022]|[0-9]{1,3}[.)])[ \t]+(?=[^ \t])")
_THOUSANDS = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))")
_BOLD = re.compile(r"[ \t]*\*\*(?=[0-9(])")
_WRITTEN_SIGN = (
    (
        re.compile(r"\\(?:times|cdot)(?![A-Za-z])|(?<=[0-9)])[ \t]{0,9}[xX][ \t]{0,9}(?=[0-9(])"),
        "*",
    ),
    (re.compile(r"\\div(?![A-Za-z])"), "/"),
)


@dataclass(frozen=True)
class Equation:
    """A left side, the number it is said to equal, and whether it does."""

    text: str  # "left = right", without superfluous blanks
    left: str  # its canonical form: order and brackets that do not matter, removed
    value: Fraction
    holds: bool  # to the decimals written


def find_equations(text: str) -> list[Equation]:
    """The equations around the first `MAX_SIGNS` equality signs of a text, in order.

    >>> [(e.text, e.holds) for e in find_equations("1. 12 + 7 = 19, so 19*2 = 39.")]
    [('12 + 7 = 19', True), ('19*2 = 39', False)]
    """
    for pattern, sign in _WRITTEN_SIGN:
        text = pattern.sub(sign, text)
    signs = itertools.islice(re.finditer("=", text), MAX_SIGNS)
    found = (_at(text, sign.start()) for sign in signs)
    return [equation for equation in found if equation is not None]


def _at(text: str, position: int) -> Equation | None:
    """The equation around the "=" at a position, if there is one."""
    right = _RIGHT.match(text, position + 1)
    if right is None:
        return None
    side = _left(text, position)
    if side is None:
        return None
    written, tree = side
    try:
        value = evaluate(tree)
        whole = right[1].replace(",", "").replace("\u2212", "-")
        stated = evaluate(parse(whole + (right[2] or "")))
    except ExpressionError:
        return None
    tolerance = Fraction(1, 2 * 10 ** (len(right[2]) - 1)) if right[2] else 0
    number = right[1] + (right[2] or "")
    return Equation(
        f"{' '.join(written.split())} = {number}",
        canonical(tree),
        stated,
        abs(value - stated) <= tolerance,
    )


def _left(text: str, position: int) -> tuple[str, Node] | None:
    """The expression that ends at a position, and its tree."""
    before = text[max(0, position - MAX_SIDE) : position]
    run = _LEFT_REVERSED.match(before[::-1])
    start = len(before) - run.end() if run else position
    if run is None or (start == 0 and position > MAX_SIDE):
        return None
    side = before[start:]
    previous = before[start - 1] if start else "\n"
    if side[0] in "0123456789." and (previous.isalnum() or previous in ":%"):
        return None  # the end of a name or a time of day, such as x2 or 6:48
    marker = _MARKER.match(side) if previous == "\n" else None
    side = side[marker.end() :] if marker else side
    bold = _BOLD.match(side)
    side = side[bold.end() :] if bold else side
    side = _THOUSANDS.sub("", side.replace("$", " "))
    if re.search("[0-9],[0-9]", side):
        return None  # neither thousands nor two clauses
    side = side.rpartition(",")[2].strip()
    # A sign in front is a minus after a line's start or "=", and has a left operand otherwise.
    if re.match(f"[{_SIGNS}]", side) and previous not in "\n=<:":
        return None
    for _ in range(MAX_OPEN):
        try:
            tree = parse(side)
        except ExpressionError:
            if not side.startswith("("):
                return None
            side = side[1:].strip()  # a bracket that opened before a clause
        else:
            return None if isinstance(tree, Number) else (side, tree)
    return None
