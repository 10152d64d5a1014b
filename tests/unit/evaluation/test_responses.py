"""`interlace eval --responses`: responses made elsewhere, judged and counted as our own.

Mutations that were seen to fail here: rows declared as groups that are pooled; lines of a problem
whose order is lost; a missing problem that is left out in silence.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from interlace.cli.main import main
from interlace.errors import DataFileError
from interlace.evaluation.records import GroupRecord, read_records
from interlace.evaluation.responses import RecordedResponses
from interlace.evaluation.run import load_run
from interlace.tasks import get_task
from support.text import number_folder

SUMS = ("--task", "chain-arithmetic", "--task-options", "digits=1", "steps=1", "size=6")
QUICK = ("--figures", "none")
SAMPLED = (*SUMS, *QUICK, "--timed", "0", "--max-new-tokens", "5")


def line_of(record: GroupRecord) -> dict[str, Any]:
    assert record.texts is not None
    assert record.logprob_sums is not None
    assert record.finish_reasons is not None
    names = ("text", "tokens", "logprobs", "finish_reason")
    sums = [[total] for total in record.logprob_sums]
    rows = zip(record.texts, record.tokens, sums, record.finish_reasons, strict=True)
    responses = [dict(zip(names, row, strict=True)) for row in rows]
    return {"id": record.example_id, "responses": responses}


def write(path: Path, lines: list[Any]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def evaluated(name: str, *arguments: object) -> Any:
    assert main(["eval", *map(str, arguments), "--output", name]) == 0
    return load_run(Path(name))


@pytest.mark.parametrize("kind", ["bridge", None])
def test_figures_are_those_of_the_run_that_made_them(
    kind: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Coupled rows as groups at each of their widths; independent ones as they come, here two a
    line, of which every smaller set is drawn."""
    monkeypatch.chdir(tmp_path)
    model = number_folder(tmp_path, kind)
    ran = evaluated("ran", "--model", model, *SAMPLED, "--widths", "1,2,4")
    records = read_records(Path("ran/records.jsonl"))
    lines = [line_of(record) for record in records]
    if kind is None:
        halves = [(line["id"], line["responses"]) for line in lines]
        lines = [{"id": i, "responses": rows[at : at + 2]} for at in (0, 2) for i, rows in halves]
    rows = "independent" if kind is None else "groups"
    file = write(tmp_path / "theirs.jsonl", lines)
    again = evaluated("again", "--responses", file, "--rows", rows, *SUMS, *QUICK)
    assert again.coupled == ran.coupled == (kind is not None)
    assert len(ran.measurements) > 20
    for entry in ran.measurements:
        other = again.get(entry.metric, entry.width, entry.threshold)
        assert other.to_json() == entry.to_json()


@pytest.fixture
def task() -> Any:
    return get_task("chain-arithmetic", digits=1, steps=1, size=6)


def test_a_line_names_its_problem_by_id_or_by_what_was_asked(task: Any, tmp_path: Path) -> None:
    first, second, third, *others = list(task)
    lines: list[dict[str, Any]] = [
        {"id": first.id, "responses": ["a", "b"]},
        {"prompt": second.question, "responses": ["c", "d"]},
        {"id": 2, "prompt": task.prompt(third), "completions": [
            {"text": "e", "token_ids": [5, 6, 7], "logprobs": [-1.0, -0.5, -2.0],
             "finish_reason": "length"},
            {"text": "f", "token_ids": [5], "logprobs": [-1.0], "finish_reason": "stop"}]},
        *({"id": one.id, "responses": ["x", "y"]} for one in others),
    ]  # fmt: skip
    found = RecordedResponses(write(tmp_path / "f.jsonl", lines), task, "groups")
    assert (found.widths, found.groups) == ([2], 1)
    assert "no numbers of tokens" in found.stats.notes[0]
    from interlace.engine.types import SamplingParams

    asked = {"params": SamplingParams(width=2), "progress": lambda stats: None}
    groups = [
        group
        for _, group in found.as_completed(
            ["p"] * 3, sample_ids=[f"{one.id}/0" for one in (first, second, third)], **asked
        )
    ]
    assert [group.texts for group in groups] == [["a", "b"], ["c", "d"], ["e", "f"]]
    row = groups[2].completions[0]
    assert (len(row.token_ids), row.cumulative_logprob, row.finish_reason) == (3, -3.5, "length")


