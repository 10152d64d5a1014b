"""Quick evaluations, results made from given values, records of arms that behave as trained ones
do, and a model whose metrics are known exactly.

Letters: E problems, M groups of a problem, W width, T nodes of the quadrature.

`python -m support.evaluation FOLDER KIND RECORDS` is an evaluation that kills itself, with SIGKILL,
when it has recorded that many groups. Kinds: "float32", "bfloat16", and "by-call", whose tokens
depend on which groups share a call of the engine: what rounding does in low precision on some
machines, certain and in the large.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import roots_jacobi

from interlace.batch import Tally
from interlace.engine.engine import Engine
from interlace.engine.types import GroupOutput, SamplingParams
from interlace.evaluation.evaluate import evaluate
from interlace.evaluation.intervals import LEVEL
from interlace.evaluation.measure import Rows, measure, with_latency
from interlace.evaluation.records import GroupRecord, Timing
from interlace.evaluation.results import ArmResult, Measurement, estimate_values
from support.text import number_engine, number_model, number_tokenizer, sums

SHORT = SamplingParams(max_new_tokens=6)


def quick(engine: Engine, *arguments: Any, **options: Any) -> ArmResult:
    """An evaluation without figures and timings, unless asked for."""
    return evaluate(engine, *arguments, **{"params": SHORT, "timed": 0, "figures": (), **options})


def without_times(value: Any) -> Any:
    """A result file without what measures time."""
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items()}
    if isinstance(value, list):
        return [
            without_times(v)
            for v in value
            if not (isinstance(v, dict) and v.get("metric") == "seconds")
        ]
    return value


def result_file(folder: Path) -> Any:
    return without_times(json.loads((folder / "result.json").read_text()))


def records_without_times(folder: Path) -> list[dict[str, Any]]:
    """Lines of the records file, in the file's order."""
    lines = (folder / "records.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


Curve = dict[int, np.ndarray]


def made(
    arm: str,
    curves: dict[str, Curve],
    *,
    task: str = "toy",
    seed: int | None = None,
    coupled: bool = True,
    ids: tuple[str, ...] | None = None,
) -> ArmResult:
    """A result with these values `[E]` by metric and width; `coverage` is added where missing, as
    widths are read from it."""
    first = next(iter(next(iter(curves.values())).values()))
    widths = {width for curve in curves.values() for width in curve}
    curves = {"coverage": {width: np.zeros(len(first)) for width in sorted(widths)}} | curves
    measurements = [
        Measurement(
            metric,
            width,
            1 if metric in ("pass@1", "row_tokens") else width,
            width if metric == "g_pass" else None,
            estimate_values(metric, np.asarray(values, dtype=float)),
            np.asarray(values, dtype=float),
            width,
        )
        for metric, curve in curves.items()
        for width, values in curve.items()
    ]
    ids = ids or tuple(f"p{index}" for index in range(len(first)))
    return ArmResult(arm, task, seed, coupled, ids, tuple(measurements))


@dataclass(frozen=True)
class Arm:
    """An arm whose rows are right more often with width, and copy each other if coupled."""

    name: str
    skill: float
    gain_per_doubling: float = 0.0
    copy: float = 0.0
    tokens: float = 180.0
    seed: int | None = None

    def records(self, problems: int, widths: list[int], groups: int = 1) -> list[GroupRecord]:
        # Difficulty belongs to the problem: the same in every arm, so that pairs mean something.
        difficulty = np.random.default_rng(99).normal(0, 1.6, problems)
        rng = np.random.default_rng([sum(map(ord, self.name)), self.seed or 0])
        found = []
        for width in widths:
            skill = self.skill + self.gain_per_doubling * np.log2(width)
            chances = 1 / (1 + np.exp(difficulty - skill))
            for problem, chance in enumerate(chances):
                found += [
                    self._group(rng, problem, group, width, chance) for group in range(groups)
                ]
        return found

    def _group(
        self, rng: np.random.Generator, problem: int, group: int, width: int, chance: float
    ) -> GroupRecord:
        answers: list[str | None] = []
        for row in range(width):
            if row and rng.random() < self.copy:
                answers.append(answers[rng.integers(row)])
            elif rng.random() < chance:
                answers.append("42")
            else:
                wrong = str(rng.geometric(0.25))
                answers.append(None if rng.random() < 0.08 else wrong)
        right = tuple(answer == "42" for answer in answers)
        tokens = np.maximum(rng.normal(self.tokens, 30, width), 5).astype(int)
        surprise = np.where(right, 0.35, 0.5) + rng.normal(0, 0.08, width)
        seconds = tokens.max() * (0.021 + 0.0009 * width) * (1.25 if self.copy else 1.0)
        return GroupRecord(
            task="arithmetic",
            example_id=f"p{problem:03d}",
            width=width,
            group=group,
            seed=group,
            coupled=self.copy > 0,
            answers=tuple(answers),
            correct=right,
            scores=tuple(float(hit) for hit in right),
            tokens=tuple(int(count) for count in tokens),
            logprob_sums=tuple(float(-s * t) for s, t in zip(surprise, tokens, strict=True)),
            texts=tuple(f"so it is {answer}" for answer in answers),
            finish_reasons=tuple("length" if answer is None else "stop" for answer in answers),
            seconds=float(seconds),
        )


BASE = Arm("base", -0.9)
RLVR = Arm("RLVR-only", 0.1, tokens=165)
PMATCH = Arm("P-Match", -0.1, tokens=170)
BRIDGE = Arm("Bridge", 0.0, gain_per_doubling=0.28, copy=0.35, tokens=160)


def three_arms(
    problems: int = 120, rows: int = 32, widths: tuple[int, ...] = (1, 2, 4, 8, 16)
) -> list[ArmResult]:
    """Results of base, RLVR-only and Bridge."""
    found = []
    for arm in (BASE, RLVR, BRIDGE):
        sampled = list(widths) if arm.copy else [rows]
        (result,) = measure(arm.records(problems, sampled, groups=2 if arm.copy else 1), arm.name)
        alone = [
            Timing(record.example_id, record.width, record.seconds or 0.0)
            for record in arm.records(4, list(widths))
        ]
        found.append(with_latency(result, alone, LEVEL))
    return found


@dataclass(frozen=True)
class KnownModel:
    """A model whose metrics are known exactly: right with a probability drawn for each problem, and
    rows either independent or copying their siblings.

    Each problem has p ~ Beta(mean * concentration, (1 - mean) * concentration). Row 0 is right with
    probability p; every later row copies a random earlier row of its group with probability `copy`,
    and is right with probability p otherwise. Wrong rows all give the same wrong answer. Given p,
    metrics are polynomials in p of degree W, which Gauss-Jacobi quadrature integrates exactly.
    """

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


class ByCall(Engine):
    """An engine whose tokens depend on the number of prompts in a call."""

    def as_completed(
        self, prompts: Sequence[Any], params: Any = None, **options: Any
    ) -> Iterator[tuple[int, GroupOutput]]:
        """As the engine's."""
        yield from super().as_completed(
            prompts, params.replace(seed=params.seed + len(prompts)), **options
        )


def engine_of(kind: str) -> Engine:
    """An engine of that kind, with Bridge blocks."""
    if kind == "by-call":
        return ByCall(number_model("bridge"), number_tokenizer(), max_rows=12)
    return number_engine("bridge", getattr(torch, kind))


def evaluation(folder: Path, kind: str, kill_after: int = 0) -> ArmResult:
    """The run; the same arguments give the same run in every process."""

    def progress(tally: Tally) -> None:
        if tally.groups == kill_after:
            os.kill(os.getpid(), signal.SIGKILL)

    return evaluate(
        engine_of(kind),
        sums(7),
        [1, 2, 4],
        groups_per_problem=2,
        params=SamplingParams(max_new_tokens=9, seed=3),
        batch_rows=40,
        timed=2,
        output=folder,
        figures=("svg",),
        progress=progress if kill_after else None,
    )


if __name__ == "__main__":
    evaluation(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
