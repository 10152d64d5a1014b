"""Groups as training batches: invariant I7 with padding, early finishers and several prompts."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from interlace import Engine, SamplingParams
from interlace.engine.types import GroupOutput
from interlace.errors import GroupError, GuardError
from interlace.training.batch import GroupBatch, collate, collate_ids
from interlace.training.guard import check_gap, measure_gap, sample_again
from interlace.training.scoring import score
from support.architectures import VOCAB, attach_random, build

PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12, 13, 14], [20], [15, 16]]
PARAMS = SamplingParams(
    width=3, max_new_tokens=15, temperature=0.8, stop_token_ids=tuple(range(VOCAB - 10, VOCAB))
)
FORBIDDEN = [0]  # PAD


def rollout(model: PreTrainedModel, params: SamplingParams = PARAMS) -> list[GroupOutput]:
    return Engine(model).generate(PROMPTS, params)


def batch_of(groups: list[GroupOutput]) -> GroupBatch:
    return collate(groups, pad_token_id=0)


def gap(model: PreTrainedModel, batch: GroupBatch) -> float:
    return measure_gap(model, batch, temperature=0.8, forbidden=FORBIDDEN).largest


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "gpt2", "opt"])
def test_I7_scores_are_what_the_engine_sampled_with(name: str) -> None:
    model = attach_random(build(name))
    batch = batch_of(rollout(model))
    lengths = batch.completion_mask.sum(dim=2)
    assert lengths.unique().numel() > 2
    assert gap(model, batch) < 1e-5


def test_micro_batches_of_whole_groups_are_the_batch() -> None:
    model = attach_random(build("llama"))
    batch = batch_of(rollout(model))
    whole = score(model, batch, entropy=True)
    for part, small in batch.micro_batches(rows=6):
        got = score(model, small, entropy=True)
        torch.testing.assert_close(got.logprobs, whole.logprobs[part], atol=1e-5, rtol=0)
        assert got.entropy is not None
        assert whole.entropy is not None
        torch.testing.assert_close(got.entropy, whole.entropy[part], atol=1e-4, rtol=0)


def test_the_alive_mask_ends_one_before_the_completion_mask() -> None:
    batch = collate_ids([[1, 2]], [[[3, 4, 5], [6]]], pad_token_id=0)
    assert batch.alive[0].tolist() == [
        [True, True, True, True, False],
        [True, True, False, False, False],
    ]
    assert batch.completion_mask[0].tolist() == [[True, True, True], [True, False, False]]
    assert batch.completion_ids[0, 0].tolist() == [3, 4, 5]


def test_ragged_groups_have_rows_that_nobody_sees() -> None:
    batch = collate_ids([[1, 2], [3]], [[[4, 5]], [[6], [7, 8]]], pad_token_id=0)
    assert batch.width == 2
    assert not batch.alive[0, 1].any()
    assert not batch.completion_mask[0, 1].any()
    model = attach_random(build("llama"))
    alone = score(model, collate_ids([[1, 2]], [[[4, 5]]], pad_token_id=0)).logprobs
    together = score(model, batch).logprobs
    torch.testing.assert_close(together[:1, :1], alone, atol=1e-5, rtol=0)


def test_widths_do_not_mix() -> None:
    with pytest.raises(GroupError, match="at most 1 rows"):
        collate_ids([[1]], [[[2], [3]]], pad_token_id=0, width=1)


def test_entropy_is_that_of_the_distribution() -> None:
    model = attach_random(build("llama"))
    batch = batch_of(rollout(model))
    got = score(model, batch, temperature=0.8, forbidden=FORBIDDEN, entropy=True).entropy
    assert got is not None
    positions = (batch.attention_mask.long().cumsum(1) - 1).clamp(min=0)
    logits = model(
        batch.input_ids,
        attention_mask=batch.attention_mask.long(),
        position_ids=positions,
        groups=batch.groups,
    ).logits
    logits = logits[:, -got.shape[2] - 1 : -1] / 0.8
    logits[..., 0] = -torch.inf
    wanted = torch.distributions.Categorical(logits=logits).entropy().unflatten(0, got.shape[:2])
    torch.testing.assert_close(got, wanted * batch.completion_mask, atol=1e-5, rtol=1e-5)


# Four sabotages that accuracy would not show: the guard must.


def test_guard_passes_an_honest_rollout() -> None:
    model = attach_random(build("llama"))
    check_gap(measure_gap(model, batch_of(rollout(model)), temperature=0.8, forbidden=FORBIDDEN))


def late_by_one(batch: GroupBatch) -> GroupBatch:
    later = torch.roll(batch.alive, 1, dims=2)
    later[..., 0] = True
    return dataclasses.replace(batch, alive=later | batch.alive)


def finished_visible(batch: GroupBatch) -> GroupBatch:
    return dataclasses.replace(batch, alive=torch.ones_like(batch.alive))


def split_group(batch: GroupBatch) -> GroupBatch:
    """Every row a group of its own, as a row-wise shuffle or micro-batch leaves it."""
    parts: dict[str, Any] = {
        name: getattr(batch, name).flatten(0, 1).unsqueeze(1)
        for name in ("alive", "completion_mask", "sampled_logprobs")
    }
    return dataclasses.replace(batch, width=1, **parts)


@pytest.mark.parametrize("sabotage", [late_by_one, finished_visible, split_group])
def test_guard_stops_a_wrong_mask_or_a_split_group(sabotage: Any) -> None:
    model = attach_random(build("llama"))
    batch = sabotage(batch_of(rollout(model)))
    found = measure_gap(model, batch, temperature=0.8, forbidden=FORBIDDEN)
    with pytest.raises(GuardError, match="differ from those of sampling"):
        check_gap(found)


def test_guard_stops_stale_packed_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    model = attach_random(build("llama"))
    engine = Engine(model, backend="cpu")
    engine.generate(PROMPTS, PARAMS)
    monkeypatch.setattr("interlace.engine.backends.cpu.CPUBackend.refresh", lambda self: None)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.05)  # an optimizer step that the engine does not follow
    groups = engine.generate(PROMPTS, PARAMS)
    found = measure_gap(model, batch_of(groups), temperature=0.8, forbidden=FORBIDDEN)
    with pytest.raises(GuardError, match="weights that changed after sampling"):
        check_gap(found)


def test_in_low_precision_the_guard_samples_again_in_fp32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = attach_random(build("llama", dtype=torch.bfloat16))
    group = rollout(model)[1]

    arguments: dict[str, Any] = {"temperature": 0.8, "forbidden": FORBIDDEN, "pad_token_id": 0}
    engine = Engine(copy.deepcopy(model).float())
    assert sample_again(engine, group, **arguments).largest < 1e-5

    monkeypatch.setattr(
        "interlace.training.guard.collate", lambda *a: finished_visible(collate(*a))
    )
    with pytest.raises(GuardError):
        check_gap(sample_again(engine, group, **arguments))


def test_completions_of_every_group_start_in_one_column() -> None:
    """Prompts are padded on the left, so that column is the same for long and short ones."""
    batch = collate_ids([[5, 6, 7], [8]], [[[1, 2], [3]], [[4], [5, 6, 7]]], pad_token_id=0)
    start = batch.groups.completion_start
    assert start is not None
    assert start.tolist() == [3, 3]
    assert batch.select(1, 2).groups.completion_start is not None
    assert batch.completion_ids[1, 1].tolist() == batch.input_ids[3, 3:].tolist()
