"""Names, options, problems, ids and prompts do not change: results of one version stand beside
those of the next, and a run that goes on meets its own problems.

A digest that differs says that a prompt, an id, a question, a reference or the splits moved. Who
means to do that says so in the changelog and writes the new digest here.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from interlace.errors import TaskError
from interlace.tasks import get_task
from support.task_files import (
    ARTICLES,
    CHOICES,
    FORMULAS,
    PUZZLES,
    WORD_PROBLEMS,
    write_jsonl,
)

TEXTS = (r"\boxed{42}", "Answer: B", "12 + 7 = 19 ; 3 * 4 = 13 yes", "<answer>7</answer>", "hm")
OWN = [{"q": f"Is {i} it?", "a": "B", "o": ["no", "yes", str(i)]} for i in range(12)]
ROWS = {
    "gsm8k": WORD_PROBLEMS,
    "math500": FORMULAS,
    "gpqa": CHOICES,
    "zebralogic": PUZZLES,
    "xsum": ARTICLES,
    "jsonl": OWN,
}


def digest(task: Any) -> str:
    told = [task.name, task.split, task.chat, task.template, repr(task)]
    for example in task:
        told += [example.to_dict(), task.prompt(example), task.reference_text(example)]
        for text in (*TEXTS, task.reference_text(example) or ""):
            verdict = task.verify(example, text)
            steps = [[step.text, step.holds] for step in task.steps(example, text)]
            told += [verdict.correct, verdict.score, verdict.answer, verdict.reason, steps]
    return hashlib.sha256(json.dumps(told, default=dict).encode()).hexdigest()[:16]


DRAWN: list[tuple[str, dict[str, Any], str]] = [
    ("countdown", {"size": 7}, "7f03de7a7ba849af"),
    (
        "countdown",
        {"size": 5, "numbers": 4, "split": "train", "seed": 3, "use_all": False},
        "7b4b574ad30bb2ae",
    ),
    (
        "countdown",
        {"size": 3, "max_number": 20, "min_target": 1, "chat": False},
        "6f75470cce6b3c3e",
    ),
    (
        "countdown",
        {"size": 2, "template": "{numbers} to {target}: {instruction}"},
        "8c351dac72866aec",
    ),
    ("tiny-countdown", {"size": 11}, "a3c899854f3ba5e3"),
    ("tiny-countdown", {"size": 4, "split": "train", "seed": 2, "chat": True}, "e861562d214b84db"),
    ("chain-arithmetic", {"size": 6}, "14afa2cb1f3b33c9"),
    (
        "chain-arithmetic",
        {"digits": 2, "steps": 5, "operations": "+-*", "seed": 1, "size": 3},
        "59b4152b0ac91b1d",
    ),
    (
        "chain-arithmetic",
        {"size": 2, "split": "all", "template": "{expression} ="},
        "57aae7424268f04f",
    ),
]
READ: list[tuple[str, dict[str, Any], str]] = [
    ("gsm8k", {}, "5e0f169345e8e838"),
    ("gsm8k", {"split": "all", "size": 2, "chat": False}, "b850f84a6c38d5b6"),
    ("math500", {}, "2fab588b49a7d85d"),
    ("gpqa", {}, "27535b0ba83cb528"),
    ("zebralogic", {}, "3315e97c212657da"),
    ("xsum", {}, "e951ada06431c276"),
    ("jsonl", {"question": "q", "answer": "a", "checker": "exact"}, "b587ef63f633a914"),
    (
        "jsonl",
        {"question": "q", "answer": "a", "checker": "choice", "split": "train"},
        "29ce4b6436cc1fe6",
    ),
    (
        "jsonl",
        {"question": "q", "answer": "a", "checker": "choice", "choices": "o"},
        "9f3dd777f41a13f4",
    ),
    (
        "jsonl",
        {"question": "q", "answer": "a", "checker": "exact", "instruction": "!", "size": 2},
        "1ae56942bdfc316c",
    ),
]


@pytest.mark.parametrize(("name", "options", "expected"), DRAWN)
def test_drawn_tasks_are_what_they_were(name: str, options: dict[str, Any], expected: str) -> None:
    assert digest(get_task(name, **options)) == expected


@pytest.mark.parametrize(("name", "options", "expected"), READ)
def test_read_tasks_are_what_they_were(
    name: str,
    options: dict[str, Any],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)  # the path is part of a jsonl task's name
    write_jsonl(tmp_path / "rows.jsonl", ROWS[name])
    given = {} if name == "jsonl" else {"data": "rows.jsonl"}
    task = get_task("jsonl:rows.jsonl" if name == "jsonl" else name, **given, **options)
    assert digest(task) == expected


def test_reasoning_gym_is_what_it_was() -> None:
    pytest.importorskip("reasoning_gym")
    assert digest(get_task("rg:chain_sum", size=3, seed=1)) == "1e06e609c86c5f80"


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("countdown", "numbers max_number min_target max_target use_all size seed"),
        ("tiny-countdown", "max_number size seed"),
        ("pair-sum", "size seed subtracts"),
        ("chain-arithmetic", "digits steps operations size seed"),
        ("gsm8k", "data size"),
        ("gpqa", "data size"),
        ("zebralogic", "data size"),
        ("xsum", "data size threshold"),
        ("rg:chain_sum", "size seed options"),
        (f"jsonl:{__file__}", "question answer checker choices data size instruction"),
    ],
)
def test_no_option_is_lost(name: str, options: str) -> None:
    with pytest.raises(TaskError, match="got 'nonsense'") as caught:
        get_task(name, nonsense=1)
    listed = str(caught.value).partition("takes the options ")[2].partition(";")[0]
    assert set(listed.split(", ")) == {*options.split(), "split", "chat", "template"}
