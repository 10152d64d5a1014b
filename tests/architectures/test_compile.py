"""torch.compile(fullgraph=True) with groups: forward, backward, single layers, generate."""

from __future__ import annotations

import pytest

from support.compiled import CASES
from support.processes import run_program

PAIRS = [
    *((case, name) for case in ("inference", "training") for name in ("llama", "qwen3", "gemma3")),
    ("layers", "llama"),
    ("scores", "llama"),
    ("generation", "llama"),
    ("generation", "gemma3"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("case", "name"), PAIRS)
def test_compiled_equals_eager(case: str, name: str) -> None:
    run_program("support.compiled", case, name, timeout=900)


def test_every_case_is_run() -> None:
    assert {case for case, _ in PAIRS} == set(CASES)
