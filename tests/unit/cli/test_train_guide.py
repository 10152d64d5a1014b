"""The README's and docs/guide/train.md's sections on one's own model, followed to the letter: their
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
from support.text import number_folder

ROOT = Path(__file__).parents[3]
SECTIONS = {
    "README.md": "## With your own model\n",
    "docs/guide/train.md": "## Your own model, task and reward\n",
}
SMALL = {
    "warmup": [
        *("groups_per_step=2", "max_steps=1", "max_new_tokens=3"),
        *("fewest_correct=1", "temperature=5.0"),  # a random model guesses, over all its numbers
    ],
    "grpo": ["prompts_per_rollout=2", "max_steps=1", "max_new_tokens=3"],
}


def blocks(page: str) -> dict[str, str]:
    """The blocks of a page's section by language."""
    section = (ROOT / page).read_text(encoding="utf-8").split(SECTIONS[page])[1].split("\n## ")[0]
    return dict(re.findall(r"^```(\w+)\n(.*?)^```$", section, re.M | re.S))


def smaller(words: list[str]) -> list[str]:
    """A command of the page's, at a size for a test."""
    if words[0] == "train":
        stage = words[1]
        added = [f"{stage}.{option}" for option in (*SMALL[stage], "use_cpu=true")]
        return [*words, "model=models/base", *added]
    return [*words, "--max-new-tokens", "3", *(["--figures", "none"] if words[0] == "eval" else [])]


@pytest.fixture(params=SECTIONS)
def page(request, tmp_path, monkeypatch):
    """A page's blocks; its files are in a user's folder, with more problems of the same kind."""
    monkeypatch.chdir(tmp_path)
    page = blocks(request.param)
    number_folder(Path("models"), chat=False)
    columns = list(json.loads(page["json"]))
    sums = [(a, b) for a in range(1, 9) for b in range(1, 9)]
    problems = [dict(zip(columns, (f"{a} {b}", str(a + b)), strict=True)) for a, b in sums]
    Path("sums.jsonl").write_text("".join(json.dumps(problem) + "\n" for problem in problems))
    Path("rewards.py").write_text(page["python"])
    Path("mine.yaml").write_text(page["yaml"])
    return page


def test_the_page_leads_from_a_folder_to_a_table(page, capfd):
    printed = {}
    for line in page["bash"].splitlines():
        program, *words = shlex.split(line)
        assert program == "interlace"
        capfd.readouterr()
        status = main(smaller(words))
        out, err = capfd.readouterr()
        assert status == 0, err
        printed[" ".join(words[:2])] = out
    log = Path("runs/mine/grpo/metrics.jsonl").read_text().splitlines()
    entries = [json.loads(entry) for entry in log]
    own = "reward/short" if "rewards.py" in page["yaml"] else "reward/correctness"
    assert any(own in entry for entry in entries)
    assert "=== majority" in printed["generate --model"]
    assert "split test" in printed["eval --model"]
    assert "\n| pass@1" in printed["eval --model"]  # a table with a row for each metric
