"""The static step: the portable sampler's tokens, without a look at a value, whoever joins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from interlace import Engine, SamplingParams
from interlace.engine.backends.graph import GraphBackend
from interlace.engine.sampling import (
    Workspace,
    draw_on_device,
    sample,
    uniforms,
    uniforms_on_device,
)
from interlace.engine.types import GroupOutput, HidingParams
from interlace.errors import GenerationError
from support.architectures import VOCAB, attach_random, build
from support.engine import largest_gap

PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12, 13, 14], [5, 6, 7], [20], [15, 16, 17, 18]]
PARAMS = SamplingParams(
    width=4, max_new_tokens=17, seed=3, stop_token_ids=tuple(range(VOCAB - 10, VOCAB))
)


def tokens(groups: list[GroupOutput]) -> list[list[list[int]]]:
    return [[c.token_ids for c in group.completions] for group in groups]


def test_uniforms_of_the_device_are_those_of_the_host() -> None:
    generator = np.random.default_rng(1)
    keys = generator.integers(0, 2**64, 1000, dtype=np.uint64)
    steps = generator.integers(0, 2**31, 1000)
    there = uniforms_on_device(torch.tensor(keys.astype(np.int64)), torch.tensor(steps))
    assert np.array_equal(there.numpy(), uniforms(keys, steps))


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("forbidden", [[], [3, 90]])
def test_tokens_of_the_device_are_those_of_the_host(
    temperature: float, forbidden: list[int]
) -> None:
    logits = 3 * torch.randn(300, VOCAB)
    logits[:7, 3] = 60.0  # a forbidden token has nearly all the probability
    uniform = np.random.default_rng(2).random(300)
    expected = sample(
        logits, uniform, SamplingParams(temperature=temperature), torch.tensor(forbidden).long()
    )
    gaps = torch.tensor([[*forbidden, -1]] * 300)
    chosen, logprobs, sampled = draw_on_device(
        logits, torch.tensor(uniform), torch.full((300,), temperature), gaps, Workspace()
    )
    assert torch.equal(chosen, expected.tokens)
    torch.testing.assert_close(logprobs, expected.logprobs)
    torch.testing.assert_close(sampled, expected.sampled_logprobs, atol=1e-5, rtol=1e-5)


MIXES: dict[str, list[SamplingParams]] = {
    "alike": [PARAMS] * 5,
    "widths and temperatures": [
        PARAMS.replace(width=w, temperature=t)
        for w, t in ((4, 1.0), (1, 0.0), (7, 0.6), (2, 1.3), (3, 1.0))
    ],
    "maxima": [PARAMS.replace(max_new_tokens=[3, 17, 1, 9])] * 5,
    "hidden siblings": [
        HidingParams(
            width=4,
            max_new_tokens=17,
            stop_token_ids=PARAMS.stop_token_ids,
            hidden=((0, 1), (3, 2)),
        )
    ]
    * 5,
    "only the host can draw for one": [
        *[PARAMS] * 2,
        PARAMS.replace(top_k=5, max_new_tokens=5),
        *[PARAMS] * 2,
    ],
    "only the host can draw for any": [
        PARAMS.replace(top_p=0.8),
        PARAMS.replace(top_logprobs=2),
        PARAMS.replace(repetition_penalty=1.2),
        PARAMS.replace(record_attention="mean"),
        PARAMS.replace(min_p=0.1),
    ],
}


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("rows", [9, 64])
def test_the_same_tokens_as_with_modules(mix: str, rows: int) -> None:
    """Also where groups come and go, and the host draws for some of the steps."""
    model = attach_random(build("qwen3"))
    groups, expected = (
        Engine(model, backend=name, max_rows=rows).generate(PROMPTS, MIXES[mix])
        for name in ("graph", "hf")
    )
    assert tokens(groups) == tokens(expected)
    for group, other in zip(groups, expected, strict=True):
        for mine, theirs in zip(group.completions, other.completions, strict=True):
            assert mine.logprobs == pytest.approx(theirs.logprobs, abs=1e-5)
        if group.attention is not None:
            np.testing.assert_allclose(group.attention, other.attention, atol=1e-5)


def test_bf16_is_within_its_noise() -> None:
    model = attach_random(build("qwen3", dtype=torch.bfloat16))
    groups = Engine(model, backend="graph", max_rows=9).generate(PROMPTS, PARAMS)
    assert largest_gap(model, groups) < 0.25


class NothingComesFromTheHost(TorchDispatchMode):
    """Refuses what waits for a device, or brings values to it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "nonzero", "lift_fresh", "is_nonzero"), name
        return func(*args, **(kwargs or {}))


