"""A file of prompts to a file of lines: what is read, what is gone on with, what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from interlace.cli.generate.lines import Results, calls_of, content_hash, read_records
from interlace.errors import DataFileError, GenerationError
from support.task_files import read_lines, write_lines

# Prompts ----------------------------------------------------------------------------------------


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


# Lines ------------------------------------------------------------------------------------------


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
    with pytest.raises(DataFileError, match=r"The file may be anything, so it is left alone"):
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
    with pytest.raises(DataFileError, match=r"exists, but out\.jsonl\.settings\.json, .* does not"):
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
    with pytest.raises(DataFileError, match="is no file that lines can be added to"):
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
