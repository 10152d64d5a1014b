"""Records of three arms that behave as trained ones do: for tests of reports, and to look at.

Letters: E problems, M groups, W width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from interlace.evaluation.intervals import LEVEL
from interlace.evaluation.measure import measure, with_latency
from interlace.evaluation.records import GroupRecord, Timing
from interlace.evaluation.results import ArmResult


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
