"""Rows from files and from the hub's cache."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from interlace.errors import TaskError
from interlace.tasks import Example, Verdict
from interlace.tasks.drawn import split_of
from interlace.tasks.sources import HubSource, Row, SourcedTask, column, read_jsonl
from support.task_files import write_jsonl

HUB = HubSource("nobody/nothing-here", {"train": "train", "test": "test"}, note="A note.")
ROWS = [{"q": f"Problem {i}?", "a": str(i)} for i in range(60)]


class Own(SourcedTask):
    def to_example(self, row: Row) -> tuple[str, str, Mapping[str, Any]]:
        return row["q"], row["a"], {}

    def check(self, example: Example, answer: str) -> Verdict:
        return Verdict(answer == example.answer, 0.0, answer, "")


def load(data: str | None, source: HubSource = HUB, **options: Any) -> tuple[list[str], str]:
    task = Own("name", source, data=data, **options)
    return [example.answer for example in task], task.split


def test_a_file_is_taken_whole_in_its_order(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", ROWS)
    assert load(path) == ([str(i) for i in range(60)], "all")
    assert load(path, size=3) == (["0", "1", "2"], "all")


def test_a_file_is_divided_by_the_hash_of_the_question(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", ROWS)
    train, test = load(path, split="train")[0], load(path, split="test")[0]
    assert sorted([*train, *test], key=int) == [str(i) for i in range(60)]
    assert test == [str(i) for i in range(60) if split_of(f"Problem {i}?") == "test"]
    # blanks do not move a problem to the other side
    spaced = [{"q": row["q"].replace(" ", "\n  "), "a": row["a"]} for row in ROWS]
    assert load(write_jsonl(tmp_path / "spaced.jsonl", spaced), split="test")[0] == test


def test_a_problem_that_comes_twice_counts_once(tmp_path: Path) -> None:
    again = [*ROWS[:2], {"q": " Problem  0? ", "a": ROWS[0]["a"]}, ROWS[2]]
    assert load(write_jsonl(tmp_path / "rows.jsonl", again))[0] == ["0", "1", "2"]


def test_too_few(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", ROWS[:2])
    with pytest.raises(TaskError, match=r"has 2 distinct problems in the split 'all'.*; 3 asked"):
        load(path, size=3)
    with pytest.raises(TaskError, match="0 distinct problems"):
        load(write_jsonl(tmp_path / "empty.jsonl", []))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"q": 1}\n\n{"q"\n', "line 3 is not JSON"),
        (b"[1]\n", r"line 1 is \[1\] and not an object"),
        (b"[" * 100_000, "line 1 is not JSON"),
        (b"\xff\xfe", "line 1 is not UTF-8 at byte 1"),
    ],
)
def test_broken_files(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "broken.jsonl"
    path.write_bytes(content)
    with pytest.raises(TaskError, match=message):
        read_jsonl(str(path))


def test_lines_end_at_newlines_only(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"q": "one\u2028two"}\r\n{"q": "three"}', encoding="utf-8")
    assert [row["q"] for row in read_jsonl(str(path))] == ["one\u2028two", "three"]


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="cannot be read"):
        load(str(tmp_path / "absent.jsonl"))
    with pytest.raises(TaskError, match="a JSONL file or a hub id 'owner/name'; 'what' is neither"):
        load("what")


def test_columns_by_any_of_their_names() -> None:
    assert column({"b": 0}, ["a", "b"]) == 0
    with pytest.raises(TaskError, match="the column 'a' or 'b'; this one has 'c', 'd'"):
        column({"c": 1, "d": 2}, ["a", "b"])
    with pytest.raises(TaskError, match="needs the column 'a'"):
        column({"a": None}, ["a"])


def test_the_hub_out_of_reach_is_explained() -> None:
    with pytest.raises(TaskError, match=r"'nobody/nothing-here' could not.*A note\. Offline, pass"):
        load(None)


def test_a_split_that_the_hub_has_not() -> None:
    source = HubSource("nobody/nothing-here", {"test": "train"})
    with pytest.raises(TaskError, match="has the split 'test' only; got 'train'"):
        load(None, source, split="train")


def test_the_hub_is_read_through_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of files is what `datasets` accepts in place of a hub id."""
    write_jsonl(tmp_path / "train.jsonl", ROWS[:4])
    write_jsonl(tmp_path / "test.jsonl", ROWS[4:9])
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    source = HubSource(str(tmp_path), {"train": "train", "test": "test"})

    def answers(split: Any) -> list[str]:
        found, chosen = load(None, source, split=split)
        assert chosen == (split or "test")
        return found

    assert answers(None) == answers("test") == ["4", "5", "6", "7", "8"]
    assert answers("train") == ["0", "1", "2", "3"]
    assert sorted(answers("all")) == sorted(str(i) for i in range(9))
