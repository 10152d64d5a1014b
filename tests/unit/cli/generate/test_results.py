"""The output file: repair, resumption, refusals."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from interlace.cli.generate.lines import Results
from interlace.errors import DataFileError
from support.jsonl import read_lines

IDS = ["a", "b", 3]
SETTINGS = {"width": 2, "stop": ("x",)}


def finish(path: Path, ids: list = IDS, settings: dict = SETTINGS, **options: bool) -> int:
    """Append what is missing; gives how many lines were there."""
    with Results(path, ids, settings, **options) as results:
        before = results.done
        for name in ids[before:]:
            results.append({"id": name, "text": "é\n\u2028"})
        assert results.done == len(ids)
    return before


@pytest.fixture
def whole(tmp_path: Path) -> bytes:
    finish(tmp_path / "whole.jsonl")
    return (tmp_path / "whole.jsonl").read_bytes()


def test_lines_are_in_order_and_settings_beside_them(tmp_path: Path, whole: bytes) -> None:
    assert [line["id"] for line in read_lines_of(whole)] == IDS
    settings = json.loads((tmp_path / "whole.jsonl.settings.json").read_text())
    assert settings == {"width": 2, "stop": ["x"]}
    assert sorted(os.listdir(tmp_path)) == ["whole.jsonl", "whole.jsonl.settings.json"]


def read_lines_of(content: bytes) -> list[dict]:
    return [json.loads(line) for line in content.split(b"\n")[:-1]]


def test_a_file_cut_anywhere_is_completed_to_the_same_bytes(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "cut.jsonl"
    for size in range(len(whole) + 1):
        path.with_name("cut.jsonl.settings.json").write_text(json.dumps(SETTINGS))
        path.write_bytes(whole[:size])
        assert finish(path) == whole[:size].count(b"\n")
        assert path.read_bytes() == whole


def test_a_long_line_cut_short_is_repaired(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    finish(path, ids=["a"])
    with path.open("ab") as file:
        file.write(b'{"id": "b", "text": "' + b"x" * 300_000)
    assert finish(path, ids=["a", "b"]) == 1
    assert len(read_lines(path)) == 2


def test_new_lines_at_the_inputs_end_are_added(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    finish(path)
    assert finish(path, ids=[*IDS, "new"]) == 3
    assert [line["id"] for line in read_lines(path)] == [*IDS, "new"]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["a", "c", 3], "Line 2 of .* has the id 'b', and the input has 'c' there"),
        (["a", "b"], "Line 3 of .* has the id 3, and the input has no line at all there"),
        (["a", "b", "3"], "the input has '3' there"),
    ],
)
def test_another_input_is_refused(tmp_path: Path, ids: list, message: str) -> None:
    path = tmp_path / "out.jsonl"
    finish(path)
    before = path.read_bytes()
    with pytest.raises(DataFileError, match=message):
        Results(path, ids, SETTINGS)
    assert path.read_bytes() == before
    assert finish(path, ids=ids, overwrite=True) == 0
    assert len(read_lines(path)) == len(ids)


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    finish(path)
    message = "other settings: width was 2 and is 3; seed was None and is 1"
    with pytest.raises(DataFileError, match=message):
        Results(path, IDS, SETTINGS | {"width": 3, "seed": 1})
    assert finish(path, settings={"width": 3}, overwrite=True) == 0
    assert finish(path, settings={"width": 3}) == 3


FOREIGN = [
    pytest.param(b'{"model_type": "llama"}', id="config.json of one line"),
    pytest.param(bytes(range(256)) * 3, id="binary"),
    pytest.param(b"\x00" * 5000, id="zeros"),
    pytest.param(b"precious notes\nwithout an end", id="text"),
    pytest.param(b"", id="empty"),
    pytest.param(b'{"id": "a", "text": 1}\n{"id": "b"', id="foreign JSONL with our ids"),
    pytest.param(b"[" * 9999 + b"\n", id="deep nesting"),
    pytest.param(b'{"id": ' + b"9" * 5000 + b"}\n", id="long number"),
]


@pytest.mark.parametrize("content", FOREIGN)
def test_a_file_of_something_else_is_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(DataFileError, match=r"the file may be anything, so it is left alone"):
        Results(path, IDS, SETTINGS)
    assert path.read_bytes() == content
    assert os.listdir(tmp_path) == ["config.json"]


@pytest.mark.parametrize(
    "line",
    [b"precious notes\n", b'{"text": 1}\n', b"[1]\n", b"null\n", b"[" * 9999 + b"\n", b"\xff\n"],
)
def test_a_line_of_something_else_is_left_alone(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "out.jsonl"
    finish(path, ids=["a"])
    whole = path.read_bytes() + line + b'{"cut'
    path.write_bytes(whole)
    with pytest.raises(DataFileError, match=r"Line 2 of .* is no result of this command"):
        Results(path, IDS, SETTINGS)
    assert path.read_bytes() == whole


@pytest.mark.parametrize("settings", [b"null", b"[1]", b"{", b"\xff", b"[" * 99_999, b"9" * 5000])
def test_damaged_settings_are_an_error_with_the_way_out(tmp_path: Path, settings: bytes) -> None:
    path = tmp_path / "out.jsonl"
    finish(path)
    (tmp_path / "out.jsonl.settings.json").write_bytes(settings)
    before = path.read_bytes()
    with pytest.raises(DataFileError, match=r"settings.json cannot be read: .*--overwrite it"):
        Results(path, IDS, SETTINGS)
    assert path.read_bytes() == before
    assert finish(path, overwrite=True) == 0


def test_settings_of_something_else_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out.jsonl.settings.json").write_text('{"theme": "dark"}')
    with pytest.raises(DataFileError, match="not hold the settings of a run"):
        Results(tmp_path / "out.jsonl", IDS, SETTINGS)
    assert os.listdir(tmp_path) == ["out.jsonl.settings.json"]


def test_texts_may_hold_line_ends_of_other_kinds(tmp_path: Path) -> None:
    """Sixteen records, twelve of them with U+2028, U+2029 or U+0085 in the text."""
    path, ids = tmp_path / "out.jsonl", [f"{number}" for number in range(16)]
    with Results(path, ids, SETTINGS) as results:
        for number, name in enumerate(ids):
            results.append({"id": name, "text": "a" + "\u2028\u2029\x85 "[number % 4] + "b"})
    whole = path.read_bytes()
    assert whole.count(b"\n") == 16
    path.write_bytes(whole[:-3])
    with Results(path, ids, SETTINGS) as results:
        assert results.done == 15


def test_lines_without_their_settings_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    finish(path)
    (tmp_path / "out.jsonl.settings.json").unlink()
    with pytest.raises(DataFileError, match=r"is there, but out\.jsonl\.settings\.json is not"):
        Results(path, IDS, SETTINGS)


def test_two_runs_cannot_write_one_file(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with Results(path, IDS, SETTINGS) as first:
        first.append({"id": "a"})
        with pytest.raises(DataFileError, match="Another process is writing"):
            Results(path, IDS, SETTINGS, overwrite=True)
        first.append({"id": "b"})
    assert [line["id"] for line in read_lines(path)] == ["a", "b"]


def test_places_that_are_no_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match="no file that can be gone on with"):
        Results(tmp_path, IDS, SETTINGS)
    with pytest.raises(DataFileError, match="cannot be written"):
        Results(tmp_path / "nowhere" / "out.jsonl", IDS, SETTINGS)


def test_a_full_disk_is_explained_and_the_run_goes_on_later(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    path = tmp_path / "out.jsonl"
    whole = tmp_path / "whole.jsonl"
    finish(whole)
    with Results(path, IDS, SETTINGS) as results:
        results.append({"id": "a", "text": "é\n\u2028"})
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 5, before[1]))
        try:
            with pytest.raises(
                DataFileError, match=r"Writing to .*out.jsonl failed: .*File too large"
            ):
                results.append({"id": "b"})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not path.read_bytes().endswith(b"\n")
    assert finish(path) == 1
    assert path.read_bytes() == whole.read_bytes()
