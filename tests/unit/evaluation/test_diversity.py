"""Diversity of groups, by hand and against scipy."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import entropy

from interlace.errors import MetricError
from interlace.evaluation.votes import answer_entropy, distinct_answers, distinct_n

classes = st.lists(st.integers(-1, 3), min_size=1, max_size=9)


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
