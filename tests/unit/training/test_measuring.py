"""Evaluation while training: what is measured, when, and that it changes nothing.

Mutations that were seen to fail here: seeds that follow the step; an evaluation that is not in
metrics.jsonl; a resumed run that measures twice.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from interlace.errors import ConfigError
from support.training import Evens, at_step, grpo, metrics, same_bits, warmup, weights

EVAL: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": 2, "eval_widths": [1, 3]}
EVENS = {"eval_dataset": Evens(5)}


class Stop(Exception):
    """Stands for whatever ends a run."""


def stop() -> None:
    raise Stop


def measured(folder: Path) -> list[dict[str, float]]:
    return [line for line in metrics(folder) if any(name.startswith("eval_") for name in line)]


def test_an_evaluation_measures_every_width_and_trains_on_as_before(tmp_path: Path) -> None:
    plain = grpo(tmp_path / "plain", max_steps=4)
    plain.run()
    trainer = grpo(tmp_path / "measured", max_steps=4, **EVAL, **EVENS)
    trainer.run()
    found = measured(tmp_path / "measured")
    assert [line["step"] for line in found] == [2, 4]
    for width in (1, 3):
        for name in ("pass@1", "vote", "coverage", "reward", "reward/correctness"):
            assert 0 <= found[0][f"eval_width_{width}/{name}"] <= 1 or name == "reward"
        rows = found[0][f"eval_width_{width}/tokens/rollout"]
        assert rows / found[0][f"eval_width_{width}/completion_length"] == pytest.approx(5 * width)
    rest = [line for line in metrics(tmp_path / "measured") if line not in found]
    assert rest == metrics(tmp_path / "plain")
    assert len(same_bits(weights(trainer.model), weights(plain.model))) == len(weights(plain.model))


def test_the_same_model_gives_the_same_numbers(tmp_path: Path) -> None:
    trainer = grpo(tmp_path, **EVENS, num_generations_eval=6)
    first = trainer.evaluate()
    assert first == trainer.evaluate()
    assert {name.split("/")[0] for name in first} == {f"eval_width_{w}" for w in (1, 2, 3, 6)}
    rows = first["eval_width_2/tokens/rollout"] / first["eval_width_2/completion_length"]
    assert rows == pytest.approx(5 * 6)
    other = trainer.evaluate({"a": Evens(3), "b": Evens(4)}, metric_key_prefix="eval")
    assert {name.rpartition("_width")[0] for name in other} == {"eval_a", "eval_b"}


def test_I10_a_resumed_run_measures_what_the_uninterrupted_one_does(tmp_path: Path) -> None:
    options = EVAL | EVENS | {"max_steps": 6, "save_steps": 2, "eval_steps": 1}
    grpo(tmp_path / "whole", **options).run()
    with pytest.raises(Stop):
        grpo(tmp_path / "killed", callbacks=[at_step(4, stop)], **options).run()
    grpo(tmp_path / "killed", **options).run()
    assert metrics(tmp_path / "killed") == metrics(tmp_path / "whole")


def test_the_warm_up_measures_too(tmp_path: Path) -> None:
    trainer = warmup(tmp_path, eval_widths=[2], **EVENS)
    found = trainer.evaluate()
    assert 0 <= found["eval_width_2/pass@1"] <= found["eval_width_2/coverage"] <= 1
    assert trainer.train().global_step == 1


def test_what_is_missing_is_said_at_construction(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="eval_strategy=steps needs eval_dataset"):
        grpo(tmp_path, **EVAL)
    with pytest.raises(ConfigError, match="An evaluation needs eval_dataset"):
        grpo(tmp_path).evaluate()
