"""On countdown with three numbers Bridge learns in a short run what RLVR-only does not reach.

The recipe `tiny`, shortened, for fixed seeds: held-out pass@1 at width 8 against RLVR-only's, both
against the base's. The experiment with intervals is experiments/01-countdown.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import interlace
from interlace.tasks import get_task

pytestmark = pytest.mark.slow

WIDTH = 8
MARGIN = 0.18  # of held-out pass@1 over the base's, which only siblings give in so few rollouts
SHORT = [
    "warmup.problems=600",
    "grpo.width=8",
    "grpo.max_steps=160",  # 40 rollouts
    "warmup.report_to=none",
    "grpo.report_to=none",
    "warmup.disable_tqdm=true",
    "grpo.disable_tqdm=true",
]


def train(folder: Path, stage: str, *overrides: str) -> Path:
    """A stage in a process of its own, as a user runs it: without the tests' shape checks."""
    words = ["train", stage, "tiny", *SHORT, f"output_dir={folder}", *overrides]
    subprocess.run(
        [sys.executable, "-m", "interlace.cli.main", *words],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        check=True,
        timeout=900,
    )
    return folder / stage / "model"


def held_out(source: str | Path, width: int) -> float:
    """pass@1 of the 395 held-out problems, eight rows each."""
    task = get_task("tiny-countdown")
    engine = interlace.Engine(*interlace.load(source), max_rows=512)
    params = interlace.SamplingParams(width=width, max_new_tokens=40, seed=7)
    examples = [example for example in task for _ in range(WIDTH // width)]
    groups = engine.generate([task.prompt(example) for example in examples], params)
    rows = [(e, text) for e, group in zip(examples, groups, strict=True) for text in group.texts]
    return sum(task.verify(example, text).correct for example, text in rows) / len(rows)


@pytest.fixture(scope="module")
def base() -> float:
    return held_out("tiny", 1)


@pytest.mark.parametrize("seed", [0, 1])
def test_bridge_learns_from_siblings_what_rlvr_only_does_not_reach(
    seed: int, base: float, tmp_path: Path
) -> None:
    """Fails with blocks that carry nothing between rows: both arms then gain the same."""
    mine, own = tmp_path / "bridge", f"seed={seed}"
    train(mine, "warmup", own)
    coupled = train(mine, "grpo", own)
    alone = train(tmp_path / "rlvr", "grpo", own, "attach=none")
    together = held_out(coupled, WIDTH)
    assert together - base >= MARGIN
    assert held_out(alone, 1) - base < MARGIN
    assert together > held_out(coupled, 1)  # the same weights, every row by itself
