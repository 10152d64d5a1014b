"""Groups as training batches: invariant I7 with padding, early finishers and several prompts."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import interlace
from interlace import Engine, SamplingParams
from interlace.engine.types import GroupOutput, HidingParams
from interlace.errors import ConfigError, GenerationError, GroupError, GuardError
from interlace.training.batch import GroupBatch, collate, collate_ids
from interlace.training.guard import check_gap, measure_gap, sample_again
from interlace.training.rollout import draw_width
from interlace.training.scoring import score
from support.architectures import VOCAB, attach_random, build
from support.training import grpo, read_lines

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


HIDDEN = [(0, 1), (0, 2), (2, 1)]  # row 1 sees all, row 0 nobody


def test_I7_hidden_siblings_are_hidden_from_sampling_and_scoring_alike() -> None:
    """Fails if either side forgets whom a row does not see."""
    model = attach_random(build("llama"))
    plain = vars(PARAMS) | {"hidden": HIDDEN}
    groups = Engine(model).generate(PROMPTS, [PARAMS, HidingParams(**plain)] * 2)
    batch = batch_of(groups)
    assert batch.hidden is not None
    assert [int(one.sum()) for one in batch.hidden] == [0, 3, 0, 3]
    assert gap(model, batch) < 1e-5
    assert gap(model, batch.select(1, 2)) < 1e-5
    assert gap(model, dataclasses.replace(batch, hidden=None)) > 1e-3
    assert gap(model, dataclasses.replace(batch, hidden=batch.hidden.transpose(1, 2))) > 1e-3


def test_a_row_that_sees_nobody_is_as_it_is_alone() -> None:
    model = attach_random(build("llama"))
    everybody = [(row, other) for row in range(3) for other in range(3) if row != other]
    batch = batch_of(rollout(model, HidingParams(**(vars(PARAMS) | {"hidden": everybody}))))
    hidden = score(model, batch).logprobs
    ids = [[c.token_ids for c in group.completions] for group in batch.outputs]
    prompts = [group.prompt_token_ids for group in batch.outputs for _ in range(3)]
    alone = score(model, collate_ids(prompts, [[row] for rows in ids for row in rows], 0)).logprobs
    torch.testing.assert_close(hidden.flatten(0, 1), alone[:, 0], atol=1e-5, rtol=0)


def test_pairs_that_are_no_two_rows_of_the_group_are_refused() -> None:
    for pair in ((0, 0), (0, 3), (-1, 1)):
        with pytest.raises(GenerationError, match="pairs of two rows of the group's 3"):
            HidingParams(width=3, hidden=[pair])


def test_the_guard_passes_training_with_hidden_siblings(tmp_path: Path) -> None:
    grpo(tmp_path / "a", max_steps=2, sibling_dropout=0.5, width=[3, 6]).run()
    grpo(tmp_path / "b", max_steps=2, width=[3, 6]).run()
    assert read_lines(tmp_path / "a" / "metrics.jsonl") != read_lines(
        tmp_path / "b" / "metrics.jsonl"
    )


def test_what_reads_finished_siblings_has_no_dropout(tmp_path: Path) -> None:
    model = build("llama")
    interlace.attach(model, interlace.BridgeConfig(parameter_share=0.05, reads="finished"))
    with pytest.raises(ConfigError, match="and read 'finished'"):
        grpo(tmp_path / "a", model, sibling_dropout=0.5)
    with pytest.raises(ConfigError, match="from 0 to 1"):
        grpo(tmp_path / "b", sibling_dropout=1.5)


def test_widths_are_drawn_as_often_as_they_are_named(tmp_path: Path) -> None:
    args = grpo(tmp_path / "a", width=[1, 1, 1, 6]).args
    assert args.widths == [1, 6]
    drawn = [draw_width(0, 0, position, args.drawn_widths) for position in range(800)]
    assert 0.70 < drawn.count(1) / 800 < 0.80