def test_a_step_can_be_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    step, seen = GraphBackend._step, []

    def watched(self: GraphBackend, *args: Any) -> Any:
        seen.append(args)
        with NothingComesFromTheHost():
            return step(self, *args)

    monkeypatch.setattr(GraphBackend, "_step", watched)
    for options in ({}, {"alone": "skip"}):
        model = attach_random(build("qwen3"), **options)
        mixed = [PARAMS.replace(width=w) for w in (4, 1, 7, 2, 3)]
        Engine(model, backend="graph", max_rows=12).generate(PROMPTS, mixed)
    assert {draws for _, draws in seen} == {True}
    shapes = {shape for shape, _ in seen}
    assert len(shapes) < 10 < len(seen)  # few shapes, many steps


def test_a_step_that_found_no_memory_is_done_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = attach_random(build("llama"))
    expected = Engine(model, backend="hf").generate(PROMPTS, PARAMS)
    play, calls = GraphBackend._play, []

    def failing(self: GraphBackend, draws: bool) -> Any:
        calls.append(draws)
        if len(calls) in (3, 9):
            raise torch.OutOfMemoryError("no memory")
        return play(self, draws)

    monkeypatch.setattr(GraphBackend, "_play", failing)
    engine = Engine(model, backend="graph")
    assert tokens(engine.generate(PROMPTS, PARAMS)) == tokens(expected)
    assert engine.stats.preempted_groups > 0


def test_streams_that_are_left_and_joined() -> None:
    model = attach_random(build("llama"))
    engine = Engine(model, backend="graph")
    (expected,) = Engine(model, backend="hf").generate([[8, 9]], PARAMS)
    stream = engine.stream([5, 6, 7], PARAMS.replace(stop_token_ids=()))
    steps = iter(stream)
    next(steps), next(steps)
    (group,) = engine.generate([[8, 9]], PARAMS)
    assert tokens([group]) == tokens([expected])
    stream.close()
    (group,) = engine.generate([[8, 9]], PARAMS)
    assert tokens([group]) == tokens([expected])


def test_the_memory_stays_for_captured_steps() -> None:
    model = attach_random(build("llama"))
    engine = Engine(model, backend="graph", memory_budget=2**20)
    engine.generate(PROMPTS, PARAMS)
    backend: Any = engine.core.backend
    memory, version = backend._cache.own, backend._cache.version
    engine.generate(PROMPTS, PARAMS)
    assert backend._cache.own is memory
    assert backend._cache.version == version


def hooked(model: Any) -> None:
    model.model.layers[1].register_forward_hook(lambda module, args, out: None)


def dynamic(model: Any) -> None:
    model.config.rope_parameters["rope_type"] = "dynamic"


@pytest.mark.parametrize(
    ("name", "reads", "change", "reason"),
    [
        ("gemma3", "position", lambda model: None, "none of Llama, Mistral, Qwen2, Qwen3"),
        ("llama", "finished", lambda model: None, "reads='finished'.* Use backend='hf'"),
        ("llama", "position", hooked, "layers.1, a LlamaDecoderLayer, has something of its own"),
        ("llama", "position", dynamic, "rotary positions are dynamic"),
    ],
)
def test_what_it_does_not_carry_is_refused_by_name(
    name: str, reads: str, change: Callable[[Any], None], reason: str
) -> None:
    model = attach_random(build(name), reads=reads)
    change(model)
    with pytest.raises(GenerationError, match=reason):
        Engine(model, backend="graph")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_captured_steps_are_those_that_are_not(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = attach_random(build("qwen3", dtype=dtype)).cuda()
    engine = Engine(model, backend="graph", max_rows=9)
    captured = [engine.generate(PROMPTS, PARAMS) for _ in range(3)]
    monkeypatch.setattr(
        GraphBackend, "_play", lambda self, draws: self._step(self._cache.of_step(), draws)
    )
    eager = Engine(model, backend="graph", max_rows=9).generate(PROMPTS, PARAMS)
    for groups in captured:
        if dtype == torch.float32:
            assert tokens(groups) == tokens(eager)
        assert largest_gap(model, groups) < (2e-4 if dtype == torch.float32 else 0.25)
