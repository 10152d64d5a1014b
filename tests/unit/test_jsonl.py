"""JSON lines: what counts as a line, what is damage, and that foreign bytes stay."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlace.errors import DataFileError, RunError
from interlace.jsonl import BadLineError, Store, as_line, parse, read, read_object
from support.save_faults import in_child

ODD = "a\u2028b\u2029c\x85d\x0b\x0c\x1c\x1d\x1ee\r"
DAMAGED = [
    pytest.param(b"null", "is null and not an object", id="null"),
    pytest.param(b"[1, 2]", r"is \[1, 2\] and not an object", id="list"),
    pytest.param(b"[" * 99_999, "is not JSON", id="deep list"),
    pytest.param(b'{"a":' * 99_999, "is not JSON", id="deep object"),
    pytest.param(b'{"a": "\xff"}', "is not UTF-8 at byte 8", id="no UTF-8"),
    pytest.param(b'{"a": ' + b"9" * 5000 + b"}", "is not JSON", id="5,000 digits"),
    pytest.param(b'{"a": 1', "is not JSON", id="cut"),
    pytest.param(b"\x00" * 64, "is not JSON", id="zeros"),
    pytest.param(b"", "is not JSON", id="empty"),
]


def write(path: Path, *values: dict) -> None:
    with Store(path) as store:
        store.begin()
        for value in values:
            store.append(value)


def objects(path: Path, own: bool = True) -> list[dict]:
    return [value for _, value in read(path, own=own)]


@pytest.mark.parametrize(("content", "message"), DAMAGED)
def test_damage_is_one_error_with_its_line(content: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(BadLineError, match=message):
        parse(content)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n' + content + b'\n{"a": 2}\n')
    for own in (True, False) if content else (True,):
        with pytest.raises(RunError, match=rf"a.jsonl, line 2 {message}"):
            list(read(path, RunError, own=own))
    path.write_bytes(content)
    with pytest.raises(RunError, match=rf"a.jsonl cannot be read: it {message}.*Begin anew."):
        read_object(path, RunError, "Begin anew.")


def test_only_newlines_end_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write(path, {"text": ODD}, {"text": ODD * 2})
    assert [value["text"] for value in objects(path)] == [ODD, ODD * 2]
    assert path.read_bytes().count(b"\n") == 2
    plain = json.dumps({"text": ODD}, ensure_ascii=False).encode()  # of another writer
    path.write_bytes(plain + b"\n" + plain)
    assert [value["text"] for value in objects(path, own=False)] == [ODD, ODD]


@pytest.mark.parametrize("steering", ["\x7f", "\x9b2J", "\u202e", "\u2066", "\u2028", "\ud800"])
def test_a_line_steers_no_terminal(steering: str) -> None:
    """`interlace generate --input` prints lines where no --output is given."""
    line = as_line({"text": f"é{steering}"})
    assert line.isascii()
    assert parse(line.encode()) == {"text": f"é{steering}"}


@given(st.lists(st.text(st.characters()), max_size=5))
def test_any_text_comes_back(texts: list[str]) -> None:
    line = as_line({"texts": texts})
    assert line.count("\n") == 1
    assert parse(line.encode()) == {"texts": texts}


def test_a_line_is_json_whatever_the_numbers() -> None:
    line = as_line({"a": [float("nan"), (1.5, float("inf"))], "b": "é\n"})
    assert json.loads(line) == {"a": [None, [1.5, None]], "b": "é\n"}


def test_a_file_cut_anywhere_loses_its_last_line_alone(tmp_path: Path) -> None:
    """Half a character at the end is a part of a line, and no damage."""
    path = tmp_path / "a.jsonl"
    write(path, {"text": "é\u2028"}, {"text": "😀"})
    whole = path.read_bytes()
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        count = whole[:size].count(b"\n")
        assert len(objects(path)) == count
        with Store(path) as store:
            store.begin()
            assert len(objects(path)) == count
            for text in ["é\u2028", "😀"][count:]:
                store.append({"text": text})
        assert path.read_bytes() == whole


def test_a_users_file_may_have_a_mark_blank_lines_and_no_last_end(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\n \n{"a": 2}')
    assert list(read(path)) == [(1, {"a": 1}), (4, {"a": 2})]
    path.write_bytes(b'{"a": 1}\n\xef\xbb\xbf{"a": 2}\n')
    with pytest.raises(DataFileError, match="line 2 is not JSON"):
        list(read(path))


def test_opening_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"precious\nnotes")
    with Store(path) as store, pytest.raises(RuntimeError, match="begin comes before"):
        store.append({})
    assert path.read_bytes() == b"precious\nnotes"


def test_two_writers_are_refused_and_a_killed_one_keeps_nobody_out(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    path = tmp_path / "a.jsonl"
    with Store(path) as store:
        store.begin()
        with pytest.raises(RunError, match="Another process is writing"):
            Store(path, RunError)

    def killed() -> None:
        held = Store(path)
        held.begin()
        held.append({"a": 1})
        os.kill(os.getpid(), signal.SIGKILL)

    assert not in_child(killed)
    write(path, {"a": 2})
    assert objects(path) == [{"a": 1}, {"a": 2}]
