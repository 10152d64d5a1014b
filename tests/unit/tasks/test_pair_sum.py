"""Pair sum: which pairs count, what its traces are, and what its splice copies."""

from __future__ import annotations

import itertools
import re

import pytest

from interlace.errors import TaskError
from interlace.tasks import get_task
from interlace.tasks.drawn import Draw
from interlace.tasks.pair_sum import TRY, PairSum

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


@pytest.mark.parametrize(("subtracts", "low", "high"), [(0.3, 0.36, 0.46), (1, 0.76, 0.86)])
def test_traces_that_subtract_find_more_often(subtracts: float, low: float, high: float) -> None:
    task = PairSum(split="all", size=200, subtracts=subtracts)
    right = 0
    for key in range(600):
        text = task.trace(task[key % 200], Draw("trace", key))
        target = task[key % 200].data["target"]
        assert len(text) == 27
        for first, sign, second, result, end in TRY.findall(text):
            difference = int(first) - int(second)
            assert int(result) == (int(first) + int(second) if sign == "+" else difference)
            assert sign == "+" or int(first) == target
            assert (end == "!") == task.verify(
                task[key % 200], f"{first}{sign}{second}={result}"
            ).correct
        assert len({*re.findall("[^;!]+;", text)}) == text.count(";")
        right += task.verify(task[key % 200], text).correct
    assert low < right / 600 < high


def test_a_pair_that_a_difference_gave_counts_and_is_copied() -> None:
    first, second = EXAMPLE.answer.split("+")
    told = f"{TARGET}-{second}={first}"
    assert TASK.extract(told) == f"{second}+{first}"
    assert TASK.verify(EXAMPLE, MISSES[0] + told + "!").correct
    other = next(n for n in EXAMPLE.data["numbers"] if str(n) not in (first, second))
    for wrong in (f"{TARGET}-{other}={TARGET - other:02d}", f"{TARGET}-{other}={first}", told[:-1]):
        assert not TASK.verify(EXAMPLE, wrong).correct, wrong
    given = rows(MISSES[0] + (told + "!") * 2, MISSES[1] + MISSES[2] + MISSES[3])
    assert splice(given)[1] == MISSES[1] + MISSES[2] + told + "!"
    false = f"{TARGET + 1}-{second}={first}!"
    assert splice(rows(false * 3, "".join(MISSES[:3]))) == [false * 3, "".join(MISSES[:3])]


@pytest.mark.parametrize("subtracts", [-0.1, 1.5, True, float("nan")])
def test_what_is_no_share_is_refused(subtracts: object) -> None:
    with pytest.raises(TaskError, match="a number from 0 to 1; got"):
        get_task("pair-sum", size=1, subtracts=subtracts)


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
