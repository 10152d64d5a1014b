"""Files of the user's own: run once, as proper modules, and told about in one line."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from interlace.cli.main import main
from interlace.errors import ConfigError, TaskError
from interlace.tasks import get_task
from interlace.user_code import named_function, named_object, told

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


def test_an_error_of_ours_is_not_called_the_users() -> None:
    assert told(ValueError("no")) == "ValueError: no"
