"""Expressions: read, evaluated exactly, and refused within bounds."""

import operator
import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlace.answers.arithmetic import (
    MAX_BITS,
    MAX_CHARACTERS,
    canonical,
    evaluate,
    has_power,
    literals,
    parse,
    value_of,
)
from interlace.errors import ExpressionError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1 + 2*3", 7),
        ("(1 + 2)*3", 9),
        ("10 - 4 - 3", 3),
        ("24 / 4 / 3", 2),
        ("1/3 + 1/6", Fraction(1, 2)),
        ("-2^2", -4),
        ("2^3^2", 512),
        ("2**-1", Fraction(1, 2)),
        ("2*-3", -6),
        ("--3", 3),
        ("+3", 3),
        (".5 + 1.25", Fraction(7, 4)),
        ("007", 7),
        ("[2 + 3] × 4 ÷ 2 − 1", 9),
        (r"2 \times 3 \cdot 4 \div 6", 4),
        (r"\frac{1}{\frac{2}{3}}", Fraction(3, 2)),
        (r"\left( 7 - 3 \right)^{2}", 16),
        ("0^0", 1),
        ("((((((((1))))))))", 1),
        ("+".join(["1"] * 400), 400),
        ("1^1000", 1),
        ("2^1000", 2**1000),
    ],
)
def test_value(text: str, value: int | Fraction) -> None:
    assert evaluate(parse(text)) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "1 +",
        "* 2",
        "1 2",
        "2(3)",
        "(1 + 2",
        "1 + 2)",
        "1..2",
        "1,000",
        "x + 1",
        "2 == 2",
        "1e5",
        "0x10",
        "1_000",
        "1//2",
        "7 % 2",
        "1/0",
        "0^-1",
        "2/(3 - 3)",
        "2^0.5",
        "2^1001",
        "10^10^10",
        "9^9^9^9",
        "(" * 60 + "1" + ")" * 60,
        "-" * 200 + "1",
        "9" * (MAX_CHARACTERS + 1),
        "(10^600)^600",
        "1/3^900/7^900/11^900",
        "\u0663 + 1",  # an Arabic-Indic digit
        "\uff14 + 1",  # a full-width digit
        "\u00b2 + 1",
        "\x00",
        "__import__('os')",
        "[].__class__",
        "\\" * 500,
        "\\frac{" * 160,
    ],
)
def test_refused(text: str) -> None:
    with pytest.raises(ExpressionError):
        evaluate(parse(text))
    assert value_of(text) is None


def test_a_message_names_what_it_met() -> None:
    with pytest.raises(ExpressionError, match=r"found '\$ 3'"):
        parse("2 $ 3")
    with pytest.raises(ExpressionError, match="missing before 'x'"):
        parse("x + 1")
    with pytest.raises(ExpressionError, match="not closed"):
        parse("(1 + 2")
    with pytest.raises(ExpressionError, match="at most 1000 characters; this one has 1001"):
        parse("1" * 1001)


def test_names_only_where_asked() -> None:
    assert canonical(parse("sin(x)*2 + a", names=True)) == "2*sin(x)+a"
    with pytest.raises(ExpressionError):
        parse("sin(x)")
    with pytest.raises(ExpressionError, match="no value"):
        evaluate(parse("x", names=True))


Expressions = st.recursive(
    st.integers(0, 99).map(lambda n: (str(n), Fraction(n))),
    lambda inner: st.tuples(inner, st.sampled_from("+-*/"), inner).map(lambda parts: _join(*parts)),
    max_leaves=8,
)
SIGNS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}


def _join(
    left: tuple[str, Fraction | None], sign: str, right: tuple[str, Fraction | None]
) -> tuple[str, Fraction | None]:
    text = f"({left[0]} {sign} {right[0]})"
    if left[1] is None or right[1] is None or (sign == "/" and right[1] == 0):
        return text, None
    return text, SIGNS[sign](left[1], right[1])


@given(Expressions)
def test_value_is_that_of_exact_fractions(pair: tuple[str, Fraction | None]) -> None:
    text, value = pair
    assert value_of(text) == value
    assert [n.text for n in literals(parse(text))] == [
        token for token in text.replace("(", " ").replace(")", " ").split() if token.isdigit()
    ]


@given(Expressions)
def test_the_canonical_form_keeps_the_value(pair: tuple[str, Fraction | None]) -> None:
    text, value = pair
    form = canonical(parse(text))
    if value is not None:
        assert value_of(form) == value
    assert canonical(parse(form)) == form


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        ("3 + 4", "4 + 3", True),
        ("3 + (4 + 5)", "(5 + 3) + 4", True),
        ("3 - (4 - 5)", "5 + 3 - 4", True),
        ("2*(3*4)", "4*2*3", True),
        ("8/(4/2)", "2*8/4", True),
        ("3 - 4", "4 - 3", False),
        ("8/4", "4/8", False),
        ("2*(3 + 4)", "2*3 + 4", False),
        ("2 + 2", "4", False),
        ("(2 + 3)*4", "4*(3 + 2)", True),
    ],
)
def test_canonical_forms(left: str, right: str, same: bool) -> None:
    assert (canonical(parse(left)) == canonical(parse(right))) is same


def test_powers_are_found_wherever_they_are() -> None:
    assert has_power(parse("1 + (2*3^1)"))
    assert not has_power(parse("1 + (2*3)"))


HOSTILE = st.one_of(
    st.text(alphabet="0123456789+-*/^(){}.\\ ", max_size=1000),
    st.tuples(
        st.sampled_from(
            ["(", "-", "9", "9^", "9*", "9/", "1+", "\\frac{1}{", "(9^9)^", "2**", ".", "1.1^"]
        ),
        st.integers(1, 1000),
        st.sampled_from(["", "1", "9", ")"]),
    ).map(lambda parts: (parts[0] * parts[1])[:999] + parts[2]),
)


@given(HOSTILE)
def test_any_text_is_decided_at_once(text: str) -> None:
    for _ in range(3):  # a garbage collection in the middle is none of its doing
        started = time.process_time()
        value = value_of(text)
        if time.process_time() - started < 0.5:
            break
    else:
        pytest.fail(f"More than half a second, three times, for {text[:80]!r}")
    if value is not None:
        assert value.numerator.bit_length() <= MAX_BITS
        assert value.denominator.bit_length() <= MAX_BITS
