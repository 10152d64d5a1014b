"""What an evaluation found: numbers with intervals, each with its (width, k).

Letters: E problems (examples) of a task, W width, k rows that a set metric looks at, n rows sampled
of a problem. An `ArmResult` is one arm on one task from one training seed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
from jaxtyping import Float

from interlace.errors import MetricError
from interlace.evaluation.intervals import (
    LEVEL,
    Estimate,
    mean_interval,
    proportion_interval,
)
from interlace.jsonl import to_json

# Means over rows; their k is 1.
ROW_METRICS = ("pass@1", "score", "answered", "row_tokens", "truncated")
# Means over rows or groups that are no shares.
QUANTITIES = ("row_tokens", "tokens", "seconds", "distinct_answers", "answer_entropy")


@dataclass(frozen=True, eq=False)
class Measurement:
    """One metric at one (width, k).

    Attributes:
        metric: `pass@1`, `score` (mean of the verdicts' scores), `answered` (share of rows with an
            answer), `row_tokens` (mean length), `truncated` (share of rows that hit their maximum);
            and of a set of k rows `coverage` (any row correct: pass@k, any@W), `maj`, `weighted:S`
            and `best_of_n:S` for a scorer S, `g_pass`, `mg_pass`, `distinct_answers`,
            `answer_entropy` (bits), `distinct_1`, `distinct_2`, `tokens` (of all k rows),
            `seconds` (of a group alone: of the processor on a CPU).
        width: Rows that were sampled together. For independent rows, which are exchangeable, a
            k-subset is a width-k run: their width is k.
        k: Number of rows that the metric looks at: 1, or the set's size.
        threshold: Number of correct rows that `g_pass` asks for, 1 to k; None for other metrics.
        estimate: Mean over problems, with its interval over problems.
        values: `[E]` the problems' values, in the order of the result's `example_ids`.
        rows: Number of rows sampled of each problem, n.
    """

    metric: str
    width: int
    k: int
    threshold: int | None
    estimate: Estimate
    values: Float[np.ndarray, "E"]
    rows: int

    @property
    def tau(self) -> Fraction | None:
        """The threshold as a share of k."""
        return None if self.threshold is None else Fraction(self.threshold, self.k)

    @property
    def label(self) -> str:
        """The metric's usual name, for instance `G-Pass@8 (tau = 3/4)`."""
        return metric_label(self.metric, self.k, self.tau)

    def to_json(self) -> dict[str, Any]:
        """A flat row: metric, width, k, tau, value, interval, and what it is over."""
        names = ("metric", "width", "k", "threshold")
        return {
            **{name: getattr(self, name) for name in names},
            "tau": None if self.tau is None else str(self.tau),
            **to_json(self.estimate),
            "rows": self.rows,
        }


