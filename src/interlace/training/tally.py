"""Sums to report: kept while a step runs, added up over processes once, logged as means."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

Reduce = Callable[[Tensor, str], Tensor]  # (values, "sum" or "max") -> over all processes
LARGEST, SMALLEST = "max", "min"


class Tally:
    """Means (sum over count), extremes and seconds by name.

    Every process must note the same names in a step, since they are added up position by position;
    note a count of 0 where a process has nothing to say.
    """

    def __init__(self) -> None:
        self._within: list[float] = []  # of each phase that runs, the seconds of phases within it
        self._clear()

    def _clear(self) -> None:
        self._sums: dict[str, list[float]] = {}
        self._totals: dict[str, float] = {}
        self._extremes: dict[tuple[str, str], float] = {}
        self.seconds: dict[str, float] = {}

    def mean(self, name: str, total: float, count: float = 1.0) -> None:
        """Add to what will be logged as total over count."""
        entry = self._sums.setdefault(name, [0.0, 0.0])
        entry[0] += total
        entry[1] += count

    def total(self, name: str, value: float) -> None:
        """Add to what will be logged as a sum."""
        self._totals[name] = self._totals.get(name, 0.0) + value

    def extreme(self, name: str, value: float, kind: str) -> None:
        """Keep the largest or smallest value."""
        known = self._extremes.get((name, kind), value)
        self._extremes[name, kind] = max(known, value) if kind == LARGEST else min(known, value)

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the seconds within to a phase, those of a phase within it left out."""
        start = time.perf_counter()
        self._within.append(0.0)
        try:
            yield
        finally:
            spent, others = time.perf_counter() - start, self._within.pop()
            self.seconds[phase] = self.seconds.get(phase, 0.0) + spent - others
            if self._within:
                self._within[-1] += spent

    def collect(self, reduce: Reduce) -> dict[str, float]:
        """Everything as numbers to log, over all processes; the tally is empty afterwards."""
        logs: dict[str, float] = {}
        means, totals = sorted(self._sums), sorted(self._totals)
        sums = [self._totals[n] for n in totals]
        for name in means:
            sums += self._sums[name]
        found = _reduced(sums, "sum", reduce)
        logs |= dict(zip(totals, found, strict=False))
        for index, name in enumerate(means):
            total, count = found[len(totals) + 2 * index :][:2]
            if count:
                logs[name] = total / count
        keys, phases = sorted(self._extremes), sorted(self.seconds)
        signs = [1.0 if kind == LARGEST else -1.0 for _, kind in keys]
        peaks = [s * self._extremes[k] for s, k in zip(signs, keys, strict=True)]
        found = _reduced(peaks + [self.seconds[p] for p in phases], "max", reduce)
        logs |= {name: s * v for (name, _), s, v in zip(keys, signs, found, strict=False)}
        logs |= {f"seconds/{p}": v for p, v in zip(phases, found[len(keys) :], strict=True)}
        self._clear()
        return logs


def _reduced(values: list[float], how: str, reduce: Reduce) -> list[float]:
    return reduce(torch.tensor(values, dtype=torch.float64), how).tolist() if values else []
