"""Several prompts in one padded pass give what each gives alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from interlace import Engine, SamplingParams
from interlace.engine.backends import choose_backend
from interlace.engine.backends.hf import HFBackend
from interlace.engine.slots import SlotCache
from support.architectures import NAMES, attach_random, build
from support.engine import largest_gap, prefilled

# Of four different lengths, in no order.
PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12, 13], [14], [15, 16, 17, 18], [19, 20, 21]]


def stores_of(backend: HFBackend) -> list[Tensor]:
    """Keys and values of prompts, prompts second."""
    cache: Any = backend._cache
    return [cache.shared] if isinstance(cache, SlotCache) else [s.data for s in cache._shared]


@pytest.mark.parametrize("name", NAMES)
def test_I6_prompts_together_are_prompts_alone(name: str, backend: str) -> None:
    """To rounding, in fp32: keys, values and logits of each; those with windows go one by one."""
    model = attach_random(build(name))
    one = choose_backend(backend, model, 1024)
    assert isinstance(one, HFBackend)
    many = choose_backend(backend, model, 1024)
    assert isinstance(many, HFBackend)
    stored = {}
    for places in many.passes([len(prompt) for prompt in PROMPTS]):
        together = prefilled(many, [PROMPTS[place] for place in places])
        stored |= dict(zip(places, together, strict=True))
    for place, prompt in enumerate(PROMPTS):
        (alone,) = prefilled(one, [prompt])
        torch.testing.assert_close(stored[place].logits, alone.logits, atol=1e-5, rtol=1e-5)
        assert stored[place].length == alone.length == len(prompt)
        for mine, theirs in zip(stores_of(many), stores_of(one), strict=True):
            got = mine[:, stored[place].place, :, : len(prompt)]
            want = theirs[:, alone.place, :, : len(prompt)]
            torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


def test_short_prompts_of_like_length_share_a_pass() -> None:
    backend = choose_backend("hf", build("llama"), 24)
    assert backend.passes([3, 6, 1, 4, 3, 100, 7]) == [[2], [0, 4, 3, 1], [6], [5]]
    assert backend.passes([30, 30]) == [[0], [1]]
    assert choose_backend("hf", build("gemma3"), 24).passes([3, 3]) == [[0], [1]]


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3"])
def test_I7_groups_whose_prompts_shared_a_pass(name: str, backend: str) -> None:
    model, passes = attach_random(build(name)), 0

    def count(module: object, args: object) -> None:
        nonlocal passes
        passes += 1

    handle = model.get_input_embeddings().register_forward_pre_hook(count)
    engine = Engine(model, backend=backend)
    groups = engine.generate(PROMPTS, SamplingParams(width=3, max_new_tokens=1))
    handle.remove()
    assert passes == (5 if name == "gemma3" else 3)  # the first prompt goes ahead alone
    assert engine.stats.prefill_tokens == sum(map(len, PROMPTS))
    assert largest_gap(model, groups) < 1e-5
    longer = engine.generate(PROMPTS, SamplingParams(width=3, max_new_tokens=9))
    assert largest_gap(model, longer) < 1e-5


def test_of_prompts_that_share_a_pass_only_the_one_that_fails_ends() -> None:
    model = attach_random(build("llama"))
    expected = Engine(model).generate(PROMPTS, SamplingParams(width=2, max_new_tokens=5))

    def refuse(module: object, args: tuple[torch.Tensor]) -> None:
        if (args[0] == 16).any():
            raise ZeroDivisionError("the user's")

    handle = model.model.embed_tokens.register_forward_pre_hook(refuse)
    engine = Engine(model)
    with pytest.raises(ZeroDivisionError):
        engine.generate(PROMPTS, SamplingParams(width=2, max_new_tokens=5))
    handle.remove()
    again = engine.generate(PROMPTS, SamplingParams(width=2, max_new_tokens=5))
    assert [g.completions for g in again] == [g.completions for g in expected]
