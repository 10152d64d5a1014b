"""A model whose metrics are known exactly: right with a probability drawn for each problem, and
rows either independent or copying their siblings.

Letters: E problems, M groups of a problem, W width, T nodes of the quadrature.

Each problem has p ~ Beta(mean * concentration, (1 - mean) * concentration). Row 0 is right with
probability p; every later row copies a random earlier row of its group with probability `copy`, and
is right with probability p otherwise. Wrong rows all give the same wrong answer. Given p, metrics
are polynomials in p of degree W, which Gauss-Jacobi quadrature integrates exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import roots_jacobi

from interlace.evaluation.measure import Rows
from interlace.evaluation.records import GroupRecord


@dataclass(frozen=True)
class KnownModel:
    mean: float
    width: int
    copy: float = 0.0
    concentration: float = 2.0

    def draw(self, rng: np.random.Generator, problems: int, groups: int = 1) -> np.ndarray:
        """`[E, M, W]`, True where a row is right."""
        a, b = self.mean * self.concentration, (1 - self.mean) * self.concentration
        p = rng.beta(a, b, (problems, 1, 1))
        right = rng.random((problems, groups, self.width)) < p
        for row in range(1, self.width):
            source = rng.integers(0, row, (problems, groups, 1))
            copied = np.take_along_axis(right, source, axis=2)[..., 0]
            copies = rng.random((problems, groups)) < self.copy
            right[..., row] = np.where(copies, copied, right[..., row])
        return right

    def truth(self) -> dict[str, float]:
        """Expected values over problems: pass@1, maj, coverage, and g_pass by rows required."""
        a, b = self.mean * self.concentration, (1 - self.mean) * self.concentration
        nodes, weights = roots_jacobi(self.width + 2, b - 1, a - 1)
        by_count = self._counts((nodes + 1) / 2) @ (weights / weights.sum())  # [2, W+1]
        total, ahead = by_count.sum(axis=0), 2 * np.arange(self.width + 1) - self.width
        truth = {
            "pass@1": self.mean,
            "coverage": total[1:].sum(),
            # At a tie the answer of the first row wins.
            "maj": total[ahead > 0].sum() + by_count[1, ahead == 0].sum(),
        }
        return truth | {f"g_pass:{need}": total[need:].sum() for need in range(1, self.width + 1)}

    def _counts(self, p: np.ndarray) -> np.ndarray:
        """`[2, W+1, T]`: chance of c right rows, apart for a wrong and a right first row."""
        state = np.zeros((2, self.width + 1, len(p)))
        state[0, 0], state[1, 1] = 1 - p, p
        counts = np.arange(self.width + 1)[:, None]
        for row in range(1, self.width):
            right = (1 - self.copy) * p + self.copy * np.minimum(counts / row, 1)
            moved = state * right
            state = state - moved
            state[:, 1:] += moved[:, :-1]
        return state


def as_records(
    right: np.ndarray, *, coupled: bool, task: str = "known", seconds: float | None = None
) -> list[GroupRecord]:
    """Records of drawn groups `[E, M, W]`."""
    problems, groups, width = right.shape
    return [
        GroupRecord(
            task=task,
            example_id=f"p{problem:04d}",
            width=width,
            group=group,
            seed=group,
            coupled=coupled,
            answers=tuple("right" if hit else "wrong" for hit in right[problem, group]),
            correct=tuple(bool(hit) for hit in right[problem, group]),
            scores=tuple(float(hit) for hit in right[problem, group]),
            tokens=(10,) * width,
            seconds=seconds,
        )
        for problem in range(problems)
        for group in range(groups)
    ]


def as_rows(right: np.ndarray, *, coupled: bool) -> Rows:
    """The arrays that `as_records` would become, for simulations of many runs."""
    problems, _, width = right.shape
    flat = right.reshape(problems, -1)
    return Rows(
        width=width,
        coupled=coupled,
        classes=np.where(flat, 1, 0),
        correct=flat,
        scores=flat.astype(float),
        tokens=np.full(flat.shape, 10.0),
        weights={},
        truncated=None,
        texts=None,
    )
