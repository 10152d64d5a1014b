"""pass@k, G-Pass@k and mG-Pass@k against enumeration, scipy, and values that others published."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from itertools import combinations
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import hypergeom

import interlace
from interlace.errors import MetricError
from interlace.evaluation.metrics import (
    g_pass_at_k,
    mg_pass_at_k,
    pass_at_k,
    required_correct,
    upper_tails,
)


@st.composite
def counts(draw: st.DrawFn, most: int = 8) -> tuple[int, int, int]:
    n = draw(st.integers(1, most))
    return n, draw(st.integers(0, n)), draw(st.integers(1, n))


def enumerated(n: int, c: int, k: int, least: int) -> Fraction:
    """Share of the k-subsets of n rows, the first c correct, with at least `least` correct."""
    subsets = list(combinations([True] * c + [False] * (n - c), k))
    return Fraction(sum(sum(subset) >= least for subset in subsets), len(subsets))


@given(counts())
def test_pass_at_k_is_the_share_of_subsets_with_a_hit(nck):
    assert pass_at_k(*nck) == float(enumerated(*nck, 1))


@given(counts(), st.fractions(0, 1, max_denominator=9))
def test_g_pass_at_k_is_the_share_of_subsets_with_enough_hits(nck, tau):
    least = next(j for j in range(1, nck[2] + 1) if j >= tau * nck[2])
    assert g_pass_at_k(*nck, tau) == float(enumerated(*nck, least))


@given(counts())
def test_mg_pass_at_k_is_the_published_sum(nck):
    k = nck[2]
    terms = [enumerated(*nck, i) for i in range((k + 1) // 2 + 1, k + 1)]
    assert mg_pass_at_k(*nck) == pytest.approx(float(Fraction(2, k) * sum(terms)), abs=1e-15)


@given(counts(most=200), st.integers(0, 20))
def test_agrees_with_scipys_hypergeometric_distribution(nck, twentieths):
    n, c, k = nck
    tau = Fraction(twentieths, 20)
    least = required_correct(tau, k)
    assert g_pass_at_k(n, c, k, tau) == pytest.approx(hypergeom.sf(least - 1, n, c, k), abs=1e-9)


def test_published_example_of_g_pass():
    """The usage example of the authors' metric (github.com/open-compass/GPassK, metric module):
    16 predictions, 8 of them right."""
    assert g_pass_at_k(16, 8, 4, 0.25) == pytest.approx(0.9615384615384616, rel=1e-14)
    assert g_pass_at_k(16, 8, 4, 0.5) == pytest.approx(0.7153846153846154, rel=1e-14)
    assert g_pass_at_k(16, 8, 4, 0.75) == pytest.approx(0.2846153846153846, rel=1e-14)
    assert g_pass_at_k(16, 8, 4, 1.0) == pytest.approx(0.038461538461538464, rel=1e-14)
    assert g_pass_at_k(16, 8, 8, 0.25) == pytest.approx(0.9949494949494949, rel=1e-14)
    assert g_pass_at_k(16, 8, 8, 0.5) == pytest.approx(0.6903651903651904, rel=1e-14)
    assert g_pass_at_k(16, 8, 8, 0.75) == pytest.approx(0.06596736596736597, rel=1e-14)
    assert g_pass_at_k(16, 8, 8, 1.0) == pytest.approx(7.77000777000777e-05, rel=1e-14)
    assert mg_pass_at_k(16, 8, 4) == pytest.approx(0.16153846153846152, rel=1e-14)
    assert mg_pass_at_k(16, 8, 8) == pytest.approx(0.09518259518259518, rel=1e-14)


def test_published_example_of_a_second_implementation():
    """The values that scorio (arXiv 2510.04265) tests itself with: 2 problems, 5 trials, 3 and 4
    right."""
    right = np.array([3, 4])
    assert pass_at_k(5, right, 1).mean() == pytest.approx(0.7)
    assert pass_at_k(5, right, 2).mean() == pytest.approx(0.95)
    assert g_pass_at_k(5, right, 2, 1).mean() == pytest.approx(0.45)
    assert g_pass_at_k(5, right, 2, 0.5).mean() == pytest.approx(0.95)
    assert mg_pass_at_k(5, right, 2).mean() == pytest.approx(0.45)
    assert mg_pass_at_k(5, right, 3).mean() == pytest.approx(1 / 6)
    assert mg_pass_at_k(5, right, 1).mean() == 0


def test_by_hand():
    # 1 - C(7, 2)/C(10, 2) = 1 - 21/45
    assert pass_at_k(10, 3, 2) == pytest.approx(24 / 45)
    # of 4 rows 3 right, all 3-subsets: one of the four is all right, the others have two
    assert g_pass_at_k(4, 3, 3, 1) == 0.25
    assert g_pass_at_k(4, 3, 3, "2/3") == 1.0
    # whole groups: k = n
    assert pass_at_k(8, 0, 8) == 0.0
    assert pass_at_k(8, 1, 8) == 1.0
    assert g_pass_at_k(8, 7, 8, 1) == 0.0
    assert mg_pass_at_k(8, 7, 8) == 0.75


def test_extreme_counts_keep_all_their_digits():
    assert pass_at_k(10**9, 1, 1) == 1e-9
    assert pass_at_k(4000, 1, 2000) == 0.5
    assert g_pass_at_k(1000, 500, 500, 1) == pytest.approx(1 / comb(1000, 500), rel=1e-15)
    assert pass_at_k(5000, 2500, 400) == 1.0


def test_arrays_broadcast():
    n, c, k = np.array([[4], [6]]), np.array([0, 2, 4]), 3
    values = pass_at_k(n, c, k)
    assert values.shape == (2, 3)
    for row, rows in enumerate((4, 6)):
        for column, right in enumerate((0, 2, 4)):
            assert values[row, column] == pass_at_k(rows, right, k)
            assert g_pass_at_k(n, c, k, 1)[row, column] == g_pass_at_k(rows, right, k, 1)
            assert mg_pass_at_k(n, c, k)[row, column] == mg_pass_at_k(rows, right, k)


def test_arrays_of_any_shape_and_size():
    assert pass_at_k(np.zeros((0, 3), dtype=int), 0, 1).shape == (0, 3)
    assert pass_at_k([10**9, 10**9], [1, 2], 1).tolist() == [1e-9, 2e-9]
    assert isinstance(pass_at_k(np.int32(4), np.int8(1), 1), float)


def test_all_thresholds_at_once():
    tails = upper_tails(7, np.array([0, 3, 7]), 5)
    assert tails.shape == (3, 5)
    assert tails[1].tolist() == [g_pass_at_k(7, 3, 5, Fraction(j, 5)) for j in range(1, 6)]


@given(st.integers(1, 300), st.data())
def test_a_float_that_was_meant_as_a_fraction_is_one(k, data):
    needed = data.draw(st.integers(1, k))
    assert required_correct(needed / k, k) == needed
    assert required_correct(Fraction(needed, k), k) == needed
    assert required_correct(f"{needed}/{k}", k) == needed


def test_thresholds_are_exact():
    assert np.ceil(7 / 25 * 25) == 8  # the trap
    assert required_correct(0.28, 25) == 7
    assert required_correct(np.float64(0.28), 25) == 7
    assert required_correct(Decimal("0.28"), 25) == 7
    assert required_correct("0.28", 25) == 7
    assert required_correct(0.1 + 0.2, 10) == 3
    assert required_correct("0.3000001", 10) == 4
    assert required_correct(0, 5) == 1
    assert required_correct(1, 5) == 5


@pytest.mark.parametrize("tau", [-0.1, 1.1, "half", "1/0", float("nan"), float("inf")])
def test_refuses_a_tau_that_is_no_share(tau):
    with pytest.raises(MetricError, match="share from 0 to 1"):
        g_pass_at_k(8, 4, 4, tau)


@pytest.mark.parametrize("nck", [(4, 5, 1), (4, -1, 1), (4, 2, 5), (4, 2, 0), (0, 0, 1)])
def test_refuses_counts_that_contradict_each_other(nck):
    for metric in (pass_at_k, mg_pass_at_k):
        with pytest.raises(MetricError, match="0 <= c <= n"):
            metric(*nck)


def test_all_thresholds_refuse_counts_that_contradict_each_other():
    with pytest.raises(MetricError, match="0 <= c <= n"):
        upper_tails(4, np.array([1, 5]), 2)
    with pytest.raises(MetricError, match="0 <= c <= n"):
        upper_tails(4, np.array([-1, 4]), 2)


def test_refuses_shares_for_counts():
    with pytest.raises(MetricError, match="whole numbers"):
        pass_at_k(8, 0.5, 4)


def test_a_subset_of_coupled_rows_is_refused_with_the_rule():
    with pytest.raises(MetricError, match="4 rows of a width-8 group are not a width-4 run"):
        pass_at_k(8, 3, 4, coupled=True)
    with pytest.raises(MetricError):
        g_pass_at_k(8, 3, 2, 1, coupled=True)
    with pytest.raises(MetricError):
        mg_pass_at_k(np.array([4, 8]), 3, 4, coupled=True)
    assert pass_at_k(8, 3, 8, coupled=True) == 1.0
    assert pass_at_k(8, 3, 1, coupled=True) == 3 / 8


def test_public_names():
    assert interlace.pass_at_k is pass_at_k
    assert interlace.g_pass_at_k is g_pass_at_k
    assert interlace.mg_pass_at_k is mg_pass_at_k
