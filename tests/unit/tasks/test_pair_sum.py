"""Pair sum: which pairs count, what its traces are, and what its splice copies."""

from __future__ import annotations

import itertools
import re

import pytest

from interlace.errors import TaskError
from interlace.tasks import get_task
from interlace.tasks.drawn import Draw
from interlace.tasks.pair_sum import PairSum

TASK = PairSum(split="all", size=200)
EXAMPLE = TASK[3]
TARGET = EXAMPLE.data["target"]
HIT = f"{EXAMPLE.answer}={TARGET}!"
PAIRS = list(itertools.combinations(EXAMPLE.data["numbers"], 2))
MISSES = [f"{a}+{b}={a + b};" for a, b in PAIRS if a + b != TARGET]


def rows(*texts: str) -> list[list[str]]:
    return [list(text) for text in texts]


def splice(given: list[list[str]], probability: float = 1.0) -> list[str]:
    return ["".join(row) for row in TASK.splice(EXAMPLE, given, probability, Draw("test"))]


def test_every_problem_has_exactly_one_pair_of_six_distinct_numbers() -> None:
    for example in TASK:
        numbers, target = example.data["numbers"], example.data["target"]
        assert len(set(numbers)) == 6
        assert set(numbers) <= set(range(10, 30))
        pairs = [pair for pair in itertools.combinations(numbers, 2) if sum(pair) == target]
        assert len(pairs) == 1
        assert TASK.verify(example, str(TASK.reference_text(example))).correct
    assert TASK.prompt(EXAMPLE) == f"{' '.join(map(str, EXAMPLE.data['numbers']))} > {TARGET}:"


def test_splits_are_disjoint_and_the_same_whatever_order_the_numbers_have() -> None:
    train, test = (get_task("pair-sum", split=split, size=300) for split in ("train", "test"))
    assert not {e.id for e in train} & {e.id for e in test}
    assert get_task("pair-sum", size=5)[:5] == test[:5]


def test_the_last_sum_counts_in_either_order() -> None:
    first, second = EXAMPLE.answer.split("+")
    turned = f"{second}+{first}"
    assert TASK.verify(EXAMPLE, f"{MISSES[0]}{turned}={TARGET}!").correct
    assert TASK.normalise(turned) == TASK.normalise(EXAMPLE.answer)
    assert not TASK.verify(EXAMPLE, f"{HIT}{MISSES[0]}").correct
    for wrong in ("", "hm", f"{first}+{first}", f"{TARGET - 9}+09", "1+2", f"1{first}+{second}"):
        assert not TASK.verify(EXAMPLE, wrong).correct, wrong


def test_traces_try_pairs_at_random_and_keep_a_hit() -> None:
    right = 0
    for key in range(600):
        example = TASK[key % len(TASK)]
        text = TASK.trace(example, Draw("trace", key))
        assert len(text) == 27
        tries = [text[start : start + 9] for start in (0, 9, 18)]
        hits = [one.endswith("!") for one in tries]
        assert hits == sorted(hits)  # never given up
        if True in hits:
            assert len(set(tries[hits.index(True) :])) == 1
        misses = [one for one in tries if one.endswith(";")]
        assert len(set(misses)) == len(misses)
        verdict = TASK.verify(example, text)
        assert verdict.correct == (True in hits)
        right += verdict.correct
    assert 0.16 < right / 600 < 0.25  # three of fifteen pairs


@pytest.mark.parametrize(
    ("aimed", "low", "high"), [(0.0, 0.16, 0.25), (0.3, 0.33, 0.44), (1, 0.65, 0.76)]
)
def test_traces_find_as_often_as_they_aim(aimed: float, low: float, high: float) -> None:
    """A try whose first number is one of the pair (a third of them) takes the other by `aimed`."""
    task = PairSum(split="all", size=200, aimed=aimed)
    texts = [task.trace(task[key % 200], Draw("trace", key)) for key in range(600)]
    right = [task.verify(task[key % 200], text).correct for key, text in enumerate(texts)]
    assert low < sum(right) / 600 < high
    for text in texts:
        misses = re.findall("([0-9+]+)=[0-9]+;", text)
        assert len({frozenset(pair.split("+")) for pair in misses}) == len(misses)
    if not aimed:
        assert texts == [TASK.trace(TASK[key % 200], Draw("trace", key)) for key in range(600)]


@pytest.mark.parametrize("aimed", [-0.1, 1.5, True, float("nan")])
def test_what_is_no_chance_is_refused(aimed: object) -> None:
    with pytest.raises(TaskError, match="a number from 0 to 1; got"):
        get_task("pair-sum", size=1, aimed=aimed)


def test_a_find_is_copied_into_the_columns_where_the_sibling_keeps_it() -> None:
    given = rows(MISSES[0] + HIT + HIT, MISSES[1] + MISSES[2] + MISSES[3], HIT * 3)
    assert splice(given) == [MISSES[0] + HIT * 2, MISSES[1] + HIT * 2, HIT * 3]
    assert splice(given[:2]) == [MISSES[0] + HIT * 2, MISSES[1] + MISSES[2] + HIT]


def test_what_is_no_find_is_not_copied() -> None:
    a, b = PAIRS[0]
    for told in (f"{EXAMPLE.answer}={TARGET};", f"{a}+{b}={TARGET}!", f"{TARGET - 9}+09={TARGET}!"):
        given = rows(told * 3, "".join(MISSES[:3]))
        assert splice(given) == ["".join(row) for row in given], told


def test_tries_that_no_token_begins_are_left() -> None:
    text = "".join(MISSES[:3])
    given = [[text[:10], text[10:17], text[17:]], list(HIT * 3)]
    assert splice(given)[0] == text
