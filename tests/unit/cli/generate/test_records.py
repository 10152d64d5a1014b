"""Prompts from a JSONL file: ids, fields, and what is wrong with a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from interlace.cli.generate.lines import calls_of, content_hash, read_records
from interlace.errors import DataFileError, GenerationError
from support.jsonl import write_lines


def encode(prompt: Any) -> list[int]:
    if not prompt:
        raise GenerationError("its prompt is empty")
    return list(range(len(prompt)))


def read(path: Path, field: str = "prompt", skip_bad: bool = False) -> tuple[list, list]:
    return read_records(path, field, encode, skip_bad)


def test_ids_are_the_lines_own_or_made_of_number_and_content(tmp_path: Path) -> None:
    lines = [
        {"id": "a", "prompt": "x", "level": 3},
        b"",
        {"prompt": "yy"},
        {"prompt": "x", "id": 7},
    ]
    records, bad = read(write_lines(tmp_path / "in", lines))
    assert bad == []
    assert [record.id for record in records] == ["a", f"3-{content_hash('yy')}", 7]
    assert [record.line for record in records] == [1, 3, 4]
    assert [record.token_ids for record in records] == [[0], [0, 1], [0]]
    assert records[0].columns == {"level": 3}


def test_repetitions_of_a_prompt_are_counted_over_the_whole_file(tmp_path: Path) -> None:
    lines = [{"prompt": p} for p in ["x", "y", "x", [1, 2], "x", [1, 2]]]
    records, _ = read(write_lines(tmp_path / "in", lines))
    assert [record.sample_id for record in records] == [0, 0, 1, 0, 2, 1]


def test_the_prompts_field_has_a_name(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "hi"}]
    path = write_lines(tmp_path / "in", [{"q": "one", "messages": messages}])
    assert read(path, field="q")[0][0].prompt == "one"
    assert read(path)[0][0].prompt == messages
    assert read(path)[0][0].columns == {"q": "one"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"prompt": "x"', "is not JSON: Expecting ',' delimiter at character 15, near"),
        (b"\xff\xfe", "is not UTF-8 at byte 1"),
        (b"[" * 100_000, "is not JSON that can be read"),
        (b'{"prompt": ' + b"9" * 10_000 + b"}", "is not JSON that can be read"),
        (b'"x"', 'is "x" and not an object'),
        (b"{}", "has no field 'prompt'; it has nothing"),
        (b'{"question": "x"}', "has no field 'prompt'; it has 'question'. --field names"),
        (b'{"prompt": ""}', "its prompt is empty"),
        (b'{"prompt": "x", "id": true}', "its id is true"),
        (b'{"prompt": "x", "id": [1]}', r"its id is \[1\]"),
        (b'{"prompt": "x", "id": "first"}', "its id 'first' is that of line 1 too"),
        (b'{"prompt": "\\ud800"}', "has half of a surrogate pair"),
    ],
)
def test_a_bad_line_is_named_or_left_out(tmp_path: Path, line: bytes, message: str) -> None:
    good = {"prompt": "x", "id": "first"}, {"prompt": "x", "id": "last"}
    path = write_lines(tmp_path / "in", [good[0], line, good[1]])
    with pytest.raises(DataFileError, match=f"line 2: {message}") as error:
        read(path)
    assert "--skip-bad" in str(error.value)
    assert len(str(error.value)) < 500
    records, bad = read(path, skip_bad=True)
    assert [record.id for record in records] == ["first", "last"]
    assert len(bad) == 1


def test_many_bad_lines_are_counted(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "in", [b"{"] * 9)
    with pytest.raises(DataFileError, match=r"(?s)9 lines of .*line 5: .*and 4 more") as error:
        read(path)
    assert "line 6" not in str(error.value)


def test_windows_ends_and_marks_of_other_systems_do_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "in"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "x"}\r\n\r\n{"prompt": "y\xe2\x80\xa8"}')
    assert [record.prompt for record in read(path)[0]] == ["x", "y\u2028"]


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match=r"nowhere.jsonl cannot be read"):
        read(tmp_path / "nowhere.jsonl")


def test_the_hash_does_not_depend_on_the_order_of_keys() -> None:
    assert content_hash({"a": 1, "b": 2}) == content_hash(json.loads('{"b": 2, "a": 1}'))


def test_calls_cover_all_records_once_and_name_their_lines(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "in", [{"prompt": "x"}] * 7)
    records, _ = read(path)
    calls = calls_of(records, 2, 3)
    assert [[job.key for job in call] for call in calls] == [[0, 1, 2], [3, 4, 5], [6]]
    assert [job.subject for call in calls for job in call] == records
    assert (calls[2][0].name, calls[2][0].width) == ("line 7", 2)
