"""ParScale: options, what a row costs, and what is refused; and that old models stay as they were.

That its streams are passes of the base model with a prefix each, and that sampling and training
agree, is checked in tests/invariants.

Axes: R rows, S positions.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import interlace
from interlace import Groups, ParScaleConfig, SamplingParams, collate, score
from interlace.attached import get_attachment, new_parameters
from interlace.errors import ConfigError, GenerationError, InterlaceError
from support.architectures import attach_fresh, attach_random, build, checkpointed, random_ids
from support.engine import largest_gap
from support.saves import assert_same_weights, weights

PARAMS = SamplingParams(width=3, max_new_tokens=9, seed=3, stop_token_ids=tuple(range(80, 97)))
PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"streams": 1}, r"streams is a whole number, at least 2; got 1"),
        ({"prefix": 0}, r"prefix is a whole number, at least 1; got 0"),
        ({"smoothing": 1.0}, r"smoothing is a number above 0 and below 1; got 1\.0"),
        ({"std": 0.0}, r"std is a number above 0 and below inf; got 0\.0"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ParScaleConfig(**options)


@torch.no_grad()
def test_detached_and_switched_off_it_is_the_base_model() -> None:
    model, ids = build("qwen3"), random_ids(4, 7)
    before, expected = weights(model), model(ids).logits
    attach_fresh(model, "parscale")
    shapes = {name.rpartition("parscale.")[2]: list(p.shape) for name, p in new_parameters(model)}
    assert shapes == {
        "prefix_keys": [3, 2, 5, 10],
        "prefix_values": [3, 2, 5, 10],
        "in_weight": [24, 72],
        "in_bias": [24],
        "out_weight": [3, 24],
        "out_bias": [3],
    }
    assert (model(ids).logits - expected).abs().max() > 1e-3
    with get_attachment(model).disabled():
        assert torch.equal(model(ids).logits, expected)
        engine = interlace.Engine(model)
        tokens = [c.token_ids for c in engine.generate(PROMPTS, PARAMS)[0].completions]
    interlace.detach(model)
    assert torch.equal(model(ids).logits, expected)
    assert_same_weights(weights(model), before)
    again = interlace.Engine(model).generate(PROMPTS, PARAMS)[0].completions
    assert [c.token_ids for c in again] == tokens


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "gpt2", "opt", "gemma2"])
def test_a_row_is_the_same_whoever_is_beside_it(name: str) -> None:
    # Of these two the tests' common sizes say what their heads do not follow.
    heads = {"num_key_value_heads": 6} if name in ("gpt2", "opt") else {}
    model, ids = attach_random(build(name, **heads), "parscale"), random_ids(6, 7)
    mask = torch.ones_like(ids)
    mask[3:, :2] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    groups = Groups(3)
    whole = model(ids, attention_mask=mask, position_ids=positions, groups=groups).logits
    alone = model(ids[4:5, 2:]).logits
    torch.testing.assert_close(whole[4:5, 2:], alone, atol=2e-5, rtol=0)
    kept = model(
        ids, attention_mask=mask, position_ids=positions, groups=groups, logits_to_keep=2
    ).logits
    torch.testing.assert_close(kept, whole[:, -2:], atol=2e-5, rtol=0)
    plain = model(ids, attention_mask=mask, position_ids=positions, return_dict=False)[0]
    torch.testing.assert_close(plain, whole, atol=2e-5, rtol=0)


@torch.no_grad()
def test_streams_are_weighed_as_the_equation_says() -> None:
    model = attach_random(build("llama"), "parscale")
    config: Any = get_attachment(model).config
    block: Any = model.get_submodule("parscale")
    streams = torch.randn(config.streams, 1, 24)  # of one row at one position
    inner = block.in_weight @ streams.flatten() + block.in_bias
    scores = block.out_weight @ (inner * inner.sigmoid()) + block.out_bias
    shares = scores.exp() / scores.exp().sum()
    expected = torch.zeros(24)
    for share, stream in zip(shares, streams[:, 0], strict=True):
        expected += ((1 - config.smoothing) * share + config.smoothing / config.streams) * stream
    torch.testing.assert_close(block.together(streams)[0, 0], expected, atol=1e-5, rtol=0)


def test_gradients_reach_every_new_weight_and_checkpointing_replays_them() -> None:
    def gradients(checkpointing: bool) -> dict[str, torch.Tensor]:
        model = attach_random(build("llama"), "parscale").train()
        if checkpointing:
            checkpointed(model)
        model(random_ids(2, 6), use_cache=False).logits.square().mean().backward()
        return {name: p.grad for name, p in new_parameters(model) if p.grad is not None}

    plain, replayed = gradients(False), gradients(True)
    assert len(plain) == 3 * 2 + 4
    assert all(gradient.any() for gradient in plain.values())
    for name, gradient in plain.items():
        torch.testing.assert_close(replayed[name], gradient, atol=1e-5, rtol=1e-4)


def test_keys_and_values_are_those_of_all_streams() -> None:
    sizes = []
    for kind in (None, "parscale"):
        model = build("llama") if kind is None else attach_random(build("llama"), kind)
        engine = interlace.Engine(model, backend="hf")
        engine.generate(PROMPTS, PARAMS)
        sizes.append(engine.stats.peak_cache_bytes)
    assert sizes[1] == 3 * sizes[0]


@torch.no_grad()
def test_prompts_are_computed_in_every_row_of_a_training_pass() -> None:
    model = attach_random(build("llama"), "parscale")
    groups = interlace.Engine(model).generate([list(range(1, 30))] * 2, PARAMS)
    batch = collate(groups, pad_token_id=0)
    assert batch.sampled_logprobs is not None
    found = score(model, batch, forbidden=[0]).logprobs
    gap = (found - batch.sampled_logprobs).abs() * batch.completion_mask
    assert gap.max() < 2e-5
    assert largest_gap(model, groups) < 2e-5


def test_a_copied_model_goes_on() -> None:
    model, ids = attach_random(build("llama"), "parscale"), random_ids(2, 5)
    assert torch.equal(copy.deepcopy(model)(ids).logits, model(ids).logits)


def test_what_moves_rows_is_refused() -> None:
    model = attach_random(build("llama"), "parscale")
    with pytest.raises(GenerationError, match=r"several streams of each here\. Sample with"):
        model.generate(random_ids(1, 3), num_beams=2, max_new_tokens=2)
    with pytest.raises(InterlaceError, match=r"parscale works at the attention seat.*graph"):
        interlace.Engine(model, backend="graph")
