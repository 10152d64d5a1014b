"""Mixed inputs: what they are, what is recorded of them, and what is refused without it.

That sampling and training agree, with rows that end early, is invariant I7 (tests/invariants).

Axes: W width, T positions of a completion, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import interlace
from interlace import Groups, MixConfig, SamplingParams, collate, score
from interlace.errors import ConfigError, GroupError, InterlaceError
from interlace.training.batch import collate_ids
from support.architectures import attach_random, build, random_ids
from support.engine import fed_again, largest_gap

PARAMS = SamplingParams(width=4, max_new_tokens=12, seed=3, stop_token_ids=tuple(range(78, 97)))
PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 0.0}, r"share is a number above 0 and below 1; got 0\.0"),
        ({"share": 1}, r"share is a number above 0 and below 1; got 1"),
        ({"temperature": 0}, r"temperature is a number above 0 and below inf; got 0"),
        ({"temperature": True}, r"temperature is a number .* got True"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MixConfig(**options)


@pytest.mark.parametrize("options", [{}, {"own": False}])
def test_by_hand(options: dict[str, Any]) -> None:
    """Two distributions that are alike and one that shares nothing with them."""
    block = interlace.coupling.mix.Mix(MixConfig(temperature=0.5, **options), 2)
    said = torch.tensor([[0.0, 0.0, -1e4], [0.0, 0.0, -1e4], [-1e4, -1e4, 0.0]])
    alike, apart = np.exp(2), 1.0
    weights = block.weights(said, None)
    if block.own:
        expected = [alike, alike, apart] / (2 * alike + apart)
    else:
        expected = [0.0, alike / (alike + apart), apart / (alike + apart)]
    assert weights[0].tolist() == pytest.approx(list(expected))
    x = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]], [[2.0, 2.0]]])
    mixture = sum(a * x[j, 0] for j, a in enumerate(expected))
    assert torch.allclose(block.mixed(x, weights[None, None])[0, 0], 0.9 * x[0, 0] + 0.1 * mixture)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["mix", "mix-others"])
def test_recorded_weights_are_those_of_the_distributions(kind: str, backend: str) -> None:
    """From the logits of a teacher-forced pass, with rows that come and go."""
    model = attach_random(build("llama"), kind)
    block: Any = model.get_submodule("mix")
    groups = interlace.Engine(model, backend=backend, max_rows=9).generate(PROMPTS * 2, PARAMS)
    lengths = {len(c.token_ids) for group in groups for c in group.completions}
    assert len(lengths) > 2
    for group in groups:
        ids, mask, alive = fed_again([group])
        rows = collate([group], pad_token_id=0).groups
        logits = model(ids, attention_mask=mask, groups=rows).logits
        first = len(group.prompt_token_ids)
        assert group.mixing is not None
        assert len(group.mixing) == ids.shape[1] - first - 1
        for t, weights in enumerate(group.mixing):
            live = alive[0, :, first + t]
            seen = (live[:, None] & live)[None, None]
            expected = block.weights(logits[None, :, first + t - 1][:, None], seen)[0, 0]
            np.testing.assert_allclose(weights, expected * live[:, None], atol=1e-5)


@torch.no_grad()
def test_generate_keeps_the_weights_of_the_distributions() -> None:
    model = attach_random(build("llama"), "mix-others")
    options = {"output_logits": True, "return_dict_in_generate": True, "do_sample": True}
    torch.manual_seed(0)
    out: Any = model.generate(
        random_ids(1, 3), num_return_sequences=3, max_new_tokens=4, top_k=0, **options
    )
    block: Any = model.get_submodule("mix")
    mixing = interlace.last_groups(model).mixing
    assert mixing is not None
    assert mixing.shape == (1, 7, 3, 3)
    for t, logits in enumerate(out.logits[:-1]):
        torch.testing.assert_close(mixing[0, 3 + t], block.weights(logits, None))
    assert not mixing[0, :3].any()
    assert not mixing[0, -1].any()
    again = model(out.sequences, groups=interlace.last_groups(model)).logits[:, 2:-1]
    torch.testing.assert_close(torch.stack(out.logits, dim=1), again, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["mix", "mix-others"])
def test_width_1_is_the_base_model_to_the_bit(kind: str, backend: str) -> None:
    plain = interlace.Engine(build("qwen3"), backend=backend)
    mixed = interlace.Engine(attach_random(build("qwen3"), kind), backend=backend)
    alone = PARAMS.replace(width=1)
    expected = plain.generate(PROMPTS, alone)
    got = mixed.generate(PROMPTS * 2, [alone, alone, PARAMS, PARAMS])[:2]
    for before, now in zip(expected, got, strict=True):
        assert now.completions[0].token_ids == before.completions[0].token_ids


@torch.no_grad()
def test_texts_alone_are_refused_with_the_way_out() -> None:
    model = attach_random(build("llama"), "mix")
    batch = collate_ids(PROMPTS, [[[3, 4], [5]], [[6], [7, 8]]], pad_token_id=0)
    with pytest.raises(GroupError, match=r"tokens alone do not tell\. Score groups that an Engine"):
        score(model, batch)
    with pytest.raises(GroupError, match=r"\[P, S, W, W\] = \[2, 7, 3, 3\]; got \[2, 6, 3, 3\]"):
        model(random_ids(6, 7), groups=Groups(3, mixing=torch.zeros(2, 6, 3, 3)))


@torch.no_grad()
def test_weights_go_with_parts_of_a_batch() -> None:
    """Micro-batches, prompts computed once, and a device."""
    model = attach_random(build("llama"), "mix")
    groups = interlace.Engine(model).generate(PROMPTS, PARAMS)
    batch = collate(groups, pad_token_id=0)
    whole = score(model, batch).logprobs
    assert batch.sampled_logprobs is not None
    apart = score(model, batch, prompt_once="never").logprobs
    for found in (whole, apart):
        gap = (found - batch.sampled_logprobs).abs() * batch.completion_mask
        # Forbidden tokens are in one and not in the other.
        assert gap.max() < 1.0
    torch.testing.assert_close(apart, whole, atol=2e-5, rtol=0)
    parts = [score(model, part).logprobs for _, part in batch.micro_batches(4)]
    torch.testing.assert_close(torch.cat(parts), whole, atol=2e-5, rtol=0)
    assert batch.to("cpu").mixing is not None
    assert largest_gap(model, groups) < 1e-5


def test_attention_is_recorded_where_it_is_asked_for() -> None:
    model = attach_random(build("llama"), "mix")
    asked = PARAMS.replace(record_attention="layers")
    group = interlace.Engine(model).generate([PROMPTS[0]], asked)[0]
    assert group.attention is not None
    assert group.mixing is not None
    for shown, weights in zip(group.attention, group.mixing, strict=True):
        np.testing.assert_array_equal(shown, weights[None])
    other = interlace.Engine(model).generate([PROMPTS[0]], PARAMS)[0]
    assert other.attention is None
    assert other.mixing is not None


def test_a_backend_without_the_seat_refuses_it() -> None:
    with pytest.raises(InterlaceError, match=r"mix works at the input seat.*graph backend"):
        interlace.Engine(attach_random(build("llama"), "mix"), backend="graph")
