"""A prompt that is computed once for its group gives what computing it in every row gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from interlace.training import scoring
from interlace.training.batch import GroupBatch, collate_ids
from interlace.training.scoring import score, shares_prompts
from support.architectures import attach_random, build, checkpointed, every_architecture

OPTIONS: dict[str, Any] = {"temperature": 0.7, "forbidden": [0, 31], "entropy": True}


def batch_of_groups() -> GroupBatch:
    """Three groups of width 4: prompts of 1, 7 and 11 tokens, rows of 0 to 6, one group ragged."""
    prompts = [[5, 6, 7, 8, 9, 10, 11], [12], list(range(13, 24))]
    rows = [
        [[20, 21, 22, 23], [24], [25, 26], [27, 28, 29, 30, 40, 41]],
        [[42], [], [43, 44, 45], [46, 47]],
        [[48, 49, 50], [51, 52]],
    ]
    return collate_ids(prompts, rows, pad_token_id=0)


def scored(model: nn.Module, batch: GroupBatch, once: Any) -> tuple[Any, dict[str, Any]]:
    model.zero_grad()
    scores = score(model, batch, prompt_once=once, entropy_gradients=True, **OPTIONS)
    assert scores.entropy is not None
    weights = torch.linspace(-1, 2, scores.logprobs.numel()).view(scores.logprobs.shape)
    ((scores.logprobs * weights).sum() + (scores.entropy * weights.flip(2)).sum()).backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return scores, grads


def assert_alike(model: nn.Module, batch: GroupBatch, tolerance: float = 1e-5) -> None:
    full, wanted = scored(model, batch, "never")
    once, found = scored(model, batch, "auto")
    torch.testing.assert_close(once.logprobs, full.logprobs, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(once.entropy, full.entropy, atol=tolerance, rtol=tolerance)
    assert found.keys() == wanted.keys()
    least = max(tensor.norm() for tensor in wanted.values()) / 5  # keys' biases: rounding alone
    for name, tensor in wanted.items():
        gap = float((found[name] - tensor).norm() / tensor.norm().clamp(min=least))
        assert gap < tolerance, f"{name}: {gap:.2g}"


@pytest.fixture
def rows_of_calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Rows and positions of each call that computes prompts alone."""
    calls: list[tuple[int, int]] = []
    cache = scoring._prompt_cache

    def noting(inner: Any, batch: Any, mask: Any, positions: Any) -> Any:
        calls.append((batch.count, mask.shape[1]))
        return cache(inner, batch, mask, positions)

    monkeypatch.setattr(scoring, "_prompt_cache", noting)
    return calls


@every_architecture()
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_values_and_gradients_are_those_of_the_full_pass(
    name: str, attn: str, rows_of_calls: list[tuple[int, int]]
) -> None:
    """Windows of 5 are shorter than the prompts. Fails if positions, masks or windows of the second
    call start from 0, if padding is seen, or if gradients stop at the keys and values."""
    assert_alike(attach_random(build(name, attn)).train(), batch_of_groups())
    assert set(rows_of_calls) == {(3, 10)}


@pytest.mark.parametrize("kind", ["pmatch", None])
def test_other_couplings_and_none(kind: str | None, rows_of_calls: list[tuple[int, int]]) -> None:
    model = build("llama") if kind is None else attach_random(build("llama"), kind)
    assert_alike(model, batch_of_groups())
    assert rows_of_calls


def test_blocks_that_rows_alone_go_by(rows_of_calls: list[tuple[int, int]]) -> None:
    """Fails if the prompt's one row is taken for a group of width 1."""
    assert_alike(attach_random(build("llama"), alone="skip"), batch_of_groups())
    assert rows_of_calls


def test_the_own_logits_where_no_head_can_be_stood_in_for(
    monkeypatch: pytest.MonkeyPatch, rows_of_calls: list[tuple[int, int]]
) -> None:
    monkeypatch.setattr(scoring, "_replaceable_head", lambda *arguments: None)
    assert_alike(attach_random(build("qwen3")), batch_of_groups())
    assert rows_of_calls


@pytest.mark.parametrize("only", ["keys", "values"])
def test_what_it_catches(only: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients that stop at the prompt's keys, or values, are seen."""
    cache = scoring._prompt_cache

    def cut(*arguments: Any) -> Any:
        found = cache(*arguments)
        for layer in found.layers:
            setattr(layer, only, getattr(layer, only).detach())
        return found

    monkeypatch.setattr(scoring, "_prompt_cache", cut)
    with pytest.raises(AssertionError):
        assert_alike(attach_random(build("llama")), batch_of_groups())


# Where the prompt is computed in every row.


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_the_models_that_cannot_share() -> None:
    """A layer that keeps another state; positions that depend on a call's length; checkpointing;
    a longer reach of the blocks; a compiled model; a wrapper that follows single calls."""
    assert shares_prompts(attach_random(build("gemma3")))
    training = checkpointed(build("llama"), use_reentrant=False).train()
    assert not shares_prompts(training)
    assert shares_prompts(training.eval())
    assert not shares_prompts(attach_random(build("llama"), reads="finished"))
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    assert not shares_prompts(build("llama", rope_parameters=rope))
    hybrid = build("qwen3")
    hybrid.config.layer_types = ["linear_attention", "full_attention", "full_attention"]
    assert not shares_prompts(hybrid)
    wrapper = nn.Module()
    wrapper.module = build("llama")
    assert not shares_prompts(wrapper)
    compiled = build("llama")
    compiled.compile()
    assert not shares_prompts(compiled)


@pytest.mark.parametrize("checkpointing", [True, False])
def test_gradient_checkpointing_gives_the_same(checkpointing: bool) -> None:
    model = attach_random(build("llama")).train()
    if checkpointing:
        checkpointed(model, use_reentrant=False)
    assert_alike(model, batch_of_groups())


def test_short_prompts_and_width_1_do_not_pay(rows_of_calls: list[tuple[int, int]]) -> None:
    model = build("llama")
    for prompts, rows in (([[5, 6]], [[[7] * 20] * 4]), ([[5] * 20], [[[6, 7]]])):
        score(model, collate_ids(prompts, rows, pad_token_id=0))
    assert not rows_of_calls
    score(model, collate_ids([[5] * 20], [[[6, 7], [8]]], pad_token_id=0))
    assert rows_of_calls == [(1, 19)]
