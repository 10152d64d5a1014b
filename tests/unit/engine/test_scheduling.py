"""Which groups run when, and what that costs: never what they say.

Axes: W width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from interlace import Engine, SamplingParams
from interlace.engine.types import EngineStats, GroupOutput
from support.architectures import VOCAB, attach_random, build
from support.engine import largest_gap

# About one token in ten ends a row.
STOPS = tuple(range(VOCAB - 10, VOCAB))
MODEL = attach_random(build("llama", max_position_embeddings=4096))
SMALL = build("llama", max_position_embeddings=4096, num_hidden_layers=1)


def params(width: int, **changes: Any) -> SamplingParams:
    return SamplingParams(width=width, max_new_tokens=20, stop_token_ids=STOPS, seed=3).replace(
        **changes
    )


def prompts(*lengths: int) -> list[list[int]]:
    return [[5 + (i * 7 + p) % 80 for p in range(n)] for i, n in enumerate(lengths)]


def ids(groups: list[GroupOutput]) -> list[list[list[int]]]:
    return [[c.token_ids for c in group.completions] for group in groups]


# Order, limits and statistics ---------------------------------------------------------------------


def test_groups_come_in_the_prompts_order_whatever_finishes_first() -> None:
    engine = Engine(MODEL, max_rows=6)
    asked = prompts(3, 5, 2, 4)
    own = [params(2, max_new_tokens=n, stop_token_ids=()) for n in (30, 3, 9, 1)]
    groups = engine.generate(asked, own)
    assert [g.prompt for g in groups] == asked
    assert [g.prompt_token_ids for g in groups] == asked
    assert [len(g.completions[0].token_ids) for g in groups] == [30, 3, 9, 1]
    assert [index for index, _ in engine.as_completed(asked, own)] == [1, 3, 2, 0]


def test_no_more_rows_at_once_than_allowed_but_a_wider_group_runs_alone() -> None:
    seen: list[int] = []
    handle = MODEL.model.embed_tokens.register_forward_pre_hook(
        lambda module, args: seen.append(args[0].shape[0])
    )
    engine = Engine(MODEL, max_rows=5, prefill_chunk=7)  # no two prompts in one pass
    asked = prompts(3, 4, 5, 6, 7)
    own = [params(w, stop_token_ids=(), max_new_tokens=7) for w in (2, 2, 9, 1, 4)]
    groups = engine.generate(asked, own)
    handle.remove()
    # Prefills; 2 + 2; 9 alone; 1 + 4.
    assert seen == [1, 1, *[4] * 6, 1, *[9] * 6, 1, 1, *[5] * 6]
    alone = [Engine(MODEL).generate([p], [o])[0] for p, o in zip(asked, own, strict=True)]
    assert ids(groups) == ids(alone)


def test_statistics_add_up() -> None:
    engine = Engine(MODEL, max_rows=7)
    asked = prompts(3, 4, 5, 6)
    groups = engine.generate(asked, params(3))
    stats = engine.stats
    assert stats.prefill_tokens == 3 + 4 + 5 + 6
    assert stats.sampled_tokens == sum(g.num_tokens for g in groups)
    # A row's last token is never fed, and the first comes from the prompt.
    assert stats.alive_row_steps == sum(len(c.token_ids) - 1 for g in groups for c in g.completions)
    assert stats.computed_row_steps == stats.alive_row_steps
    assert stats.decode_steps >= max(len(c.token_ids) for g in groups for c in g.completions) - 1
    assert stats.prefill_seconds > 0
    assert stats.decode_seconds > 0
    assert stats.notes == []
    assert all(g.seconds > 0 for g in groups)


def test_progress_sees_the_statistics_grow() -> None:
    seen: list[int] = []
    engine = Engine(MODEL)
    engine.generate(prompts(3, 4), params(2), progress=lambda s: seen.append(s.sampled_tokens))
    assert seen == sorted(seen)
    assert seen[-1] == engine.stats.sampled_tokens
    assert len(seen) == engine.stats.decode_steps + 1  # admitted at once


def test_a_prompt_is_computed_once_for_all_its_groups() -> None:
    """Also when they run one after another, for want of room."""
    for rows in (2, 3, 100):
        engine = Engine(MODEL, max_rows=rows)
        groups = engine.generate([prompts(40)[0]] * 5 + prompts(3), params(2))
        assert engine.stats.prefill_tokens == 43
        assert largest_gap(MODEL, groups) < 1e-5


def test_a_stored_prompt_that_moves_is_found_by_its_next_group() -> None:
    """The first prompt goes, the third takes its place, and then a group answers the third."""
    a, b, c = prompts(9, 12, 5)
    own = [params(2, max_new_tokens=n, stop_token_ids=()) for n in (4, 30, 20, 15)]
    engine = Engine(MODEL, max_rows=6)
    groups = engine.generate([a, b, c, c], own)
    assert engine.stats.prefill_tokens == 9 + 12 + 5  # so the fourth found it stored
    assert largest_gap(MODEL, groups) < 1e-5


def test_a_prompt_of_one_group_is_let_go_when_the_group_ends() -> None:
    engine = Engine(MODEL, max_rows=2)
    engine.generate(prompts(*[300] * 6), params(2))
    one = Engine(MODEL, max_rows=2)
    one.generate(prompts(300), params(2))
    assert engine.stats.peak_cache_bytes <= 1.1 * one.stats.peak_cache_bytes


# Memory -------------------------------------------------------------------------------------------


def bytes_of(model: PreTrainedModel, positions: int) -> int:
    config = model.config
    heads, dim = config.num_key_value_heads, config.head_dim
    return 2 * config.num_hidden_layers * heads * dim * 4 * positions


def test_a_long_prompt_is_stored_once_at_width_32() -> None:
    engine = Engine(MODEL)
    engine.generate(prompts(4000), params(32, stop_token_ids=(), max_new_tokens=4))
    expected = bytes_of(MODEL, stored(4000) + 32 * stored(4))
    assert engine.stats.peak_cache_bytes == expected
    assert expected < 0.05 * 32 * bytes_of(MODEL, 4004)


def stored(positions: int) -> int:
    """Both stores grow in steps of 64 positions."""
    return -(-positions // 64) * 64


@settings(deadline=None, max_examples=12, phases=set(Phase) - {Phase.shrink})
@given(data=st.data())
def test_never_more_memory_than_the_budget(data: st.DataObject) -> None:
    """Any mixture of widths, prompt lengths and maxima, as long as each group fits alone."""
    count = data.draw(st.integers(2, 6))
    widths = data.draw(st.lists(st.integers(1, 6), min_size=count, max_size=count))
    lengths = data.draw(
        st.lists(st.sampled_from([1, 5, 63, 64, 65, 200, 700]), min_size=count, max_size=count)
    )
    maxima = data.draw(
        st.lists(st.sampled_from([1, 2, 8, 63, 70, 140]), min_size=count, max_size=count)
    )
    own = [
        SamplingParams(width=w, max_new_tokens=m, stop_token_ids=STOPS[:1], seed=1)
        for w, m in zip(widths, maxima, strict=True)
    ]
    needs = [
        bytes_of(SMALL, stored(n) + w * stored(m))
        for w, n, m in zip(widths, lengths, maxima, strict=True)
    ]
    budget = int(max(needs) * data.draw(st.sampled_from([1.0, 1.3, 2.5])))
    engine = Engine(SMALL, memory_budget=budget)
    engine.generate(prompts(*lengths), own)
    assert engine.stats.peak_cache_bytes <= budget


def test_room_of_what_is_gone_is_used_again() -> None:
    """After one long prompt and one long completion, short groups still run side by side."""
    budget = bytes_of(MODEL, 704 + 2 * 192)
    engine = Engine(MODEL, memory_budget=budget)
    asked = prompts(700, *[5] * 6)
    own = [params(2, max_new_tokens=140, stop_token_ids=()), *[params(2, stop_token_ids=())] * 6]
    groups = engine.generate(asked, own)
    assert engine.stats.peak_cache_bytes <= budget
    # 139 steps of the first group, and then fewer than two times 19 for the other six.
    assert engine.stats.decode_steps <= 139 + 2 * 19
    assert largest_gap(MODEL, groups[1:]) < 1e-5


def test_a_group_that_is_larger_than_the_budget_runs_alone() -> None:
    engine = Engine(MODEL, memory_budget=1)
    groups = engine.generate(prompts(3, 4), params(3))
    assert ids(groups) == ids(Engine(MODEL).generate(prompts(3, 4), params(3)))
    assert engine.stats.decode_steps == sum(
        max(len(c.token_ids) for c in g.completions) - 1 for g in groups
    )


# Utilisation --------------------------------------------------------------------------------------


def test_finished_rows_cost_nothing() -> None:
    """64 prompts at width 8, lengths log-normal with median 64 and 95th percentile 256 (both
    divided by four), memory for 8 groups at once."""
    rng = np.random.default_rng(0)
    sigma = np.log(256 / 64) / 1.6449
    lengths = np.maximum(1, (64 * np.exp(sigma * rng.standard_normal((64, 8))) / 4).astype(int))
    engine = Engine(SMALL, max_rows=64)
    groups = engine.generate(
        prompts(*[4 + i % 5 for i in range(64)]),
        [SamplingParams(width=8, max_new_tokens=row.tolist()) for row in lengths],
    )
    assert [[len(c.token_ids) for c in g.completions] for g in groups] == lengths.tolist()
    assert engine.stats.utilisation >= 0.9
    # A conventional batch of 8 groups runs until its longest row ends.
    batches = lengths.reshape(8, 64)
    conventional = lengths.sum() / (64 * batches.max(axis=1)).sum()
    assert conventional < 0.5
    # And rows are kept busy: hardly more steps than full batches would need.
    assert engine.stats.decode_steps < 1.5 * lengths.sum() / 64 + lengths.max()


# What does not change a group ---------------------------------------------------------------------


def test_mixed_params_in_one_call() -> None:
    """Every group is sampled by its own parameters, whoever sits beside it."""

    def no_even(tokens: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores[:, ::2] = float("-inf")
        return scores

    own = [
        params(3),
        params(2, temperature=0),
        params(4, top_k=3, temperature=0.7),
        params(1, top_p=0.5, repetition_penalty=1.4),
        params(3, logits_processors=[no_even]),
        params(2, stop_token_ids=(), ignore_eos=True, top_logprobs=4, max_new_tokens=7),
        params(2, min_p=0.3, seed=9),
    ]
    asked = prompts(*range(3, 10))
    together = Engine(MODEL, max_rows=9).generate(asked, own)
    alone = [Engine(MODEL).generate([p], [o])[0] for p, o in zip(asked, own, strict=True)]
    assert ids(together) == ids(alone)
    assert all(t % 2 for row in ids(together)[4] for t in row)
    for a, b in zip(together, alone, strict=True):
        for x, y in zip(a.completions, b.completions, strict=True):
            assert x.logprobs == pytest.approx(y.logprobs, abs=1e-5)
            assert x.sampled_logprobs == pytest.approx(y.sampled_logprobs, abs=1e-5)
            assert (x.top_logprobs is None) == (b.params.top_logprobs == 0)
    assert largest_gap(MODEL, [together[5]]) < 1e-5


def test_top_logprobs_hold_the_likeliest_tokens_of_each_step() -> None:
    groups = Engine(MODEL).generate(prompts(4), params(3, top_logprobs=VOCAB + 5))
    for completion in groups[0].completions:
        assert completion.top_logprobs is not None
        assert len(completion.top_logprobs) == len(completion.token_ids)
        for token, logprob, top in zip(
            completion.token_ids, completion.logprobs, completion.top_logprobs, strict=True
        ):
            assert len(top) == VOCAB
            values = [value for _, value in top]
            assert values == sorted(values, reverse=True)
            assert dict(top)[token] == pytest.approx(logprob, abs=1e-6)
            assert sum(np.exp(values)) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("width", [1, 2, 33, 128])
def test_widths(width: int) -> None:
    engine = Engine(MODEL)
    groups = engine.generate(prompts(4, 9), params(width, max_new_tokens=6))
    assert [len(g.completions) for g in groups] == [width, width]
    assert largest_gap(MODEL, groups) < 2e-5


def test_the_stats_of_a_call_are_its_own() -> None:
    engine = Engine(MODEL)
    assert engine.stats == EngineStats()
    engine.generate(prompts(3), params(2))
    first = engine.stats
    engine.generate(prompts(3), params(2))
    assert engine.stats is not first
    assert engine.stats.sampled_tokens == first.sampled_tokens
    assert engine.generate([], params(2)) == []
    assert engine.stats.sampled_tokens == 0
