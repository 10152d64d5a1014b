"""Scores from hidden states are those of the plain pass, which has all logits at once."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from interlace.training import scoring
from interlace.training.batch import GroupBatch, collate_ids
from interlace.training.scoring import Distribution, Scores, sampled_logprobs, score
from support.architectures import VOCAB, attach_random, build, every_architecture
from support.engine import Largest

OPTIONS: dict[str, Any] = {"temperature": 0.7, "forbidden": [0, 31, 96]}


def batch_of_groups() -> GroupBatch:
    """Two groups of width 3 with prompts and rows of different lengths, one row empty."""
    prompts = [[5, 6, 7], [8, 9, 10, 11, 12]]
    rows = [[[20, 21, 22, 23], [24], [25, 26]], [[27, 28, 29], [], [30, 40, 41, 42]]]
    return collate_ids(prompts, rows, pad_token_id=0)


def plain_logits(model: nn.Module, batch: GroupBatch) -> Tensor:
    attached = {"groups": batch.groups} if hasattr(model, "interlace_attachment") else {}
    logits: Tensor = model(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask.long(),
        position_ids=(batch.attention_mask.long().cumsum(1) - 1).clamp(min=0),
        **attached,
    ).logits
    return logits


def plain_score(
    model: nn.Module,
    batch: GroupBatch,
    temperature: float = 1.0,
    forbidden: Any = (),
) -> Scores:
    """From the model's own logits, all at once, as the definition has it."""
    logits = plain_logits(model, batch)
    length = batch.completion_mask.shape[2]
    logits = logits[:, -length - 1 : -1].to(torch.promote_types(logits.dtype, torch.float32))
    logits = logits / temperature
    logits[..., list(forbidden)] = -torch.inf
    logp = logits.log_softmax(dim=-1)
    shape = (batch.count, batch.width)
    keep = batch.completion_mask
    ids = batch.completion_ids.flatten(0, 1).masked_fill(~keep.flatten(0, 1), 1)
    chosen = logp.gather(-1, ids[..., None])[..., 0].unflatten(0, shape)
    spread = -(logp.exp() * logp.masked_fill(logp.isinf(), 0)).sum(-1).unflatten(0, shape)
    return Scores(chosen * keep, spread * keep)


def loss(scores: Scores, batch: GroupBatch, entropy: bool = False) -> Tensor:
    """A loss in which each token, and each entropy, has a weight of its own."""
    weights = torch.linspace(-1, 2, batch.completion_mask.numel()).view(batch.completion_mask.shape)
    found = (scores.logprobs * weights.to(scores.logprobs)).sum()
    if entropy:
        assert scores.entropy is not None
        found = found + (scores.entropy * weights.flip(2).to(found)).sum()
    return found


