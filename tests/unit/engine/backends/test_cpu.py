"""Packed weights: the same results, never stale, and nothing left behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from interlace import Engine, SamplingParams
from interlace.engine.backends import cpu as cpu_module
from interlace.engine.backends.cpu import PackedWeights, why_not_packed
from interlace.engine.types import GroupOutput
from interlace.errors import GenerationError
from support.architectures import attach_random, build
from support.engine import largest_gap

PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12]]
PARAMS = SamplingParams(width=5, max_new_tokens=9, seed=3)

pytestmark = pytest.mark.skipif(
    why_not_packed(nn.Linear(2, 2)) is not None, reason="torch without oneDNN's private operators"
)


def logprobs(groups: list[GroupOutput]) -> Tensor:
    return torch.tensor([c.logprobs for group in groups for c in group.completions])


# Both have linears with biases; one is computed as one function, the other module by module.
NAMES = ["qwen2", "granite"]


def with_biases(name: str, **options: Any) -> PreTrainedModel:
    extra = {} if name == "qwen2" else {"attention_bias": True}
    return build(name, **options, **extra)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["bridge", "pmatch"])
@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float32, 2e-5), (torch.bfloat16, 0.25)])
def test_same_results_as_plain(name: str, kind: str, dtype: torch.dtype, allowed: float) -> None:
    model = attach_random(with_biases(name, dtype=dtype), kind)
    packed = Engine(model, backend="cpu").generate(PROMPTS, PARAMS)
    plain = Engine(model, backend="hf").generate(PROMPTS, PARAMS)
    if dtype == torch.float32:
        assert [g.completions for g in packed] != []
        assert (logprobs(packed) - logprobs(plain)).abs().max() < allowed
    assert largest_gap(model, packed) < allowed
    assert largest_gap(model, plain) < allowed


def refreshed(weights: PackedWeights, model: nn.Module) -> list[Any]:
    with weights.anew():
        return weights.refresh(model)


def linears(model: nn.Module) -> list[nn.Linear]:
    return [m for m in model.modules() if type(m) is nn.Linear]


@torch.no_grad()
def optimizer_step(model: PreTrainedModel, kind: Any = torch.optim.SGD, **options: Any) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    kind(model.parameters(), lr=0.05, **options).step()


@torch.no_grad()
def through_data(model: PreTrainedModel) -> None:
    for parameter in model.parameters():
        parameter.data.copy_(parameter * 1.1)


def load_state_dict(model: PreTrainedModel) -> None:
    model.load_state_dict({n: t * 1.1 for n, t in model.state_dict().items()})


def swapped_parameters(model: PreTrainedModel) -> None:
    for module in linears(model):
        module.weight = nn.Parameter(module.weight.detach() * 1.1)


def swapped_storage(model: PreTrainedModel) -> None:
    for module in linears(model):
        module.weight.data = module.weight.detach() * 1.1


def swapped_biases(model: PreTrainedModel) -> None:
    for module in linears(model):
        if module.bias is not None:
            module.bias = nn.Parameter(module.bias.detach() + 1)


def added_bias(model: PreTrainedModel) -> None:
    module = next(m for m in linears(model) if m.bias is None)
    module.bias = nn.Parameter(torch.ones(module.out_features))


def swapped_module(model: PreTrainedModel) -> None:
    mlp = model.model.layers[1].mlp
    mlp.up_proj = nn.Linear(mlp.up_proj.in_features, mlp.up_proj.out_features, bias=False)


def blocks_changed(model: PreTrainedModel) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "bridge" in name:
                parameter.mul_(1.5)


CHANGES: list[Callable[[PreTrainedModel], None]] = [
    optimizer_step,
    lambda model: optimizer_step(model, torch.optim.AdamW, fused=True),
    lambda model: optimizer_step(model, torch.optim.AdamW, foreach=True),
    through_data,
    load_state_dict,
    swapped_parameters,
    swapped_storage,
    swapped_biases,
    added_bias,
    swapped_module,
    blocks_changed,
]


@pytest.mark.parametrize(
    ("name", "backend"), [*((name, "cpu") for name in NAMES), ("qwen2", "native")]
)
@pytest.mark.parametrize(
    "change", CHANGES, ids=lambda c: c.__name__ if c.__name__ != "<lambda>" else "adam"
)
def test_changed_weights_are_followed(
    name: str, backend: str, change: Callable[[PreTrainedModel], None]
) -> None:
    model = attach_random(with_biases(name))
    engine = Engine(model, backend=backend)
    before = engine.generate(PROMPTS, PARAMS)
    change(model)
    after = engine.generate(PROMPTS, PARAMS)
    assert largest_gap(model, after) < 2e-5
    # What stale weights would look like here, so that the check above cannot pass by chance.
    assert largest_gap(model, before) > 1e-3


@pytest.mark.parametrize(("inputs", "outputs"), [(31, 2000), (2000, 31), (300, 300), (1, 5)])
def test_one_row_or_column_set_through_data_is_noticed(inputs: int, outputs: int) -> None:
    """As when a token's output embedding is set; torch's version counter does not see it. A single
    element off the diagonals went unnoticed."""
    linear = nn.Linear(inputs, outputs)
    weights, x = PackedWeights(), torch.randn(4, inputs)
    refreshed(weights, linear)
    element = (outputs * 2 // 3, inputs // 3)
    for part in ((outputs // 3,), (slice(None), inputs // 3), element):
        linear.weight.data[part] += 1.0
        expected = linear(x)
        ((_, _, product),) = refreshed(weights, linear)
        with torch.no_grad():
            torch.testing.assert_close(product(x), expected, atol=1e-4, rtol=1e-4)


def test_unchanged_weights_are_not_packed_again() -> None:
    model, weights = attach_random(build("llama")), PackedWeights()
    refreshed(weights, model)
    first = {key: id(made.what) for key, made in weights._made.items()}
    refreshed(weights, model)
    assert {key: id(made.what) for key, made in weights._made.items()} == first
    assert weights.nbytes > 0


def test_weights_of_modules_that_are_gone_are_let_go() -> None:
    model = build("llama")
    weights = PackedWeights()
    refreshed(weights, model)
    before = weights.nbytes
    model.model.layers[0].mlp.up_proj = nn.Identity()
    refreshed(weights, model)
    assert weights.nbytes < before


def test_other_types_and_kinds_of_weights_stay_as_they_are() -> None:
    class Quantised(nn.Linear):
        pass

    model = nn.Sequential(
        nn.Linear(4, 4, dtype=torch.float16), Quantised(4, 4), nn.Linear(4, 4, device="meta")
    )
    assert refreshed(PackedWeights(), model) == []


def test_a_model_made_in_inference_mode() -> None:
    with torch.inference_mode():
        model = attach_random(build("qwen2"))
    groups = Engine(model, backend="cpu").generate(PROMPTS, PARAMS)
    assert largest_gap(model, groups) < 2e-5


@pytest.mark.parametrize("backend", ["cpu", "hf"])
def test_autocast_of_the_thread_that_steps_changes_nothing(backend: str) -> None:
    """It changed the groups of all callers, those in threads without it too."""
    model = attach_random(build("qwen2"))
    plain = Engine(model, backend=backend).generate(PROMPTS, PARAMS)
    with torch.autocast("cpu", torch.bfloat16):
        groups = Engine(model, backend=backend).generate(PROMPTS, PARAMS)
    assert [g.completions for g in groups] == [g.completions for g in plain]
    assert largest_gap(model, groups) < 2e-5


def test_without_the_private_operators_the_plain_path_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Missing:
        def __getattr__(self, name: str) -> Any:
            raise AttributeError(name)

    monkeypatch.setattr(cpu_module.torch.ops, "mkldnn", Missing())
    model = attach_random(build("qwen2"))
    assert why_not_packed(model) == "this build of torch has no such operators"
    with pytest.raises(GenerationError, match="no such operators"):
        Engine(model, backend="cpu")
    engine = Engine(model)
    assert engine.core.backend.name == "hf"
    assert largest_gap(model, engine.generate(PROMPTS, PARAMS)) < 2e-5
