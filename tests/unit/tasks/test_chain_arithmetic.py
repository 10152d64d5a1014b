"""Chain arithmetic: problems, answers and steps."""

import hashlib
import itertools
from typing import Any

import pytest

from interlace.answers.arithmetic import canonical, literals, parse, value_of
from interlace.errors import TaskError
from interlace.tasks.chain_arithmetic import ChainArithmetic


@pytest.mark.parametrize("digits", [1, 2])
@pytest.mark.parametrize("operations", ["+-", "+-*", "*"])
def test_problems_are_what_was_asked_for(digits: int, operations: str) -> None:
    task = ChainArithmetic(digits=digits, steps=2, operations=operations, size=20)
    for example in task:
        expression = example.data["expression"]
        assert expression in example.question
        assert value_of(expression) == int(example.answer) >= 0
        assert all(len(number.text) == digits for number in literals(parse(expression)))
        assert set(expression) & set("+-*") <= set(operations)
        steps = example.data["steps"]
        assert len(steps) == 2
        assert steps[-1].endswith(f"= {example.answer}")
        for step, following in itertools.pairwise(steps):
            assert following.startswith(step.split("= ")[1])
        assert task.verify(example, task.reference_text(example)).correct


def test_problems_are_distinct_up_to_order_and_splits_disjoint() -> None:
    def forms(**options: Any) -> set[str]:
        task = ChainArithmetic(digits=1, steps=2, **options)
        found = {canonical(parse(example.data["expression"])) for example in task}
        assert len(found) == len(task)
        return found

    train, test = forms(split="train", size=300), forms(split="test", size=90, seed=3)
    assert not train & test


def test_golden() -> None:
    text = "\n".join(f"{e.id} {e.question} {e.answer}" for e in ChainArithmetic(size=50))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "54336459cf3f7338"


@pytest.fixture(scope="module")
def task() -> ChainArithmetic:
    return ChainArithmetic(digits=1, steps=2, size=1)  # What is 5 - 2 + 6?


@pytest.mark.parametrize(
    ("text", "correct", "answer"),
    [
        ("Answer: 9", True, "9"),
        ("9", True, "9"),
        (r"\boxed{9}", True, "9"),
        ("The answer is 9.", True, "9"),
        ("It is 9 apples", True, "9"),
        ("Answer: 9.0", True, "9"),
        ("Answer: 18/2", True, "9"),
        ("Answer: nine", False, "nine"),
        ("Answer: 9 or 10", False, "9 or 10"),
        ("5 - 2 = 3\n3 + 6 = 8", False, "8"),
        ("9 then 8", False, "8"),
        ("Answer: -9", False, "-9"),
        ("Answer: " + "9" * 900, False, "9" * 900),
        ("Answer: " + "9" * 2000, False, None),
        ("Answer: \u0669", True, "9"),
        ("", False, None),
    ],
)
def test_verdicts(task: ChainArithmetic, text: str, correct: bool, answer: str | None) -> None:
    verdict = task.verify(task[0], text)
    assert (verdict.correct, verdict.answer) == (correct, answer)


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("", {"5 - 2 = 3": False, "3 + 6 = 9": False}),
        ("5 - 2 = 3\n3 + 6 = 9", {"5 - 2 = 3": True, "3 + 6 = 9": True}),
        ("5-2=3, 6+3=9", {"5 - 2 = 3": True, "3 + 6 = 9": True}),
        ("5 - 2 = 4", {"5 - 2 = 3": False, "3 + 6 = 9": False, "5 - 2 = 4": False}),
        # right, but not asked for; and nothing gained by saying it again
        ("1 + 1 = 2\n" * 9 + "5 - 2 = 3", {"5 - 2 = 3": True, "3 + 6 = 9": False}),
        ("<think>5 - 2 = 3</think>", {"5 - 2 = 3": True, "3 + 6 = 9": False}),
    ],
)
def test_steps(task: ChainArithmetic, text: str, steps: dict[str, bool]) -> None:
    assert {step.text: step.holds for step in task.steps(task[0], text)} == steps


@pytest.mark.parametrize(
    "options",
    [{"digits": 0}, {"digits": 4}, {"steps": 0}, {"operations": ""}, {"operations": "+/"}],
)
def test_refused_options(options: dict[str, Any]) -> None:
    with pytest.raises(TaskError):
        ChainArithmetic(**options)
