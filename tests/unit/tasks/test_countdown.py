"""Countdown: which problems there are, which expression counts, and when it is correct."""

import hashlib
import itertools
import operator
from fractions import Fraction
from typing import Any

import pytest

from interlace.errors import TaskError
from interlace.tasks import Example, Verdict, get_task
from interlace.tasks.countdown import Countdown
from interlace.tasks.drawn import split_of

EXAMPLE = Example("made-up", "?", "52 / (99 - 97)", {"numbers": [52, 97, 99], "target": 26})


@pytest.fixture(scope="module")
def task() -> Countdown:
    return Countdown(size=60)


def reachable(numbers: tuple[Fraction, ...]) -> set[Fraction]:
    """Every value that all the numbers together can make, by brute force."""
    if len(numbers) == 1:
        return set(numbers)
    values: set[Fraction] = set()
    for i, j in itertools.permutations(range(len(numbers)), 2):
        rest = tuple(n for k, n in enumerate(numbers) if k not in (i, j))
        for act in (operator.add, operator.sub, operator.mul, operator.truediv):
            if act is not operator.truediv or numbers[j]:
                values |= reachable((*rest, act(numbers[i], numbers[j])))
    return values


def test_every_problem_has_a_solution(task: Countdown) -> None:
    for example in task:
        numbers = tuple(Fraction(n) for n in example.data["numbers"])
        assert len(numbers) == 3
        assert all(1 <= n <= 99 for n in numbers)
        assert 10 <= example.data["target"] <= 100
        assert example.data["target"] in reachable(numbers)
        assert task.verify(example, task.reference_text(example) or "").correct


def test_options_shape_the_problems() -> None:
    task = Countdown(numbers=5, max_number=9, min_target=200, max_target=300, size=10)
    assert all(len(e.data["numbers"]) == 5 and max(e.data["numbers"]) <= 9 for e in task)
    assert all(200 <= e.data["target"] <= 300 for e in task)
    assert all(task.verify(e, e.answer).correct for e in task)


def test_problems_are_distinct_and_splits_disjoint() -> None:
    def keys(**options: Any) -> set[tuple[object, ...]]:
        task = Countdown(max_number=12, size=150, **options)
        found = {(*e.data["numbers"], e.data["target"]) for e in task}
        assert len(found) == len(task)
        return found

    train, test = keys(split="train", seed=1), keys(split="test", seed=2)
    assert not train & test
    assert keys(split="all", seed=1) & train
    assert all(split_of(f"countdown {a} {b} {c} -> {target}") == "test" for a, b, c, target in test)


def test_seeds_and_sizes() -> None:
    long, short, other = Countdown(size=30), Countdown(size=10), Countdown(size=10, seed=1)
    assert list(long)[:10] == list(short)
    assert list(short) != list(other)


def test_golden() -> None:
    text = "\n".join(f"{e.id} {e.question} {e.answer}" for e in Countdown(size=50))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "11e5cbaded5732b1"


@pytest.mark.parametrize(
    ("text", "correct", "answer"),
    [
        ("52 / (99 - 97)", True, "52/(99-97)"),
        ("Answer: 52 / (99 - 97)", True, "52/(99-97)"),
        ("The answer is 52/(99-97).", True, "52/(99-97)"),
        (r"so \boxed{\frac{52}{99-97}}", True, "52/(99-97)"),
        (r"$\boxed{52 \div \left(99 - 97\right)}$", True, "52/(99-97)"),
        ("**Answer:** `52/(99-97)`", True, "52/(99-97)"),
        ("<answer>52/(99-97) = 26</answer>", True, "52/(99-97)"),
        ("26 = 52/(99-97)", True, "52/(99-97)"),
        ("I try 52+97 = 149. Then 52/(99-97) = 26!", True, "52/(99-97)"),
        ("1. 52/(99-97)", True, "52/(99-97)"),
        ("- 52/(99-97)", True, "52/(99-97)"),
        ("so **52/(99-97)** = 26", True, "52/(99-97)"),
        ("-52/(97-99)", True, "(-52)/(97-99)"),
        ("52 \u00f7 (99 \u2212 97)", True, "52/(99-97)"),
        (r"\boxed{26}, since 52/(99-97) = 26", True, "52/(99-97)"),
        ("<think>99+97</think>52/(99-97)", True, "52/(99-97)"),
        # the last one counts
        ("52/(99-97) or 52+99", False, "52+99"),
        ("Answer: 52/(99-97)\nAnswer: 52+99+97", False, "52+97+99"),
        # the marked one counts
        ("Answer: 52+97+99\nas 52/(99-97) = 26", False, "52+97+99"),
        # rules
        ("52/2", False, "52/2"),
        ("52/(99-97) + 0", False, "0+52/(99-97)"),
        ("52/(99-97) + 99 - 99", False, "52/(99-97)+99-99"),
        ("52 - 26", False, "52-26"),
        ("13 + 13", False, "13+13"),
        ("(52/(99-97))^1", False, "(52/(99-97))^1"),
        ("52.0/(99-97)", False, "52/(99-97)"),
        ("52/(99-99)", False, "52/(99-99)"),
        ("26", False, None),
        ("Answer: 26", False, None),
        ("", False, None),
        ("I do not know.", False, None),
        ("\u0665\u0662/(99-97)", False, "99-97"),
        ("<think>52/(99-97)</think> none", False, None),
    ],
)
def test_verdicts(task: Countdown, text: str, correct: bool, answer: str | None) -> None:
    verdict = task.verify(EXAMPLE, text)
    assert (verdict.correct, verdict.score) == (correct, float(correct))
    assert verdict.answer == answer


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("52 + 97 + 99", "gives 248, not 26"),
        ("52 - 26", "uses 26 more often than given"),
        ("97 + 99", "does not use 52"),
        ("52/(99-97)*97/97", "uses 97 more often than given"),
        ("52^1/(99-97)", "has a power"),
    ],
)
def test_reasons(task: Countdown, text: str, reason: str) -> None:
    assert task.verify(EXAMPLE, text).reason == reason


