"""Votes over many draws agree with the votes of single groups, and with enumeration.

Diversity: Diversity of groups, by hand and against scipy."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import entropy

from interlace.answers import majority_vote, weighted_vote
from interlace.errors import MetricError
from interlace.evaluation.votes import (
    NO_ANSWER,
    answer_entropy,
    best_rows,
    distinct_answers,
    distinct_n,
    subset_draws,
    vote_winners,
)

classes = st.lists(st.integers(-1, 3), min_size=1, max_size=9)


def as_answers(row: list[int]) -> list[str | None]:
    return [None if entry == NO_ANSWER else str(entry) for entry in row]


@given(classes)
def test_the_winner_is_that_of_majority_vote(row):
    expected = majority_vote(as_answers(row), equal=None).index
    found = vote_winners(np.array([row]))[0]
    assert found == (NO_ANSWER if expected is None else expected)


@given(classes, st.data())
def test_the_winner_is_that_of_weighted_vote(row, data):
    # Sixteenths add up exactly, so that ties are ties.
    weights = [data.draw(st.integers(0, 32)) / 16 for _ in row]
    expected = weighted_vote(as_answers(row), weights, equal=None).index
    found = vote_winners(np.array([row]), np.array([weights]))[0]
    assert found == (NO_ANSWER if expected is None else expected)


def test_sums_that_differ_by_rounding_tie():
    # .1 + .2 is larger than .3 in floats; the answer seen first wins.
    assert vote_winners(np.array([[0, 1, 1]]), np.array([[0.3, 0.1, 0.2]]))[0] == 0


def test_many_draws_at_once():
    rows = np.random.default_rng(0).integers(-1, 4, (50, 7))
    weights = np.random.default_rng(1).integers(0, 4, (50, 7)) / 4
    whole = vote_winners(rows, weights)
    for index in range(50):
        alone = vote_winners(rows[index : index + 1], weights[index : index + 1])
        assert alone[0] == whole[index]


def test_best_row_is_the_first_highest_with_an_answer():
    rows = np.array([[0, 1, 2], [-1, 1, 1], [-1, -1, -1]])
    scores = np.array([[0.5, 0.9, 0.9], [3.0, 1.0, 2.0], [1.0, 2.0, 3.0]])
    assert best_rows(rows, scores).tolist() == [1, 2, NO_ANSWER]


def test_few_subsets_are_enumerated():
    assert subset_draws(5, 3, 100, 0).tolist() == [list(s) for s in combinations(range(5), 3)]


def test_many_subsets_are_drawn_evenly():
    draws = subset_draws(20, 6, 3000, 0)
    assert draws.shape == (3000, 6)
    assert (np.diff(draws, axis=1) > 0).all()
    share = np.bincount(draws.ravel(), minlength=20) / 3000
    assert share == pytest.approx(0.3, abs=0.04)
    assert (subset_draws(20, 6, 3000, 0) == draws).all()
    assert (subset_draws(20, 6, 3000, 1) != draws).any()


@given(classes)
def test_distinct_answers(row):
    assert distinct_answers(np.array([row]))[0] == len(set(row) - {-1})


@given(classes)
def test_entropy_of_answers(row):
    counts = Counter(entry for entry in row if entry != -1)
    expected = entropy(list(counts.values()), base=2) if counts else 0.0
    assert answer_entropy(np.array([row]))[0] == pytest.approx(expected, abs=1e-12)


def test_entropy_has_no_negative_zero():
    assert str(answer_entropy(np.array([[0, 0]]))[0]) == "0.0"


def test_distinct_n_counts_over_the_whole_group():
    assert distinct_n(["a b", "a b"], 1) == 0.5
    assert distinct_n(["a b", "b a"], 2) == 1.0  # no n-gram crosses texts
    assert distinct_n(["a b a b"], 2) == pytest.approx(2 / 3)
    assert distinct_n(["", "a"], 2) == 1.0
    with pytest.raises(MetricError, match="at least one word"):
        distinct_n(["a"], 0)
