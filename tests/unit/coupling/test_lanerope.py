"""LaneRoPE: its configuration, its special case Group Think against Hugging Face's own model on one
long sequence, and what holds in place of I1.

Its equation, invariants and mutations are in tests/invariants; all that a user does with it is in
test_seats.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import interlace
from interlace import Groups, LaneRoPEConfig, SamplingParams
from interlace.attached import new_parameters
from interlace.coupling.joint import frequencies
from interlace.coupling.lanerope import LaneRoPE, omega
from interlace.coupling.registry import config_from_dict
from interlace.errors import AttachError, ConfigError, GroupError
from interlace.rows import Owners
from support.architectures import attach_fresh, attach_random, build, random_ids, tiny_config
from support.engine import fed_again, largest_gap
from support.text import number_folder
from support.training import grpo, stopping, warmup
from support.typecheck import unchecked

P, W, PROMPT, T, SLOT = 2, 3, 4, 5, 11
S = PROMPT + T
THINK = {"omega": "slot", "slot": SLOT, "learned": False, "layers": "all"}


def attached(name: str = "llama", **options: Any) -> PreTrainedModel:
    return attach_fresh(build(name), "lanerope", **(THINK | options))


@torch.no_grad()
@pytest.mark.parametrize("strict", [False, True])
def test_group_think_is_the_base_model_on_one_long_sequence(strict: bool) -> None:
    """Tokens of all rows as one sequence, each row in its own slot of positions, under a mask that
    says who has written what."""
    ids = random_ids(1, PROMPT).expand(W, -1)
    ids = torch.cat([ids, random_ids(W, T, seed=8)], dim=1)
    groups = Groups(W, None, torch.tensor([PROMPT]))
    got = attached(strict=strict)(ids, groups=groups).logits

    row = torch.arange(W).repeat_interleave(T)
    step = torch.arange(T).repeat(W)
    own = (row[:, None] == row) & (step[:, None] >= step)
    others = (row[:, None] != row) & (step[:, None] - int(strict) >= step)
    size = PROMPT + W * T
    seen = torch.ones(size, size, dtype=torch.bool).tril()
    seen[PROMPT:, PROMPT:] = own | others
    out = build("llama")(
        torch.cat([ids[:1, :PROMPT], ids[:, PROMPT:].reshape(1, -1)], dim=1),
        position_ids=torch.cat([torch.arange(PROMPT), PROMPT + row * SLOT + step])[None],
        attention_mask=seen[None, None],
    ).logits[0]
    torch.testing.assert_close(got[0, :PROMPT], out[:PROMPT], atol=2e-5, rtol=0)
    expected = out[PROMPT:].unflatten(0, (W, T))
    torch.testing.assert_close(got[:, PROMPT:], expected, atol=2e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["lanerope", "lanerope-strict", "hogwild"])
def test_recorded_attention_is_that_of_the_joint_softmax(
    kind: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that a row reads of a sibling is one number, and prompt and own past are its own."""
    model = attach_random(build("llama"), kind)
    params = SamplingParams(width=W, max_new_tokens=9, seed=2, stop_token_ids=range(60, 97))
    asked = [params.replace(record_attention="layers"), params]
    engine = interlace.Engine(model, backend=backend)
    group, other = engine.generate([[5, 6, 7, 8], [9, 10]], asked)
    assert other.attention is None
    assert group.attention is not None
    ids, mask, alive = fed_again([group])
    assert not alive[0, :, PROMPT:-1].all(), "rows end early"
    block: Any = model.get_submodule(model.interlace_attachment.block_names[0])
    seen = []

    def noting(*given: Any) -> Any:
        seen.append(type(block).attention(block, *given))
        return seen[-1]

    monkeypatch.setitem(block.__dict__, "attention", noting)
    model(ids, attention_mask=mask, groups=Groups(W, alive, torch.tensor([PROMPT])))
    q, k, _, joint = seen[0]
    scores = q @ k.repeat_interleave(q.shape[1] // k.shape[1], 1).mT * model.config.head_dim**-0.5
    scores = scores.masked_fill(~joint, float("-inf")) if joint.dtype == torch.bool else scores
    weights = (scores if joint.dtype == torch.bool else scores + joint).softmax(-1).mean(1)[0]
    shares = weights.unflatten(1, (W, -1)).sum(-1).unflatten(0, (W, -1))  # W S W
    assert len(group.attention) == ids.shape[1] - PROMPT - 1
    for t, found in enumerate(group.attention):
        live = alive[0, :, PROMPT + t, None]
        expected = shares[:, PROMPT + t] * live
        torch.testing.assert_close(torch.from_numpy(found[0]), expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_width_1_is_the_base_model_bit_for_bit_and_wider_groups_are_not() -> None:
    """What holds in place of I1: it reads siblings without any training."""
    ids = random_ids(P * W, S)
    expected = build("llama")(ids).logits
    for options in (THINK, {}):
        model = attached(**options)
        assert torch.equal(model(ids).logits, expected)
        start = torch.full((P,), PROMPT)
        wide = model(ids, groups=Groups(W, None, start)).logits
        torch.testing.assert_close(wide[:, :PROMPT], expected[:, :PROMPT], atol=2e-5, rtol=0)
        assert (wide[:, PROMPT:] - expected[:, PROMPT:]).abs().max() > 0.05
        nobody = Groups(W, None, torch.full((P,), S))
        assert torch.equal(model(ids, groups=nobody).logits, expected)


@pytest.mark.parametrize(
    ("name", "layers"), [("granite", "all"), ("gemma2", [1]), ("gpt_neox", "all")]
)
def test_engine_and_training_agree_with_other_attention(
    name: str, layers: Any, backend: str
) -> None:
    """Another factor of the scores; scores that are capped; few features that turn."""
    model = attach_random(build(name), "lanerope", layers=layers)
    stops = list(range(87, 97))
    params = interlace.SamplingParams(width=4, max_new_tokens=12, seed=3, stop_token_ids=stops)
    groups = interlace.Engine(model, backend=backend).generate([[5, 6, 7], [8, 9]], params)
    assert len({len(c.token_ids) for g in groups for c in g.completions}) > 1
    assert largest_gap(model, groups) < 2e-5


def test_models_that_it_cannot_stand_in_are_refused() -> None:
    with pytest.raises(AttachError, match=r"rotary positions turn, and a model with a GPT2Config"):
        attached("gpt2")
    with pytest.raises(AttachError, match=r"Cohere2Model pairs neighbouring features"):
        attached("cohere2", layers=[1])
    with pytest.raises(AttachError, match=r"these layers have windows.*: \[0, 2\]\. Leave"):
        attached("qwen3")
    with pytest.raises(AttachError, match=r"these layers have windows.*: \[0, 1, 2\]"):
        attached("mistral")


def test_options_that_make_no_sense_are_refused() -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"omega": "gt"}, r"omega is one of 'zero', 'slot', 'ntk'; got 'gt'"),
        ({"slot": 0}, r"slot is a whole number, at least 1; got 0"),
        ({"prompt": "last"}, r"prompt is one of 'first', 'own'; got 'last'"),
        ({"learned": "yes"}, r"learned is one of True, False; got 'yes'"),
    ]
    for options, message in cases:
        with unchecked(), pytest.raises(ConfigError, match=message):
            LaneRoPEConfig(**options)
    config = LaneRoPEConfig(omega="slot", slot=64, strict=True, prompt="own")
    assert config_from_dict(config.to_dict()) == config
    assert config.facts() == {"Omega": "slot, 64 positions", "learned": "yes"}


