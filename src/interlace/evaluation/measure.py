"""From raw generations to results: every metric at every (width, k) that the records allow.

Letters: E problems, M groups of a problem, W width, n = M W rows of a problem, D draws, k rows of a
draw. Set metrics are means over draws. Rows of a coupled group are dependent, so its draws are
exactly its M groups, k = W. Independent rows are exchangeable: the draws are k-subsets of all n
rows, for every k asked for; pass@k and G-Pass@k take the exact mean over all subsets.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from interlace.answers.vote import Equal, answer_classes
from interlace.errors import DataFileError, MetricError
from interlace.evaluation.intervals import LEVEL
from interlace.evaluation.metrics import mg_pass_at_k, pass_at_k, refuse_subset, upper_tails
from interlace.evaluation.records import GroupRecord, Timing, check_records
from interlace.evaluation.results import ArmResult, Measurement, estimate_values, set_sizes
from interlace.evaluation.votes import (
    NO_ANSWER,
    answer_entropy,
    best_rows,
    distinct_answers,
    distinct_n,
    subset_draws,
    vote_winners,
)

LIKELIHOOD = "likelihood"


@dataclass(frozen=True, eq=False)
class Rows:
    """All rows of one task at one width, problems by rows, groups one after the other."""

    width: int
    coupled: bool
    classes: Int[np.ndarray, "E n"]
    correct: Bool[np.ndarray, "E n"]
    scores: Float[np.ndarray, "E n"]
    tokens: Float[np.ndarray, "E n"]
    weights: dict[str, Float[np.ndarray, "E n"]]
    truncated: Bool[np.ndarray, "E n"] | None
    texts: list[list[str]] | None

    @property
    def count(self) -> int:
        """Number of rows of a problem, n."""
        return self.classes.shape[1]


def rows_at(
    records: list[GroupRecord], ids: tuple[str, ...], width: int, equal: Equal | None
) -> Rows:
    """The records of one width as arrays, after checking that all problems are there."""
    by_example: dict[str, list[GroupRecord]] = {example: [] for example in ids}
    for record in records:
        if record.width == width:
            by_example[record.example_id].append(record)
    most = max(len(groups) for groups in by_example.values())
    missing = [example for example, groups in by_example.items() if len(groups) < most]
    if missing:
        raise DataFileError(
            f"At each width every problem has the same number of groups; at width {width} of task "
            f"{records[0].task!r} these have fewer than {most}: {', '.join(missing[:5])}"
            f"{f' and {len(missing) - 5} more' if len(missing) > 5 else ''}. Resume the run."
        )
    flat = [group for groups in by_example.values() for group in groups]

    def rows_of(name: str, dtype: type) -> np.ndarray:
        values = [getattr(group, name) for group in flat]
        return np.array(values, dtype=dtype).reshape(len(ids), -1)

    def kept(name: str) -> bool:
        return all(getattr(group, name) is not None for group in flat)

    texts = [
        [text for group in groups for text in group.texts or ()] for groups in by_example.values()
    ]
    return Rows(
        width=width,
        coupled=records[0].coupled,
        classes=np.stack([_classes(groups, equal) for groups in by_example.values()]),
        correct=rows_of("correct", bool),
        scores=rows_of("scores", float),
        tokens=rows_of("tokens", float),
        weights=_weights(flat, len(ids)),
        truncated=rows_of("finish_reasons", str) == "length" if kept("finish_reasons") else None,
        texts=texts if kept("texts") else None,
    )


def _classes(groups: list[GroupRecord], equal: Equal | None) -> Int[np.ndarray, "n"]:
    """Equal numbers for equal answers among all rows of a problem."""
    answers = [answer for group in groups for answer in group.answers]
    classes = answer_classes(answers, equal=equal)
    return np.array([NO_ANSWER if first is None else first for first in classes], dtype=np.int64)


def _weights(flat: list[GroupRecord], problems: int) -> dict[str, Float[np.ndarray, "E n"]]:
    """Weights of rows by likelihood, and by every scorer that all groups have."""
    weights = {}
    if all(group.logprob_sums is not None for group in flat):
        sums = np.array([group.logprob_sums for group in flat]).reshape(problems, -1)
        tokens = np.array([group.tokens for group in flat]).reshape(problems, -1)
        means = np.where(tokens > 0, sums / np.maximum(tokens, 1), -np.inf)
        # The length-normalised weight of self-consistency; over the problem's largest, so that
        # long rows do not underflow.
        best = np.where(tokens > 0, means, -1e300).max(axis=1, keepdims=True)
        weights[LIKELIHOOD] = np.exp(means - best)
    for name in flat[0].scorers:
        if all(name in group.scorers for group in flat):
            scores = np.array([group.scorers[name] for group in flat], dtype=float)
            weights[name] = scores.reshape(problems, -1)
    return weights


DRAWS = 200
TEXT_SETS = 4
# Metric, width, k, threshold, the problems' values, rows of a problem.
Found = tuple[str, int, int, int | None, Float[np.ndarray, "E"], int]


def measure(
    records: Sequence[GroupRecord],
    arm: str,
    *,
    seed: int | None = None,
    ks: Sequence[int] | None = None,
    equal: Equal | None = None,
    level: float = LEVEL,
    draws: int = DRAWS,
    provenance: Mapping[str, Any] | None = None,
) -> list[ArmResult]:
    """Results of one arm's records, one for each task.

    Args:
        records: Records of all groups of the arm. At each width every problem needs the same number
            of groups.
        arm: Name of the arm.
        seed: Training seed; None for a model that was not trained here.
        ks: Sizes of sets of independent rows; by default the powers of two up to n, and n.
            Independent arms are sampled once, so only their widest run is used (the narrower ones,
            if any, hold the same rows). Coupled arms take no k but their widths.
        equal: Function that compares answers whose normal forms differ, for votes; see
            `interlace.answers.majority_vote`.
        level: Coverage of the intervals.
        draws: Number of k-subsets of independent rows over which votes are averaged, at most.
        provenance: Facts to keep with the results.

    Raises:
        DataFileError: for records that do not belong together or are incomplete.
        MetricError: if `ks` asks for parts of coupled groups, or for more rows than were sampled.
    """
    check_records(records)
    by_task: dict[str, list[GroupRecord]] = defaultdict(list)
    for record in sorted(records, key=lambda record: record.key):
        by_task[record.task].append(record)
    results = []
    for task, found in by_task.items():
        ids = tuple(dict.fromkeys(record.example_id for record in found))
        measurements = [
            Measurement(
                metric, width, k, threshold, estimate_values(metric, values, level), values, rows
            )
            for metric, width, k, threshold, values, rows in _measure_task(
                found, ids, ks, equal, draws
            )
        ]
        coupled = found[0].coupled
        results.append(
            ArmResult(arm, task, seed, coupled, ids, tuple(measurements), provenance or {})
        )
    return results


def _measure_task(
    records: list[GroupRecord],
    ids: tuple[str, ...],
    ks: Sequence[int] | None,
    equal: Equal | None,
    draws: int,
) -> Iterator[Found]:
    widths = sorted({record.width for record in records})
    tables = {width: rows_at(records, ids, width, equal) for width in widths}
    if records[0].coupled:
        _refuse_other_sizes(ks, widths)
        for width, rows in tables.items():
            yield from _with_place(row_metrics(rows), width, 1, rows.count)
            groups = np.arange(rows.count).reshape(-1, width)
            yield from set_metrics(rows, groups)
    else:
        rows = tables[widths[-1]]
        yield from _with_place(row_metrics(rows), 1, 1, rows.count)
        for k in _subset_sizes(ks, rows.count):
            yield from set_metrics(rows, subset_draws(rows.count, k, draws, 0))


def _refuse_other_sizes(ks: Sequence[int] | None, widths: list[int]) -> None:
    for k in ks or ():
        if k not in widths:
            if k < widths[-1]:
                refuse_subset(widths[-1], k)
            raise MetricError(
                f"A coupled arm has set metrics at the widths it was run at, {widths}; got "
                f"k = {k}. Generate a run at that width."
            )


def _subset_sizes(ks: Sequence[int] | None, n: int) -> list[int]:
    if ks is None:
        return set_sizes(n)
    if any(not 1 <= k <= n for k in ks):
        raise MetricError(
            f"Sets of independent rows hold 1 to n = {n} rows, what was sampled of each problem; "
            f"got ks = {list(ks)}. Sample once at the largest k."
        )
    return sorted(set(ks))


def _with_place(
    found: Iterator[tuple[str, Float[np.ndarray, "E"]]], width: int, k: int, rows: int
) -> Iterator[Found]:
    for metric, values in found:
        yield metric, width, k, None, values, rows


def row_metrics(rows: Rows) -> Iterator[tuple[str, Float[np.ndarray, "E"]]]:
    """Every mean over rows: metric, `[E]` values."""
    yield "pass@1", rows.correct.mean(axis=1)
    yield "score", rows.scores.mean(axis=1)
    yield "answered", (rows.classes != NO_ANSWER).mean(axis=1)
    yield "row_tokens", rows.tokens.mean(axis=1)
    if rows.truncated is not None:
        yield "truncated", rows.truncated.mean(axis=1)


def set_metrics(rows: Rows, draws: Int[np.ndarray, "D k"]) -> Iterator[Found]:
    """Every set metric at k, as means over the sets that `draws` makes of a problem's rows: of
    coupled ones the groups themselves."""
    k = draws.shape[1]
    yield from _with_place(_votes(rows, draws), k, k, rows.count)
    yield from _pass_family(rows, k)
    yield from _with_place(_diversity(rows, draws), k, k, rows.count)
    yield "tokens", k, k, None, k * rows.tokens.mean(axis=1), rows.count


def _pass_family(rows: Rows, k: int) -> Iterator[Found]:
    """pass@k, G-Pass@k at every threshold and mG-Pass@k, exact over all subsets."""
    sets = rows.correct.reshape(len(rows.correct), -1, k) if rows.coupled else rows.correct[:, None]
    n, correct = sets.shape[2], sets.sum(axis=2)
    yield "coverage", k, k, None, _over_sets(pass_at_k(n, correct, k)), rows.count
    tails = upper_tails(n, correct, k)
    for threshold in range(1, k + 1):
        yield "g_pass", k, k, threshold, _over_sets(tails[..., threshold - 1]), rows.count
    if k > 1:  # by its definition mG-Pass@1 is 0
        yield "mg_pass", k, k, None, _over_sets(mg_pass_at_k(n, correct, k)), rows.count


def _over_sets(values: Float[np.ndarray, "E M"]) -> Float[np.ndarray, "E"]:
    # A mean of shares may leave 0 to 1 by rounding only.
    return np.clip(values.mean(axis=1), 0.0, 1.0)


def _votes(
    rows: Rows, draws: Int[np.ndarray, "D k"]
) -> Iterator[tuple[str, Float[np.ndarray, "E"]]]:
    problems, (count, k) = len(rows.classes), draws.shape
    classes = rows.classes[:, draws].reshape(-1, k)
    correct = rows.correct[:, draws].reshape(-1, k)

    def share_right(winners: Int[np.ndarray, "ED"]) -> Float[np.ndarray, "E"]:
        right = np.take_along_axis(correct, np.maximum(winners, 0)[:, None], axis=1)[:, 0]
        return (right & (winners != NO_ANSWER)).reshape(problems, count).mean(axis=1)

    yield "maj", share_right(vote_winners(classes))
    for name, all_weights in rows.weights.items():
        weights = all_weights[:, draws].reshape(-1, k)
        yield f"weighted:{name}", share_right(vote_winners(classes, weights))
        yield f"best_of_n:{name}", share_right(best_rows(classes, weights))


def _diversity(
    rows: Rows, draws: Int[np.ndarray, "D k"]
) -> Iterator[tuple[str, Float[np.ndarray, "E"]]]:
    problems, k = len(rows.classes), draws.shape[1]
    classes = rows.classes[:, draws].reshape(-1, k)
    yield "distinct_answers", distinct_answers(classes).reshape(problems, -1).mean(axis=1)
    yield "answer_entropy", answer_entropy(classes).reshape(problems, -1).mean(axis=1)
    if rows.texts is not None:
        # Texts are long: a few disjoint sets of independent rows instead of all the subsets.
        starts = range(0, rows.count - k + 1, k)[: None if rows.coupled else TEXT_SETS]
        for n in (1, 2):
            shares = [
                np.mean([distinct_n(texts[start : start + k], n) for start in starts])
                for texts in rows.texts
            ]
            yield f"distinct_{n}", np.array(shares)


def with_latency(result: ArmResult, timings: Sequence[Timing], level: float) -> ArmResult:
    """The result with the seconds of groups that ran alone, where there are any; their `values` are
    those of the timed problems, in their order."""
    if not timings:
        return result
    seconds: dict[int, dict[str, float]] = {}
    for timing in timings:
        seconds.setdefault(timing.width, {})[timing.example_id] = timing.seconds
    measured = []
    for width, by_problem in sorted(seconds.items()):
        timed = [by_problem[name] for name in result.example_ids if name in by_problem]
        values = np.array(timed)
        estimate = estimate_values("seconds", values, level)
        measured.append(Measurement("seconds", width, width, None, estimate, values, width))
    return replace(result, measurements=(*result.measurements, *measured))
