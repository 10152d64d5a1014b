"""Any call at all: each group is what it would be alone, and agrees with the training pass.

Axes: W width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from interlace import Engine, SamplingParams
from interlace.errors import GenerationError
from support.architectures import ARCHITECTURES, NAMES, VOCAB, attach_random, build
from support.engine import largest_gap


@cache
def model_of(name: str, kind: str | None) -> PreTrainedModel:
    model = build(name)
    return attach_random(model, kind) if kind else model


@st.composite
def sampling(draw: Any) -> dict[str, Any]:
    """Parameters under which fp32 rounding cannot tip a choice: filters have edges that it can."""
    width = draw(st.integers(1, 6))
    return {
        "width": width,
        "max_new_tokens": draw(
            st.one_of(
                st.integers(1, 20),
                st.lists(st.integers(1, 20), min_size=width, max_size=width),
            )
        ),
        "temperature": draw(st.sampled_from([0.0, 0.8, 1.0, 1.4])),
        "repetition_penalty": draw(st.sampled_from([1.0, 1.0, 1.3])),
        "stop_token_ids": range(VOCAB - draw(st.integers(0, 20)), VOCAB),
        "seed": draw(st.integers(0, 3)),
        "top_logprobs": draw(st.sampled_from([0, 2])),
        "record_attention": draw(st.sampled_from([None, None, "mean"])),
    }


@contextmanager
def without_memory(model: PreTrainedModel, passes: set[int]) -> Iterator[None]:
    """Let these passes (the first is 1) fail for want of memory; the first two never do."""
    seen = 0

    def hook(module: Any, args: Any, kwargs: Any) -> None:
        nonlocal seen
        seen += 1
        if seen in passes:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    handle = model.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.slow
@settings(
    deadline=None,
    max_examples=150,
    phases=set(Phase) - {Phase.shrink},
    suppress_health_check=list(HealthCheck),
)
@given(data=st.data())
def test_any_call(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(NAMES))
    model = model_of(name, data.draw(st.sampled_from(["bridge", "bridge", "pmatch", None])))
    count = data.draw(st.integers(1, 6))
    few = data.draw(st.lists(st.lists(st.integers(1, 80), min_size=1, max_size=12), min_size=1))
    prompts = [data.draw(st.sampled_from(few)) for _ in range(count)]
    params = [SamplingParams(**data.draw(sampling())) for _ in range(count)]
    sample_ids = data.draw(
        st.lists(st.integers(0, 99), min_size=count, max_size=count, unique=True)
    )
    engine = Engine(
        model,
        max_rows=data.draw(st.integers(1, 20)),
        memory_budget=data.draw(st.sampled_from([1, 10**5, 10**9])),
        prefill_chunk=data.draw(st.sampled_from([1, 2, 5, 1024])),
    )
    failing = data.draw(st.sets(st.integers(3, 30), max_size=2)) if count > 2 else set()
    try:
        with without_memory(model, failing):
            groups = engine.generate(prompts, params, sample_ids=sample_ids)
    except GenerationError as error:
        if failing and "Not enough memory for one group" in str(error):
            return
        raise
    for prompt, own, sample_id, group in zip(prompts, params, sample_ids, groups, strict=True):
        assert largest_gap(model, [group]) < 2e-5
        alone = Engine(model).generate([prompt], own, sample_ids=[sample_id])[0]
        if not ARCHITECTURES[name].moe:  # experts are batched over rows, so bits may differ
            assert [c.token_ids for c in group.completions] == [
                c.token_ids for c in alone.completions
            ]
            assert [c.finish_reason for c in group.completions] == [
                c.finish_reason for c in alone.completions
            ]
        if own.record_attention:
            assert group.attention is not None
            assert alone.attention is not None
            assert len(group.attention) == len(alone.attention)
