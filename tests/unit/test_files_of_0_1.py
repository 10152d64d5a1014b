"""What version 0.1 wrote: it loads and goes on, or is refused with the way out.

`tests/data/v0.1` was written by the code of the last commit before 0.2 (4b0cfe3) on a tiny random
model: saved blocks, a full save, a recipe with the run that it began (one checkpoint of two), and
outputs of `interlace generate` and `interlace eval` that were cut before their end. Paths of the
machine that wrote them were replaced.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import interlace
from interlace.cli.main import main
from interlace.errors import CheckpointError, LoadError
from support.saves import assert_same_weights, weights
from support.training import read_lines

DATA = Path(__file__).parents[1] / "data" / "v0.1"


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of everything, in which the test runs."""
    folder = tmp_path / "v0.1"
    shutil.copytree(DATA, folder)
    monkeypatch.chdir(folder)
    return folder


def test_saves_load(old: Path) -> None:
    full, tokenizer = interlace.load(old / "full")
    assert tokenizer("3 + 4").input_ids
    blocks, _ = interlace.load(old / "blocks", base=old / "full" / "base")
    assert_same_weights(weights(blocks), weights(full))
    ids = torch.arange(3, 21).view(6, 3)
    with torch.no_grad():
        coupled, alone = full(ids, groups=interlace.Groups(3)).logits, full(ids).logits
    assert (coupled - alone).abs().max() > 0.05, "the blocks do something"
    with pytest.raises(LoadError, match="If it has moved, say where with base="):
        interlace.load(old / "blocks")  # the base that it names is gone
    other, _ = interlace.load(old / "full" / "base")
    with torch.no_grad():
        other.get_input_embeddings().weight.add_(0.5)
    with pytest.raises(CheckpointError, match="another base model"):
        interlace.load(old / "blocks", base=other, tokenizer=tokenizer)


def test_a_save_is_replaced_by_one_of_today(old: Path) -> None:
    model, tokenizer = interlace.load(old / "full")
    interlace.save(model, old / "full", full=True, tokenizer=tokenizer)
    again, _ = interlace.load(old / "full")
    assert_same_weights(weights(again), weights(model))
    assert not [p for p in (old / "full").iterdir() if p.name.startswith(".")]


def test_a_recipe_with_rollouts_is_refused_with_the_new_name(
    old: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "grpo", "recipe.yaml"]) != 0
    assert "'rollouts'. It is called num_generations now" in capsys.readouterr().err


def test_a_run_goes_on_once_its_recipe_has_the_new_name(old: Path) -> None:
    recipe = old / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("rollouts:", "num_generations:"))
    before = read_lines(old / "run" / "grpo" / "metrics.jsonl")
    assert main(["train", "grpo", "recipe.yaml"]) == 0
    metrics = read_lines(old / "run" / "grpo" / "metrics.jsonl")
    assert metrics[0] == before[0], "the first step was not made again"
    assert [line["step"] for line in metrics] == [1, 2]
    assert (old / "run" / "grpo" / "checkpoint-2").is_dir()
    model, _ = interlace.load(old / "run" / "grpo" / "model", base=old / "full" / "base")
    assert interlace.attached.is_attached(model)


def test_generated_lines_go_on(old: Path) -> None:
    output = old / "generated.jsonl"
    before = output.read_text()
    options = "--model full --width 3 --max-new-tokens 5 --seed 1 --batch-size 1"
    files = "--input prompts.jsonl --output generated.jsonl"
    assert main(["generate", *options.split(), *files.split()]) == 0
    assert output.read_text().startswith(before)
    assert [line["id"] for line in read_lines(output)] == ["a", "b", "c"]


def test_an_evaluation_goes_on(old: Path) -> None:
    folder = old / "evaluation"
    config = folder / "config.json"
    config.write_text(config.read_text().replace("HERE", str(old)))
    before = (folder / "records.jsonl").read_text()
    task = "--task chain-arithmetic --task-options digits=1 steps=1 size=3 --split test"
    sizes = "--widths 1,3 --samples 6 --max-new-tokens 5 --limit 3"
    assert (
        main(["eval", "--model", "full", *task.split(), *sizes.split(), "--output", "evaluation"])
        == 0
    )
    records = (folder / "records.jsonl").read_text()
    assert records.startswith(before)
    assert len(records.splitlines()) == len(before.splitlines()) + 2
    assert json.loads((folder / "result.json").read_text())
