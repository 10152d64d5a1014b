"""A stage from its recipe: what its user is told, once."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

from interlace.errors import ConfigError
from interlace.training.arguments import GroupArguments
from interlace.training.recipe import Recipe, parse_recipe
from interlace.training.run import build_model, train
from support.text import number_folder
from support.training import read_lines


def remarkable(folder: Path) -> Recipe:
    """Large fresh blocks under GRPO, and a reward that rows get by copying one another."""
    grpo: dict[str, Any] = {
        "prompts_per_rollout": 2,
        "num_generations": 4,
        "width": 4,
        "max_steps": 1,
        "max_new_tokens": 3,
        "rewards": {"self-consistency": 1.0},
        "save_strategy": "no",
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
    }
    return parse_recipe(
        {
            "model": str(number_folder(folder)),
            "attach": "bridge",
            "task": "chain-arithmetic",
            "task_options": {"digits": 1, "steps": 1, "size": 8},
            "output_dir": str(folder / "run"),
            "grpo": grpo,
        }
    )


@pytest.mark.parametrize(("process", "told"), [(0, True), (1, False)])
def test_only_the_first_process_says_what_holds_in_all(
    process: int, told: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails if the other processes of a run warn, or note, too."""
    recipe = remarkable(tmp_path)
    monkeypatch.setattr(GroupArguments, "process_index", process, raising=False)
    notes: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        train(recipe, "grpo", note=notes.append)
    said = [str(warning.message) for warning in caught]
    for words in ("The blocks add", "self-consistency reward without correctness"):
        assert any(words in text for text in said) == told, words
    assert any("starts from fresh blocks" in text for text in notes) == told


@pytest.mark.filterwarnings("ignore:The blocks add")
def test_a_stage_measures_on_the_split_that_it_does_not_train_on(tmp_path: Path) -> None:
    recipe = remarkable(tmp_path)
    assert recipe.grpo is not None
    recipe.grpo.update(
        {"rewards": {"correctness": 1.0}, "eval_strategy": "steps", "eval_widths": [1, 2]}
    )
    train(recipe, "grpo", note=lambda text: None)
    trained, measured = read_lines(tmp_path / "run" / "grpo" / "metrics.jsonl")
    assert "pass@1" in trained
    assert {"eval_width_1/pass@1", "eval_width_2/vote", "eval_width_2/coverage"} <= set(measured)
    recipe.task_options["split"] = "all"
    with pytest.raises(ConfigError, match=r"grpo.eval_strategy measures .* Set task_options.split"):
        train(recipe, "grpo", restart=True, note=lambda text: None)


@pytest.mark.filterwarnings("ignore:The blocks add")
def test_blocks_that_are_there_already_are_told_of(tmp_path: Path) -> None:
    """Failed: the table of a warm-up called a model with trained blocks the model alone."""
    values = {"task": "tiny-countdown", "output_dir": "unused", "warmup": {}}
    notes: list[str] = []
    for folder in (number_folder(tmp_path), number_folder(tmp_path, "bridge")):
        build_model(parse_recipe({**values, "model": str(folder)}), "warmup", None, notes.append)
    assert [text.partition(":")[0] for text in notes] == [f"{folder} has blocks already"]
