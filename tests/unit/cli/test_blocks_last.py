"""`interlace train warmup blocks-last`: what it shows, before and after. Its gain is a slow test.

Mutations that were seen to fail here: splices that are not shown; a table of the last evaluation
alone.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from interlace.cli.main import main
from interlace.errors import ConfigError
from interlace.tasks import get_task
from interlace.training.recipe import load_recipe

SHORT = (
    *("warmup.max_steps=2", "warmup.problems=12", "warmup.groups_per_step=3"),
    *("task_options.size=9", "warmup.eval_widths=[1, 4]", "warmup.num_generations_eval=4"),
    *("warmup.use_cpu=true", "warmup.report_to=none", "warmup.disable_tqdm=true"),
)


def run(capfd: Any, *words: str) -> str:
    assert main(["train", "warmup", "blocks-last", *SHORT, *words]) == 0
    out: str = capfd.readouterr().out
    return out


def test_the_recipe_freezes_the_model_and_splices() -> None:
    recipe = load_recipe("blocks-last", ["model=mine", "task=gsm8k"])
    options = recipe.options("warmup")
    assert (recipe.model, recipe.task) == ("mine", "gsm8k")
    assert (options.train, options.splice, options.eval_widths) == ("new", 0.8, [1, 2, 4, 8, 16])
    with pytest.raises(ConfigError, match="splice_by takes one of 'task', 'lines'"):
        load_recipe("blocks-last", ["warmup.splice_by=words"]).options("warmup")


def test_a_dry_run_shows_three_rewritten_groups(
    capfd: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "500")
    out = run(capfd, f"output_dir={tmp_path / 'run'}", "--dry-run")
    titles = re.findall(r"Spliced: (.*)", out)
    assert len(titles) == 3
    assert set(map(str.strip, titles)) <= {
        e.question for e in get_task("tiny-countdown", split="train")
    }
    assert out.count("row 8") == 3
    assert not (tmp_path / "run").exists()


def test_a_dry_run_says_that_nothing_is_copied(capfd: Any, tmp_path: Path) -> None:
    """Failed: it ended without a word where groups were to be shown."""
    out = run(capfd, f"output_dir={tmp_path}", "warmup.max_new_tokens=8", "--dry-run")
    assert "Nothing to splice" in out
    assert "Spliced:" not in out


def test_it_ends_with_the_model_alone_beside_the_model_with_blocks(
    capfd: Any, tmp_path: Path
) -> None:
    out = run(capfd, f"output_dir={tmp_path}")
    lines = [
        json.loads(line)
        for line in (tmp_path / "warmup" / "metrics.jsonl").read_text().splitlines()
    ]
    before, after = (line for line in lines if "eval_width_4/pass@1" in line)
    assert (before["step"], after["step"]) == (0, 2)
    assert "optimizer step 0 -> 2" in out
    for width in (1, 4):
        cells = [f"{100 * line[f'eval_width_{width}/pass@1']:.1f}" for line in (before, after)]
        assert re.search(rf"^ *{width} +{cells[0]} -> {cells[1]} ", out, re.MULTILINE)
    assert "--widths 1,4" in out
