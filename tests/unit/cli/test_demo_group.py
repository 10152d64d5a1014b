"""What the demo shows of a group: marks of finds, counts over all groups, and what may be said.

Each test was seen to fail: marks of finds mixed up, rows alone that "take over", counts over other
problems than the coupled ones.
"""

from __future__ import annotations

import functools
import io
import re

import numpy as np
import pytest
from rich.console import Console

from interlace.cli.demo.outcome import NOTE, Found, GroupView, worth
from interlace.tasks import Task, get_task

HIT, OTHER, MISS = "( 3 + 5 ) * 7 = 56", "7 * ( 5 + 3 ) = 56", "( 3 + 5 ) + 7 = 15"


def found(*rows: list[str], coupled: bool = True) -> Found:
    task = task_all()
    (example,) = [e for e in task if e.data == {"numbers": [3, 5, 7], "target": 56}]
    return Found(task, example, [" ; ".join(row) for row in rows], coupled)


@functools.cache
def task_all() -> Task:
    return get_task("tiny-countdown", split="all")


def test_find_that_is_a_siblings_is_told_from_another() -> None:
    swapped = "( 7 - 5 ) * 3 = 6"
    group = found([MISS, HIT], [MISS, swapped, OTHER], [MISS, MISS, "( 5 + 3 ) * 7 = 56"])
    # 7 * ( 5 + 3 ) is ( 3 + 5 ) * 7 with its sides swapped.
    assert group.marks == [
        ["miss", "first"],
        ["miss", "miss", "same"],
        ["miss", "miss", "same"],
    ]


def test_rows_alone_have_the_same_find_unseen() -> None:
    group = found([MISS, HIT], [MISS, MISS, OTHER], coupled=False)
    assert group.marks == [["miss", "first"], ["miss", "miss", "unseen"]]
    assert group.count("same") == 0


def test_hit_that_a_row_writes_again_is_neither_found_nor_the_same() -> None:
    group = found([HIT, HIT, HIT], [MISS, OTHER, HIT])
    assert group.marks == [["first", "again", "again"], ["miss", "same", "again"]]
    assert group.count("same") == 1


def test_hits_at_the_same_try_are_all_first() -> None:
    assert found([HIT], [OTHER]).marks == [["first"], ["first"]]


def test_most_the_same_as_a_single_rows_find_is_chosen() -> None:
    quiet = found([MISS, MISS], [MISS, MISS])
    lucky = found([MISS, HIT], [MISS, HIT], [MISS, MISS, HIT], [MISS, MISS, HIT])
    single = found([MISS, HIT], [MISS, MISS, HIT], [MISS, MISS, MISS], [MISS, MISS, MISS])
    assert max((quiet, lucky, single), key=worth) is single


def test_tries_end_at_the_models_verdict_or_at_the_end() -> None:
    (example,) = [e for e in task_all() if e.data == {"numbers": [3, 5, 7], "target": 56}]
    (row,) = Found(task_all(), example, [f"{MISS} ; {HIT} yes {HIT} yes {HIT}"]).rows
    assert [one.hit for one in row] == [False, True, True, True]
    assert {len(one.tokens) for one in row} == {9}


@pytest.fixture
def view() -> GroupView:
    (example,) = [e for e in get_task("tiny-countdown") if e.data["target"] == 21
                  and e.data["numbers"] == [3, 4, 9]]  # fmt: skip
    hit, miss = "( 3 * 4 ) + 9 = 21", "( 3 + 4 ) + 9 = 16"
    return GroupView(
        {example.id: [f"{miss} ; {hit} yes {hit}", f"{miss} ; {miss} ; {hit}"]},
        {example.id: [f"{hit} yes", f"{miss} ; {hit}"]},
    )


