"""The invariants through the engine, over every backend, with continuous batching, early finishers
and mixed widths."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from interlace import Engine, SamplingParams
from interlace.engine.types import GroupOutput
from invariants.subject import REACHES
from support.architectures import NAMES, RIVALS, VOCAB, attach_random, build
from support.engine import largest_gap

PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12, 13, 14], [5, 6, 7], [20], [15, 16, 17, 18]]
# About one token in ten ends a row, so rows finish at different steps and some at the first.
STOPS = tuple(range(VOCAB - 10, VOCAB))


def sampled(
    model: PreTrainedModel,
    backend: str,
    params: SamplingParams | list[SamplingParams],
    **engine: Any,
) -> list[GroupOutput]:
    return Engine(model, backend=backend, **engine).generate(PROMPTS, params)


def params(width: int, **changes: object) -> SamplingParams:
    return SamplingParams(width=width, max_new_tokens=17, stop_token_ids=STOPS, seed=3).replace(
        **changes
    )


def tokens(groups: list[GroupOutput]) -> list[list[list[int]]]:
    return [[c.token_ids for c in group.completions] for group in groups]


@pytest.mark.parametrize("name", NAMES)
def test_I7_engine_and_training_agree(name: str, backend: str) -> None:
    model = attach_random(build(name))
    groups = sampled(
        model, backend, params(4), max_rows=9
    )  # two groups at once, others as rows get free
    lengths = [len(c.token_ids) for g in groups for c in g.completions]
    assert len(set(lengths)) > 2  # rows finished early, at different steps
    assert largest_gap(model, groups) < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_I7_engine_and_training_agree_with_nothing_attached(name: str, backend: str) -> None:
    model = build(name)
    groups = sampled(model, backend, params(3), max_rows=7)
    assert largest_gap(model, groups) < 1e-5


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3"])
@pytest.mark.parametrize("kind", ["bridge", "pmatch", *RIVALS])
def test_I7_mixed_widths_in_one_call(name: str, kind: str, backend: str) -> None:
    model = attach_random(build(name), kind)
    groups = sampled(model, backend, [params(w) for w in (4, 1, 7, 2, 3)], max_rows=12)
    for group in groups:
        assert largest_gap(model, [group]) < 1e-5


@pytest.mark.parametrize("name", ["llama", "gemma3"])
@pytest.mark.parametrize("reads", REACHES)
def test_I7_with_another_reach(name: str, reads: str, backend: str) -> None:
    """Rows read what finished siblings wrote; groups come and go at their own pace."""
    model = attach_random(build(name), reads=reads)
    groups = sampled(model, backend, params(4), max_rows=9)
    lengths = [[len(c.token_ids) for c in g.completions] for g in groups]
    assert any(min(group) + 2 < max(group) for group in lengths), "someone reads a finished row"
    assert largest_gap(model, groups) < 1e-5
    mixed = sampled(model, backend, [params(w) for w in (4, 1, 7, 2, 3)], max_rows=12)
    for group in mixed:
        assert largest_gap(model, [group]) < 1e-5


@pytest.mark.parametrize("name", ["llama", "gemma3"])
@pytest.mark.parametrize("reads", ["position", "finished"])
def test_I7_where_width_1_is_the_base_model(name: str, reads: str, backend: str) -> None:
    """Prompts are computed with and without blocks, for whoever asks; a row that is left over of a
    wider group is not alone."""
    model = attach_random(build(name), reads=reads, alone="skip")
    widths = (1, 4, 3, 1, 2)
    mixed = sampled(model, backend, [params(w) for w in widths], max_rows=12)
    for group in mixed:
        assert largest_gap(model, [group]) < 1e-5
    plain = sampled(build(name), backend, params(1))
    assert [tokens(mixed)[n] for n in (0, 3)] == [tokens(plain)[n] for n in (0, 3)]


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3"])
def test_I5_identical_rows_are_no_siblings(name: str, backend: str) -> None:
    model = attach_random(build(name))
    wide = sampled(model, backend, params(4, temperature=0))
    alone = sampled(model, backend, params(1, temperature=0))
    for group, single in zip(wide, alone, strict=True):
        for completion in group.completions:
            assert completion.token_ids == single.completions[0].token_ids
            assert completion.logprobs == pytest.approx(single.completions[0].logprobs, abs=1e-5)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3"])
@pytest.mark.parametrize("chunk", [1, 3, 1024])
@pytest.mark.parametrize("reads", ["position", *REACHES])
def test_I6_one_prefill_in_chunks_is_exact(name: str, chunk: int, reads: str, backend: str) -> None:
    model = attach_random(build(name), reads=reads)
    engine = Engine(model, backend=backend, prefill_chunk=chunk)
    groups = engine.generate(PROMPTS, params(3))
    assert engine.stats.prefill_tokens <= sum(map(len, PROMPTS))  # once, not once a row
    assert largest_gap(model, groups) < 1e-5


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3"])
@pytest.mark.parametrize("reads", ["position", *REACHES])
def test_I11_a_group_is_the_same_alone_and_in_a_batch(name: str, reads: str, backend: str) -> None:
    model = attach_random(build(name), reads=reads)
    together = sampled(model, backend, params(4), max_rows=9)
    for prompt, group, sample_id in zip(PROMPTS, together, (0, 0, 1, 0, 0), strict=True):
        alone = Engine(model, backend=backend).generate([prompt], params(4), sample_ids=[sample_id])
        assert tokens(alone) == tokens([group])


def test_I11_two_groups_of_a_prompt_differ_and_seeds_matter(backend: str) -> None:
    model = attach_random(build("llama"))
    groups = tokens(sampled(model, backend, params(4)))
    assert groups[0] != groups[2]  # the same prompt
    assert len({tuple(row) for row in groups[0]}) > 1  # its rows
    assert tokens(sampled(model, backend, params(4))) == groups
    assert tokens(sampled(model, backend, params(4, seed=4))) != groups


@pytest.mark.parametrize("name", NAMES)
def test_greedy_equals_hugging_face(name: str, backend: str) -> None:
    """With nothing attached, in fp32: the tokens of `model.generate` with the same suppressed
    ones."""
    model = build(name)
    model.generation_config.eos_token_id = list(STOPS)
    groups = sampled(model, backend, SamplingParams(width=2, max_new_tokens=12, temperature=0))
    for prompt, group in zip(PROMPTS, groups, strict=True):
        ids = torch.tensor([prompt])
        expected = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=12,
            do_sample=False,
            suppress_tokens=[0],
        )[0, len(prompt) :].tolist()
        assert [c.token_ids for c in group.completions] == [expected, expected]
