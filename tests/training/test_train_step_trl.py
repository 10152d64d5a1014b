"""TRL's side of the comparison of training steps: whole steps, one at a time, every second told."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from support.architectures import build
from support.processes import script
from support.text import tiny_tokenizer

pytest.importorskip("trl", reason="needs the extra trl: pip install trl")

pytestmark = [
    pytest.mark.slow,
    # TRL reads a property that transformers has renamed.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "train_step_trl.py"


@pytest.fixture(scope="module")
def benchmark() -> Iterator[ModuleType]:
    with script(BENCHMARK) as module:
        yield module


def training(module: ModuleType, model: PreTrainedModel, **settings: Any) -> Any:
    prompts = ["w20 w21 w22", "w30"]
    return module.TrlTraining(
        model, tiny_tokenizer(), prompts, 4, 6, learning_rate=1e-2, **settings
    )


@pytest.mark.parametrize("rows", [8, 2])
def test_a_call_is_one_optimizer_step(benchmark: ModuleType, rows: int) -> None:
    model = build("llama")
    seen: list[int] = []

    def reward(completion_ids: list[list[int]], **columns: Any) -> list[float]:
        seen.append(len(completion_ids))
        assert all(len(ids) == 6 for ids in completion_ids)
        time.sleep(0.05)
        return benchmark.odd_share(completion_ids)

    with training(
        benchmark, model, micro_batch_rows=rows, reward=reward, clock=time.perf_counter
    ) as trl:
        for done in (1, 2):
            before = [p.detach().clone() for p in model.parameters()]
            seconds = trl.step()
            assert seen == [8] * done  # one rollout of all rows for each step
            assert any(
                not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)
            )
            assert set(seconds) == set(benchmark.PHASES)
            parts = [seconds[phase] for phase in benchmark.PHASES if phase != "total"]
            assert sum(parts) == pytest.approx(seconds["total"])
            assert min(parts) >= 0
            assert min(seconds[phase] for phase in ("rollout", "optimizer")) > 0
            assert seconds["score_backward"] > 0.05  # the reward lies in it
            after = [p.detach().clone() for p in model.parameters()]
            time.sleep(0.05)  # nothing goes on between two calls
            assert all(torch.equal(a, b) for a, b in zip(after, model.parameters(), strict=True))


def test_an_error_in_trls_thread_reaches_the_caller(benchmark: ModuleType) -> None:
    def reward(**columns: Any) -> list[float]:
        raise ArithmeticError("no reward today")

    with training(benchmark, build("llama"), reward=reward) as trl:
        for _ in range(2):
            with pytest.raises(RuntimeError) as caught:
                trl.step()
            assert isinstance(caught.value.__cause__, ArithmeticError)


def test_rows_that_do_not_divide_are_refused(benchmark: ModuleType) -> None:
    with pytest.raises(ValueError, match="8 rows cannot be split into 3"):
        training(benchmark, build("llama"), micro_batch_rows=3)
