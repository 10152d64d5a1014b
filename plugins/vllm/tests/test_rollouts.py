"""GRPO with rollouts by vLLM: the guard passes every one, the weights arrive before each, and the
model learns as it does with Interlace's own engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import served
from interlace import SamplingParams
from interlace.errors import ConfigError, GenerationError, GuardError
from interlace.training.grpo import GRPOTrainer
from interlace_vllm.rollouts import VllmSampler
from support.text import NUMBERS
from support.training import Evens, grpo, metrics, stopping

ROOM = {"kv_cache_memory_bytes": 32 * 2**20, "block_size": 32}


def number_model(dtype: torch.dtype = torch.float32, kind: str = "bridge", **sizes: Any) -> Any:
    """A tiny model whose words are numbers."""
    sizes = {"vocab_size": len(NUMBERS), "eos_token_id": NUMBERS.index("<end>")} | sizes
    model = stopping(served.attached("llama", sizes, kind=kind))
    with torch.no_grad():  # a random model is sure of itself
        model.get_output_embeddings().weight.mul_(0.15)
    return model.to(dtype)


def trainer(folder: Path, backend: str, **options: Any) -> GRPOTrainer:
    """GRPO of mixed widths on such a model."""
    own: dict[str, Any] = {"rollout_backend": backend}
    own |= {"rollout_options": ROOM} if backend == "vllm" else {}
    model = options.pop("model", None) or number_model()
    made = grpo(folder, model, **own | options)
    served._kept.append(made)
    return made


def small(prompts: Sequence[Any], completions: Sequence[str], **columns: Any) -> list[float]:
    """The share of words below 5, which a model can learn in a few steps."""
    rows = [text.split() for text in completions]
    return [sum(int(w) < 5 for w in row if w.isdigit()) / max(len(row), 1) for row in rows]


def test_it_learns_as_with_the_engine(tmp_path: Path) -> None:
    last = {}
    for backend in ("engine", "vllm"):
        options: dict[str, Any] = {
            "max_steps": 20,
            "learning_rate": 2e-3,
            "lr_scheduler_type": "constant",
        }
        trainer(tmp_path / backend, backend, reward_funcs=small, **options).run()
        found = metrics(tmp_path / backend)
        assert len(found) == 20
        assert max(line["sampled_gap/max"] for line in found) < 1e-4
        first, last[backend] = (
            sum(line["reward"] for line in lines) / 4 for lines in (found[:4], found[-4:])
        )
        assert last[backend] > first + 0.2
    assert abs(last["vllm"] - last["engine"]) < 0.15


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_guard_catches_stale_weights(
    tmp_path: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sabotage: weights go over before the first rollout only. In bfloat16 their rounding is larger
    than a fault may be in float32."""
    options: dict[str, Any] = {"max_steps": 3, "learning_rate": 1e-2, "guard_every": 1}
    trainer(tmp_path / "sound", "vllm", model=number_model(dtype), **options).run()
    calls: list[VllmSampler] = []
    whole = VllmSampler.synchronise

    def once(self: VllmSampler) -> None:
        if not calls:
            whole(self)
        calls.append(self)

    monkeypatch.setattr(VllmSampler, "synchronise", once)
    with pytest.raises(GuardError, match="weights that changed after sampling"):
        trainer(tmp_path / "stale", "vllm", model=number_model(dtype), **options).run()
    assert len(calls) == 2


def test_the_guard_passes_blocks_that_do_not_couple(tmp_path: Path) -> None:
    """vLLM reloads their weights, which nothing packed may stand in for."""
    options: dict[str, Any] = {"max_steps": 3, "learning_rate": 1e-2, "guard_every": 1}
    trainer(tmp_path, "vllm", model=number_model(kind="pmatch"), **options).run()
    assert max(line["sampled_gap/max"] for line in metrics(tmp_path)) < 1e-4


def test_a_resumed_run_is_an_uninterrupted_one(tmp_path: Path) -> None:
    found = []
    for steps in ([2], [1, 2]):
        folder = tmp_path / str(len(steps))
        for stop in steps:
            own: dict[str, Any] = {"save_steps": 1, "lr_scheduler_type": "constant"}
            trainer(folder, "vllm", max_steps=stop, **own).run()
        # An epoch is what share of max_steps is done.
        found.append([{k: v for k, v in line.items() if k != "epoch"} for line in metrics(folder)])
    assert found[0] == found[1]


def test_an_evaluation_is_vllms_too(tmp_path: Path) -> None:
    made = trainer(tmp_path, "vllm", eval_dataset=Evens(), eval_widths=[1, 4])
    found = made.evaluate()
    assert {"eval_width_1/pass@1", "eval_width_4/vote"} <= set(found)
    sampler = made._sampler
    assert isinstance(sampler, VllmSampler)
    params = SamplingParams(width=3, max_new_tokens=5, seed=7)
    rows = [sampler.generate([" 7 8"], params, sample_ids=[name]) for name in ("0.0", "0.0", "0.1")]
    tokens = [[row.token_ids for row in group.completions] for (group,) in rows]
    assert tokens[0] == tokens[1] != tokens[2]  # seeds follow from the sample's id
    assert len(set(map(tuple, tokens[0]))) > 1  # and rows have their own
    with pytest.raises(GenerationError, match="vLLM refuses a group"):
        sampler.generate([[5] * 600], params, sample_ids=["0"])


def test_options_that_vllm_does_not_take_are_one_line(tmp_path: Path) -> None:
    options = {"rollout_options": ROOM | {"async_scheduling": True}}
    with pytest.raises(ConfigError, match=r"does not start with rollout_options=.*once more") as at:
        trainer(tmp_path, "vllm", **options).run()
    assert "\n" not in str(at.value)
