"""The model is made ready for a step and put back as it was, whatever happens in between."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from interlace import Engine, SamplingParams, detach
from interlace.engine.backends.hf import HFBackend
from interlace.errors import GenerationError, GenerationInterrupted
from support.architectures import attach_fresh, attach_random, build, checkpointed
from support.engine import largest_gap

PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12]]
PARAMS = SamplingParams(width=3, max_new_tokens=6, seed=3)


def state_of(model: nn.Module) -> dict[str, Any]:
    """All that a call could leave changed, but for values of parameters."""
    modules = dict(model.named_modules())
    return {
        "training": {name: m.training for name, m in modules.items()},
        "attributes": {name: sorted(m.__dict__) for name, m in modules.items()},
        "hooks": {
            name: (len(m._forward_pre_hooks), len(m._forward_hooks)) for name, m in modules.items()
        },
        "attention": {
            name: m.config._attn_implementation
            for name, m in modules.items()
            if hasattr(m, "config")
        },
        "cache": model.config.use_cache,
        "requires_grad": {name: p.requires_grad for name, p in model.named_parameters()},
        "gradients": {name: p.grad for name, p in model.named_parameters()},
        "versions": {name: p._version for name, p in model.named_parameters()},
    }


def fail_in_layer(model: PreTrainedModel, error: BaseException, call: int) -> None:
    """Raise in the middle of the model's forward pass, at its `call`-th pass."""
    calls = 0

    def hook(module: nn.Module, args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == call:
            raise error

    model.model.layers[1].mlp.register_forward_pre_hook(hook)


@pytest.mark.parametrize("training", ["eval", "train", "mixed"])
def test_a_call_leaves_the_model_as_it_was(training: str) -> None:
    model = attach_random(build("gemma3", attn="eager"))
    model.train(training == "train")
    if training == "mixed":
        model.model.layers[1].train()
    next(model.parameters()).requires_grad_(False)
    before = state_of(model)
    Engine(model, backend="cpu").generate(PROMPTS, PARAMS.replace(record_attention="mean"))
    assert state_of(model) == before


@pytest.mark.parametrize("call", [1, 2, 3, 5], ids="pass {}".format)
@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_an_error_in_the_middle_leaves_the_model_as_it_was(
    error: type[BaseException], call: int
) -> None:
    """Passes 1 and 2 are prefills, the others steps."""
    model = attach_random(build("llama")).train()
    fail_in_layer(model, error(), call)
    before = state_of(model)
    engine = Engine(model, backend="cpu")
    expected = GenerationInterrupted if error is KeyboardInterrupt else error
    with pytest.raises(expected):
        engine.generate(PROMPTS, PARAMS.replace(record_attention="layers"))
    assert state_of(model) == before
    assert largest_gap(model, engine.generate(PROMPTS, PARAMS)) < 1e-5


def test_a_stream_leaves_the_model_alone_between_its_steps() -> None:
    model = attach_random(build("llama")).train()
    before = state_of(model)
    stream = Engine(model, backend="cpu").stream([5, 6, 7], PARAMS)
    for _ in stream:
        assert state_of(model) == before
    assert state_of(model) == before


def test_sampling_during_training_leaves_gradients_unaffected() -> None:
    ids = torch.tensor([PROMPTS[1]])

    def gradients(between: Callable[[PreTrainedModel], None]) -> list[torch.Tensor]:
        model = attach_random(build("llama")).train()
        between(model)
        loss = model(input_ids=ids, labels=ids).loss
        between(model)
        loss.backward()
        between(model)
        assert model.training
        return [p.grad for p in model.parameters() if p.grad is not None]

    def sampled(model: PreTrainedModel) -> None:
        Engine(model, backend="cpu").generate(PROMPTS, PARAMS)

    for a, b in zip(gradients(lambda model: None), gradients(sampled), strict=True):
        assert torch.equal(a, b)


def test_dropout_is_off_while_sampling_wherever_it_is_switched_on() -> None:
    expected = Engine(build("gpt2")).generate(PROMPTS, PARAMS)
    model = build("gpt2", resid_pdrop=0.5, embd_pdrop=0.5)
    for switched_on in (model, model.transformer.h[1]):
        switched_on.train()
        got = Engine(model).generate(PROMPTS, PARAMS)
        assert [g.completions for g in got] == [g.completions for g in expected]
        model.eval()


def test_gradient_checkpointing_and_training_mode() -> None:
    model = attach_random(build("llama"))
    expected = Engine(model).generate(PROMPTS, PARAMS)
    checkpointed(model.train())
    before = state_of(model)
    got = Engine(model).generate(PROMPTS, PARAMS)
    assert [g.completions for g in got] == [g.completions for g in expected]
    assert state_of(model) == before
    assert any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_within_other_contexts(mode: Any) -> None:
    model = attach_random(build("qwen3"))
    expected = Engine(model).generate(PROMPTS, PARAMS)
    with mode():
        engine = Engine(model)
        got = engine.generate(PROMPTS, PARAMS)
        assert torch.is_grad_enabled() == (mode is torch.enable_grad)
    assert [g.completions for g in got] == [g.completions for g in expected]
    assert [g.completions for g in engine.generate(PROMPTS, PARAMS)] == [
        g.completions for g in expected
    ]


def test_blocks_attached_or_detached_after_the_engine_was_made() -> None:
    model = build("llama")
    engine = Engine(model)
    alone = engine.generate(PROMPTS, PARAMS)
    attach_random(model)
    assert largest_gap(model, engine.generate(PROMPTS, PARAMS)) < 1e-5
    detach(model)
    assert [g.completions for g in engine.generate(PROMPTS, PARAMS)] == [
        g.completions for g in alone
    ]


def test_another_dtype_after_the_engine_was_made() -> None:
    model = attach_fresh(build("llama"))
    engine = Engine(model)
    engine.generate(PROMPTS, PARAMS)
    model.to(torch.bfloat16)
    assert largest_gap(model, engine.generate(PROMPTS, PARAMS)) < 0.25


def test_context_length_is_the_configurations() -> None:
    assert HFBackend(build("llama"), 8).context == (64, "")
    assert HFBackend(build("gpt2"), 8).context == (64, "")


def test_a_model_outside_the_attention_interface_is_refused() -> None:
    import transformers

    config = transformers.BloomConfig(vocab_size=97, hidden_size=24, n_layer=2, n_head=2)
    with pytest.raises(GenerationError, match="BloomForCausalLM does not go through"):
        Engine(transformers.BloomForCausalLM(config))


def test_two_engines_on_one_model_in_two_threads(backend: str) -> None:
    """The model was left with our attention for good when their steps overlapped."""
    model = attach_random(build("llama"))
    ids = torch.tensor([PROMPTS[1]])
    expected, before = model(input_ids=ids).logits, state_of(model)
    own = [PARAMS.replace(seed=seed, max_new_tokens=20) for seed in range(2)]
    alone = [Engine(model, backend=backend).generate(PROMPTS, params) for params in own]
    together: list[Any] = [None, None]
    start = threading.Barrier(2)

    def call(place: int) -> None:
        engine = Engine(model, backend=backend)
        start.wait()
        together[place] = [engine.generate(PROMPTS, own[place]) for _ in range(3)]

    threads = [threading.Thread(target=call, args=(place,)) for place in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert state_of(model) == before
    assert torch.equal(model(input_ids=ids).logits, expected)
    for place in range(2):
        for groups in together[place]:
            assert [g.completions for g in groups] == [g.completions for g in alone[place]]
