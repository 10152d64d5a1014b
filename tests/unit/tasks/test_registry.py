"""Tasks by name, and what all of them share."""

import subprocess
import sys
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest

import interlace
from interlace.errors import InterlaceError, TaskError
from interlace.tasks import Example, Task, Verdict, get_task, list_tasks
from interlace.tasks.countdown import Countdown
from support.typecheck import unchecked


def test_every_task_of_the_brief_is_there() -> None:
    assert [info.name for info in list_tasks()] == [
        "countdown",
        "tiny-countdown",
        "chain-arithmetic",
        "pair-sum",
        "gsm8k",
        "math500",
        "aime24",
        "aime25",
        "amc23",
        "brumo25",
        "cmimc25",
        "hmmt-feb25",
        "gpqa",
        "zebralogic",
        "xsum",
        "cnn-dailymail",
        "rg:NAME",
        "jsonl:PATH",
        "FILE.py:CLASS",
    ]


@pytest.mark.parametrize("name", ["gsm8k", "aime24", "gpqa", "zebralogic", "xsum"])
def test_out_of_the_hubs_reach_a_task_says_what_to_do(name: str) -> None:
    with pytest.raises(TaskError, match=r"pass data='file\.jsonl'"):
        get_task(name)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("countdwn", {}, "There is no task 'countdwn'.*Did you mean 'countdown'"),
        ("rg:NAME", {}, "no task 'NAME'"),
        ("rg:", {}, "There is no task 'rg:'"),
        ("countdown", {"nubmers": 4}, "got 'nubmers'. Did you mean 'numbers'"),
        ("countdown", {"name": "x"}, "takes the options numbers, .*; got 'name'"),
        ("countdown", {"split": "held-out"}, "'train', 'test' or 'all'; got 'held-out'"),
        ("gsm8k", {"dta": "x.jsonl"}, "Did you mean 'data'"),
        ("no_such_file.py:Own", {}, "cannot be imported: .*No such file"),
        (f"{__file__}:Nothing", {}, "has no 'Nothing'"),
        (f"{__file__}:unchecked", {}, "a class derived from interlace.tasks.Task; it is <function"),
    ],
)
def test_refusals_show_the_way(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError, match=message), unchecked():
        get_task(name, **options)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("countdown", {"max_target": "x"}),
        ("countdown", {"size": 10**9}),
        ("countdown", {"template": 5}),
        ("chain-arithmetic", {"operations": 5}),
        ("tiny-countdown", {"size": [1]}),
        (f"jsonl:{__file__}", {"checker": ["math"]}),
        ("xsum", {"threshold": "x"}),
        ("rg:chain_sum", {"options": 5}),
    ],
)
def test_options_of_a_wrong_type_are_errors_of_ours(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(InterlaceError), unchecked():
        next(map(get_task(name, **options).prompt, get_task(name, **options)))


RAISES = """
import sys
from interlace.tasks import Task

class Boom(Task):
    def __init__(self, *, split="test"):
        raise ZeroDivisionError("boom")

    def check(self, example, answer): ...

class Leaves(Task):
    def __init__(self, *, split="test"):
        sys.exit(3)

    def check(self, example, answer): ...

class Abstract(Task):
    def __init__(self, *, split="test"):
        super().__init__("empty", [], split=split)
"""


@pytest.mark.parametrize("name", ["Boom", "Leaves", "Abstract"])
def test_what_a_class_of_ones_own_raises_is_told_with_its_place(name: str, tmp_path: Path) -> None:
    place = tmp_path / "raises.py"
    place.write_text(RAISES)
    with pytest.raises(TaskError, match=rf"raises.py:{name}' cannot be built: ") as raised:
        get_task(f"{place}:{name}")
    assert raised.value.__cause__ is not None
    assert name == "Abstract" or "raises.py, line" in str(raised.value)


def test_a_task_is_a_sequence() -> None:
    task = get_task("countdown", size=5)
    assert len(task) == 5
    assert [example.id for example in task] == [task[index].id for index in range(5)]
    assert task[-1] is task[4]
    assert list(task[1:3]) == [task[1], task[2]]
    assert task[2] in task
    with pytest.raises(IndexError):
        task[5]
    assert repr(task) == "<Countdown 'countdown': 5 problems, split 'test'>"


def test_examples_and_verdicts_do_not_change() -> None:
    example = get_task("countdown", size=1)[0]
    with pytest.raises(FrozenInstanceError):
        example.answer = "1"  # type: ignore[misc]
    assert Example(**example.to_dict()) == example
    assert Verdict(True, 1.0, "1", "") == Verdict(True, 1.0, "1", "")


def test_a_task_has_problems_and_each_once() -> None:
    class Own(Countdown):
        def __init__(self, examples: list[Example]) -> None:
            Task.__init__(self, "own", examples, split="all")

    example = Example("same", "?", "!")
    with pytest.raises(TaskError, match="at least one problem"):
        Own([])
    with pytest.raises(TaskError, match="holds one twice"):
        Own([example, example])


OWN = """
from interlace.tasks import Example, Task, Verdict

class Parrot(Task):
    def __init__(self, *, split="test", times=2):
        super().__init__("parrot", [Example("one", "hi", "hi " * times)], split=split, chat=False)

    def check(self, example, answer):
        return Verdict(answer.split() == example.answer.split(), 1.0, answer, "")
"""


def test_a_class_in_a_file_is_a_task_with_its_options(tmp_path: Path) -> None:
    place = tmp_path / "parrots.py"
    place.write_text(OWN)
    task = get_task(f"{place}:Parrot", split="train", times=3)
    assert task.split == "train"
    assert task.verify(task[0], "Answer: hi hi hi").correct
    with pytest.raises(TaskError, match=r"takes the options split, times; got 'tmes'.*'times'"):
        get_task(f"{place}:Parrot", tmes=3)


def test_reached_from_the_package_without_torch() -> None:
    program = (
        "import sys, interlace\n"
        "task = interlace.tasks.get_task('countdown', size=1)\n"
        "assert task.verify(task[0], task[0].answer).correct\n"
        "interlace.rewards.Correctness(task)\n"
        "heavy = {'torch', 'transformers', 'datasets', 'sympy', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)
    assert {"tasks", "rewards"} <= set(dir(interlace))


def test_errors_are_interlaces_own() -> None:
    assert issubclass(TaskError, InterlaceError)
    assert issubclass(TaskError, ValueError)
