"""Compiled, the model gives what it gives eagerly."""

from __future__ import annotations

from pathlib import Path

from compare import largest_gap
from served import TOLERANCE, exported, prompts, runner_of, sampled, served


def test_compiled_is_eager(tmp_path: Path) -> None:
    model = exported(tmp_path)
    llm = served(tmp_path, enforce_eager=False)
    outputs = sampled(llm, prompts(5, longest=150, seed=3), [8, 1, 4, 2, 8])
    assert largest_gap(model, outputs) < TOLERANCE
    decoder = runner_of(llm).get_model().model
    assert decoder.compiled  # else this test would compare eager with eager
