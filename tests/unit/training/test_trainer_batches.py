"""Micro-batches, and the guard of invariant I7, through a whole training step."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from interlace import huge_pages
from interlace.attached import new_parameters
from interlace.engine.types import GroupOutput
from interlace.errors import GuardError
from interlace.training import batch as batches
from interlace.training import guard
from interlace.training.batch import GroupBatch
from interlace.training.grpo import GRPOTrainer
from interlace.training.guard import RolloutGuard
from support.training import (
    assert_close,
    gradients,
    grpo,
    metrics,
    tiny_model,
    warmup,
    write_responses,
)

# I10: micro-batches of whole groups are one batch.


@pytest.mark.parametrize("loss", ["token", "sequence", "dr_grpo"])
def test_I10_micro_batches_give_the_gradients_of_one_batch(loss: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"loss": loss, "kl_weight": 0.1, "entropy_weight": 0.01}
    whole = gradients(grpo(tmp_path / "a", **options))
    parts = grpo(tmp_path / "b", micro_rows=6, **options)
    fed: list[tuple[int, int]] = []
    original = parts.parts_of

    def noting(step: int) -> Any:
        found = original(step)
        fed.extend((part.count * part.width, part.width) for part in found[0])
        return found

    parts.parts_of = noting  # type: ignore[method-assign]
    assert_close(gradients(parts), whole, 1e-5)
    assert len(fed) > 3
    assert max(rows for rows, _ in fed) <= 6
    assert len({width for _, width in fed}) > 1


def test_weights_and_the_optimizer_s_states_are_moved_to_huge_pages_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks if they are asked for before there are states, in every step, or in part."""
    trainer = grpo(tmp_path, max_steps=3)
    asked: list[list[huge_pages.Span]] = []
    monkeypatch.setattr(huge_pages, "collapse", lambda spans: asked.append(list(spans)))
    trainer.train()
    moments = [state["exp_avg_sq"] for state in trainer.optimizer.state.values()]
    wanted = {(t.data_ptr(), t.nbytes) for t in [*trainer.model.parameters(), *moments]}
    # The engine asks for what it has packed.
    assert sum((moments[0].data_ptr(), moments[0].nbytes) in spans for spans in asked) == 1
    assert any(wanted <= set(spans) for spans in asked)


def test_I10_micro_batches_of_the_warm_up(tmp_path: Path) -> None:
    data = str(write_responses(tmp_path / "data.jsonl"))
    options: dict[str, Any] = {"data": data, "train": "all", "groups_per_step": 9}
    whole = gradients(warmup(tmp_path / "a", fewest_correct=1, **options))
    parts = gradients(warmup(tmp_path / "b", fewest_correct=1, micro_rows=4, **options))
    assert_close(parts, whole, 1e-5)


def test_a_part_that_does_not_count_adds_nothing(tmp_path: Path) -> None:
    whole = gradients(grpo(tmp_path / "a"))
    trainer = grpo(tmp_path / "b")
    original = trainer.parts_of

    def with_spare(step: int) -> Any:
        parts, spare = original(step)
        return [*parts, spare], spare

    trainer.parts_of = with_spare  # type: ignore[method-assign]
    trainer.weight_of = (  # type: ignore[method-assign]
        lambda part: type(trainer).weight_of(trainer, part) if part.counts else 0.0
    )
    assert_close(gradients(trainer), whole, 1e-6)


# I7: the guard, in a run.

PRECISIONS: dict[str, tuple[torch.dtype, dict[str, Any]]] = {
    "fp32": (torch.float32, {}),
    "bf16 weights": (torch.bfloat16, {}),
    "bf16 autocast": (torch.float32, {"bf16": True}),
}
COMMON = 100.0  # added to every output weight
every_precision = pytest.mark.parametrize("precision", PRECISIONS)
SEVERAL_STEPS: dict[str, Any] = {"max_steps": 6, "mini_batches": 2, "learning_rate": 5e-3}


def run(folder: Path, precision: str, **options: Any) -> list[dict[str, float]]:
    dtype, more = PRECISIONS[precision]
    # A learning rate that bf16 weights can take in: their steps are 2^-8 of their size.
    grpo(folder, tiny_model(dtype=dtype), **SEVERAL_STEPS | more | options).run()
    return metrics(folder)


@every_precision
def test_I7_an_honest_run_passes(precision: str, tmp_path: Path) -> None:
    lines = run(tmp_path, precision)
    gaps = [line["sampled_gap/max"] for line in lines if "sampled_gap/max" in line]
    assert len(gaps) == 3
    if precision == "fp32":
        assert max(gaps) < 1e-5
    else:
        assert max(gaps) > 1e-4  # noise, for which the guard samples again in fp32


def late(batch: GroupBatch) -> GroupBatch:
    return dataclasses.replace(batch, alive=batch.alive | torch.roll(batch.alive, 1, dims=2))