def test_group_as_plain_text(view: GroupView) -> None:
    assert view.plain().startswith(
        "Reach 21 with 3, 4, 9   step 40\n"
        "\n"
        "One group of 2: rows see each other\n"
        " row  try 1        try 2        try 3        try 4\n"
        "   1   (3+4)+9=16  *(3*4)+9=21  =(3*4)+9=21\n"
        "   2   (3+4)+9=16   (3+4)+9=16  >(3*4)+9=21\n"
        "\n"
        "The same weights, rows alone\n"
        " row  try 1        try 2        try 3        try 4\n"
        "   1  *(3*4)+9=21\n"
        "   2   (3+4)+9=16  ~(3*4)+9=21\n"
        "\n"
        "* first find   > same as a sibling's earlier find   ~ the same, unseen:"
    )
    assert NOTE in view.plain().replace("\n", " ")
    assert "picked out of 1" in view.sentences()[0]
    assert "alone, which see nobody, 1 did" in view.sentences()[0]
    assert view.sentences()[1].startswith("Over all 1 groups of 1 problems")
    assert "50 % of the rows found the same" in view.sentences()[1]


def test_text_of_the_model_does_not_steer_the_terminal() -> None:
    example = get_task("tiny-countdown")[0]
    hostile = "\x1b[31m( 3 [/b] \x9b2J \u202e 4 ) + 9 = 16"
    view = GroupView({example.id: [hostile] * 2}, {example.id: [hostile]})
    console = Console(file=io.StringIO(), width=140, force_terminal=True, color_system=None)
    console.print(view.frame(console))
    for text in (view.plain(), console.file.getvalue()):  # type: ignore[attr-defined]
        assert "[31m(3[/b]2J4)+9" in text
        assert not re.search("\x1b\\[31m|[\x9b\u202e]", text)  # rich's own bold is one


def test_coupled_and_alone_are_counted_over_the_same_problems() -> None:
    example, other = get_task("tiny-countdown")[0], get_task("tiny-countdown")[1]
    hit, miss = "( 3 * 4 ) + 9 = 21", "( 3 + 4 ) + 9 = 16"
    assert example.data["target"] == 21
    spreads = [hit, *[f"{miss} ; {hit}"] * 7]
    together = {example.id: [miss] * 8 + spreads, other.id: [miss] * 16}
    alone = {example.id: [hit, *[f"{miss} ; {miss}"] * 7] * 2, other.id: [miss] * 16}
    view = GroupView(together, alone)
    assert (view.problems, view.groups) == (2, 4)
    assert [len(row) for row in view.together.rows] == [1, *[2] * 7]  # the group that spreads
    everywhere, difference = view.sentences()[1:]
    assert "22 % of the rows found the same" in everywhere  # 7 of 16, and none
    assert "in sets of 8, 0 % did" in everywhere
    assert "+21.9 points [" in difference
    assert "does not show" in difference  # two problems say little


@pytest.mark.parametrize(
    ("chance", "said"), [(0.1, "taken over from siblings"), (0.41, "does not show")]
)
def test_only_what_coupled_rows_have_beyond_rows_alone_is_taken_over(
    view: GroupView, chance: float, said: str
) -> None:
    view._shares = [np.linspace(0.2, 0.6, 50), np.full(50, chance)]
    picked, everywhere, difference = view.sentences()
    assert f"The difference is {100 * (0.4 - chance):+.1f} points [" in difference
    assert said in difference
    assert not re.search("taken over|took over", picked + everywhere)


def test_group_step_by_step_shows_what_is_written_and_colours_finds(view: GroupView) -> None:
    def shown(step: int, width: int) -> str:
        console = Console(file=io.StringIO(), width=width, force_terminal=True,
                          color_system="truecolor")  # fmt: skip
        console.print(view.frame(console, step))
        return console.file.getvalue()  # type: ignore[attr-defined]

    found_alone = "\x1b[1;30;46m*(3*4)+9=21"  # row 1 alone finds at its first try
    assert found_alone not in shown(8, 140)  # its value is not there yet
    assert shown(10, 140).count("(3*") == shown(10, 140).count(found_alone) == 1
    assert shown(14, 140).count("(3*4") == 3  # in both groups and that row
    assert shown(20, 140).count(found_alone) == 2
    assert "\x1b[1;36m>(3*4)+9=21" not in shown(20, 140)
    assert "\x1b[1;36m>(3*4)+9=21" in shown(40, 140)
    assert "\x1b[1;33m~(3*4)+9=21" in shown(40, 140)
    beside = [line for line in shown(40, 140).splitlines() if "rows alone" in line]
    assert "rows see each other" in beside[0]
    below = [line for line in shown(40, 80).splitlines() if "rows alone" in line]
    assert "rows see each other" not in below[0]
