"""Model Runner V2, which GPUs run by default, gives what Interlace gives: here on a CPU, where
Triton's interpreter runs its kernels, so without graphs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from served import TOLERANCE

TESTS = Path(__file__).parent


def test_runner_v2_is_the_engine(tmp_path: Path) -> None:
    paths = os.pathsep.join([str(TESTS), str(TESTS.parents[2] / "tests")])
    done = subprocess.run(
        [sys.executable, str(TESTS / "runner_v2.py"), str(tmp_path)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": paths},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for found in json.loads(done.stdout.strip().split("\n")[-1]).values():
        assert found["runner"] == "vllm.v1.worker.cpu.model_runner"
        assert found["state"] == "GroupState"
        assert found["gap"] < TOLERANCE
        assert found["blind"] > 0.01
