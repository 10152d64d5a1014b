"""How much of the package one prompt and one optimizer step pass.

The count crept up unseen, and each file is a hop that a reader has to follow. Fails where a step
asks a further file for something; see docs/measurements.md.
"""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "trace.py"


@pytest.fixture(scope="module")
def trace() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


@pytest.mark.parametrize(("what", "most"), [("one_prompt", 12), ("one_step", 25)])
def test_files_that_are_passed(trace: dict[str, Any], what: str, most: int) -> None:
    files = {code.co_filename for code in trace[what]()}
    assert len(files) <= most, sorted(files)
