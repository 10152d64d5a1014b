"""pass@k, G-Pass@k and mG-Pass@k of a problem, from how many of its rows are right.

Letters: n rows sampled of a problem, c of them correct, k rows of a subset, j correct rows in a
subset. All three metrics ask what a random k-subset of the n rows holds, so they follow from the
hypergeometric distribution, P(j) = C(c, j) C(n-c, k-j) / C(n, k). Binomials are whole numbers and
are divided once, at the end: the results are correctly rounded for any n, without logarithms.

A k-subset only means something for independent rows. Rows of a Bridge group have seen each other,
so a part of a width-W group is not a width-k run: with `coupled=True` only k = n (the whole group)
and k = 1 (the mean over its rows) are allowed.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from functools import cache, lru_cache
from math import ceil, comb
from typing import overload

import numpy as np
import numpy.typing as npt
from jaxtyping import Float

from interlace.errors import MetricError

Tau = int | float | str | Fraction | Decimal
# Floats carry about 16 digits, so a fraction that lies this near was meant.
FLOAT_TOLERANCE = Fraction(1, 10**12)
LARGEST_DENOMINATOR = 10_000


@overload
def pass_at_k(n: int, c: int, k: int, *, coupled: bool = False) -> float: ...
@overload
def pass_at_k(
    n: npt.ArrayLike, c: npt.ArrayLike, k: npt.ArrayLike, *, coupled: bool = False
) -> Float[np.ndarray, "*shape"]: ...
def pass_at_k(
    n: npt.ArrayLike, c: npt.ArrayLike, k: npt.ArrayLike, *, coupled: bool = False
) -> float | Float[np.ndarray, "*shape"]:
    """Chance that a k-subset of n rows holds a correct one: 1 - C(n-c, k) / C(n, k). Equation (16).

    Source: arXiv 2107.03374, eq. 1. With k = n it is the coverage of a group, any@W.

    Args:
        n: Number of rows sampled of the problem; a whole number or an array, broadcast with c and
            k.
        c: Number of them that are correct.
        k: Number of rows of the subset, 1 <= k <= n.
        coupled: Whether the rows saw each other (a Bridge group wider than 1).

    Returns:
        A float for whole numbers, else an array of the broadcast shape.

    Raises:
        MetricError: for counts that contradict each other.
        MetricError: for a proper subset of coupled rows.

    >>> pass_at_k(5, 3, 2)
    0.9
    >>> pass_at_k(5, [0, 3, 4], 2).tolist()
    [0.0, 0.9, 1.0]
    """
    return _over_counts(lambda n, c, k: _tail(n, c, k, 1), n, c, k, coupled)


@overload
def g_pass_at_k(n: int, c: int, k: int, tau: Tau, *, coupled: bool = False) -> float: ...
@overload
def g_pass_at_k(
    n: npt.ArrayLike, c: npt.ArrayLike, k: npt.ArrayLike, tau: Tau, *, coupled: bool = False
) -> Float[np.ndarray, "*shape"]: ...
def g_pass_at_k(
    n: npt.ArrayLike, c: npt.ArrayLike, k: npt.ArrayLike, tau: Tau, *, coupled: bool = False
) -> float | Float[np.ndarray, "*shape"]:
    """Chance that a k-subset of n rows holds at least `required_correct(tau, k)` correct ones.
    Equation (17).

    Source: arXiv 2412.13147, eq. 5. tau = 1 asks for all k; tau = 0 is pass@k.

    Args:
        n: Number of rows sampled of the problem; a whole number or an array, broadcast with c and
            k.
        c: Number of them that are correct.
        k: Number of rows of the subset, 1 <= k <= n.
        tau: Share of the subset that must be correct, 0 to 1; see `required_correct`.
        coupled: Whether the rows saw each other (a Bridge group wider than 1).

    Returns:
        A float for whole numbers, else an array of the broadcast shape.

    Raises:
        MetricError: for counts that contradict each other or a tau outside 0 to 1.
        MetricError: for a proper subset of coupled rows.

    >>> round(g_pass_at_k(16, 8, 4, "3/4"), 4)
    0.2846
    """
    return _over_counts(lambda n, c, k: _tail(n, c, k, required_correct(tau, k)), n, c, k, coupled)


@overload
def mg_pass_at_k(n: int, c: int, k: int, *, coupled: bool = False) -> float: ...
@overload
def mg_pass_at_k(
    n: npt.ArrayLike, c: npt.ArrayLike, k: npt.ArrayLike, *, coupled: bool = False
) -> Float[np.ndarray, "*shape"]: ...
def mg_pass_at_k(
    n: npt.ArrayLike, c: npt.ArrayLike, k: npt.ArrayLike, *, coupled: bool = False
) -> float | Float[np.ndarray, "*shape"]:
    """(2/k) sum of G-Pass@k_{i/k} for i = ceil(k/2)+1 .. k: the area under G-Pass@k for tau > 1/2.
    Equation (18).

    Source: arXiv 2412.13147, eq. 8. As published, the sum reaches 1 for even k only: at most
    (k-1)/k for odd k, and always 0 for k = 1.

    Args:
        n: Number of rows sampled of the problem; a whole number or an array, broadcast with c and
            k.
        c: Number of them that are correct.
        k: Number of rows of the subset, 1 <= k <= n.
        coupled: Whether the rows saw each other (a Bridge group wider than 1).

    Returns:
        A float for whole numbers, else an array of the broadcast shape.

    Raises:
        MetricError: for counts that contradict each other.
        MetricError: for a proper subset of coupled rows.

    >>> round(mg_pass_at_k(16, 8, 8), 4)
    0.0952
    """
    return _over_counts(_mean_tail, n, c, k, coupled)


def upper_tails(n: int, c: npt.ArrayLike, k: int) -> Float[np.ndarray, "*shape {k}"]:
    """P(at least 1, 2, .. k correct rows in a k-subset): G-Pass@k at every threshold at once.

    Raises:
        MetricError: for counts that contradict each other.

    >>> upper_tails(4, [2], 2).round(3).tolist()
    [[0.833, 0.167]]
    """
    counts = np.arange(n + 1)
    table = [g_pass_at_k(n, counts, k, Fraction(least, k)) for least in range(1, k + 1)]
    correct = np.asarray(c)
    if correct.size:
        _check(n, int(correct.min()), k, coupled=False)
        _check(n, int(correct.max()), k, coupled=False)
    return np.stack(table, axis=-1)[correct]


def required_correct(tau: Tau, k: int) -> int:
    """max(ceil(tau k), 1), the correct rows that G-Pass@k_tau asks for, in exact arithmetic.
    Equation (17).

    With floats ceil(7/25 * 25) is 8. A `Fraction`, a whole number, a `Decimal` or a string ("0.28",
    "7/25") is taken as it is; a float stands for the simplest fraction within 1e-12 of it, so that
    0.28 is 7/25, 5/7 is five sevenths and 0.1 + 0.2 is 3/10.

    Raises:
        MetricError: if tau is no number from 0 to 1.

    >>> required_correct(7 / 25, 25), required_correct("1/2", 5), required_correct(0, 4)
    (7, 3, 1)
    """
    try:
        share = _as_fraction(tau)
    except (ValueError, TypeError, ZeroDivisionError, OverflowError):
        share = Fraction(-1)
    if not 0 <= share <= 1:
        raise MetricError(
            f"The threshold tau of G-Pass@k is a share from 0 to 1; got {tau!r}. Pass a Fraction, "
            "a string such as '3/4', or a float."
        )
    return max(ceil(share * k), 1)


def refuse_subset(n: int, k: int) -> None:
    """Raise unless k is the whole of a coupled group of n rows, or one row.

    Raises:
        MetricError: for 1 < k < n.
    """
    if k not in (1, n):
        raise MetricError(
            f"Rows of a Bridge group are dependent: {k} rows of a width-{n} group are not a "
            f"width-{k} run. Generate a run of its own at width {k}, or use k = {n}."
        )


def _as_fraction(tau: Tau) -> Fraction:
    if isinstance(tau, int | Fraction | Decimal | str):
        return Fraction(tau)
    printed = Fraction(str(float(tau)))
    simple = printed.limit_denominator(LARGEST_DENOMINATOR)
    return simple if abs(simple - printed) <= FLOAT_TOLERANCE else printed


def _over_counts(
    metric: Callable[[int, int, int], float],
    n: npt.ArrayLike,
    c: npt.ArrayLike,
    k: npt.ArrayLike,
    coupled: bool,
) -> float | Float[np.ndarray, "*shape"]:
    """The metric of each triple, broadcast."""
    arrays = [np.asarray(counts) for counts in (n, c, k)]
    if any(not np.issubdtype(counts.dtype, np.integer) for counts in arrays):
        raise MetricError(
            f"n, c and k are whole numbers; got n = {n!r}, c = {c!r}, k = {k!r}. "
            "Count rows, not shares: c = round(share * n)."
        )

    @cache
    def checked(n: int, c: int, k: int) -> float:
        _check(n, c, k, coupled)
        return metric(n, c, k)

    values = np.vectorize(checked, otypes=[float])(*arrays)
    return values if values.ndim else float(values)


def _check(n: int, c: int, k: int, coupled: bool) -> None:
    """Refuse counts that do not fit, and subsets of coupled rows. Equation (19)."""
    if not (0 <= c <= n and 1 <= k <= n):
        raise MetricError(
            f"Counts need 0 <= c <= n and 1 <= k <= n; got n = {n}, c = {c}, k = {k}. "
            "Sample at least k rows of each problem."
        )
    if coupled:
        refuse_subset(n, k)


@lru_cache(maxsize=65_536)
def _tail(n: int, c: int, k: int, least: int) -> float:
    """P(at least `least` correct rows in a k-subset)."""
    ways = sum(_ways(n, c, k, j) for j in range(least, min(c, k) + 1))
    return ways / comb(n, k)


@lru_cache(maxsize=65_536)
def _mean_tail(n: int, c: int, k: int) -> float:
    # A subset with j correct rows counts once for every threshold from half+1 to j.
    half = (k + 1) // 2
    ways = sum((j - half) * _ways(n, c, k, j) for j in range(half + 1, min(c, k) + 1))
    return 2 * ways / (k * comb(n, k))


def _ways(n: int, c: int, k: int, j: int) -> int:
    return comb(c, j) * comb(n - c, k - j)
