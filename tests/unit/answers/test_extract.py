"""The final answer in a response."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlace.answers import extract_answer, normalise_answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{4} then \boxed{5}", "5"),
        (r"\boxed{\frac{1}{2}} and the answer is 7. #### 8", r"\frac{1}{2}"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed{5} but \boxed{unclosed", "5"),
        (r"{ \boxed{ 5 }", "5"),
        (r"\boxed{5} or \boxed{ }", "5"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\fbox {7}", "7"),
        ("so 17\n#### 42", "42"),
        ("#### 1\n#### 2 \n", "2"),
        ("####\n3", "3"),
        ("The answer is 4. No, the answer is 5.", "5"),
        ("The answer is: 3.5. Checked 2 times", "3.5"),
        ("**Answer:** 5", "5"),
        ("Final answer: $x = 5$\nThat was 1 step.", "$x = 5$"),
        ("ANSWER IS yes!", "yes"),
        ("Answer:\n\n 12", "12"),
        ("The answer is **1,000**.", "1,000"),
        ("answers 3 and 4", "4"),
        ("It costs $1,250.50 in all", "$1,250.50"),
        ("10-5", "5"),
        ("it is -5", "-5"),
        ("between 1 and 1/2", "1/2"),
        ("about 12%", "12%"),
        ("take 3.", "3"),
        ("version v2 of it, 7 times", "7"),
        ("no idea", None),
        ("", None),
        ("answer is", None),
        (r"\boxed{}", None),
    ],
)
def test_the_rule(text, answer):
    assert extract_answer(text) == answer


@given(st.text(max_size=200), st.integers(-(10**9), 10**9))
def test_a_box_at_the_end_is_always_found(before, value):
    text = f"{before} \\boxed{{{value}}}"
    # Only a backslash just before could change what the box's own backslash means.
    assert normalise_answer(extract_answer(text) or "") == value


@pytest.mark.parametrize(
    "text",
    [
        r"\boxed{" * 15_000,
        r"\boxed{" * 7_000 + "1" + "}" * 7_000,
        "answer is " * 10_000,
        "answer" + " " * 100_000,
        "answer is" + "\n" * 100_000 + "*" * 100_000,
        "#" * 100_000,
        "#### " * 20_000,
        "####" + " " * 100_000,
        "1," * 50_000,
        "1.1" * 30_000,
        "1/" * 50_000,
        "\\" * 100_000,
        "{}" * 50_000,
    ],
)
def test_hostile_texts_take_bounded_time(text):
    started = time.process_time()
    extract_answer(text)
    assert time.process_time() - started < 3.0
