"""The same problems in several results: what paired comparisons stand on.

Letters: E problems of a task, A arms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float

from interlace.errors import ComparisonError
from interlace.evaluation.intervals import LEVEL, Estimate, difference_interval
from interlace.evaluation.results import QUANTITIES, ArmResult, Measurement, estimate_values


def paired_difference(
    first: ArmResult,
    second: ArmResult,
    metric: str,
    width: int,
    *,
    second_width: int | None = None,
    threshold: int | None = None,
    level: float = LEVEL,
) -> Estimate:
    """The second result's metric minus the first's, over the same problems.

    Args:
        first: The result that the difference is over.
        second: The other one; it may be the same arm at another width.
        metric: What to compare.
        width: Width of the first, and of the second unless given.
        second_width: Width of the second.
        threshold: For `g_pass`, how many of the rows must be correct.
        level: Coverage of the interval.

    Raises:
        ComparisonError: naming problems that only one of the results has.
        MetricError: if a result has no such metric at the width.
    """
    check_same_problems(first, second)
    other = second.get(metric, width if second_width is None else second_width, threshold)
    own = first.get(metric, width, threshold)
    return difference_interval(
        [values_of(other) - values_of(own)], level, shares=metric not in QUANTITIES
    )


def check_same_problems(first: ArmResult, second: ArmResult) -> None:
    """Raise unless both results have the same problems in the same order.

    Raises:
        ComparisonError: naming problems that only one of them has.
    """
    if first.task == second.task and first.example_ids == second.example_ids:
        return
    if first.task != second.task:
        raise ComparisonError(
            f"Paired differences need one task; got {first.task!r} ({first.arm}) and "
            f"{second.task!r} ({second.arm}). Compare task by task, or pass all tasks to compare."
        )
    only = [
        f"{', '.join(sorted(more)[:5])}{' and more' if len(more) > 5 else ''} ({arm})"
        for arm, more in (
            (first.arm, set(first.example_ids) - set(second.example_ids)),
            (second.arm, set(second.example_ids) - set(first.example_ids)),
        )
        if more
    ]
    if not only:
        raise ComparisonError(
            f"Paired differences need the problems in the same order; {first.arm!r} and "
            f"{second.arm!r} have {first.task!r} in two orders. Measure both from their records."
        )
    raise ComparisonError(
        f"Paired differences need the same problems in both arms; on {first.task!r} only one arm "
        f"has {'; '.join(only)}. Evaluate both arms on the same examples."
    )


def values_of(measurement: Measurement) -> Float[np.ndarray, "E"]:
    """The problems' values.

    Raises:
        ComparisonError: for results that were loaded from JSON, which does not hold them.
    """
    if measurement.values is None:
        raise ComparisonError(
            f"Pairing needs the values of single problems, which are missing (here "
            f"{measurement.label}). Measure the records again."
        )
    return measurement.values


def average_seeds(results: Sequence[ArmResult]) -> list[ArmResult]:
    """One result for each arm and task: problems' values averaged over the training seeds.

    Intervals are over problems. What all seeds measured is kept; provenance becomes that of each
    seed, by its name.

    Raises:
        ComparisonError: for seeds that cover different problems.
    """
    grouped: dict[tuple[str, str], list[ArmResult]] = {}
    for result in results:
        grouped.setdefault((result.arm, result.task), []).append(result)
    return [found[0] if len(found) == 1 else _average(found) for found in grouped.values()]


def _average(results: list[ArmResult]) -> ArmResult:
    first = results[0]
    for other in results[1:]:
        check_same_problems(first, other)
    by_key = [
        {(e.metric, e.width, e.k, e.threshold): e for e in result.measurements}
        for result in results
    ]
    kept = [key for key in by_key[0] if all(key in found for found in by_key)]
    measurements = []
    for key in kept:
        entries = [found[key] for found in by_key]
        values = np.mean([values_of(entry) for entry in entries], axis=0)
        estimate = estimate_values(key[0], values, entries[0].estimate.level)
        measurements.append(replace(entries[0], values=values, estimate=estimate))
    provenance = {str(result.seed): dict(result.provenance) for result in results}
    return replace(first, seed=None, measurements=tuple(measurements), provenance=provenance)


def common_seeds(
    results: Sequence[ArmResult], arms: list[str], tasks: list[str]
) -> list[int | None]:
    """The seeds that every trained arm has on every task; [None] if none was trained here."""
    found = {
        (arm, task): {r.seed for r in results if r.arm == arm and r.task == task}
        for arm in arms
        for task in tasks
    }
    for (arm, task), seeds in found.items():
        if not seeds:
            raise ComparisonError(
                f"Every arm covers the same tasks; {arm!r} has no result on {task!r}. Evaluate it "
                "there, or leave that task out."
            )
        same = [r for r in results if r.arm == arm and r.task == task]
        if len(same) != len(seeds):
            raise ComparisonError(
                f"An arm has one result for each task and seed; {arm!r} has {len(same)} on "
                f"{task!r} with seeds {sorted(map(str, seeds))}. Give each its training seed."
            )
    trained = {key: seeds for key, seeds in found.items() if seeds != {None}}
    if not trained:
        return [None]
    (first_key, expected), *others = trained.items()
    for key, seeds in [(first_key, expected), *others]:
        if seeds != expected or None in seeds:
            raise ComparisonError(
                f"Trained arms need the same seeds on every task: {first_key[0]!r} has "
                f"{sorted(map(str, expected))} on {first_key[1]!r}, {key[0]!r} has "
                f"{sorted(map(str, seeds))} on {key[1]!r}. Leave out the results without a partner."
            )
    return sorted(expected, key=lambda seed: (seed is None, seed))


def values_matrix(
    results: Sequence[ArmResult],
    arms: list[str],
    task: str,
    seed: int | None,
    what: tuple[str, int, int | None],
) -> Float[np.ndarray, "A E"]:
    """Values of all arms on one task in one seed; untrained arms enter every seed."""
    chosen = [
        next(r for r in results if r.arm == arm and r.task == task and r.seed in (seed, None))
        for arm in arms
    ]
    for result in chosen[1:]:
        check_same_problems(chosen[0], result)
    return np.stack([values_of(result.get(*what)) for result in chosen])
