"""Two gloo processes train as one does: the same gradients, weights, metrics and checkpoints."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from support.processes import run_program

LAUNCH = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2")
PROGRAM = "support.processes_training"
# Of the first part alone, and each process's is another.
DIFFERS = {"block_output_over_input"}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the gradients and weights that one process computes."""
    folder = tmp_path_factory.mktemp("processes")
    run_program(PROGRAM, str(folder), timeout=600)
    return folder


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_are_one(kind: str, place: Path) -> None:
    said = run_program(*LAUNCH, "-m", PROGRAM, str(place), kind, timeout=900)
    lines: list[dict[str, Any]] = [
        json.loads(line) for line in said.splitlines() if line.startswith('{"')
    ]
    *runs, resumed, saved, guarded = lines
    assert [line["run"] for line in runs] == ["grpo", "sequence", "dropped", "warmup"]
    for line in runs:  # gradients and weights were compared within
        assert set(line["metrics off"]) <= DIFFERS
        assert line["parts"][0] != line["parts"][1]
        # Under FSDP only the reference, which is not sharded, shares prompts.
        assert kind == "fsdp" or line["prompts once"] > 0
        gathered = line["unshards"]
        assert all(0 < count <= 7 for count in gathered) == (kind == "fsdp") or not gathered
    assert [line["measured"] for line in runs] == [2, 0, 0, 0]  # evaluations while training
    assert any(0 in parts for parts in runs[2]["parts"])  # a process with nothing to learn from
    assert resumed == {"same": True, "saved": True, "metrics": True}
    assert saved == {"plain": True, "adapted": True}
    assert guarded == {"stopped": [True, True], "rounding asked": True}


COMMAND = """
import pathlib, sys
from interlace.cli.main import main
status = main(sys.argv[1:])
tasks = pathlib.Path("/proc/self/task").iterdir()
print("threads:", sorted((task / "comm").read_text().strip() for task in tasks))
sys.exit(status)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc has the names of threads")
def test_the_command_leaves_no_thread_of_the_process_group(tmp_path: Path) -> None:
    """One that lets go of a tensor while the interpreter ends aborts the process, after its work
    and once in many runs."""
    words = ["train", "warmup", "tiny", "warmup.max_steps=1", f"output_dir={tmp_path}"]
    more = ["warmup.use_cpu=true", "warmup.report_to=none", "warmup.problems=16"]
    more += ["warmup.eval_strategy=no", "warmup.eval_on_start=false"]
    program = ("--no-python", sys.executable, "-c", COMMAND)
    said = run_program(*LAUNCH, *program, *words, *more, timeout=600)
    seen = [line for line in said.splitlines() if line.startswith("threads:")]
    assert len(seen) == 2
    assert not any("gloo" in line for line in seen), seen
