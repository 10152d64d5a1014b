"""Text that is meant to break verifiers: a verdict always comes, within a bound."""

import json
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from interlace.answers.extract import MAX_TEXT
from interlace.tasks import Task, Verdict, get_task
from support.task_files import (
    ARTICLES,
    CHOICES,
    FORMULAS,
    PUZZLES,
    WORD_PROBLEMS,
    write_jsonl,
)

# Of this process; the other process has its own bound. What is linear takes milliseconds, what is
# quadratic minutes; between them there is room for a collection of garbage on a busy machine.
SECONDS = 10.0

FRAGMENTS = [
    *(r"\boxed{", "}", "{", r"\boxed{7}", "<answer>", "</answer>", "<think>", "</think>", "####"),
    *("#### 7\n", "answer is ", "Answer: ", "the answer is 7. ", "=", "1+1=2 ", "1+1=", "((1+"),
    *("(", ")", "[", "]", "9", "9" * 60, "9" * 5000, "9^", "9**9**9", "10**10**10", "7/0", "1/"),
    *("-", "*", "**", ".", ",", "1,000,", "$", "$$", "\\", r"\frac{", r"\frac{1}{2}", r"\text{"),
    *("x", "aa ", "(A) ", "A\n", "B) ", '{"House 1":', '{"a":', '"', "'", "\n", " ", "\t", "\x00"),
    *("\u0667\u0662", "\uff17", "\u00bd", "\u00b2", "\u221e", "\u202e", "\ud800", "\U0001f600"),
    *("__import__('os').system('true')", "lambda: 0", "%s%n{0}"),
]

HOSTILE = st.one_of(
    st.lists(st.sampled_from(FRAGMENTS), max_size=40).map("".join),
    st.text(max_size=300),
    st.tuples(
        st.sampled_from(FRAGMENTS),
        st.integers(1, 100_000),
        st.sampled_from(FRAGMENTS),
        st.sampled_from(["", "Answer: ", r"\boxed{", "\n#### ", "<answer>"]),
    ).map(lambda parts: parts[3] + (parts[0] * parts[1])[:100_000] + parts[2]),
    st.lists(st.sampled_from(FRAGMENTS), min_size=2, max_size=4).map(
        lambda parts: ("".join(parts) * 100_000)[:100_000]
    ),
)

ROWS = {
    "gsm8k": WORD_PROBLEMS,
    "math500": FORMULAS,
    "gpqa": CHOICES,
    "zebralogic": PUZZLES,
    "xsum": ARTICLES,
}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Task]:
    folder: Path = tmp_path_factory.mktemp("rows")
    built = {
        name: get_task(name, data=write_jsonl(folder / f"{name}.jsonl", rows))
        for name, rows in ROWS.items()
    }
    built["countdown"] = get_task("countdown", size=1)
    built["chain-arithmetic"] = get_task("chain-arithmetic", size=1)
    return built


PURE = ["countdown", "chain-arithmetic", "gsm8k", "gpqa", "zebralogic", "xsum"]
# Checks of annotations walk through every list, which is not what a user waits for.
RELAXED = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.parametrize("name", PURE)
@RELAXED
@given(text=HOSTILE)
def test_a_verdict_always_comes(tasks: dict[str, Task], name: str, text: str) -> None:
    task = tasks[name]
    example = task[0]
    started = time.process_time()
    verdict = task.verify(example, text)
    steps = task.steps(example, text)
    assert time.process_time() - started < 2 * SECONDS
    _is_sound(verdict)
    assert all(isinstance(step.holds, bool) for step in steps)
    json.dumps([verdict.answer, verdict.reason, *(step.text for step in steps)])


@pytest.mark.parametrize("name", PURE)
def test_100_kb_of_anything(tasks: dict[str, Task], name: str) -> None:
    task = tasks[name]
    for fragment in FRAGMENTS:
        started = time.process_time()
        verdict = task.verify(task[0], (fragment * 100_000)[:100_000])
        assert time.process_time() - started < SECONDS, fragment
        _is_sound(verdict)


@RELAXED
@given(text=HOSTILE)
def test_formulas_too(tasks: dict[str, Task], text: str) -> None:
    """math-verify's process has its own bounds; here: nothing in this one raises or takes long."""
    task = tasks["math500"]
    started = time.process_time()
    verdict = task.verify(task[0], text)
    assert time.process_time() - started < SECONDS
    _is_sound(verdict)


@pytest.mark.parametrize(
    "answer",
    [
        "9^{9^{9^{9}}}",
        "{" * 400,
        r"\binom{10^9}{10^8}",
        r"\int_0^1 x^{1000!} dx",
        "(x+1)^{10000}",
        r"\sum_{k=1}^{10^{12}} k^k",
        "9!" * 100 + "!" * 300,
    ],
)
def test_costly_formulas_are_given_up(tasks: dict[str, Task], answer: str) -> None:
    task = tasks["math500"]
    verdict = task.verify(task[0], f"\\boxed{{{answer}}}")
    assert not verdict.correct


def test_a_good_answer_survives_noise(tasks: dict[str, Task]) -> None:
    task = tasks["gsm8k"]
    noise = "".join(FRAGMENTS).replace("</think>", "") * 40
    assert len(noise) > 100_000
    assert task.verify(task[0], noise + "</think> So it is \\boxed{10}.").correct


def test_only_the_end_of_a_text_is_read(tasks: dict[str, Task]) -> None:
    task = tasks["gsm8k"]
    assert task.verify(task[0], r"\boxed{10}" + " " * (MAX_TEXT - 10)).correct
    assert not task.verify(task[0], r"\boxed{10}" + " " * (MAX_TEXT - 1)).correct


def _is_sound(verdict: Verdict) -> None:
    assert 0.0 <= verdict.score <= 1.0
    assert not verdict.correct or verdict.score > 0
    assert verdict.reason
    assert len(verdict.reason) < 200
