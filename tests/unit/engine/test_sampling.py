"""Uniforms, and the tokens drawn from them.

Axes: R rows, V vocabulary.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from interlace import SamplingParams
from interlace.engine import sampling
from interlace.engine.backends import native
from interlace.engine.request import row_keys
from interlace.engine.sampling import Sampled, needs_history, sample, uniforms

NOTHING = torch.tensor([], dtype=torch.long)
BELOW_ONE = np.nextafter(1.0, 0.0)
GOLDEN_KEYS = [6628058154635965502, 15347008655182318561, 110408474872848665]
GOLDEN_UNIFORMS = [0.47722259657950417, 0.527596671376562, 0.6564883629339932]
VOCABULARIES = [1, 2, 97, 255, 256, 257, 511, 512, 513, 1300]


def drawn(
    logits: Tensor,
    uniform: Any,
    forbidden: Tensor = NOTHING,
    histories: list[list[int]] | None = None,
    **params: Any,
) -> Sampled:
    uniform = np.broadcast_to(np.asarray(uniform, dtype=np.float64), logits.shape[0]).copy()
    found = sample(logits, uniform, SamplingParams(**params), forbidden, histories)
    if logits.dtype == torch.float32 and histories is None and set(params) <= {"temperature"}:
        compare_compiled(found, logits, uniform, forbidden, params.get("temperature", 1.0))
    return found


def compare_compiled(
    expected: Sampled, logits: Tensor, uniform: Any, forbidden: Tensor, temperature: float
) -> None:
    """What the compiled code draws is the same, and it leaves to others what is no number."""
    if temperature == 0 or isinstance(native.library(), str):
        return
    got = native.draw(logits, uniform, temperature, forbidden)
    if got is None:
        assert (expected.logprobs + expected.sampled_logprobs).isnan().any()
        return
    assert got.tokens.tolist() == expected.tokens.tolist()
    torch.testing.assert_close(got.logprobs, expected.logprobs, atol=1e-5, rtol=1e-5)
    ours, theirs = got.sampled_logprobs, expected.sampled_logprobs
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def random_logits(rows: int, vocabulary: int, seed: int = 0, scale: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(rows, vocabulary, generator=generator)


# Uniforms -----------------------------------------------------------------------------------------


def test_golden_uniforms() -> None:
    """Frozen: whoever changes these changes every sampled response of every user."""
    keys = row_keys(seed=0, prompt_token_ids=[1, 2, 3], sample_id=0, width=3)
    assert keys.tolist() == GOLDEN_KEYS
    steps = np.array([0, 1, 4095])
    assert uniforms(keys, steps).tolist() == GOLDEN_UNIFORMS


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 1},
        {"seed": -7},
        {"prompt_token_ids": [1, 2]},
        {"prompt_token_ids": [1, 2, 3, 0]},
        {"prompt_token_ids": [1, 2 + (3 << 32)]},  # the same bytes in another grouping
        {"sample_id": 1},
        {"sample_id": "0"},
    ],
)
def test_keys_depend_on_all_that_names_a_group(other: dict[str, Any]) -> None:
    same = {"seed": 7, "prompt_token_ids": [1, 2, 3], "sample_id": 0, "width": 4}
    keys, others = row_keys(**same), row_keys(**(same | other))
    assert not set(keys.tolist()) & set(others.tolist())


def test_a_rows_key_does_not_depend_on_the_width() -> None:
    narrow, wide = (row_keys(3, [5, 6], 0, width) for width in (2, 128))
    assert narrow.tolist() == wide[:2].tolist()
    assert len(set(wide.tolist())) == 128


def test_uniforms_are_uniform_and_independent() -> None:
    """Along rows, steps, samples and seeds: flat, and neighbours uncorrelated."""
    keys = np.stack([row_keys(seed, [1, 2], s, 8) for seed in range(4) for s in range(8)])
    table = np.stack([uniforms(keys.ravel(), np.full(keys.size, t)) for t in range(200)])
    table = table.reshape(200, 4, 8, 8)  # step, seed, sample, row
    assert (table >= 0).all()
    assert (table < 1).all()
    assert stats.kstest(table.ravel(), "uniform").pvalue > 1e-3
    for axis in range(4):
        a = np.take(table, range(table.shape[axis] - 1), axis).ravel()
        b = np.take(table, range(1, table.shape[axis]), axis).ravel()
        assert abs(np.corrcoef(a, b)[0, 1]) < 4 / math.sqrt(a.size)
        # Not only linearly: the pairs fill the square evenly.
        cells = np.histogram2d(a, b, bins=8, range=[[0, 1], [0, 1]])[0].ravel()
        assert stats.chisquare(cells).pvalue > 1e-3


def test_uniforms_of_a_row_do_not_depend_on_its_neighbours() -> None:
    keys = row_keys(0, [1], 0, 6)
    steps = np.array([3, 1, 4, 1, 5, 9])
    order = np.array([4, 2, 0])
    assert uniforms(keys, steps)[order].tolist() == uniforms(keys[order], steps[order]).tolist()


# Inverse CDF --------------------------------------------------------------------------------------


@pytest.mark.parametrize("vocabulary", [7, 300])
@pytest.mark.parametrize("forbidden", [[], [0, 3]])
def test_tokens_follow_the_softmax(vocabulary: int, forbidden: list[int]) -> None:
    logits, draws = random_logits(1, vocabulary, scale=1.5), 20_000
    expected = logits.clone()
    expected[:, forbidden] = -math.inf
    expected = expected.double().softmax(-1)[0].numpy()
    rng = np.random.default_rng(1)
    tokens = drawn(
        logits.expand(draws, -1), rng.random(draws), torch.tensor(forbidden, dtype=torch.long)
    ).tokens
    counts = np.bincount(tokens.numpy(), minlength=vocabulary)
    assert counts[forbidden].sum() == 0
    common = expected * draws >= 5
    observed = np.append(counts[common], counts[~common].sum())
    predicted = np.append(expected[common], expected[~common].sum()) * draws
    seen = predicted > 0
    assert stats.chisquare(observed[seen], predicted[seen]).pvalue > 1e-3


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_the_token_at_which_the_cumulated_probability_passes_u(vocabulary: int) -> None:
    """The definition, in float64, on a grid of u through every token's middle."""
    logits = random_logits(1, vocabulary, scale=1.0)
    ends = logits.double().softmax(-1)[0].cumsum(0).numpy()
    middles = (np.append(0, ends[:-1]) + ends) / 2
    tokens = drawn(logits.expand(vocabulary, -1), middles).tokens
    assert tokens.tolist() == list(range(vocabulary))