def test_angles_between_lanes() -> None:
    theta = torch.tensor([1.0, 0.5, 0.25], dtype=torch.float64)
    assert omega(LaneRoPEConfig(omega="zero"), theta) == [0, 0, 0]
    assert omega(LaneRoPEConfig(omega="slot", slot=4), theta) == [4, 2, 1]
    assert omega(LaneRoPEConfig(omega="ntk", slot=4), theta) == [4, 1, 0.25]
    base = tiny_config("gemma3")
    assert frequencies(base, 1)[1] < frequencies(base, 0)[1]  # a base for each kind of layer
    scaled = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0}
    scaled |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    base = tiny_config("llama", rope_parameters=scaled)
    assert frequencies(base, 0)[-1] < frequencies(tiny_config("llama"), 0)[-1]


def test_what_it_claims_follows_from_its_options() -> None:
    assert "I2" in LaneRoPE.claims(LaneRoPEConfig(omega="zero", learned=False))
    assert "I2" not in LaneRoPE.claims(LaneRoPEConfig(omega="zero"))


def test_it_trains_without_parameters_of_its_own_where_all_train(tmp_path: Path) -> None:
    model, _ = interlace.load(number_folder(tmp_path / "base"))
    attach_fresh(stopping(model), "lanerope", **THINK)
    assert not list(new_parameters(model))
    with pytest.raises(ConfigError, match=r"these blocks have none\. Attach.*or use train='all'"):
        warmup(tmp_path / "warm", model).train()
    grpo(tmp_path / "rl", model).train()


def test_steps_without_what_was_written_and_hidden_rows_are_refused() -> None:
    block = LaneRoPE(LaneRoPEConfig(), torch.ones(2))
    new = torch.zeros(2, 1, 1, 4)
    with pytest.raises(GroupError, match=r"this step keeps none of it\. Pass Owners"):
        block.attention_step(new, new, new, Owners([1, 1], numbers=[0, 1]), 1.0, None)
    hidden = torch.tensor([[[False, True], [False, False]]])
    with pytest.raises(GroupError, match=r"lanerope reads all that they wrote"):
        block.attention(new, new, new, None, Groups(2, hidden=hidden))