def test_numbers_given_twice_may_be_used_twice() -> None:
    task = Countdown(size=1)
    twice = Example("made-up", "?", "", {"numbers": [5, 5, 1], "target": 25})
    assert task.verify(twice, "5 * 5 * 1").correct
    assert not task.verify(twice, "5 * 5").correct
    assert not task.verify(twice, "5 * 5 * 5 / 5 * 1").correct


def test_at_most_once() -> None:
    task = Countdown(size=1, use_all=False)
    assert "at most once" in task[0].question
    example = Example("made-up", "?", "", {"numbers": [5, 7, 20], "target": 25})
    assert task.verify(example, "20 + 5").correct
    assert not task.verify(example, "5 * 5").correct


def test_intermediate_values_may_be_fractions_or_negative() -> None:
    task = Countdown(size=1)
    example = Example("made-up", "?", "", {"numbers": [3, 4, 7], "target": 1})
    assert task.verify(example, "(3 - 7)/4 * 1").reason.startswith("uses 1")
    example = Example("made-up", "?", "", {"numbers": [2, 3, 8, 9], "target": 12})
    assert task.verify(example, "8 / (2 / (9 / 3))").correct


def test_votes_see_one_expression_in_all_its_orders(task: Countdown) -> None:
    assert task.normalise("3 + 4*2") == task.normalise("(2*4) + 3") != task.normalise("3*4 + 2")
    assert task.normalise("3 +") is None


def test_prompt(task: Countdown) -> None:
    messages = task.prompt(task[0])
    assert isinstance(messages, list)
    assert messages[0]["role"] == "user"
    assert str(task[0].data["target"]) in messages[0]["content"]
    assert "Answer: <expression>" in messages[0]["content"]
    plain = Countdown(size=1, chat=False, template="{numbers}={target}:")
    assert plain.prompt(plain[0]) == f"{plain[0].data['numbers']}={plain[0].data['target']}:"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"numbers": 1}, "numbers is a whole number, from 2 to 8; got 1"),
        ({"numbers": 9}, "from 2 to 8"),
        ({"max_number": 0}, "max_number"),
        ({"min_target": 50, "max_target": 40}, "from 50 to 40"),
        ({"size": 0}, "size is a whole number, from 1 to 1000000"),
        ({"size": True}, "size"),
        ({"numbers": 2, "max_number": 3, "min_target": 1, "size": 99}, "about [0-9]+ problems"),
    ],
)
def test_refused_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        Countdown(**options)


def test_without_a_size_a_small_task_is_whole() -> None:
    small = {"numbers": 2, "max_number": 3, "min_target": 1}
    both = len(Countdown(split="train", **small)) + len(Countdown(split="test", **small))
    # a+b and a*b for six pairs, a-b for three, a/b whole for five, distinct within each pair:
    # 11: 2 1; 12: 3 2 1; 13: 4 3 2; 22: 4 1; 23: 5 6 1; 33: 6 9 1
    assert both == len(Countdown(split="all", **small)) == 16


def test_a_broken_template_is_explained() -> None:
    task = Countdown(size=1, template="{question} {steps}")
    with pytest.raises(TaskError, match="only the names question, instruction, numbers, target"):
        task.prompt(task[0])


def test_find() -> None:
    task = get_task("countdown", size=5)
    assert task.find(task[3].id) is task[3]
    with pytest.raises(TaskError, match="has the id 'nobody'"):
        task.find("nobody")


def test_verdict_is_always_one() -> None:
    assert isinstance(Countdown(size=1).verify(EXAMPLE, "\x00\ud800"), Verdict)
