"""Countdown in its compact form: all problems, the same as those that countdown draws."""

from __future__ import annotations

import pytest

from interlace.errors import TaskError
from interlace.tasks import get_task


def test_it_holds_every_problem_that_countdown_draws() -> None:
    drawn = get_task("countdown", max_number=9, min_target=1, max_target=100, size=60)
    compact = get_task("tiny-countdown")
    assert {example.id for example in drawn} <= {example.id for example in compact}
    for example in drawn:
        same = compact.find(example.id)
        assert (same.question, same.data) == (example.question, example.data)


def test_references_are_right_and_splits_are_disjoint() -> None:
    train, test = (get_task("tiny-countdown", split=split) for split in ("train", "test"))
    assert (len(train), len(test)) == (1750, 395)
    assert not {example.id for example in train} & {example.id for example in test}
    for example in test[:50]:
        assert test.verify(example, str(test.reference_text(example))).correct
    assert len(get_task("tiny-countdown", split="all")) == len(train) + len(test)


def test_a_smaller_size_takes_the_first_and_a_seed_another_order() -> None:
    whole, first = get_task("tiny-countdown"), get_task("tiny-countdown", size=7)
    assert list(first) == list(whole[:7])
    other = get_task("tiny-countdown", seed=1)
    assert list(other) != list(whole)
    assert {example.id for example in other} == {example.id for example in whole}


def test_more_than_there_are_is_refused() -> None:
    with pytest.raises(TaskError, match="has 395 problems in the split 'test'; 396 were"):
        get_task("tiny-countdown", size=396)
    with pytest.raises(TaskError, match="size is a whole number"):
        get_task("tiny-countdown", size=0)


def test_the_last_try_is_the_answer() -> None:
    task = get_task("tiny-countdown")
    example = next(e for e in task if e.data == {"numbers": [3, 7, 8], "target": 45})
    missed, hit = "( 7 - 3 ) * 8 = 32", "3 * ( 8 + 7 ) = 45"
    assert task.prompt(example) == "3 7 8 -> 45 :"
    assert task.verify(example, f"{missed} ; {hit}").correct
    assert not task.verify(example, f"{hit} ; {missed}").correct
    assert task.extract(f"{hit} ; 3 - ( 7 + 8 ) = neg") == "3 - ( 7 + 8 )"
    assert task.extract(f"{hit} ; 8 / ( 7 - 7 ) = undef") == "8 / ( 7 - 7 )"
    assert task.extract("( 7 * 8 ) * 3 = big") == "( 7 * 8 ) * 3"


def test_larger_numbers_add_problems_and_keep_those_that_there_are() -> None:
    small = {example.id for example in get_task("tiny-countdown", split="all")}
    more = get_task("tiny-countdown", split="all", max_number=12)
    assert small < {example.id for example in more}
    assert max(max(example.data["numbers"]) for example in more) == 12
    for too_much in (0, 26):
        with pytest.raises(TaskError, match="max_number is a whole number, from 1 to 25"):
            get_task("tiny-countdown", max_number=too_much)
