"""Which short answers are the same answer, by the plain rule and through math-verify."""

import importlib.util
import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlace.answers import equal as symbolic
from interlace.answers.equal import symbolically_equal
from interlace.answers.normalise import MAX_CHARACTERS, normalise_answer

needs_math_verify = pytest.mark.skipif(
    importlib.util.find_spec("math_verify") is None, reason="math-verify is not installed"
)

SAME = {
    "half": r"1/2 | 0.5 | .5 | \frac{1}{2} | \dfrac12 | \frac1{2} | $\tfrac{1}{2}$ | ½ | x=1/2"
    r" | \boxed{\frac{1}{2}} | x = \frac{1}{2}. | 2/4 | (1/2) | 1 / 2 | +0.50",
    "thousand": r"1,000 | 1000 | 1000.0 | $1,000 | \$1{,}000 | 1\,000 | 1e3 | 10^3 | y=1000"
    r" | 1\times10^3 | 1×10³ | １０００ | 1.0 \cdot 10^{3} | €1000",
    "five": r"5 | 5. | $5 | x=5 | 5% | 5\% | \text{5} | **5** | (5) | 5^\circ | 5° | \(5\) | \[5\]"
    r" | `5` | '5' | “5” | 5, | 5.0 | $$5$$ | \left(5\right)",
    "minus three": r"-3 | −3 | - 3 | –3 | －3 | \boxed{-3} | -6/2 | -\frac{6}{2}",
    "three halves": r"3/2 | 1 1/2 | 1\frac{1}{2} | 1½ | 1.5 | 1 \frac12",
    "nothing": "0 | -0 | 0.00 | 0/7",
    "choice": r"A | (A) | a | \text{A} | A. | (A)",
    "yes": r"yes | Yes | **Yes**. | YES! | \textbf{yes}",
    "pair": r"(1,2) | (1, 2) | \left( 1, 2 \right) | ( 1 ,2 )",
    "million": r"1.5 million | 1,500,000 | $1.5 Million | 1.5\text{ million}"
    r" | 1,500 thousand | x=1500000",
    "people": "2 million people | 2,000,000 people",
    "empty set": r"\emptyset | \varnothing | ∅ | $\varnothing$ | \{ \}",
    "ticked": "12 ✅ | 12 | ✅ 12 | **12** ✔️ | 12 🎉!",
    "power": "x^{10} | x¹⁰ | $x^{10}$",
}


@pytest.mark.parametrize("name", SAME)
def test_same_answers_have_one_normal_form(name):
    forms = {text: normalise_answer(text) for text in SAME[name].split("|")}
    assert len(set(forms.values())) == 1, forms


def test_different_answers_have_different_normal_forms():
    forms = [normalise_answer(texts.split("|")[0]) for texts in SAME.values()]
    assert len(set(forms)) == len(SAME)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("0.333", "1/3"),  # nothing is rounded
        ("50%", "1/2"),  # a percent sign is a unit
        ("5 minutes", "5 hours"),
        ("1/2 million", "500"),
        ("3 millionths", "3 million"),
        ("52", "5²"),
        ("x^2", "x2"),
        ("1,2", "12"),
        ("1,0000", "10000"),
        ("x", "X=2"),
        ("a^2", "A^2"),  # case counts in formulas
        ("1/0", "0"),
        ("3", "-3"),
        ("1 2", "12"),
        ("1:2", "1/2"),
    ],
)
def test_these_are_not_the_same(left, right):
    assert normalise_answer(left) != normalise_answer(right)


@pytest.mark.parametrize("text", ["", "  ", "\n", "**", "$$", ".", r"\text{ }"])
def test_nothing_is_no_answer(text):
    assert normalise_answer(text) is None


@given(st.fractions(max_denominator=10**6))
def test_every_way_to_write_a_fraction_is_that_fraction(value):
    top, bottom = value.numerator, value.denominator
    assert normalise_answer(f"{top}/{bottom}") == value
    assert normalise_answer(rf"$\frac{{{top}}}{{{bottom}}}$") == value
    assert normalise_answer(f"x = {top:,}.00") == Fraction(top)


@given(st.text(max_size=300))
def test_the_normal_form_takes_any_text_and_blanks_around_it_do_not_matter(text):
    form = normalise_answer(text)
    assert form is None or isinstance(form, Fraction) or form
    assert normalise_answer(f" {text}\n") == form


