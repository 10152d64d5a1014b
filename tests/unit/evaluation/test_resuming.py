"""Nothing is lost by a kill, and nothing mixed up by going on.

Mutations that were seen to fail here: a resumed call that samples its missing groups only; a
partial line that is kept; settings that are not compared; an unfinished run that is measured.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import Any

import pytest

import interlace
from interlace.batch import Tally
from interlace.engine.types import SamplingParams
from interlace.errors import DataFileError, RunError
from interlace.evaluation.run import load_run
from support.evaluation import evaluation, quick, records_without_times, result_file
from support.processes import TESTS
from support.text import number_engine, sums


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("float32", marks=pytest.mark.slow),
        "bfloat16",
        pytest.param("by-call", marks=pytest.mark.slow),
    ],
)
def test_a_run_killed_and_started_again_gives_the_result_of_an_unbroken_one(kind, tmp_path):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    # 14 groups at width 1 are the first call; the second begins at group 15 and holds 14, of width
    # 2: a kill after 20 comes in its middle.
    died = subprocess.run(
        [sys.executable, "-m", "support.evaluation", str(killed), kind, "20"],
        cwd=TESTS,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=240,
    )
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert len(records_without_times(killed)) == 20
    assert not (killed / "result.json").exists()
    with (killed / "records.jsonl").open("ab") as stream:
        stream.write(b'{"v": 1, "task": "chain-ari')  # as a kill in the middle of a line leaves it

    evaluation(killed, kind)
    evaluation(whole, kind)
    assert records_without_times(killed) == records_without_times(whole)
    assert result_file(killed) == result_file(whole)
    assert (killed / "config.json").read_bytes() == (whole / "config.json").read_bytes()
    assert sorted(os.listdir(killed)) == sorted(os.listdir(whole))


def test_a_finished_run_is_not_sampled_again(tmp_path):
    engine, seen = number_engine(), []
    quick(engine, sums(3), [1, 2], output=tmp_path, timed=1)
    before = (tmp_path / "records.jsonl").read_bytes(), (tmp_path / "timings.jsonl").read_bytes()
    again = quick(engine, sums(3), [1, 2], output=tmp_path, timed=1, progress=seen.append)
    assert not seen
    after = (tmp_path / "records.jsonl").read_bytes(), (tmp_path / "timings.jsonl").read_bytes()
    assert before == after
    assert again.get("pass@1", 1).rows == 2


def test_a_replayed_call_that_differs_is_remarked(tmp_path):
    """Another machine may round otherwise: then what was recorded stays, and a note says so."""
    notes: list[str] = []
    quick(number_engine(), sums(3), [2], output=tmp_path)
    lines = (tmp_path / "records.jsonl").read_text().splitlines(keepends=True)
    changed = json.loads(lines[0]) | {"texts": ["another", "text"]}
    (tmp_path / "records.jsonl").write_text(json.dumps(changed) + "\n" + lines[1])

    def progress(tally: Tally) -> None:
        notes[:] = tally.notes

    quick(number_engine(), sums(3), [2], output=tmp_path, progress=progress)
    assert any("other tokens than were recorded" in note for note in notes)
    assert records_without_times(tmp_path)[0]["texts"] == ["another", "text"]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"seed": 1}, "seed was 0 and is 1"),
        ({"params": SamplingParams(max_new_tokens=6, temperature=0.5)}, "sampling.temperature"),
        ({"widths": [1, 4]}, "widths was [1, 2] and is [1, 4]"),
        ({"limit": 2}, "task.problems was 3 and is 2"),
        ({"batch_rows": 8}, "batch_rows"),
        ({"arm": "other"}, "arm was 'base' and is 'other'"),
        ({"engine": number_engine(seed=5)}, "model.weights"),
        ({"engine": number_engine("bridge")}, "model.blocks was None"),
        ({"task": interlace.tasks.get_task("countdown", size=3)}, "task.name"),
        ({"task": sums(4)}, "task.problems was 3 and is 4"),
    ],
    ids=lambda value: None if isinstance(value, dict) else value,
)
def test_another_configuration_is_refused_by_name(options, named, tmp_path):
    asked = {"engine": number_engine(), "task": sums(3), "widths": [1, 2], "output": tmp_path}
    quick(**asked)
    before = (tmp_path / "records.jsonl").read_bytes()
    with pytest.raises(RunError, match="another configuration") as refused:
        quick(**asked | options)
    assert named in str(refused.value)
    assert (tmp_path / "records.jsonl").read_bytes() == before
    quick(**asked | options, overwrite=True)


def test_two_processes_do_not_write_one_folder(tmp_path):
    pytest.importorskip("fcntl")

    def second(tally: Tally) -> None:
        if tally.groups == 1:
            with pytest.raises(RunError, match="Another process is writing"):
                quick(number_engine(), sums(3), [1], output=tmp_path)

    quick(number_engine(), sums(3), [1], output=tmp_path, progress=second)


def test_every_place_that_sampled_is_noted(tmp_path, monkeypatch):
    def cut() -> None:
        lines = (tmp_path / "records.jsonl").read_text().splitlines(keepends=True)
        (tmp_path / "records.jsonl").write_text("".join(lines[:-1]))

    def environments() -> list[Any]:
        return [
            e["torch"] for e in json.loads((tmp_path / "config.json").read_text())["environments"]
        ]

    quick(number_engine(), sums(3), [1], output=tmp_path)
    here = environments()
    elsewhere = "interlace.evaluation.provenance._version"
    monkeypatch.setattr(elsewhere, lambda package: "another")
    quick(number_engine(), sums(3), [1], output=tmp_path)  # nothing is left to sample
    assert environments() == here
    cut()
    quick(number_engine(), sums(3), [1], output=tmp_path)
    assert environments() == [*here, "another"]
    assert "environment after resumption 1" in (tmp_path / "report.md").read_text()
    cut()
    quick(number_engine(), sums(3), [1], output=tmp_path)
    assert environments() == [*here, "another"]


def test_damage_before_the_last_line_is_refused(tmp_path):
    quick(number_engine(), sums(3), [1], output=tmp_path)
    lines = (tmp_path / "records.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "records.jsonl").write_text(lines[0][:50] + "\n" + "".join(lines[1:]))
    with pytest.raises(DataFileError, match="line 1"):
        quick(number_engine(), sums(3), [1], output=tmp_path)


def test_records_without_a_configuration_are_refused(tmp_path):
    quick(number_engine(), sums(3), [1], output=tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(RunError, match=r"no config\.json"):
        quick(number_engine(), sums(3), [1], output=tmp_path)


def test_an_unfinished_run_is_not_measured(tmp_path):
    quick(number_engine(), sums(3), [1], output=tmp_path)
    lines = (tmp_path / "records.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "records.jsonl").write_text("".join(lines[:2]))
    with pytest.raises(RunError, match="2 of the 3 groups"):
        load_run(tmp_path)


def test_ctrl_c_keeps_what_was_recorded(tmp_path):
    def stop(tally: Tally) -> None:
        if tally.groups == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quick(number_engine(), sums(5), [1], output=tmp_path, batch_rows=2, progress=stop)
    assert len(records_without_times(tmp_path)) == 2
    quick(number_engine(), sums(5), [1], output=tmp_path, batch_rows=2)
    assert len(records_without_times(tmp_path)) == 5
