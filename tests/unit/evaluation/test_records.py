"""Raw generations survive the disk, and nothing damaged or contradictory is read."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlace.errors import DataFileError
from interlace.evaluation.records import GroupRecord, read_records

FULL = GroupRecord(
    task="toy",
    example_id="a",
    width=2,
    group=0,
    seed=3,
    coupled=True,
    answers=("4", None),
    correct=(True, False),
    scores=(1.0, 0.25),
    tokens=(3, 0),
    logprob_sums=(-1.5, 0.0),
    texts=("so 4", "ü\u2028\ud800"),
    finish_reasons=("stop", "length"),
    scorers={"judge": (0.5, 0.0)},
    seconds=0.125,
)
BARE = dataclasses.replace(
    FULL, logprob_sums=None, texts=None, finish_reasons=None, scorers={}, seconds=None
)


@pytest.mark.parametrize("record", [FULL, BARE])
def test_a_line_is_the_record(record):
    line = record.to_line()
    assert line.count("\n") == 1
    assert GroupRecord.from_line(line) == record


@given(st.lists(st.text(), min_size=1, max_size=4))
def test_any_text_survives(texts):
    width = len(texts)
    record = dataclasses.replace(
        BARE,
        width=width,
        answers=tuple(texts),
        texts=tuple(texts),
        correct=(False,) * width,
        scores=(0.0,) * width,
        tokens=(1,) * width,
    )
    assert GroupRecord.from_line(record.to_line()) == record
    assert record.to_line().encode("utf-8").count(b"\n") == 1


def test_files_are_read_in_the_order_of_their_keys(tmp_path):
    path = tmp_path / "records.jsonl"
    records = [
        dataclasses.replace(FULL, example_id=example, group=group)
        for example in ("a", "b")
        for group in (0, 1)
    ]
    with open(path, "w", encoding="utf-8") as stream:
        for record in (records[2], records[0], records[3], records[1]):
            stream.write(record.to_line())
    assert read_records(path) == records


def test_what_an_interrupted_writer_left(tmp_path):
    path = tmp_path / "records.jsonl"
    whole, rest = FULL.to_line(), dataclasses.replace(FULL, group=1).to_line()
    path.write_text(whole + rest[:40])
    with pytest.raises(DataFileError, match=r"line 2: the last line has no end.*drop_partial"):
        read_records(path)
    assert read_records(path, drop_partial=True) == [FULL]
    path.write_text(rest[:40])
    assert read_records(path, drop_partial=True) == []


def test_damage_in_the_middle_is_never_dropped(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text(FULL.to_line()[:40] + "\n" + FULL.to_line())
    with pytest.raises(DataFileError, match="line 1: A record is one line of JSON"):
        read_records(path, drop_partial=True)


def test_a_group_occurs_once(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text(FULL.to_line() * 2)
    with pytest.raises(DataFileError, match=r"group 0 of example 'a' at width 2 .* is there twice"):
        read_records(path)


def test_an_arm_is_coupled_or_not(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text(
        FULL.to_line() + dataclasses.replace(FULL, example_id="b", coupled=False).to_line()
    )
    with pytest.raises(DataFileError, match="mix both"):
        read_records(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 0}, "width is at least 1"),
        ({"group": -1}, "group at least 0"),
        (
            {"answers": ("4",)},
            r"answers has one entry a row \(2\); got 1 in group 0 of example 'a'",
        ),
        ({"texts": ("a", "b", "c")}, "texts has one entry"),
        ({"scorers": {"judge": (0.5,)}}, r"scorers\['judge'\] has one entry"),
        ({"scorers": {"judge": (0.5, -1.0)}}, "sigmoid"),
        ({"scores": (1.0, 1.5)}, "between 0 and 1"),
        ({"scores": (1.0, float("nan"))}, "between 0 and 1"),
        ({"tokens": (1, -1)}, "at least 0"),
        ({"logprob_sums": (0.0, float("-inf"))}, "finite"),
        ({"seconds": float("inf")}, "seconds are finite"),
    ],
)
def test_refuses_what_contradicts_itself(change, message):
    with pytest.raises(DataFileError, match=message):
        dataclasses.replace(FULL, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"v": 2}, '"v": 1'),
        ({"widht": 2}, "Did you mean 'width'"),
        ({"width": "2"}, "'width' has another type"),
        ({"width": True}, "'width' has another type"),
        ({"correct": [1, 0]}, "'correct' has another type"),
        ({"answers": "ab"}, "'answers' has another type"),
        ({"scorers": {"judge": 0.5}}, "'scorers' has another type"),
        ({"scorers": {"judge": [0.5, "x"]}}, "'scorers' has another type"),
    ],
)
def test_refuses_lines_of_another_form(change, message):
    line = json.dumps(json.loads(FULL.to_line()) | change)
    with pytest.raises(DataFileError, match=message):
        GroupRecord.from_line(line)


def test_refuses_a_line_that_lacks_a_field():
    values = json.loads(FULL.to_line())
    del values["tokens"]
    with pytest.raises(DataFileError, match="needs the field 'tokens'"):
        GroupRecord.from_line(json.dumps(values))


@pytest.mark.parametrize("line", ["", "null", "[1]", "{", '{"v": 1'])
def test_refuses_what_is_no_record(line):
    with pytest.raises(DataFileError):
        GroupRecord.from_line(line)
