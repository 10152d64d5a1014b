"""Model Runner V2 on a CPU, in a process of its own: Triton's interpreter runs its kernels.

Prints, as JSON, which runner and state ran and the largest gap to Interlace's log-probabilities.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

os.environ |= {"TRITON_INTERPRET": "1", "VLLM_USE_V2_MODEL_RUNNER": "1"}

import triton.backends

# vLLM asks whether Triton has a backend for CPUs, and not whether its interpreter is on.
_driver = SimpleNamespace(is_active=lambda: False)
triton.backends.backends["cpu"] = SimpleNamespace(driver=_driver, compiler=None)

from compare import largest_gap
from served import exported, prompts, runner_of, sampled, served

WIDTHS = [8, 1, 4, 2]


def main(folder: Path) -> None:
    """Sample groups of several widths, with prompts in chunks and rows that end early."""
    found = {}
    for alone in ("block", "skip"):
        model = exported(folder / alone, alone=alone)
        llm = served(folder / alone)
        runner = runner_of(llm)
        outputs = sampled(llm, prompts(4, longest=120), WIDTHS)
        found[alone] = {
            "runner": type(runner).__module__,
            "state": type(runner.model_state).__name__,
            "gap": largest_gap(model, outputs),
            "blind": largest_gap(model, outputs, blind_to_ends=True),
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