HOSTILE = {
    "long number": "9" * 100_000,
    "long text": "no " * 40_000,
    "exponent": "1e999999999",
    "tower": "9^{9^{9^{9}}}",
    "flat tower": "9^9^9^9^9",
    "bracket tower": "(((9^{99})^{99})^{99})^{99}",
    "product in exponent": "9^{9*9*9*9*9*9*9*9*9}",
    "cancelling exponent": "9^{999999999x/x}",
    "brackets in exponent": "9^{(1+1+1)(1+1+1)(1+1+1)(1+1+1)(1+1+1)(1+1+1)(1+1+1)(1+1+1)(1+1+1)}",
    "fraction in exponent": r"9^{\frac{999999999}{1}}",
    "exponent in brackets": "9^(999999999)",
    "factorial": "99999999!",
    "huge sum": r"\sum_{n=1}^{999999999} n^n",
    "nested brackets": "(" * 50_000 + "1" + ")" * 50_000,
    "nested roots": r"\sqrt{" * 100 + "2" + "}" * 100,
    "open fractions": r"\frac{" * 150,
    "open boxes": r"\boxed{" * 140,
    "dollars": "$" * 999,
    "slashes": "1/" * 499,
    "braces": "{" * 999,
    "big polynomial": "((x+1)^{99}+1)^{9}",
    "surrogate": "\ud800^2",
    "nul": "x\x00^2",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_answers_cost_this_process_little(name):
    """What is left to math-verify has the bounds of its own process."""
    started = time.process_time()
    texts = [HOSTILE[name], f"x={HOSTILE[name]}", f"({HOSTILE[name]})"]
    others = ["x+1", "2"]
    if name == "big polynomial":  # each comparison takes all the time that a child may take
        texts, others = texts[:1], others[:1]
    for text in texts:
        normalise_answer(text)
        for other in others:
            assert not symbolically_equal(text, other)
    assert time.process_time() - started < 5.0


def test_a_long_text_is_compared_as_it_stands():
    text = "word " * MAX_CHARACTERS
    assert normalise_answer(text) == normalise_answer(f"\n{text} ")
    assert normalise_answer(text) != normalise_answer(text.upper())


@needs_math_verify
@pytest.mark.parametrize(
    ("left", "right"),
    [
        (r"\sqrt{8}", r"2\sqrt{2}"),
        ("(x+1)^2", "x^2+2x+1"),
        ("x+y", "y + x"),
        (r"\frac{\pi}{2}", r"0.5\pi"),
        ("e^{2x}", r"\exp(2x)"),
        ("x^{n-1}", "x^{-1+n}"),
        (r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt{3}}"),
        ("x > 5", "5 < x"),
    ],
)
def test_formulas_are_equal_through_math_verify_in_either_order(left, right):
    assert normalise_answer(left) != normalise_answer(right)
    assert symbolically_equal(left, right)
    assert symbolically_equal(right, left)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (r"\sqrt{2}", r"\sqrt{3}"),
        ("x+1", "x-1"),
        ("no", "on"),  # words are no products of letters
        ("0.333333", r"1/3"),
        ("yes", r"\sqrt{2}"),
        ("", r"\sqrt{2}"),
        ("(1,2)", "(2,1)"),
        ("1<x<2", r"\{1,2\}"),
        ("1<x<2", "(1,2)"),
    ],
)
def test_these_formulas_are_not_equal(left, right):
    assert not symbolically_equal(left, right)
    assert not symbolically_equal(right, left)


@needs_math_verify
@pytest.mark.parametrize(
    "name", [name for name in HOSTILE if "tower" in name or " exponent" in name]
)
def test_powers_that_no_timer_could_interrupt_do_not_reach_math_verify(name, monkeypatch):
    monkeypatch.setattr(symbolic, "_ask", lambda first, second: pytest.fail(f"asked {first}"))
    for text in (HOSTILE[name], rf"\left({HOSTILE[name]}\right)^{{2}}"):
        assert not symbolically_equal(text, "x+1")


def test_plain_arithmetic_is_the_answer_itself_but_equal_by_value() -> None:
    """In a game of numbers `6*7+1` may be right where `(6+1)*7-6` is wrong: two votes. Where the
    value counts, equality knows it. Fails if the normal form computes, or equality does not."""
    assert normalise_answer("6*7+1") != normalise_answer("(6+1)*7-6")
    assert normalise_answer("6 * 7 + 1") == normalise_answer("6*7+1")
    assert symbolically_equal("6*7+1", "43")
    assert normalise_answer("6*7+1 = 43") == 43


@pytest.mark.parametrize(
    "repeated", [r"\pm", r"x \in ", "x=", r"\{", "(", "f(", "1, ", r"\pm 3, ", "-"]
)
def test_what_repeats_does_not_recurse(repeated: str) -> None:
    """333 times \\pm met Python's limit of recursion."""
    normalise_answer(repeated * (999 // len(repeated)) + "1")
