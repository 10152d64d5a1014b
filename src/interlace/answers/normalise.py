r"""When two short answers are the same answer: one plain, exact normal form, without extras.

The rule, in order:

1. Dressing goes: surrounding blanks, quotes, Markdown stars, ticks, `$...$`, `\(...\)`, `\[...\]`,
   `\boxed{...}`, `\text{...}`, `\left`, `\right`, LaTeX spaces, a closing full stop; Unicode forms
   are folded (minus signs, digits of any script, vulgar fractions, superscripts). Repeating
   decimals become fractions: `0.\overline{3}`, `0.\dot{3}`, `0.(3)` and `0.333...` are 1/3.
2. Units that are one sign go: `$ € £ ¥ ₹ ¢ % °`, `°C`, `°F`. So "50%" is 50, not 1/2, as in the
   MATH benchmark's own normaliser (arXiv 2103.03874). Units that are words stay: "5 minutes" is not
   "5 hours". "1.5 million" is 1,500,000.
3. `x = 5`, `f(3) = 5`, `x \in ...` and `6 \times 12 = 72` are their right sides: a side that is
   only a name, or that has a value, says nothing. So is `5 = x` its left one. `x + y = 5` stays an
   equation. `1/3 \approx 0.333` is 1/3, and `x \approx 0.333` is 0.333.
4. Several answers: `3, 5`, `3 and 5`, `4 \pm 1`, `\{3, 5\}` and `x = 3, x = 5` are one list, in any
   order; but `x < 3 or x > 5` is not `x < 3 and x > 5`. A comma before a blank or within brackets
   separates; `1,000` and `1 000` are numbers. `(3, 5)`, `[3, 5]` and `[3, 5)` are pairs, points or
   intervals: their order and their brackets count.
5. What has a value becomes an exact fraction: `1,000`, `.5`, `1/2`, `\frac12`, `1 1/2`,
   `3\times10^4`, `1e3`, `2^{10}`, `5!`, `\sqrt{16}`. Nothing is rounded: 0.333 is not 1/3.
   Plain arithmetic such as `(7-3)*2` stays as it is written: in a game of numbers the expression is
   the answer, and two of one value may be one right and one wrong. Where the value is the answer,
   `symbolically_equal` compares it.
6. All else is text: blanks beside signs go, and case goes unless the text is a formula. A closing
   "!" is punctuation after a word, and a factorial after a number, a bracket or a small letter.

A text above `MAX_CHARACTERS` is compared as it stands, blanks aside: it is no short answer.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

from interlace.answers.arithmetic import MAX_BITS, value_of

MAX_CHARACTERS = 1000
MAX_BRACKETS = 40  # in an answer that is taken apart

_WRAPPERS = (
    *(("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), (r"\boxed{", "}")),
    ("'", "'"),  # alone it is a prime: f'
)
# Blanks, stars and quotes, and the signs that models put behind an answer: 12 ✅, 12 🎉.
_DRESSING = ' \t\r\n*`"\u2018\u2019\u201c\u201d\u2705\u2714\u2611\u2713\ufe0f\U0001f389'
_CLOSING = ".,;:\u3002"
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
        "≤": r"\le ",
        "≥": r"\ge ",
        "≠": r"\ne ",
        "≈": r"\approx ",
        "∈": r"\in ",
        "∅": r"\emptyset ",
        "±": r"\pm ",
        "\u222a": r"\cup ",
        "∩": r"\cap ",
        "√": r"\sqrt ",
    }
)
_SUPERSCRIPT = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻]+")
_OTHER_DIGIT = re.compile(r"[^\D0-9]")
_ROOT_COMMAND = re.compile(r"\\sqrt ?(?:([0-9]+(?:\.[0-9]+)?|[a-z])|\(([^()]*)\))")
_VULGAR_FRACTION = re.compile("[¼-¾⅐-⅞]")
# The digits that repeat are marked, or written twice (a single one three times) before an ellipsis.
REPEATING = (
    r"(?<![0-9.])(?P<ahead>[0-9]{1,3}(?:,[0-9]{3})+|[0-9]*)\.(?:(?P<once>[0-9]*)(?P<period>"
    r"\\(?:overline|bar)\s*(?:\{[0-9]+\}|[0-9])|\([0-9]+\)"
    r"|\\dot\s*(?:\{[0-9]\}|[0-9])(?:[0-9]*\\dot\s*(?:\{[0-9]\}|[0-9]))?"
    r"|(?:[0-9]\u0305)+|[0-9]\u0307(?:[0-9]*[0-9]\u0307)?)"
    r"|(?P<start>[0-9]{0,9}?)(?P<again>(?P<digit>[0-9])(?P=digit){2,}|(?P<some>[0-9]{2,12}?)"
    r"(?P=some)+)(?:\.\.\.|\u2026|\s?\\[lc]?dots(?![A-Za-z])))"
)
_REPEATING = re.compile(REPEATING)
_LATEX_SPACE = re.compile(
    r"(?<!\\)\\[,;:! ()]|\\q?quad\b|~|\\left\b|\\right\b|\\displaystyle\b|\\boxed(?![A-Za-z{]| ?\{)"
)
_EMPTY_SET = re.compile(r"\\varnothing(?![A-Za-z])|\\\{\s*\\\}")
ROUND = {"thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_ROUNDED = re.compile(
    rf"(?<![0-9.,/^])([0-9]+(?:,[0-9]{{3}})*(?:\.[0-9]+)?) ({'|'.join(ROUND)})(?![A-Za-z])", re.I
)
_UNIT_SIGN = re.compile(
    r"(?:\^\s*\\circ\b|\^\s*\{\s*\\circ\s*\}|°|\\degree\b)(?:\s*[CF](?![A-Za-z]))?"
    r"|\\?[$%]|[€£¥₹¢]|\\pounds\b|\^\{\s*(?:st|nd|rd|th)\s*\}"
)
_TEXT_COMMAND = re.compile(
    r"\\(?:text(?:bf|it|rm)?|math(?:rm|bf|it)|boldsymbol|mbox|boxed)\s*\{([^{}]*)\}"
)
_FRACTION = re.compile(r"\\[dtc]?frac(?![A-Za-z])\s*([0-9]?)")
_INDEX = re.compile(r"_\{(\w)\}")
_BARE_BOTTOM = re.compile(r"(\\frac\{[^{}]*\})\s*([0-9])")
_MIXED = re.compile(r"([+-]?[0-9]+) ?\\frac\{([0-9]+)\}\{([0-9]+)\}")
# A name, or a function of something: what may stand alone on the left of "=".
_NAMED = re.compile(
    r"(?:m?\\angle ?[A-Z]{1,3}|[A-Za-z]|\\(?!in\b|sqrt|frac)[A-Za-z]+|[A-Z]{2,3})'*"
    r"(?:_(?:\w|\{[^{}]*\}))?(?:\([^()=]*\))?|\((?:a,b(?:,c)?|m,n|p,q|x,y(?:,z)?)\)"
)
_ELEMENT = re.compile(r"(?:\s*[A-Za-z]\s*\\in\b\s*)++")
_ARITHMETIC = re.compile(r"[0-9+\-*/(). ]+")
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}")
_BASE = re.compile(r"\(?([0-9A-Fa-f]+)\)?_\{?([0-9]{1,2})\}?")
_CONJUNCTION = re.compile(r"\b(?:and|or)\b")
_SEPARATOR = re.compile(r" ?(?:, ?(?:(?:and|or) )?|; ?)|(?: (?:and|or) )")
_RELATION = re.compile(r"[<>]|\\(?:le|ge|lt|gt|ne)")
_BESIDE_SIGN = re.compile(r"\s*([^\w\s])\s*")
# The MATH benchmark writes 10,\!080, and 11,\! 111,\! 100.
_LATEX_THOUSANDS = re.compile(
    r"(?<=[0-9])(?:(?:\{,\}|\\[,!])(?=[0-9]{3})|,\\! ?(?=[0-9]{3}(?![0-9])))"
)
_THOUSANDS = re.compile(
    r"(?<![0-9,.])(?<![0-9] )[1-9][0-9]{0,2}(?:(?:,[0-9]{3})+|(?: [0-9]{3})+(?!/))"
    r"(?![0-9]|[, ][0-9])"
)
_DECIMAL = r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)"
_NUMBER = re.compile(
    rf"(?P<sign>[+-]?)(?:(?P<whole>[0-9]+) (?=[0-9]+/))?(?P<top>{_DECIMAL})"
    rf"(?:/(?P<bottom>{_DECIMAL})|(?:[eE]|(?:\\times|\\cdot| ?x|\*) ?10\^)"
    r"(?P<brace>\{)?(?P<exponent>[+-]?[0-9]{1,3})(?(brace)\})"
    r"|\^(?P<curly>\{)?(?P<power>[0-9]{1,2})(?(curly)\}))?"
)
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
    return form_of(undress(text))


def form_of(plain: str) -> Fraction | str | None:
    """Steps 3 to 6 of the rule, on what `undress` returns."""
    for reduced in (_listed, _bracketed, _right_side):
        form = reduced(plain)
        if form is not None:
            return form
    plain = _one(_squeezed(plain))
    if not plain:
        return None
    value = _number(plain)
    if value is None and not _WORD.search(plain) and not _ARITHMETIC.fullmatch(plain):
        value = value_of(plain)
    if value is not None:
        return value
    based = _BASE.fullmatch(plain)
    if based and based[1][0].isdigit():
        return f"{based[1]}_{{{based[2]}}}"
    return plain if _FORMULA_SIGNS & set(plain) else plain.casefold()


def undress(text: str) -> str:
    """Steps 1 and 2 of the rule: the answer without dressing and units; blanks stay single."""
    text = _REPEATING.sub(_as_fraction, text.translate(_FOLDED))
    text = _SUPERSCRIPT.sub(lambda found: f"^{{{unicodedata.normalize('NFKC', found[0])}}}", text)
    text = _VULGAR_FRACTION.sub(
        lambda m: r"\frac{{{}}}{{{}}}".format(*unicodedata.normalize("NFKC", m[0]).split("\u2044")),
        text,
    )
    text = _OTHER_DIGIT.sub(lambda found: str(unicodedata.decimal(found[0])), text)
    text = _unwrap(unicodedata.normalize("NFKC", text).translate(_FOLDED))
    text = _LATEX_SPACE.sub(" ", _LATEX_THOUSANDS.sub("", text))
    text = _UNIT_SIGN.sub("", _EMPTY_SET.sub(r"\\emptyset", text))
    text = _ROOT_COMMAND.sub(lambda m: rf"\sqrt{{{m[1] or m[2]}}}", text)
    text = _FRACTION.sub(lambda m: r"\frac" + (f"{{{m[1]}}}" if m[1] else ""), text)
    text = _INDEX.sub(r"_\1", _BARE_BOTTOM.sub(r"\1{\2}", text))
    exact, sign, about = text.partition(r"\approx")
    if sign:  # 1/3 is exact in 1/3 ≈ 0.333; x ≈ 0.333 says no more than that
        named = not exact.strip() or _NAMED.fullmatch(_squeezed(sides(exact)[-1]))
        text = f"{exact}={about}" if named else exact
    return _strip(_ROUNDED.sub(_as_digits, " ".join(text.split())))


def _as_digits(found: re.Match[str]) -> str:
    """1.5 million as 1500000."""
    value = Fraction(found[1].replace(",", "")) * 10 ** ROUND[found[2].lower()]
    return str(value) if value.denominator == 1 else found[0]


def _as_fraction(found: re.Match[str]) -> str:
    once = found["once"] or found["start"] or ""
    period = re.sub("[^0-9]", "", found["period"] or found["digit"] or found["some"])
    repeated = Fraction(int(once + period) - int(once or 0), 10 ** len(period) - 1)
    value = int(found["ahead"].replace(",", "") or 0) + repeated / 10 ** len(once)
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


def sides(plain: str) -> list[str]:
    """The sides of an equation, or of a chain of them; one where it is none."""
    if _RELATION.search(plain):
        return [plain]
    return [side.strip() for side in re.split(r"=+", plain)]


def kind_of(form: Fraction | str | None) -> str:
    """What a normal form is: "list", the brackets of a pair or longer such as "(]", or "".

    >>> [kind_of(normalise_answer(text)) for text in ("1, 2", "(1, 2]", "x+1", "f(1, 2)")]
    ['list', '(]', '', '']
    """
    if not isinstance(form, str):
        return ""
    if ", " in form:
        return "list"
    return form[0] + form[-1] if len(_items(form)) > 1 else ""


def items_of(form: str) -> list[str]:
    """The members of a normal form that is a list, a pair or longer."""
    return form.split(", ") if ", " in form else _items(form)


def _items(text: str) -> list[str]:
    """What stands between the commas of "(a, b)" or "[a, b)"; nothing where no bracket is around
    the whole."""
    if len(text) < 2 or text[0] not in "([" or text[-1] not in ")]":
        return []
    depth, start, found = 0, 1, []
    for position, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if depth == 0 and position < len(text) - 1:
            return []  # the first bracket closes before the end: (1, 2) + (3, 4)
        if depth == 0 or (depth == 1 and character == ","):
            found.append(text[start:position])
            start = position + 1
    return found if depth == 0 else []


def _bracketed(plain: str) -> str | None:
    """The form of a pair, a point or an interval; None for all else."""
    items = [_text(form_of(item)) for item in _items(plain)] if _is_shallow(plain) else []
    if len(items) < 2 or None in items:
        return None
    return f"{plain[0]}{','.join(map(str, items))}{plain[-1]}"


def _listed(plain: str) -> str | None:
    """The form of several answers; None for one, and for words: "yes, of course"."""
    around = re.fullmatch(r"\\?\{([^{}]*|.*\\)\}", plain)
    inside = around[1].removesuffix("\\") if around else plain
    if _WORD.search(_CONJUNCTION.sub("", inside)) or not _is_shallow(plain):
        return None
    parts = [
        part.replace(r"\pm", sign)
        for part in _split(inside, not around)
        for sign in ("+-" if r"\pm" in part else "+")
        if part.strip()
    ]
    if len(parts) < 2:
        return None
    # Of x = 1, y = 2 it counts which is which.
    named = len({_squeezed(sides(part)[0]) for part in parts if len(sides(part)) > 1}) > 1
    forms = [_text(_member(part, named)) for part in parts]
    if _RELATION.search(inside) and re.search(r"\bor\b", inside):
        forms.append("or")  # x < 1 or x > 2 is not x < 1 and x > 2
    return None if None in forms else ", ".join(sorted(map(str, forms)))


def _member(part: str, named: bool) -> Fraction | str | None:
    *left, right = sides(part)
    form = form_of(right)
    return f"{'='.join(map(_squeezed, left))}={form}" if named and left else form_of(part)


def _text(form: Fraction | str | None) -> str | None:
    """A member of a longer form as text; None where there is none, or one with too many digits."""
    if isinstance(form, Fraction):
        bits = max(form.numerator.bit_length(), form.denominator.bit_length())
        return str(form) if bits <= MAX_BITS else None
    return form


def _is_shallow(text: str) -> bool:
    return sum(map(text.count, "([{")) <= MAX_BRACKETS


def _split(text: str, thousands: bool) -> list[str]:
    """Splits at separators outside of brackets; not between thousands, if there may be any."""
    kept = [found.span() for found in _THOUSANDS.finditer(text)] if thousands else []
    separators = {
        found.start(): found.end()
        for found in _SEPARATOR.finditer(text)
        if not any(start < found.start() < end for start, end in kept)
    }
    depth, start, parts = 0, 0, []
    for position, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if depth == 0 and position in separators and position >= start:
            parts.append(text[start:position])
            start = separators[position]
    return [*parts, text[start:]]


def _right_side(plain: str) -> Fraction | str | None:
    """The form of the right side of an equation whose other sides say nothing; else None."""
    element = _ELEMENT.match(plain)
    if element:
        return form_of(plain[element.end() :])
    *left, right = sides(plain)
    if not left or not right:
        return None
    if _NAMED.fullmatch(_squeezed(right)) and value_of(left[-1]) is not None:
        return form_of(left[-1])  # 72 = x
    if all(_NAMED.fullmatch(_squeezed(side)) or value_of(side) is not None for side in left):
        return form_of(right)
    return None


def _one(text: str) -> str:
    """Brackets around one number or letter go, and commas between thousands."""
    if len(text) > 2 and text[0] == "(" and text[-1] == ")":
        inside = text[1:-1]
        if len(inside) == 1 or (set("(),") & set(inside) == set() and _number(inside) is not None):
            text = inside
    return _THOUSANDS.sub(lambda found: re.sub("[, ]", "", found[0]), text)


def _squeezed(text: str) -> str:
    """Without blanks beside signs."""
    return _strip(_BESIDE_SIGN.sub(r"\1", text))


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
    text = text.strip(_DRESSING).rstrip(_CLOSING + _DRESSING)
    while text.endswith("!") and not re.search(r"(?:[0-9)}]|(?<![A-Za-z])[a-z])!+$", text):
        text = text.rstrip("!").rstrip(_CLOSING + _DRESSING)
    return text


def _number(text: str) -> Fraction | None:
    found = _NUMBER.fullmatch(_MIXED.sub(r"\1 \2/\3", text))
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
