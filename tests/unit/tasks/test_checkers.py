"""Answers compared with references."""

from fractions import Fraction

import pytest

import interlace.errors
from interlace.answers.equal import number_in
from interlace.errors import MissingDependencyError, TaskError
from interlace.tasks.checkers import (
    check_choice,
    check_exact,
    check_math,
    check_number,
    choice_letter,
    chosen,
    get_checker,
    lone_letter,
)


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("72", 72),
        ("-72", -72),
        ("\u221272", -72),
        ("072", 72),
        ("1,000", 1000),
        ("$1,250.50", Fraction(2501, 2)),
        ("50%", 50),
        (r"50\%", 50),
        ("x = 5", 5),
        (r"\frac{3}{6}", Fraction(1, 2)),
        ("144/2", 72),
        ("12*6", 72),
        (r"2 \times (30 + 6)", 72),
        ("2^10", 1024),
        ("72 clips", 72),
        ("about 72 clips", 72),
        ("72-year-olds", 72),
        ("**72**.", 72),
        ("\uff17\uff12", 72),
        ("9" * 900, int("9" * 900)),
        # no numbers
        ("", None),
        ("seventy-two", None),
        ("72 or 73", None),
        ("2x", None),
        ("2 x 3", None),
        (r"\sqrt{4}", 2),
        (r"\sqrt{8}", None),
        ("1/0", None),
        ("10^10^10", None),
        ("\u0667\u0662", 72),
        ("5 apples and 3 pears", None),
        ("72 " + "a" * 990 + "!?", None),
        ("a" * 999, None),
        ("aa " * 333, None),
        (("$" * 500) + "x", None),
    ],
)
def test_number_in(answer: str, value: int | Fraction | None) -> None:
    assert number_in(answer) == value


def test_numbers_are_compared_exactly() -> None:
    assert check_number("1/3", "2/6").correct
    assert not check_number("1/3", "0.333333").correct
    assert check_number("0.25", "1/4").answer == "1/4"
    assert check_number("7", "seven").reason == "is no number"
    assert check_number("7", "8").reason == "expected 7"


def test_a_power_beyond_what_python_prints_has_a_verdict() -> None:
    answer = "9" * 500 + "^99"
    verdict = check_number("7", answer)
    assert (verdict.correct, verdict.answer) == (False, answer)


@pytest.mark.parametrize(
    ("reference", "answer", "correct"),
    [
        (r"2\sqrt{2}", r"\sqrt{8}", True),
        (r"2\sqrt{2}", r"2\sqrt2", True),
        (r"2\sqrt{2}", r"\sqrt{2}", False),
        ("x^2+2x+1", "(x+1)^2", True),
        (r"\left(2, \frac{1}{2}\right)", "(2, 0.5)", True),
        (r"\left(2, \frac{1}{2}\right)", "(0.5, 2)", False),
        ("6 - 5i", "-5i + 6", True),
        (r"\text{Evelyn}", "Evelyn", True),
        (r"\text{Evelyn}", "Eve", False),
        ("42", "6*7", True),
        ("42", r"\sqrt{1764}", True),
        (r"2\sqrt{2}", "{" * 50, False),
        (r"2\sqrt{2}", r"\boxed{", False),
        (r"2\sqrt{2}", "$$$$$", False),
        (r"2\sqrt{2}", "\x00\ud800", False),
    ],
)
def test_math(reference: str, answer: str, correct: bool) -> None:
    assert check_math(reference, answer).correct is correct


