r"""When two short answers are the same answer: one plain, exact normal form, without extras.

The rule, in order:

1. Dressing goes: surrounding blanks, quotes, Markdown stars, `$...$`, `\(...\)`, `\[...\]`,
   `\boxed{...}`, `\text{...}`, `\left`, `\right`, LaTeX spaces, a closing full stop; Unicode forms
   are folded (minus signs, full-width digits, vulgar fractions, superscripts).
2. Units that are one sign go: `$ € £ ¥ % °`. So "50%" is 50, not 1/2, as in the MATH benchmark's
   own normaliser (arXiv 2103.03874). Units that are words stay: "5 minutes" is not "5 hours".
3. `x = 5` is `5` when the left side is one letter.
4. What is a number becomes an exact fraction: `1,000`, `.5`, `1/2`, `\frac12`, `1 1/2`,
   `3\times10^4`, `1e3`, `2^{10}`. Nothing is rounded: 0.333 is not 1/3.
5. All else is text: blanks beside signs go, and case goes unless the text is a formula.

A text above `MAX_CHARACTERS` is compared as it stands, blanks aside: it is no short answer.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

MAX_CHARACTERS = 1000

_WRAPPERS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), (r"\boxed{", "}"))
_DRESSING = " \t\r\n*`\"'\u2018\u2019\u201c\u201d"
_CLOSING = ".,;:!"
# Hyphens, dashes and minus signs; fraction slashes and the division sign; thin and empty blanks.
_FOLDED = str.maketrans(
    {
        **dict.fromkeys("\u2212\u2010\u2011\u2012\u2013\u2014\ufe63\uff0d", "-"),
        **dict.fromkeys("\u2044\u2215\u00f7", "/"),
        **dict.fromkeys("\u2009\u202f\u200b\u2060\ufeff", ""),
        "\u00d7": r"\times ",
        "·": r"\cdot ",
        "π": r"\pi ",
        "∞": r"\infty ",
    }
)
_SUPERSCRIPT = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻]+")
_VULGAR_FRACTION = re.compile("[¼-¾⅐-⅞]")
_LATEX_SPACE = re.compile(r"\\[,;:! ]|\\q?quad\b|~|\\left\b|\\right\b|\\displaystyle\b")
_UNIT_SIGN = re.compile(r"\^\s*\\circ\b|\^\s*\{\s*\\circ\s*\}|\\?[$%]|[€£¥°]|\\(?:degree|pounds)\b")
_TEXT_COMMAND = re.compile(
    r"\\(?:text|textbf|textit|mathrm|mathbf|mathit|mbox|boxed)\s*\{([^{}]*)\}"
)
_FRACTION_COMMAND = re.compile(r"\\[dtc]?frac\b\s*|\\[dtc]?frac(?=\d)")
_FRACTION = re.compile(
    r"\\frac(?:\{\s*(-?[0-9.]+)\s*\}\s*|\s*([0-9]))(?:\{\s*([0-9.]+)\s*\}|([0-9]))"
)
_ASSIGNMENT = re.compile(r"[A-Za-z]\s*=\s*([^=]+)")
_BESIDE_SIGN = re.compile(r"\s*([^\w\s])\s*")
_LATEX_THOUSANDS = re.compile(r"(?<=[0-9])(?:\{,\}|\\[,!])(?=[0-9]{3})")
_THOUSANDS = re.compile(r"(?<![0-9,.])[0-9]{1,3}(?:,[0-9]{3})+(?![0-9,])")
_DECIMAL = r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)"
_NUMBER = re.compile(
    rf"(?P<sign>[+-]?)(?:(?P<whole>[0-9]+) (?=[0-9]+/))?(?P<top>{_DECIMAL})"
    rf"(?:/(?P<bottom>{_DECIMAL})|(?:[eE]|\\times ?10\^|\\cdot ?10\^|\*10\^)"
    r"(?P<brace>\{)?(?P<exponent>[+-]?[0-9]{1,3})(?(brace)\})"
    r"|\^(?P<curly>\{)?(?P<power>[0-9]{1,2})(?(curly)\}))?"
)
_IN_BRACKETS = re.compile(r"\(([^(),]+)\)")
_FORMULA_SIGNS = frozenset("\\^_=+*/")


def normalise_answer(text: str) -> Fraction | str | None:
    r"""The normal form of a short answer: equal forms are equal answers.

    Args:
        text: An answer as a row wrote it.

    Returns:
        An exact fraction for a number, a string for all else, None for an empty answer.

    >>> normalise_answer(r"$\frac{1}{2}$") == normalise_answer("0.5") == normalise_answer(" ½. ")
    True
    >>> normalise_answer("x = 1,000")
    Fraction(1000, 1)
    >>> normalise_answer("The Cat"), normalise_answer("  ")
    ('the cat', None)
    """
    if len(text) > MAX_CHARACTERS:
        return " ".join(text.split()) or None
    plain = undress(text)
    if not plain:
        return None
    number = _number(plain)
    if number is not None:
        return number
    return plain if _FORMULA_SIGNS & set(plain) else plain.casefold()


def undress(text: str) -> str:
    """Steps 1 to 3 of the rule: the answer without dressing, units and the letter it is assigned
    to."""
    text = text.translate(_FOLDED)
    text = _SUPERSCRIPT.sub(lambda found: f"^{{{unicodedata.normalize('NFKC', found[0])}}}", text)
    text = _VULGAR_FRACTION.sub(
        lambda found: " " + unicodedata.normalize("NFKC", found[0]).translate(_FOLDED), text
    )
    text = _unwrap(unicodedata.normalize("NFKC", text).translate(_FOLDED))
    text = _LATEX_SPACE.sub(" ", _LATEX_THOUSANDS.sub("", text))
    text = _UNIT_SIGN.sub("", text)
    text = _FRACTION_COMMAND.sub(r"\\frac", text)
    text = _FRACTION.sub(
        lambda m: f" {m[1] or m[2]}/{m[3] or m[4]} ",
        text,
    )
    text = _strip(_BESIDE_SIGN.sub(r"\1", " ".join(text.split())))
    assigned = _ASSIGNMENT.fullmatch(text)
    text = _strip(assigned[1]) if assigned else text
    single = _IN_BRACKETS.fullmatch(text)
    if single and (len(single[1]) == 1 or _number(single[1]) is not None):
        text = single[1]
    return _THOUSANDS.sub(lambda found: found[0].replace(",", ""), text)


def _unwrap(text: str) -> str:
    """Takes off what wraps the whole answer, from the outside in."""
    while True:
        before, text = text, _strip(_TEXT_COMMAND.sub(r" \1 ", text))
        for left, right in _WRAPPERS:
            inside = text[len(left) : -len(right)]
            if text.startswith(left) and text.endswith(right) and left not in inside and inside:
                text = inside
                break
        if text == before:
            return text


def _strip(text: str) -> str:
    return text.strip(_DRESSING).rstrip(_CLOSING + _DRESSING)


def _number(text: str) -> Fraction | None:
    found = _NUMBER.fullmatch(text)
    if found is None:
        return None
    value = Fraction(found["top"])
    if found["bottom"] is not None:
        bottom = Fraction(found["bottom"])
        if bottom == 0:
            return None
        value /= bottom
    if found["whole"] is not None:
        value += int(found["whole"])
    if found["exponent"] is not None:
        # At most three digits by the pattern, so that a short text cannot ask for a huge number.
        value *= Fraction(10) ** int(found["exponent"])
    if found["power"] is not None:
        value **= int(found["power"])
    return -value if found["sign"] == "-" else value