def visible(batch: GroupBatch) -> GroupBatch:
    return dataclasses.replace(batch, alive=torch.ones_like(batch.alive))


def split(batch: GroupBatch) -> GroupBatch:
    """Neighbouring groups of one width exchange a row; in a lone one each is alone."""
    order = torch.arange(batch.count * batch.width).view(batch.count, batch.width)
    if batch.count > 1:
        order[:, 0] = order[:, 0].roll(1)
        rows = order.flatten()
        return dataclasses.replace(
            batch,
            input_ids=batch.input_ids[rows],
            attention_mask=batch.attention_mask[rows],
            **{
                name: getattr(batch, name).flatten(0, 1)[rows].view_as(getattr(batch, name))
                for name in ("alive", "completion_mask", "sampled_logprobs")
            },
        )
    return dataclasses.replace(batch, alive=torch.zeros_like(batch.alive))


def coarse_model(common: float = COMMON) -> PreTrainedModel:
    """Logits with a large common part: the distribution stays, and fp32 rounds it by more than the
    guard's bound."""
    model = tiny_model()
    with torch.no_grad():
        model.get_output_embeddings().weight.add_(common)
    return model


def test_I7_rounding_that_float64_confirms_passes(tmp_path: Path) -> None:
    """Fails with a bound that does not ask how coarse fp32 is there."""
    grpo(tmp_path, coarse_model(), max_steps=1, width=3, learning_rate=0.0).run()
    (line,) = metrics(tmp_path)
    assert 1e-4 < line["sampled_gap/max"] <= 4 * line["sampled_gap/rounding"] < 1e-2


def test_I7_one_rare_token_does_not_stop_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After thousands of steps a single token's rounding in sampling was 1.1e-4, five times what
    the training pass rounds: means are compared, and float64 has the last word."""

    def rare(groups: Sequence[GroupOutput], pad_token_id: int) -> GroupBatch:
        batch = batches.collate(groups, pad_token_id)
        assert batch.sampled_logprobs is not None
        sampled = batch.sampled_logprobs.clone()
        sampled[0, 0, 0] += 2e-4
        return dataclasses.replace(batch, sampled_logprobs=sampled)

    monkeypatch.setattr("interlace.training.grpo.collate", rare)
    model = coarse_model(3.0)
    grpo(tmp_path, model, max_steps=1, width=3, learning_rate=0.0).run()
    (line,) = metrics(tmp_path)
    assert line["sampled_gap/max"] > max(1e-4, 4 * line["sampled_gap/rounding"])


@every_precision
@pytest.mark.parametrize("sabotage", [late, visible, split])
def test_I7_a_wrong_batch_stops_the_run(
    precision: str, sabotage: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collate = batches.collate

    def wrong(groups: Sequence[GroupOutput], pad_token_id: int) -> GroupBatch:
        return sabotage(collate(groups, pad_token_id))

    monkeypatch.setattr("interlace.training.grpo.collate", wrong)
    monkeypatch.setattr("interlace.training.guard.collate", wrong)
    with pytest.raises(GuardError, match="differ from those of sampling"):
        run(tmp_path, precision, width=3)
    assert not (tmp_path / "metrics.jsonl").exists()  # in the very first step


@pytest.mark.parametrize("sabotage", [late, visible, split])
def test_I7_coarse_logits_hide_no_wrong_batch(
    sabotage: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collate = batches.collate
    for place in ("grpo", "guard"):
        name = f"interlace.training.{place}.collate"
        monkeypatch.setattr(name, lambda *arguments: sabotage(collate(*arguments)))
    with pytest.raises(GuardError, match="differ from those of sampling"):
        grpo(tmp_path, coarse_model(), max_steps=1, width=3, learning_rate=0.0).run()


def test_blocks_that_are_not_finite_stop_the_run(tmp_path: Path) -> None:
    """A fused attention swallows a NaN in W_Q: without the look at the weights, nothing shows."""
    model = tiny_model()
    _, weight = next((n, p) for n, p in new_parameters(model) if n.endswith("qkv_weight"))
    with torch.no_grad():
        weight.view(-1)[5] = float("nan")
    with pytest.raises(GuardError, match=r"not finite, first .*qkv_weight"):
        grpo(tmp_path, model, max_steps=1, width=3).run()


def test_I7_stale_packed_weights_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from interlace.engine.backends.cpu import CPUBackend

    refresh = CPUBackend.refresh

    def once(self: CPUBackend) -> None:
        if self._packed_host is None:
            refresh(self)

    monkeypatch.setattr(CPUBackend, "refresh", once)
    with pytest.raises(GuardError, match="weights that changed after sampling"):
        run(tmp_path, "fp32", width=3)
    assert [line["step"] for line in metrics(tmp_path)] == [1, 2]  # the second rollout's are stale


# In lower precision exactly checked rollouts are few; these faults begin in the second rollout.

LOW = ["bf16 weights", "bf16 autocast"]
in_low_precision = pytest.mark.parametrize("precision", LOW)


def from_the_second_rollout(monkeypatch: pytest.MonkeyPatch, sabotage: Any) -> None:
    begun = []
    begin = GRPOTrainer._begin_rollout
    collate = batches.collate

    def counting(self: GRPOTrainer, number: int) -> None:
        begun.append(number)
        begin(self, number)

    def wrong(groups: Sequence[GroupOutput], pad_token_id: int) -> GroupBatch:
        batch = collate(groups, pad_token_id)
        return batch if len(begun) < 2 else sabotage(batch)

    monkeypatch.setattr(GRPOTrainer, "_begin_rollout", counting)
    for place in ("grpo", "guard"):
        monkeypatch.setattr(f"interlace.training.{place}.collate", wrong)


@in_low_precision
@pytest.mark.parametrize("sabotage", [late, visible, split])
@pytest.mark.parametrize("alone", ["_check_in_low_precision", "_check_record"])
def test_I7_between_exact_checks_a_wrong_batch_stops_the_run(
    precision: str, sabotage: Any, alone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Either alone is enough: what the engine recorded, at once, and the bound on the gap, which
    sees what is above the noise, in one of two rollouts."""
    from_the_second_rollout(monkeypatch, sabotage)
    (other,) = {"_check_in_low_precision", "_check_record"} - {alone}
    monkeypatch.setattr(RolloutGuard, other, lambda *arguments: None)
    with pytest.raises(GuardError, match="differ from those of sampling"):
        run(tmp_path, precision, width=3, guard_every=100, prompts_per_rollout=8, mini_batches=1)
    steps = [line["step"] for line in metrics(tmp_path)]
    assert steps == [1] or (alone == "_check_in_low_precision" and steps == [1, 2])


