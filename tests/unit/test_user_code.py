"""Files of the user's own: run once, as proper modules, and told about in one line."""

from __future__ import annotations

import builtins
import os
import pickle
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from interlace.answers.choose import Responses
from interlace.cli.generate.outcome import Aggregation
from interlace.cli.main import main
from interlace.errors import ConfigError, InterlaceError, TaskError
from interlace.evaluation.evaluate import Recorder
from interlace.tasks import get_task
from interlace.training.data import given_rewards
from interlace.training.rollout import add_up
from interlace.user_code import named_function, named_object, told
from support.training import Evens

TASK = """
from __future__ import annotations
from dataclasses import dataclass, field
from interlace.tasks import Example, Task, Verdict

with open({ran!r}, "a") as file:
    file.write("x")

@dataclass
class Data:
    size: int = 2
    kept: list[int] = field(default_factory=list)

class Mine(Task):
    def __init__(self, *, split="test"):
        super().__init__("mine", [Example("a", "Q?", "A")], split=split)

    def check(self, example, answer):
        return Verdict(answer == "A", float(answer == "A"), answer, f"of {{Data().size}}")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_dataclass_with_postponed_annotations_works_and_runs_once(folder: Path) -> None:
    (folder / "mine.py").write_text(TASK.format(ran=str(folder / "ran")))
    task = get_task("mine.py:Mine")
    assert get_task(f"{folder}/mine.py:Mine").verify(task[0], "Answer: A").correct
    assert named_object("mine.py:Data") is named_object("./mine.py:Data")
    assert (folder / "ran").read_text() == "x"


def test_two_files_of_one_name_are_two_modules(folder: Path) -> None:
    for place in ("a", "b"):
        (folder / place).mkdir()
        (folder / place / "same.py").write_text(f"VALUE = {place!r}\n")
    assert named_object("a/same.py:VALUE") == "a"
    assert named_object("b/same.py:VALUE") == "b"


def test_a_file_that_has_changed_runs_again(folder: Path) -> None:
    file = folder / "own.py"
    file.write_text("VALUE = 1\n")
    assert named_object("own.py:VALUE") == 1
    file.write_text("VALUE = 2\n")
    os.utime(file, ns=(1, 1))
    assert named_object("own.py:VALUE") == 2


RAISES = [
    ("x = 1\n1 / 0", r"own\.py, line 2: ZeroDivisionError: division by zero"),
    ("raise SystemExit(3)", r"own\.py, line 1: SystemExit: 3"),
    ("import sys\nsys.exit()", r"own\.py, line 2: SystemExit"),
    ("class Own(BaseException): pass\nraise Own", r"own\.py, line 2: Own"),
    ("x = 1\nif:\n", r"own\.py, line 2: SyntaxError: invalid syntax"),
    ("raise KeyError('a')", r"own\.py, line 1: KeyError: 'a'"),
    ("import no_such_module", r"own\.py, line 1: ModuleNotFoundError: No module named"),
    ("raise OSError('line\\nbreak')", r"own\.py, line 1: OSError: line break"),
    ("\x00", r"(SyntaxError|ValueError)"),
]


@pytest.mark.parametrize(("text", "message"), RAISES)
def test_what_a_file_raises_is_told_in_one_line(folder: Path, text: str, message: str) -> None:
    (folder / "own.py").write_text(text)
    known = set(sys.modules)
    with pytest.raises(ImportError, match=message) as raised:
        named_object("own.py:x")
    assert raised.value.__cause__ is not None
    assert "\n" not in str(raised.value)
    with pytest.raises(TaskError, match=message):
        get_task("own.py:Mine")
    with pytest.raises(
        ConfigError, match=rf"^The reward 'own.py:x' cannot be imported: .*{message}"
    ):
        named_function("own.py:x", "The reward")
    assert set(sys.modules) == known


@pytest.mark.parametrize("name", ["own.py", "own.py:", ":x", "no.py:x", "own.py:y", "no_module:x"])
def test_what_is_not_there(folder: Path, name: str) -> None:
    (folder / "own.py").write_text("x = 1\n")
    with pytest.raises(ImportError):
        named_object(name)


def test_a_value_is_no_function(folder: Path) -> None:
    (folder / "own.py").write_text("x = 1\n")
    with pytest.raises(ConfigError, match=r"--scorer 'own.py:x' is no function, but 1"):
        named_function("own.py:x", "--scorer")


@pytest.mark.parametrize("raised", ["KeyError('key')", "SystemExit(0)", "NotImplementedError"])
def test_a_command_tells_where_own_code_failed(
    folder: Path, raised: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = TASK.format(ran=str(folder / "ran")).splitlines()
    lines[-1] = f"        raise {raised}"
    (folder / "mine.py").write_text("\n".join(lines))
    assert main(["tasks", "show", "mine.py:Mine"]) == 2
    said = capsys.readouterr().err
    kind = raised.partition("(")[0]
    assert said.startswith(
        f"interlace: code of your own failed: mine.py, line {len(lines)}: {kind}"
    )
    assert said.count("\n") == 1


ARGUMENTS = {
    "UnicodeDecodeError": "'utf-8', b'x', 0, 1, 'own'",
    "UnicodeEncodeError": "'utf-8', 'x', 0, 1, 'own'",
    "UnicodeTranslateError": "'x', 0, 1, 'own'",
    "ExceptionGroup": "'own', [ValueError(1)]",
    "BaseExceptionGroup": "'own', [SystemExit(1)]",
}
EXCEPTIONS = sorted(
    {
        kind.__name__
        for kind in vars(builtins).values()
        if isinstance(kind, type) and issubclass(kind, BaseException)
    }
    - {"KeyboardInterrupt"}
)


def _aggregate(settings: Any, responses: Responses) -> Any:
    engine: Any = None
    return Aggregation(settings, engine, str)([responses])


@pytest.mark.parametrize("name", [*EXCEPTIONS, "Own", "Mute"])
def test_whatever_scorers_aggregators_and_rewards_raise_is_one_line_with_its_place(
    folder: Path, name: str
) -> None:
    """Own is no Exception, and Mute cannot even be printed; messages hold line ends."""
    two_lines = repr("one\ntwo")
    (folder / "own.py").write_text(
        "class Own(BaseException): pass\n"
        "class Mute(Exception):\n"
        "    def __str__(self): raise ValueError\n"
        "def fail(*given, **named):\n"
        f"    raise {name}({ARGUMENTS.get(name, two_lines)})\n"
        "def reward(prompts, completions, **columns): fail()\n"
        "def scorer(text): fail()\n"
    )
    task = Evens(3)
    settings = SimpleNamespace(aggregate="best-of-n", scorer="own.py:scorer")
    aggregator = SimpleNamespace(aggregate="own.py:fail", scorer=None)
    responses = Responses(prompt="1 + 1", texts=["2", "3"], logprobs=None)
    (reward,) = given_rewards("own.py:reward", None, task)
    scorer = named_function("own.py:scorer", "--scorer")
    sampler = Recorder.__new__(Recorder)
    sampler.task = task
    calls: list[Callable[[], Any]] = [
        lambda: add_up([reward], ["?"], ["2"], {}),
        *(partial(_aggregate, s, responses) for s in (settings, aggregator)),
        lambda: sampler._scores("mine", scorer, task[0], ["2", "3"]),
    ]
    for call in calls:
        with pytest.raises(InterlaceError, match=rf"failed: own\.py, line 5: {name}") as raised:
            call()
        assert "\n" not in str(raised.value)
        assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)


def test_an_error_of_ours_is_not_called_the_users() -> None:
    assert told(ValueError("no")) == "ValueError: no"
