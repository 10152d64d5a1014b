"""A model as one function: Hugging Face's numbers, for models that are what they seem alone."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaMLP

from interlace import Engine, SamplingParams
from interlace.engine.backends.cpu import CPUBackend, PackedWeights, why_not_packed
from interlace.engine.backends.flat import (
    FAMILIES,
    FlatModel,
    OwnProduct,
    PromptAttention,
    flatten,
    why_not_flat,
)
from support.architectures import NAMES, attach_random, build, random_ids
from support.engine import largest_gap

KNOWN = [family.lower() for family in FAMILIES]
PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12]]
PARAMS = SamplingParams(width=4, max_new_tokens=8, seed=3)
SIZES = {"hidden_size": 96, "intermediate_size": 148, "vocab_size": 97}


def flat_of(model: PreTrainedModel, product: str) -> FlatModel:
    if product == "own":
        return flatten(model, lambda name, linears, norm: OwnProduct(linears, norm))
    if why_not_packed(model) is not None:
        pytest.skip("torch without oneDNN's private operators")
    weights = PackedWeights()
    with weights.anew():
        return flatten(model, weights.product)


@torch.inference_mode()
def flat_logits(flat: FlatModel, ids: Tensor) -> Tensor:
    prompts, length = ids.shape
    positions = torch.arange(length).expand(prompts, -1)
    x = flat(ids, positions, PromptAttention(DynamicCache(), prompts, 0), None)
    return flat.head(x).unflatten(0, (prompts, length))


@pytest.mark.parametrize("product", ["own", "packed"])
@pytest.mark.parametrize("name", KNOWN)
def test_fp32_equals_hugging_face(name: str, product: str) -> None:
    model, ids = build(name), random_ids(3, 11)
    expected = model(ids).logits.detach()
    torch.testing.assert_close(
        flat_logits(flat_of(model, product), ids), expected, atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("product", ["own", "packed"])
@pytest.mark.parametrize("odd", [0, 1])
def test_a_bias_that_only_some_linears_have_counts(odd: int, product: str) -> None:
    """Packed, it was dropped, or raised."""
    model, ids = build("llama"), random_ids(3, 11)
    mlp = model.model.layers[1].mlp
    name = ("gate_proj", "up_proj")[odd]
    plain = getattr(mlp, name)
    linear = nn.Linear(plain.in_features, plain.out_features)
    linear.weight = plain.weight
    setattr(mlp, name, linear)
    assert why_not_flat(model) is None
    expected = model(ids).logits.detach()
    torch.testing.assert_close(
        flat_logits(flat_of(model, product), ids), expected, atol=1e-4, rtol=0
    )


def test_a_norm_without_an_epsilon() -> None:
    model, ids = build("llama", rms_norm_eps=0.0), random_ids(3, 11)
    expected = model(ids).logits.detach()
    torch.testing.assert_close(flat_logits(flat_of(model, "own"), ids), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("norm", ["q_norm", "k_norm"])
def test_the_norms_of_queries_and_keys_have_an_epsilon_each(norm: str) -> None:
    """That of the queries served both."""
    model, ids = build("qwen3"), random_ids(3, 11)
    for layer in model.model.layers:
        getattr(layer.self_attn, norm).variance_epsilon = 0.5
    expected = model(ids).logits.detach()
    torch.testing.assert_close(flat_logits(flat_of(model, "own"), ids), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("product", ["own", "packed"])
@pytest.mark.parametrize("name", KNOWN)
@torch.no_grad()
def test_bf16_is_no_further_from_fp32_than_hugging_face(name: str, product: str) -> None:
    """The mean over 1,000 tokens; that of Hugging Face is itself uncertain by some per cent."""
    model = build(name, dtype=torch.bfloat16, max_position_embeddings=256, **SIZES)
    ids = random_ids(8, 126)

    def chosen(logits: Tensor) -> Tensor:
        return logits[:, :-1].float().log_softmax(-1).gather(-1, ids[:, 1:, None])

    flat, ours = chosen(flat_logits(flat_of(model, product), ids)), chosen(model(ids).logits)
    exact = chosen(model.float()(ids).logits)
    assert flat.numel() == 1000
    assert (flat - exact).abs().mean() < 1.1 * (ours - exact).abs().mean()


def test_other_families_are_named() -> None:
    for name in set(NAMES) - set(KNOWN):
        assert "none of Llama, Mistral" in str(why_not_flat(build(name)))
    assert all(why_not_flat(attach_random(build(name))) is None for name in KNOWN)


def hooked(model: PreTrainedModel) -> None:
    model.model.layers[1].mlp.register_forward_hook(lambda module, args, out: 2 * out)


def own_forward(model: PreTrainedModel) -> None:
    linear = model.model.layers[1].mlp.up_proj
    linear.forward = lambda x: nn.functional.linear(x, 2 * linear.weight)


def own_linear(model: PreTrainedModel) -> None:
    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    model.model.layers[1].mlp.up_proj.__class__ = Doubled


def own_method(model: PreTrainedModel) -> None:
    mlp: Any = model.model.layers[1].mlp
    cls = type(mlp)

    def forward(self: Any, x: Tensor) -> Tensor:
        return 2 * cls.forward(self, x)

    mlp.__class__ = type(cls.__name__, (cls,), {"__module__": cls.__module__, "forward": forward})


def other_activation(model: PreTrainedModel) -> None:
    for layer in model.model.layers:
        layer.mlp.act_fn = nn.GELU()


CHANGES: list[Callable[[PreTrainedModel], None]] = [
    hooked,
    own_forward,
    own_linear,
    own_method,
    other_activation,
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_model_with_something_of_its_own_keeps_its_modules(
    change: Callable[[PreTrainedModel], None],
) -> None:
    """Also where it comes between two calls of an engine."""
    model = attach_random(build("llama"))
    engine = Engine(model)
    before = engine.generate(PROMPTS, PARAMS)
    change(model)
    assert why_not_flat(model) is not None
    assert largest_gap(model, engine.generate(PROMPTS, PARAMS)) < 2e-5
    assert largest_gap(model, before) > 1e-3  # what going by the change would look like


@pytest.mark.parametrize("cls", [LlamaMLP, nn.Linear])
def test_a_wrapped_method_of_a_class_is_called(
    cls: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`functools.wraps` makes a wrapper say that it comes from transformers."""
    original = cls.forward

    @functools.wraps(original)
    def doubled(self: nn.Module, x: Tensor) -> Tensor:
        out: Tensor = 2 * original(self, x)
        return out

    model = build("llama")
    monkeypatch.setattr(cls, "forward", doubled)
    assert why_not_flat(model) is not None
    groups = Engine(model, backend="auto").generate(PROMPTS, PARAMS)
    assert largest_gap(model, groups) < 2e-5


def test_a_hook_on_all_modules_is_called() -> None:
    model, called = build("llama"), []
    listening = nn.modules.module.register_module_forward_hook(lambda m, *_: called.append(m))
    try:
        Engine(model).generate(PROMPTS, PARAMS)
    finally:
        listening.remove()
    assert called


@pytest.mark.parametrize("name", KNOWN)
def test_the_engine_uses_it(name: str) -> None:
    engine = Engine(attach_random(build(name)))
    engine.generate(PROMPTS, PARAMS)
    backend = engine.core.backend
    assert not isinstance(backend, CPUBackend) or backend._flat is not None


def test_blocks_that_are_switched_off_are_skipped() -> None:
    model = attach_random(build("qwen3"))
    plain = Engine(build("qwen3")).generate(PROMPTS, PARAMS)
    with model.interlace_attachment.disabled():
        off = Engine(model).generate(PROMPTS, PARAMS)
    texts = [[[c.token_ids for c in g.completions] for g in groups] for groups in (plain, off)]
    assert texts[0] == texts[1]