def test_I7_between_exact_checks_stale_packed_weights_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from interlace.engine.backends.cpu import CPUBackend

    refresh = CPUBackend.refresh
    monkeypatch.setattr(
        CPUBackend, "refresh", lambda self: None if self._packed_host else refresh(self)
    )
    with pytest.raises(GuardError, match="weights that changed after sampling"):
        run(tmp_path, "bf16 weights", width=3, guard_every=100, learning_rate=0.05)
    assert [line["step"] for line in metrics(tmp_path)] == [1, 2]


@in_low_precision
def test_I7_a_rollout_of_sure_tokens_is_no_measure_that_stops_the_next(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run stopped at a mean of .0091 nats, as in all rollouts before, since the exactly checked
    one happened to be of sure tokens and had .00035: the pass's own rounding has the last word."""
    check = RolloutGuard.check

    def measured_on_sure_tokens(self: RolloutGuard, *arguments: Any, **options: Any) -> None:
        check(self, *arguments, **options)
        assert self._clean is not None
        self._clean = guard.Gap(self._clean.largest / 100, self._clean.mean / 100, 20)

    monkeypatch.setattr(RolloutGuard, "check", measured_on_sure_tokens)
    lines = run(tmp_path, precision, width=3, guard_every=100)
    (_, second, third) = (line for line in lines if "sampled_gap/max" in line)
    for line in (second, third):
        assert 0 < line["sampled_gap/mean"] <= 4 * line["sampled_gap/rounding"]


@pytest.mark.parametrize(("every", "checks"), [(1, 3), (2, 2), (10, 1)])
def test_I7_exact_checks_come_first_and_then_seldom(
    every: int, checks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    again = guard.sample_again
    monkeypatch.setattr(
        "interlace.training.guard.sample_again",
        lambda *a, **k: made.append(1) or again(*a, **k),
    )
    run(tmp_path, "bf16 weights", width=3, guard_every=every)
    assert len(made) == checks


def test_I7_the_guard_can_be_turned_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    collate = batches.collate
    monkeypatch.setattr(
        "interlace.training.grpo.collate", lambda *arguments: visible(collate(*arguments))
    )
    lines = run(tmp_path, "fp32", width=3, guard=False)
    assert "sampled_gap/max" not in lines[0]


# Old log-probabilities.


def test_sampled_and_recomputed_old_logprobs_are_the_same_in_fp32(tmp_path: Path) -> None:
    options: dict[str, Any] = {"max_steps": 4, "mini_batches": 2, "passes": 2}
    sampled = gradients(grpo(tmp_path / "a", old_logprobs="sampled", **options))
    again = gradients(grpo(tmp_path / "b", old_logprobs="recomputed", **options))
    assert_close(again, sampled, 1e-4)


def test_recomputed_old_logprobs_are_those_before_the_first_step(tmp_path: Path) -> None:
    run(tmp_path, "bf16 autocast", passes=2)
    lines = metrics(tmp_path)
    assert lines[0]["ratio/max"] == lines[0]["ratio/min"] == 1.0
    assert lines[2]["ratio/max"] > 1.01  # the second pass over the same tokens