def test_exact() -> None:
    assert check_exact("The Cat", " the  cat. ").correct
    assert not check_exact("cat", "cats").correct


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("C", "C"),
        ("c", "C"),
        ("(C)", "C"),
        ("(c)", "C"),
        ("C.", "C"),
        (r"\text{C}", "C"),
        (r"$\boxed{C}$", "C"),
        ("**C**", "C"),
        ("C) 12 m", "C"),
        ("(C) because it floats", "C"),
        ("C: cork", "C"),
        ("option C", "C"),
        ("Option C", "C"),
        ("Option (C)", "C"),
        ("C)", "C"),
        (r"\textbf{(C)}\ 12", "C"),
        (r"\textbf{C)} 12", "C"),
        ("C because it floats", "C"),
        ("C is right", "C"),
        ("C - cork", "C"),
        ("C, cork", "C"),
        ("A bee", None),
        ("Because", None),
        ("cork", "C"),
        ("Cork.", "C"),
        ("A dog", None),
        ("a", "A"),
        ("E", None),
        ("Cork or slate", None),
        ("C, B", None),
        ("(C), (B)", None),
        ("C/B", None),
        ("C, A dog", "C"),
        ("C) A dog", "C"),
        ("C (cork)", "C"),
        ("{C}", "C"),
        ("AB", None),
        ("", None),
        ("7", None),
    ],
)
def test_choice_letter(answer: str, letter: str | None) -> None:
    assert choice_letter(answer, ["iron", "slate", "cork", "brass"]) == letter


def test_choice() -> None:
    assert check_choice("c", "C").correct
    assert not check_choice("C", "B").correct
    assert check_choice("C", "cork", ["iron", "slate", "cork"]).answer == "C"
    assert check_choice("C", "none of them").reason == "is none of the choices"


def test_a_text_that_is_two_choices_names_neither() -> None:
    assert choice_letter("oak", ["oak", "elm", "oak"]) is None


def test_math_without_formulas_needs_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interlace.errors, "find_spec", lambda name: None)
    assert get_checker("math", ["72", "1,000", "1/2"]) is check_math
    assert get_checker("number", ["72", "1,000", "1/2"]) is check_number
    with pytest.raises(MissingDependencyError, match=r'pip install "interlace\[math\]"'):
        get_checker("math", ["72", r"\sqrt{2}"])


def test_unfit_checkers() -> None:
    assert get_checker("math", ["72", r"\sqrt{2}"]) is check_math
    with pytest.raises(TaskError, match="one of number, math, choice, exact; got 'maths'"):
        get_checker("maths", ["72"])
    with pytest.raises(TaskError, match="needs numbers as references; 'red' is none"):
        get_checker("number", ["72", "red"])


@pytest.mark.parametrize(
    "text",
    [
        r"\boxed{12}. So the answer is (B).",
        r"\boxed{\textbf{(B)}\ 12}",
        "Answer: B)",
        "Answer: Option B",
        "The answer is B because it floats.",
        "The answer is (B). \\boxed{12}",
        "Answer:\n- B) 12",
        "**Answer: (B)** and not (C), since 12 floats",
        "The answer is not clear.\n(B)",
        "The answer is B. It is 12 in all.",
        "B) 12 apples",
        "**B.** 12 apples\n\nFor 6 and 6 are 12.",
        "The correct answer is Option **B**.",
        "The answer is definitely B.",
        "The answer is most likely (B).",
        "I'd go with B.",
        "I would select option B.",
    ],
)
def test_the_choice_of_a_text(text: str) -> None:
    assert check_choice("B", chosen(text) or lone_letter(text) or "").correct


def test_a_letter_that_is_ruled_out_does_not_stand_alone() -> None:
    assert lone_letter("It is not (B).") is None


def test_choices_that_are_repeated_are_no_answer() -> None:
    assert lone_letter("A) 10\nB) 12\nHm.") is None
    assert lone_letter("Let us see.\nB) 12") is None


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("Answer: [B]", "B"),
        ("Answer: <B>", "B"),
        ("The correct option is B.", "B"),
        ("Correct choice: B", "B"),
        ("So B is the answer", "B"),
        ("Option B is correct, option C is not.", "B"),
        ("Option A is correct. No: option B is right.", "B"),
        ("Option C is correct.\nAnswer: B", "B"),
        ("My choice: A small dog", None),
        ("The answer is A or B", None),
        ("Option B is wrong", None),
        ("B is the correct answer.", "B"),
        ("I choose (B).", "B"),
        ("The answer must be B.", "B"),
        ("The answer is B rather than C.", "B"),
        ("The answer is not C but B.", "B"),
        ("The answer is not B.", None),
        ("\u6545\u9009B\u3002", "B"),
    ],
)
def test_a_letter_that_is_said_to_be_right(text: str, letter: str | None) -> None:
    found = chosen(text)
    assert (found and choice_letter(found)) == letter
