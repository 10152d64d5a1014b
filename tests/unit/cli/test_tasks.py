"""`interlace tasks`: the table, and one task."""

from __future__ import annotations

from pathlib import Path

import pytest

from interlace.cli.main import main
from interlace.tasks import get_task, list_tasks
from support.task_files import WORD_PROBLEMS, write_jsonl


@pytest.fixture
def show(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "80")

    def call(*arguments: str) -> str:
        assert main(["tasks", *arguments]) == 0
        return capsys.readouterr().out

    return call


@pytest.mark.parametrize("arguments", [(), ("list",)])
def test_the_table_names_every_task(show, arguments: tuple[str, ...]) -> None:
    lines = show(*arguments).splitlines()
    first_words = [line.split(" ")[0] for line in lines]
    for info in list_tasks():
        line = lines[first_words.index(info.name)]
        assert info.source in line
        assert line.rstrip().endswith(info.extra)
    assert max(map(len, lines)) <= 80


def test_show_prints_an_example_and_two_verdicts(show) -> None:
    out = show("show", "chain-arithmetic", "--option", "digits=2", "--option", "size=3")
    task = get_task("chain-arithmetic", digits=2, size=3)
    assert f"chain-arithmetic, split test: {len(task)} problems" in out
    assert task[0].id in out
    assert f"user: {task[0].question}" in out
    right, wrong = out.split("verdict\n")[1:]
    assert "correct    yes" in right
    assert right.count("holds: ") == 3
    assert "correct    no" in wrong
    assert "answer     none" in wrong


def test_a_name_alone_shows_the_task(show) -> None:
    few = ("--option", "size=3")
    assert show("chain-arithmetic", *few) == show("show", "chain-arithmetic", *few)


def test_show_judges_a_text(show, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", WORD_PROBLEMS)
    text = "2450 - 1200 = 1250, so [bold]it is $1,250[/bold]"
    out = show("show", "gsm8k", "--data", path, "--index", "1", "--text", text)
    assert out.count("verdict\n") == 1
    assert text in out  # as written: nothing in it is markup
    assert "answer     1250" in out
    assert "step       holds: 2450 - 1200 = 1250" in out


def test_show_passes_options_on(show) -> None:
    options = ("--option", "size=3", "--option", "template={numbers}!")
    out = show("show", "countdown", "--split", "train", *options)
    assert "split train" in out
    assert "user: [" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "countdwn"], "Did you mean 'countdown'"),
        (["show", "countdown", "--option", "nubmers=4"], "Did you mean 'numbers'"),
        (["show", "countdown", "--option", "numbers"], "--option takes NAME=VALUE"),
        (["show", "countdown", "--option", "size=2", "--index", "2"], "from 0 to 1; got 2"),
        (
            ["show", "countdown", "--split", "validation"],
            "--split takes one of 'train', 'test', 'all'; got 'validation'",
        ),
        (["show", "jsonl:absent.jsonl"], "there is no 'absent.jsonl'"),
        (["show", "countdown", "--indx", "1"], "has no option '--indx'"),
        (["show"], "Say which task"),
        (["shwo"], "There is no task 'shwo'"),
        (["shwo", "countdown"], "Say which task"),
    ],
)
def test_mistakes_are_explained(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["tasks", *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err
