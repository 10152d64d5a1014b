"""On countdown with three numbers Bridge learns in a short run what RLVR-only does not reach.

The recipe `tiny`, shortened, for fixed seeds: held-out pass@1 at width 8 against RLVR-only's, both
against the base's. The experiment with intervals is experiments/01-countdown.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from support.processes import held_out, run_program

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
    run_program("interlace.cli.main", *words, timeout=900)
    return folder / stage / "model"


@pytest.mark.parametrize("seed", [0, 1])
def test_bridge_learns_from_siblings_what_rlvr_only_does_not_reach(
    seed: int, tmp_path: Path
) -> None:
    """Fails with blocks that carry nothing between rows: both arms then gain the same."""
    mine, own = tmp_path / "bridge", f"seed={seed}"
    train(mine, "warmup", own)
    coupled = train(mine, "grpo", own)
    alone = train(tmp_path / "rlvr", "grpo", own, "attach=none")
    models = ("tiny", 1), (str(alone), 1), (str(coupled), WIDTH), (str(coupled), 1)
    base, rlvr, bridge, isolated = held_out(*models)
    assert bridge - base >= MARGIN
    assert rlvr - base < MARGIN
    assert bridge > isolated + 0.1  # the same weights, every row by itself
