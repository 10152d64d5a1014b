"""Blocks last, as a user runs it: the packaged RLVR model gets blocks and gains by them.

The experiment with intervals is experiments/07-blocks-last.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from support.processes import held_out, run_program

pytestmark = pytest.mark.slow

GAIN = 0.15  # of held-out pass@1 at width 8; seen: .25
LOSS = 0.03  # at width 1; seen: none


def test_the_packaged_model_gains_at_width_8_and_loses_nothing_alone(tmp_path: Path) -> None:
    """Fails without the splice: the plain warm-up gains .06."""
    words = ["train", "warmup", "blocks-last", f"output_dir={tmp_path}"]
    more = ["warmup.eval_strategy=no", "warmup.eval_on_start=false"]
    quiet = ["warmup.report_to=none", "warmup.disable_tqdm=true", "warmup.use_cpu=true"]
    run_program("interlace.cli.main", *words, *more, *quiet, timeout=900)
    trained = str(tmp_path / "warmup" / "model")
    alone, coupled, isolated = held_out(("tiny-rlvr", 1), (trained, 8), (trained, 1))
    assert coupled - alone >= GAIN
    assert isolated - alone >= -LOSS