@dataclass(frozen=True, eq=False)
class ArmResult:
    """One arm on one task.

    Attributes:
        arm: Name of the arm, for instance `base` or `Bridge`.
        task: Name of the task.
        seed: Training seed; None for a model that was not trained here.
        coupled: Whether the rows of a group saw each other.
        example_ids: Ids of the problems, `[E]`, in order.
        measurements: Measurements, all that were made.
        provenance: Origin: model, data, settings, versions. Any JSON values.
    """

    arm: str
    task: str
    seed: int | None
    coupled: bool
    example_ids: tuple[str, ...]
    measurements: tuple[Measurement, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def widths(self) -> list[int]:
        """Widths with set metrics, ascending."""
        return sorted({entry.width for entry in self.measurements if entry.metric == "coverage"})

    @property
    def metrics(self) -> list[str]:
        """Names of all metrics, in the order measured."""
        return list(dict.fromkeys(entry.metric for entry in self.measurements))

    def find(self, metric: str, width: int, threshold: int | None = None) -> Measurement | None:
        """The measurement of a metric at a width; None where it was not measured.

        A mean over independent rows does not depend on the width: it is found at every width.
        """
        for entry in self.measurements:
            same = entry.metric == metric and entry.threshold == threshold
            if same and (entry.width == width or self._any_width(metric)):
                return entry
        return None

    def get(self, metric: str, width: int, threshold: int | None = None) -> Measurement:
        """As `find`, but a missing measurement is an error.

        Raises:
            MetricError: naming what was measured instead.
        """
        found = self.find(metric, width, threshold)
        if found is None:
            widths = sorted({e.width for e in self.measurements if e.metric == metric})
            instead = f"at widths {widths}" if widths else f"but {', '.join(self.metrics)}"
            asked = metric if threshold is None else f"{metric} with {threshold} rows correct"
            raise MetricError(
                f"{self.arm!r} on {self.task!r} has no {asked} at width {width}: it was measured "
                f"{instead}. Every width of a Bridge model needs a run of its own; independent "
                "rows need at least as many samples a problem as the width."
            )
        return found

    def series(self, metric: str) -> list[tuple[int, Measurement]]:
        """The metric against width, ascending; flat for means over independent rows."""
        if self._any_width(metric):
            found = [(width, self.find(metric, width)) for width in self.widths]
        else:
            entries = [entry for entry in self.measurements if entry.metric == metric]
            found = [(entry.width, entry) for entry in sorted(entries, key=lambda e: e.width)]
        return [(width, entry) for width, entry in found if entry is not None]

    def g_pass(self, width: int) -> list[Measurement]:
        """G-Pass@width for all thresholds 1 to width, ascending."""
        entries = [e for e in self.measurements if e.metric == "g_pass" and e.width == width]
        return sorted(entries, key=lambda entry: entry.threshold or 0)

    def _any_width(self, metric: str) -> bool:
        return not self.coupled and metric in ROW_METRICS

    def to_json(self) -> dict[str, Any]:
        """JSON values, without those of single problems (the records hold them)."""
        names = ("arm", "task", "seed", "coupled")
        return {
            **{name: getattr(self, name) for name in names},
            "examples": len(self.example_ids),
            "example_ids": list(self.example_ids),
            "measurements": [entry.to_json() for entry in self.measurements],
            "provenance": dict(self.provenance),
        }


def set_sizes(rows: int) -> list[int]:
    """The sizes of sets of independent rows that are looked at: powers of two up to all of them.

    >>> set_sizes(6)
    [1, 2, 4, 6]
    """
    return sorted({rows, *(2**power for power in range(rows.bit_length()))})


def estimate_values(metric: str, values: Float[np.ndarray, "E"], level: float = LEVEL) -> Estimate:
    """The mean over problems, with the interval that suits the metric."""
    return (mean_interval if metric in QUANTITIES else proportion_interval)(values, level)


def metric_label(metric: str, k: int, tau: Fraction | None = None) -> str:
    """The usual name of a metric at k.

    >>> metric_label("g_pass", 8, Fraction(3, 4)), metric_label("maj", 4)
    ('G-Pass@8 (tau = 3/4)', 'maj@4')
    """
    name, _, scorer = metric.partition(":")
    by = f" ({scorer})" if scorer else ""
    labels = {
        "score": "mean score",
        "answered": "rows with an answer",
        "row_tokens": "tokens a row",
        "truncated": "rows cut off",
        "coverage": f"pass@{k}",
        "maj": f"maj@{k}",
        "weighted": f"weighted@{k}{by}",
        "best_of_n": f"best-of-{k}{by}",
        "g_pass": f"G-Pass@{k} (tau = {tau})",
        "mg_pass": f"mG-Pass@{k}",
        "distinct_answers": "distinct answers",
        "answer_entropy": "answer entropy (bits)",
        "distinct_1": "distinct-1",
        "distinct_2": "distinct-2",
        "tokens": "tokens a problem",
        "seconds": "seconds of a group",
    }
    return labels.get(name, metric)


def arms_of(results: Iterable[ArmResult]) -> list[str]:
    """Names of the arms, in the order given."""
    return list(dict.fromkeys(result.arm for result in results))


def tasks_of(results: Iterable[ArmResult]) -> list[str]:
    """Names of the tasks, in the order given."""
    return list(dict.fromkeys(result.task for result in results))