@settings(deadline=None)
@given(
    vocabulary=st.sampled_from(VOCABULARIES),
    data=st.data(),
    u=st.one_of(st.sampled_from([0.0, 5e-324, 1e-300, BELOW_ONE]), st.floats(0, BELOW_ONE)),
)
def test_only_tokens_with_probability_are_drawn(vocabulary: int, data: Any, u: float) -> None:
    """Whatever u, also with most of the vocabulary impossible, a whole block of it too."""
    possible = data.draw(st.sets(st.integers(0, vocabulary - 1), min_size=1, max_size=4))
    logits = torch.full((1, vocabulary), -math.inf)
    for token in possible:
        logits[0, token] = data.draw(st.floats(-40, 40))
    got = drawn(logits, u)
    probabilities = logits.double().softmax(-1)[0]
    assert probabilities[got.tokens[0]] > 0
    assert got.sampled_logprobs[0].item() == pytest.approx(
        probabilities[got.tokens[0]].log().item(), rel=1e-5, abs=1e-5
    )


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize("u", [0.0, 0.5, BELOW_ONE])
def test_one_hot(vocabulary: int, u: float) -> None:
    logits = torch.full((vocabulary, vocabulary), -math.inf).fill_diagonal_(3.0)
    got = drawn(logits, u)
    assert got.tokens.tolist() == list(range(vocabulary))
    assert got.logprobs.tolist() == got.sampled_logprobs.tolist() == [0.0] * vocabulary


def test_ends_of_the_interval() -> None:
    logits = torch.zeros(2, 513)
    logits[:, [0, 512]] = -math.inf
    assert drawn(logits, [0.0, BELOW_ONE]).tokens.tolist() == [1, 511]


def test_forbidden_tokens_that_hold_nearly_all_probability() -> None:
    """What is left may be too small for a float beside what is forbidden."""
    logits = random_logits(3, 97, scale=1.0)
    logits[:, 5] = 300.0
    expected = logits.clone()
    expected[:, 5] = -math.inf
    got = drawn(logits, [0.1, 0.5, 0.9], torch.tensor([5]))
    again = drawn(expected, [0.1, 0.5, 0.9])
    assert got.tokens.tolist() == again.tokens.tolist()
    torch.testing.assert_close(got.sampled_logprobs, again.sampled_logprobs)
    assert (got.logprobs < -290).all()  # of the model's own distribution, all the same


# What each value means ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logprobs_are_at_temperature_one_before_all_else(dtype: torch.dtype) -> None:
    logits, forbidden = random_logits(64, 97).to(dtype), torch.tensor([0, 9])
    uniform = np.random.default_rng(0).random(64)
    got = drawn(logits, uniform, forbidden, temperature=0.7, top_k=20, top_p=0.9, top_logprobs=3)
    plain = logits.double().log_softmax(-1)
    torch.testing.assert_close(
        got.logprobs.double(), plain.gather(1, got.tokens[:, None])[:, 0], atol=1e-5, rtol=0
    )
    values, ids = plain.topk(3)
    assert got.top_tokens is not None
    assert got.top_logprobs is not None
    torch.testing.assert_close(got.top_logprobs.double(), values, atol=1e-5, rtol=0)
    if dtype == torch.float32:  # no ties
        assert torch.equal(got.top_tokens, ids)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