def gradients(model: nn.Module, value: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    value.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_alike(
    model: nn.Module, batch: GroupBatch, tolerance: float = 1e-6, entropy: bool = False
) -> None:
    """Values and gradients of `score` against the plain pass."""
    got = score(
        model, batch, entropy=True, entropy_gradients=entropy, prompt_once="never", **OPTIONS
    )
    expected = plain_score(scoring.unwrapped(model), batch, **OPTIONS)
    # Differences of logits are as exact as the logits are.
    size = (
        float(plain_logits(scoring.unwrapped(model), batch).detach().abs().max())
        / OPTIONS["temperature"]
    )
    close: dict[str, Any] = {"atol": tolerance * max(size, 1.0), "rtol": 0}
    torch.testing.assert_close(got.logprobs, expected.logprobs, **close)
    torch.testing.assert_close(got.entropy, expected.entropy, **close)
    found = gradients(model, loss(got, batch, entropy))
    wanted = gradients(model, loss(expected, batch, entropy))
    assert found.keys() == wanted.keys()
    # Biases of keys have a gradient of nothing but rounding.
    least = max(tensor.norm() for tensor in wanted.values()) / 5
    for name, tensor in wanted.items():
        gap = (found[name] - tensor).norm() / tensor.norm().clamp(min=least)
        assert gap < tolerance, f"{name}: {gap:.2g}"


@pytest.fixture
def no_plain_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model's own logits are out of reach."""
    monkeypatch.setattr(scoring, "_from_logits", None)


@pytest.fixture(params=["kept", "made again"])
def small_chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks a pass, whose logits are kept for the backward pass or made again."""
    monkeypatch.setattr(scoring, "CHUNK_BYTES", 4 * VOCAB * 3)
    if request.param == "made again":
        monkeypatch.setattr(scoring, "KEPT_BYTES", 0)


@every_architecture()
@pytest.mark.usefixtures("no_plain_pass", "small_chunks")
def test_scores_and_gradients_are_those_of_the_plain_pass(name: str) -> None:
    """Fails if a scale or a cap after the head is left out, in values or in gradients."""
    assert_alike(attach_random(build(name)), batch_of_groups())


@pytest.mark.parametrize("name", ["llama", "gemma2", "cohere2"])
@pytest.mark.usefixtures("no_plain_pass", "small_chunks")
def test_entropies_have_gradients_on_demand(name: str) -> None:
    model = attach_random(build(name))
    assert_alike(model, batch_of_groups(), entropy=True)
    for wanted in (True, False):
        found = score(model, batch_of_groups(), entropy=True, entropy_gradients=wanted).entropy
        assert found is not None
        assert found.requires_grad is wanted


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_entropies_of_peaked_distributions_keep_their_digits(seed: int) -> None:
    """Logits of several hundred, as trained models have at low temperatures. Fails for lse(y) minus
    the mean of y: there both are large, H is what rounding left, and so is its gradient."""
    random = torch.Generator().manual_seed(seed)
    hidden, weight = torch.randn(5, 7, generator=random), torch.randn(11, 7, generator=random)
    options = Distribution(temperature=0.1, entropy=True, entropy_gradients=True)

    def entropies(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        given = hidden.to(dtype, copy=True).requires_grad_()
        bias = torch.full((11,), 30.0, dtype=dtype)
        spread = sampled_logprobs(given, weight.to(dtype), bias, torch.arange(5), options)[1]
        return spread.detach(), torch.autograd.grad(spread.sum(), given)[0]

    (value, gradient), exact = entropies(torch.float32), entropies(torch.float64)
    assert (value - exact[0]).abs().max() < 1e-4  # 5e-3 before
    assert (gradient - exact[1]).abs().max() < 1e-4 * exact[1].abs().max()


def test_entropies_only_if_asked_for() -> None:
    assert score(build("llama"), batch_of_groups()).entropy is None


@pytest.mark.usefixtures("no_plain_pass", "small_chunks")
def test_a_head_with_a_bias_in_float64() -> None:
    model = attach_random(build("llama"))
    head = nn.Linear(model.config.hidden_size, VOCAB)
    model.set_output_embeddings(head)
    assert_alike(model.double(), batch_of_groups(), tolerance=1e-13, entropy=True)


@pytest.mark.usefixtures("no_plain_pass", "small_chunks")
def test_in_bfloat16_as_exact_as_the_plain_pass() -> None:
    model = attach_random(build("gemma2", dtype=torch.bfloat16))
    batch = batch_of_groups()
    got, expected = (s(model, batch, **OPTIONS).logprobs for s in (score, plain_score))
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    wide = copy.deepcopy(model).float()
    exact = gradients(wide, loss(plain_score(wide, batch, **OPTIONS), batch))
    for name, tensor in gradients(model, loss(Scores(got, None), batch)).items():
        assert (tensor - exact[name]).norm() < 0.05 * exact[name].norm().clamp(min=1e-2), name


@pytest.mark.usefixtures("no_plain_pass")
def test_under_autocast() -> None:
    model, batch = attach_random(build("llama")), batch_of_groups()
    with torch.autocast("cpu", torch.bfloat16):
        got = score(model, batch, **OPTIONS).logprobs
        expected = plain_score(model, batch, **OPTIONS).logprobs
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    found, wanted = (gradients(model, loss(Scores(s, None), batch)) for s in (got, expected))
    for name, tensor in wanted.items():
        assert (found[name] - tensor).norm() < 0.02 * tensor.norm().clamp(min=1e-2), name


@pytest.mark.usefixtures("no_plain_pass")
def test_frozen_heads_get_no_gradient_and_rows_without_tokens_no_score() -> None:
    model = attach_random(build("llama"))
    head: Any = model.get_output_embeddings()
    head.weight.requires_grad_(False)
    batch = collate_ids([[5, 6]], [[[], []]], pad_token_id=0)
    scores = score(model, batch, entropy=True)
    assert not scores.logprobs.any()
    assert scores.logprobs.requires_grad  # wrappers wait for every weight's gradient
    found = gradients(model, scores.logprobs.sum())
    assert not any(tensor.any() for tensor in found.values())
    assert_alike(model, batch_of_groups())
    assert head.weight.grad is None


@pytest.mark.usefixtures("no_plain_pass")
def test_a_scale_is_seen_once_and_changes_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if a model's scale is remembered without looking again."""
    model, batch = attach_random(build("granite")), batch_of_groups()
    passes = []
    forward = scoring._forward
    monkeypatch.setattr(scoring, "_forward", lambda *a: passes.append(1) or forward(*a))
    assert_alike(model, batch)
    assert len(passes) == 2
    assert_alike(model, batch)
    assert len(passes) == 3
    model.config.logits_scaling = 3.0
    assert_alike(model, batch)


class Odd(nn.Linear):
    """A head with a forward pass of its own, as quantised ones have."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return super().forward(input) * 1.5 + 0.25 * input.sum(-1, keepdim=True).tanh()


def odd_head(model: PreTrainedModel) -> None:
    head: Any = model.get_output_embeddings()
    head.__class__ = Odd


def odd_tail(model: PreTrainedModel) -> None:
    """Logits that depend on the token otherwise than by a scale."""
    shift = torch.linspace(0, 2, VOCAB)
    model.register_forward_hook(
        lambda m, a, output: setattr(output, "logits", output.logits + shift)
    )


@pytest.mark.parametrize("odd", [odd_head, odd_tail])
def test_where_the_head_cannot_be_stood_in_for_the_own_logits_are_used(
    odd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = attach_random(build("llama"))
    odd(model)
    monkeypatch.setattr(scoring, "CHUNK_BYTES", 4 * VOCAB * 5)
    assert_alike(model, batch_of_groups())
    assert_alike(model, batch_of_groups(), entropy=True)


def test_the_head_is_itself_again_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llama")
    head: Any = model.get_output_embeddings()

    def fail(*arguments: Any) -> Any:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(scoring, "sampled_logprobs", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        score(model, batch_of_groups())
    assert "forward" not in vars(head)


def test_no_tensor_of_all_logits_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    model = attach_random(build("llama"))
    batch = collate_ids([[5, 6]], [[[7] * 30, [8] * 28]], pad_token_id=0)
    monkeypatch.setattr(scoring, "CHUNK_BYTES", 4 * VOCAB)
    monkeypatch.setattr(scoring, "KEPT_BYTES", 0)
    with Largest(last_axis=VOCAB) as largest:
        score(model, batch, entropy=True, **OPTIONS).logprobs.sum().backward()
    assert largest.elements == VOCAB * model.config.hidden_size  # the head's weight


# What wraps a model, or its head.


@pytest.mark.filterwarnings(
    "ignore:PEFT saves its adapters alone:UserWarning",
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning",  # PEFT reads it
)
@pytest.mark.parametrize("targets", [["q_proj", "o_proj"], ["lm_head", "v_proj"]])
def test_peft_models_with_adapters_that_are_not_zero(targets: list[str]) -> None:
    """An adapter on the head is not the head's product alone. Fails if the adapter is left out."""
    peft = pytest.importorskip("peft")
    model = attach_random(build("qwen3"))
    config = peft.LoraConfig(r=3, target_modules=targets, init_lora_weights=False)
    wrapped = peft.get_peft_model(model, config)
    batch = batch_of_groups()
    with torch.no_grad(), wrapped.disable_adapter():
        without = score(wrapped, batch).logprobs
    assert not torch.allclose(score(wrapped, batch).logprobs, without, atol=1e-2)
    for called in (wrapped, wrapped.get_base_model()):  # the latter as train="lora" has it
        assert_alike(called, batch)