def same(task: Any, *counts: int) -> list[dict[str, Any]]:
    return [{"id": one.id, "responses": ["1"] * n} for one in task for n in counts]


Change = Callable[[list[Any]], None]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda lines: lines.pop(2), r"has none for 1 of 6, the first"),
        (lambda lines: lines[1].pop("responses"), r"line 2: `responses` is a list.*got None"),
        (lambda lines: lines[1].update(responses=[]), r"line 2: `responses` is a list"),
        (lambda lines: lines[1].update(responses="abc"), r"line 2: `responses` is a list"),
        (lambda lines: lines[1].update(responses=["a", 7]), r"line 2, response 1 is a text.*got 7"),
        (lambda lines: lines[1].update(responses=[{"tex": ""}]), r"line 2, response 0 is a text"),
        (lambda lines: lines[1].update(responses=[{"text": "", "tokens": -1}]), "at least 0"),
        (lambda lines: lines[1].update(responses=[{"text": "", "tokens": True}]), "at least 0"),
        (lambda lines: lines[1].update(responses=[{"text": "", "token_ids": 5}]), "`tokens`"),
        (lambda lines: lines[1].update(responses=[{"text": "", "logprobs": [1]}]), "at most 0"),
        (lambda lines: lines[1].update(responses=[{"text": "", "logprobs": ["a"]}]), "at most 0"),
        (lambda lines: lines[1].update(id="other"), r"line 2: it is of no problem.*'other'"),
        (lambda lines: lines[1].update(id=["a"]), r"line 2: it is of no problem"),
        (lambda lines: lines[1].pop("id"), r"line 2: a line names its problem by `id`"),
        (lambda lines: lines.insert(1, 5), r"line 2 is 5 and not an object"),
        (lambda lines: lines[1].update(responses=["1"]), r"equally many.*1 of 3.*1 of 1"),
        (lambda lines: lines.append(dict(lines[0])), r"equally many.*2 of 3.*1 of 3"),
        (lambda lines: lines[1].update(response=lines[1].pop("responses")), "Did you mean"),
    ],
)  # fmt: skip
def test_an_error_names_the_line_and_the_rule(
    task: Any, tmp_path: Path, change: Change, word: str
) -> None:
    lines: list[Any] = same(task, 3)
    change(lines)
    with pytest.raises(DataFileError, match=word):
        RecordedResponses(write(tmp_path / "f.jsonl", lines), task, "groups")


def test_widths_with_unequal_numbers_of_groups_are_refused(task: Any, tmp_path: Path) -> None:
    file = write(tmp_path / "f.jsonl", same(task, 2, 2, 4))
    with pytest.raises(DataFileError, match=r"equally many groups.*2 of 2, 1 of 4"):
        RecordedResponses(file, task, "groups")
    pooled = RecordedResponses(file, task, "independent")
    assert (pooled.widths, pooled.groups) == ([1, 2, 4, 8], 1)
    file = write(tmp_path / "f.jsonl", same(task, 10))
    assert RecordedResponses(file, task, "independent").widths == [1, 2, 4, 8, 10]


def test_a_limit_leaves_problems_out(task: Any, tmp_path: Path) -> None:
    lines = same(task, 2)
    file = write(tmp_path / "f.jsonl", lines[:4])
    assert RecordedResponses(file, task, "groups", limit=4).widths == [2]
    lines[5]["responses"] = ["1"]  # beyond
    file = write(tmp_path / "f.jsonl", lines)
    assert RecordedResponses(file, task, "groups", limit=4).widths == [2]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--responses", "f.jsonl", *SUMS], "--rows groups"),
        (["--responses", "f.jsonl", "--rows", "groups"], "which task"),
        (["--responses", "f.jsonl", "--rows", "groups", *SUMS, "--model", "tiny"], "--model"),
        (["--responses", "f.jsonl", "--rows", "groups", *SUMS, "--widths", "1,2"], "--widths"),
        (["--responses", "f.jsonl", "--rows", "groups", *SUMS, "--temperature", "0.5"],
         "--temperature"),
        (["--rows", "groups", "--model", "tiny", *SUMS], "--responses"),
        (["--responses", "no.jsonl", "--rows", "groups", *SUMS], "no.jsonl cannot be read"),
    ],
)  # fmt: skip
def test_options_that_contradict_are_refused(
    arguments: list[str], word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["eval", *arguments]) == 2
    assert word in capsys.readouterr().err.replace("\n", " ")
