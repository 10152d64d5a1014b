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
        (r"\boxed{\frac{1}{2}} and the answer is 7.\n#### 8", "8"),
        (r"The answer is 7, so \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{72}. I hope the answer is correct.", "72"),
        (r"\boxed{72}. The final answer is: it took all of them a long while", "72"),
        # a heading is no mark
        ("#### Step 2: Add 30 and 42\nThe answer is 72.", "72"),
        ("The answer is 72.\n#### Conclusion\nSo it goes.", "72"),
        ("#### 1. Compute 5\nso 72 it is\n#### 2. Check", "2"),
        ("#### 72 clips\nDone.", "72 clips"),
        ("#### Paris", "Paris"),
        ("#### Step 2: Add the numbers", "2"),
        # what opens a block is looked through
        ("The answer is\n\\[\n72\n\\]", "72"),
        ("The answer is:\n$$\n\\frac{1}{2}\n$$\nas 2 was asked.", r"\frac{1}{2}"),
        ("The answer is\n- 72", "72"),
        ("The answer is\n* 72", "72"),
        ("The answer is\n-72", "-72"),
        ("The answer is -72", "-72"),
        ("The answer is\n1. 72", "72"),
        ("The answer is:\n> **72**", "72"),
        ("Answer:\n```\n72\n```\nin 3 steps", "72"),
        ("Answer:\n```text\nred\n```", "red"),
        ("Answer:\n\n| x | value |\n|---|---|\n| y | 72 |\n", "72"),
        ("| Answer | 72 |\n| Steps | 3 |", "72"),
        ("| Question | Answer | Points |\n|---|---|---|\n| 1 | 72 | 3 |", "3"),
        ("## Final Answer\n\n72\n\nin 3 steps", "72"),
        ("**Answer**\n\n72 in all\n\n3 steps", "72 in all"),
        # sentences end where sentences end
        ("Answer: St. Louis", "St. Louis"),
        ("Answer: St. Louis. It has 3 parts", "St. Louis"),
        ("The answer is J. R. R. Tolkien.", "J. R. R. Tolkien"),
        ("The answer is the U.S. Navy. Of 3", "the U.S. Navy"),
        ("The answer is B. Because 3", "B"),
        ("The answer is 3.5.", "3.5"),
        ("So they sold 1.5 million.", "1.5 million"),
        ("The answer is **72.** Done in 3.", "72"),
        ("The answer is 72 because 3 * 20 = 60 and 12 more.", "72"),
        ("The answer is 5, since 2 + 3 = 5.", "5"),
        ("Answer: he left because it rained", "he left because it rained"),
        ("Answer: **72** apples", "72"),
        ("Answer: 72 **apples** and more", "72 **apples** and more"),
        ("Answer: 2**3", "2**3"),
        ("The answer is:\n\\begin{equation}\n72\n\\end{equation}\nof 3", "72"),
        ("The answer is:\n\\begin{align}\nx &= 72\n\\end{align}", "x &= 72"),
        ("The answer is\n> \\[\n> 72\n> \\]\n> in 3 steps", "72"),
        ("Answer:\n> 72\n> in 3 steps", "72"),
        # what is said in a box is a part of it
        (r"\boxed{\text{The answer is } 72}", r"\text{The answer is } 72"),
        (r"The answer is \boxed{\text{Answer: } 72} of 3", r"\text{Answer: } 72"),
        # a box takes what follows it
        (r"so \boxed72 after 3 steps", "72"),
        (r"so $\boxed 72$ after 3 steps", "72"),
        (r"so \boxed{71}, no: \boxed 72.", "72"),
        (r"\boxed -1,234.5. In 3 steps", "-1,234.5"),
        (r"$\boxed\frac{3}{4}$ after 2", r"\frac{3}{4}"),
        (r"$\boxed B$ of 4", "B"),
        (r"a \boxed word of 3", "3"),
        # repeating decimals
        (r"so it is 0.\overline{3}", r"0.\overline{3}"),
        (r"so it is 2.1\overline6 in all", r"2.1\overline6"),
        (r"so it is -0.(3).", "-0.(3)"),
        ("so it is 0.333... of them", "0.333..."),
        ("The answer is 0.333...", "0.333..."),
        ("The answer is 0.333... of 5.", "0.333..."),
        (r"so $x = 0.\dot{3}$", r"x = 0.\dot{3}"),
        # other scripts
        ("\u6240\u4ee5\u7b54\u6848\u662f72\u3002\u5171 3 \u6b65", "72"),
        ("\u7b54\u6848\uff1a72", "72"),
        ("\u5171\u670972", "72"),
        ("\u5171\u6709\uff17\uff12\u4e2a", "\uff17\uff12"),
        ("\u0647\u0648 \u0663\u0665", "\u0663\u0665"),
        ("a \u00e9t\u00e95 of 7", "7"),
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
        # the last number is a whole number, and all of its formula
        ("Cela fait 1 000 euros.", "1 000"),
        ("La r\u00e9ponse est 72,5 euros.", "72,5"),
        ("So it is 1 3/4.", "1 3/4"),
        ("So it is 1\u00bd.", "1\u00bd"),
        ("about 6.02 \\times 10^{23}", "6.02 \\times 10^{23}"),
        ("It is 1.5e3", "1.5e3"),
        ("So 2^10.", "2^10"),
        ("It is x^2", None),
        (r"the result is \frac{3}{4}", r"\frac{3}{4}"),
        (r"the result is $\sqrt{2}$.", r"\sqrt{2}"),
        (r"hence \(x = -72\), as was said", "x = -72"),
        ("He had $5 and paid $2, so $3", "$3"),
        # several answers
        ("The answers are 3 and 4.", "3 and 4"),
        (r"\boxed{3} and \boxed{4}", "3, 4"),
        (r"$x=\boxed{3}$, $\boxed{4}$ or $\boxed{5}$", "3, 4, 5"),
        (r"\boxed{3}. Then \boxed{4}", "4"),
        # corrections, and what follows a number
        ("The answer is 72, not 73.", "72"),
        ("The answer is not 73 but 72.", "72"),
        ("The answer is 72 (not 73).", "72"),
        ("The answer is 72, which is 8*9.", "72"),
        ("The answer is as follows:\n72", "72"),
        ("The answer would be 72.", "72"),
        ("The answer to the question is 72. Done in 3.", "72"),
        ("So the answer to this problem is: **72**\nIn 3 steps.", "72"),
        ("He pays $1.25 and .75, so it is .5", ".5"),
        ("So it is -.5 in all", "-.5"),
        # JSON, end tokens
        ('```json\n{"answer": 72, "steps": 3}\n```', "72"),
        ('{"steps": 3, "final_answer": "St. Louis", "n": 4}', "St. Louis"),
        ('{"answer": [', None),
        ("The answer is 72.<|eot_id|>", "72"),
        ("#### 72</s>\n", "72"),
        ("\u6545\u9009\uff1aB", "B"),
        ("\u3010\u7b54\u6848\u301172", "72"),
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
        r"\(" * 50_000 + "1",
        "$1" * 50_000,
        "</s>" * 25_000 + "x",
        r"\boxed{1}," * 10_000,
        '"answer": ' + "[" * 50_000,
        "1 000" * 20_000,
    ],
)
def test_hostile_texts_take_bounded_time(text):
    started = time.process_time()
    extract_answer(text)
    assert time.process_time() - started < 3.0


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"<think>\boxed{3}", None),
        (r"<think>\boxed{3}</think>", None),
        (r"<think>\boxed{3}</think> It is 4.", "4"),
        (r"\boxed{3}</think> It is 4.", "4"),
        (r"\boxed{4}. <think>Or \boxed{5}?", "4"),
        (r"<think>3</think>4<think>Answer: 5", "4"),
        (r"<THINK>\boxed{3}", None),
        (r"<thinking>\boxed{3}", None),
        (r"[THINK]\boxed{3}[/THINK]It is 4.", "4"),
        ("<think>a</think>b <think>Answer: 5</think> so 6", "6"),
        (r"<think>\boxed{3}" + "x" * 300_000, None),
    ],
)
def test_thinking_holds_no_answer(text: str, answer: str | None) -> None:
    """Thinking that was cut off by the token limit was judged as the answer."""
    assert extract_answer(text) == answer