def test_sampled_logprobs_follow_temperature_and_forbidden_tokens(temperature: float) -> None:
    logits, forbidden = random_logits(64, 97), torch.tensor([0, 9])
    uniform = np.random.default_rng(0).random(64)
    got = drawn(logits, uniform, forbidden, temperature=temperature)
    scores = logits.double() / temperature
    scores[:, forbidden] = -math.inf
    expected = scores.log_softmax(-1).gather(1, got.tokens[:, None])[:, 0]
    torch.testing.assert_close(got.sampled_logprobs.double(), expected, atol=1e-5, rtol=0)


def test_greedy_takes_the_likeliest_allowed_token() -> None:
    logits = random_logits(50, 97)
    best = logits.argmax(-1)
    got = drawn(logits, 0.7, best.unique(), temperature=0)
    left = logits.clone()
    left[:, best.unique()] = -math.inf
    assert torch.equal(got.tokens, left.argmax(-1))
    assert got.sampled_logprobs.tolist() == [0.0] * 50
    torch.testing.assert_close(
        got.logprobs, logits.log_softmax(-1).gather(1, got.tokens[:, None])[:, 0]
    )


def test_the_callers_logits_stay_as_they_are() -> None:
    logits = random_logits(4, 97)
    before = logits.clone()
    history = [[1, 2], [3, 4], [5, 6], [7, 8]]
    drawn(
        logits, 0.5, torch.tensor([1]), history, temperature=0.5, repetition_penalty=2.0, top_p=0.5
    )
    drawn(logits, 0.5, torch.tensor([1]))
    assert torch.equal(logits, before)


def test_needs_history() -> None:
    assert not needs_history(SamplingParams(temperature=0.5, top_k=3))
    assert needs_history(SamplingParams(repetition_penalty=1.1))
    assert needs_history(SamplingParams(logits_processors=[TopKLogitsWarper(3)]))


# Against Hugging Face -----------------------------------------------------------------------------

FILTERS = [
    {"temperature": 0.6},
    {"temperature": 2.5},
    {"top_k": 1},
    {"top_k": 7},
    {"top_k": 5000},
    {"top_p": 1e-9},
    {"top_p": 0.3},
    {"top_p": 0.95},
    {"top_p": 0.999999},
    {"min_p": 0.02},
    {"min_p": 1.0},
    {"repetition_penalty": 1.7},
    {"repetition_penalty": 0.4},
    {"temperature": 1.6, "top_k": 40, "top_p": 0.8, "min_p": 0.05, "repetition_penalty": 1.3},
]


def hugging_face(params: dict[str, Any], ids: Tensor, logits: Tensor) -> Tensor:
    """The probabilities that Hugging Face's own classes leave, in its order."""
    steps: list[Any] = []
    if "repetition_penalty" in params:
        steps.append(RepetitionPenaltyLogitsProcessor(params["repetition_penalty"]))
    if "temperature" in params:
        steps.append(TemperatureLogitsWarper(params["temperature"]))
    if "top_k" in params:
        steps.append(TopKLogitsWarper(params["top_k"]))
    if "top_p" in params:
        steps.append(TopPLogitsWarper(params["top_p"]))
    if "min_p" in params:
        steps.append(MinPLogitsWarper(params["min_p"]))
    processed: Tensor = LogitsProcessorList(steps)(ids, logits.clone())
    return processed.softmax(-1)


def probabilities(params: dict[str, Any], ids: Tensor, logits: Tensor) -> Tensor:
    """The probabilities that `sample` draws from, found by drawing: u through a fine grid gives
    every token that is kept, and each comes with its probability."""
    rows, vocabulary = logits.shape
    grid = (np.arange(4096) + 0.5) / 4096
    found = torch.zeros(rows, vocabulary)
    for row in range(rows):
        got = drawn(
            logits[row].expand(len(grid), -1),
            grid,
            histories=[ids[row].tolist()] * len(grid),
            **params,
        )
        found[row, got.tokens] = got.sampled_logprobs.exp()
    return found


@pytest.mark.parametrize("params", FILTERS, ids=str)
def test_filters_equal_hugging_face(params: dict[str, Any]) -> None:
    logits = random_logits(3, 300, scale=2.5)
    ids = torch.randint(0, 300, (3, 25), generator=torch.Generator().manual_seed(1))
    expected, got = hugging_face(params, ids, logits), probabilities(params, ids, logits)
    common = expected > 1 / 4096  # wider than the grid, so sure to be hit
    assert (got[common] > 0).all()
    assert (expected[got > 0] > 0).all()
    torch.testing.assert_close(got[got > 0], expected[got > 0], rtol=1e-4, atol=0)


