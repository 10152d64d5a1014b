"""docs/guide/train.md's section on one's own model, task and reward, followed to the letter: its
files and commands, on a tiny random model from a folder, with smaller sizes added.

Mutations that were seen to fail here: a misspelt key in the page's recipe; a reward of another name
than the recipe's; an evaluation of a folder that training does not write.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from interlace.cli.main import main
from support.number_model import number_folder

PAGE = Path(__file__).parents[3] / "docs" / "guide" / "train.md"
TITLE = "## Your own model, task and reward\n"
SMALL = {
    "warmup": [
        *("groups_per_step=2", "max_steps=1", "max_new_tokens=3"),
        *("fewest_correct=1", "temperature=5.0"),  # a random model guesses, over all its numbers
    ],
    "grpo": ["prompts_per_rollout=2", "max_steps=1", "max_new_tokens=3"],
}


def blocks() -> dict[str, str]:
    """The section's blocks by language."""
    section = PAGE.read_text(encoding="utf-8").split(TITLE)[1].split("\n## ")[0]
    return dict(re.findall(r"^```(\w+)\n(.*?)^```$", section, re.M | re.S))


def smaller(words: list[str]) -> list[str]:
    """A command of the page's, at a size for a test."""
    if words[0] == "train":
        stage = words[1]
        added = [f"{stage}.{option}" for option in (*SMALL[stage], "use_cpu=true")]
        return [*words, "model=models/base", *added]
    return [*words, "--max-new-tokens", "3", *(["--figures", "none"] if words[0] == "eval" else [])]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A user's folder, with the page's files, and more problems of the page's kind."""
    monkeypatch.chdir(tmp_path)
    page = blocks()
    number_folder(Path("models"), chat=False)
    columns = list(json.loads(page["json"]))
    sums = [(a, b) for a in range(1, 9) for b in range(1, 9)]
    problems = [dict(zip(columns, (f"{a} {b}", str(a + b)), strict=True)) for a, b in sums]
    Path("sums.jsonl").write_text("".join(json.dumps(problem) + "\n" for problem in problems))
    Path("rewards.py").write_text(page["python"])
    Path("mine.yaml").write_text(page["yaml"])
    return tmp_path


def test_the_page_leads_from_a_folder_to_a_table(folder, capfd):
    printed = {}
    for line in blocks()["bash"].splitlines():
        program, *words = shlex.split(line)
        assert program == "interlace"
        capfd.readouterr()
        status = main(smaller(words))
        out, err = capfd.readouterr()
        assert status == 0, err
        printed[" ".join(words[:2])] = out
    log = (folder / "runs" / "mine" / "grpo" / "metrics.jsonl").read_text().splitlines()
    entries = [json.loads(entry) for entry in log]
    assert any("reward/short" in entry for entry in entries)
    assert "=== majority" in printed["generate --model"]
    assert "split test" in printed["eval --model"]
    assert "| width = k | pass@1 | maj@k |" in printed["eval --model"]