@pytest.mark.parametrize("params", [p for p in FILTERS if "temperature" not in p], ids=str)
def test_kept_sets_equal_hugging_face_to_the_last_token(params: dict[str, Any]) -> None:
    """The filters themselves, so that a rare token counts as much as a common one."""
    logits = random_logits(40, 1300, scale=2.5)
    logits[:, 7] = logits[:, 3]  # ties
    ids = torch.randint(0, 1300, (40, 25), generator=torch.Generator().manual_seed(1))
    expected = hugging_face(params, ids, logits)
    scores = logits.clone()
    penalised = SamplingParams(**params)
    if needs_history(penalised):
        scores = sampling._with_history(scores, penalised, ids.tolist())
    kept = sampling._filter(scores, penalised)
    sure = torch.ones_like(kept, dtype=torch.bool)
    if "top_p" in params:
        sure = sure_of_top_p(scores, params["top_p"])
        sure[:, [3, 7]] = False  # of two equally likely tokens at the edge either may be kept
    torch.testing.assert_close(kept.softmax(-1)[sure], expected[sure], rtol=1e-4, atol=1e-9)
    assert torch.equal((kept > -math.inf)[sure], (expected > 0)[sure])


def sure_of_top_p(scores: Tensor, top_p: float) -> Tensor:
    """Tokens that are not so close to the edge of the kept set that rounding decides."""
    values, order = scores.double().sort(dim=-1, descending=True)
    shares = values.softmax(-1)
    before = shares.cumsum(-1) - shares
    near = (before - top_p).abs() < 1e-6
    return torch.zeros_like(near).scatter_(1, order, ~near)


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("scale", [0.01, 1.0, 5.0])
def test_the_short_way_to_top_p_equals_a_full_sort(top_p: float, scale: float) -> None:
    """Flat logits need more than the candidates of the short way, peaked ones fewer."""
    logits = random_logits(6, 3 * sampling._TOP_P_CANDIDATES, scale=scale)
    logits[0] = random_logits(1, logits.shape[1], seed=9, scale=9.0)  # rows of both kinds at once
    values, order = logits.double().sort(dim=-1, descending=True)
    shares = values.softmax(-1)
    keep = shares.cumsum(-1) - shares < top_p
    expected = torch.zeros_like(keep).scatter_(1, order, keep)
    got = sampling._top_p(logits, top_p) > -math.inf
    sure = sure_of_top_p(logits, top_p)
    assert sure.float().mean() > 0.99
    assert torch.equal(got[sure], expected[sure])


def test_histories_of_different_lengths() -> None:
    logits = random_logits(3, 97)
    histories = [[1, 2, 3], [4], [1, 1, 5]]
    scores = sampling._with_history(
        logits.clone(), SamplingParams(repetition_penalty=1.5), histories
    )
    for row, history in enumerate(histories):
        expected = RepetitionPenaltyLogitsProcessor(1.5)(
            torch.tensor([history]), logits[row : row + 1].clone()
        )
        assert torch.equal(scores[row : row + 1], expected)


def test_processors_see_the_rows_own_ids_and_come_before_temperature() -> None:
    seen: list[Tensor] = []

    def only_21(ids: Tensor, scores: Tensor) -> Tensor:
        seen.append(ids)
        return torch.full_like(scores, -math.inf).index_fill_(1, torch.tensor([21, 22]), 1.0)

    got = drawn(
        random_logits(2, 97),
        [0.2, 0.8],
        histories=[[1, 2], [3, 4]],
        logits_processors=[only_21],
        temperature=0.5,
    )
    assert torch.cat(seen).tolist() == [[1, 2], [3, 4]]
    assert got.tokens.tolist() == [21, 22]
    torch.testing.assert_close(got.sampled_logprobs, torch.full((2,), math.log(0.5)))


# What cannot be sampled ---------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("vocabulary", [97, 512])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_row_that_is_not_numbers_is_marked_and_spoils_no_other(
    temperature: float, vocabulary: int, value: float
) -> None:
    logits = random_logits(3, vocabulary)
    logits[1, 4] = value
    got = drawn(logits, 0.5, temperature=temperature)
    assert got.logprobs.isnan().tolist() == [False, True, False]
    clean = drawn(logits[[0, 2]], 0.5, temperature=temperature)
    assert got.tokens[[0, 2]].tolist() == clean.tokens.tolist()


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0])
def test_a_row_without_any_allowed_token_is_marked(temperature: float) -> None:
    logits = random_logits(2, 97)
    got = drawn(logits, 0.5, torch.arange(97), temperature=temperature)
    assert got.sampled_logprobs.isnan().all()
    assert got.logprobs.isfinite().all()
