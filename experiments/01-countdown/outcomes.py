"""Raw results read back and compared: every number of the report, with its intervals.

Two intervals answer two questions (see `interlace.evaluation.compare`): over problems, and over
training seeds. Claims about training need the second; it is what tables and figures show.
"""

from __future__ import annotations

import lzma
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from units import RECORDS, Config, Places, Unit, plan

from interlace.evaluation.compare import average_seeds, compare
from interlace.evaluation.intervals import Estimate, seed_interval
from interlace.evaluation.records import GroupRecord, read_records
from interlace.evaluation.results import ArmResult, Measurement, arms_of
from interlace.evaluation.run import load_run
from interlace.jsonl import to_json

BASE, REFERENCE = "base", "rlvr"
FINAL = "final"
# Name, metric, whether the threshold is the whole group; at every width that all arms have.
METRICS = (
    ("pass@1", "pass@1", False),
    ("coverage", "coverage", False),
    ("maj", "maj", False),
    ("all_right", "g_pass", True),
    ("distinct_answers", "distinct_answers", False),
    ("tokens", "tokens", False),
)


def evaluated(config: Config, places: Places, moment: str) -> list[ArmResult]:
    """The results of a moment, of the seeds for which every arm is there.

    Untrained arms have no moment but the final one: it stands beside every other.
    """
    units = [unit for unit in plan(config) if unit.kind == "evaluate"]
    wanted = [u for u in units if u.name.endswith(moment) or not u.needs]
    seeds = {u.seed for u in wanted} - {u.seed for u in wanted if places.outcome(u) is None}
    return [load(places, unit) for unit in wanted if unit.seed in seeds]


def evaluated_so_far(config: Config, places: Places) -> tuple[list[ArmResult], list[str]]:
    """The final results of the arms that all seeds with a result have, and the other arms.

    A queue that grows by arms can be reported before the new ones are done; every number is over
    the same seeds all the same.
    """
    units = [u for u in plan(config) if u.kind == "evaluate" and u.name.endswith(FINAL)]
    done = [unit for unit in units if places.outcome(unit) is not None]
    seeds = {unit.seed for unit in done}
    have = {arm: {unit.seed for unit in done if unit.arm == arm} for arm in config["arms"]}
    whole = {arm for arm, own in have.items() if own == seeds and seeds}
    left_out = [arm for arm in config["arms"] if arm not in whole]
    return [load(places, unit) for unit in done if unit.arm in whole], left_out


def load(places: Places, unit: Unit) -> ArmResult:
    """A unit's result, measured anew from its records."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)
        shutil.copy(places.results(unit.name) / "config.json", run)
        unpack(places, unit, run / "records.jsonl")
        return load_run(run)


def records(places: Places, unit: Unit) -> list[GroupRecord]:
    """A unit's groups."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "records.jsonl"
        unpack(places, unit, path)
        return read_records(path)


def unpack(places: Places, unit: Unit, path: Path) -> None:
    """Write a unit's compressed records to a file."""
    with lzma.open(places.results(unit.name) / RECORDS, "rb") as packed, path.open("wb") as file:
        shutil.copyfileobj(packed, file)


def over_seeds(results: Sequence[ArmResult], labels: Mapping[str, str]) -> list[ArmResult]:
    """Averages over the seeds, with t intervals over the seeds; arms by their labels."""
    found = []
    for averaged in average_seeds(results):
        own = [result for result in results if result.arm == averaged.arm]
        entries = tuple(
            replace(entry, estimate=_over(own, entry)) for entry in averaged.measurements
        )
        found.append(replace(averaged, arm=labels[averaged.arm], measurements=entries))
    return found


def table(results: Sequence[ArmResult]) -> list[dict[str, Any]]:
    """Every arm's metrics at every common width: over seeds, over problems, and by seed."""
    averaged = {result.arm: result for result in average_seeds(results)}
    lines = []
    for name, metric, width, threshold in cells(results):
        for arm, result in averaged.items():
            own = [r for r in results if r.arm == arm]
            entry = result.get(metric, width, threshold)
            lines.append(
                {
                    "arm": arm,
                    "metric": name,
                    "width": width,
                    "over_seeds": to_json(_over(own, entry, width)),
                    "over_problems": to_json(entry.estimate),
                    "by_seed": {
                        str(r.seed): r.get(metric, width, threshold).estimate.value for r in own
                    },
                }
            )
    return lines


def cells(results: Sequence[ArmResult]) -> list[tuple[str, str, int, int | None]]:
    """Name, metric, width and threshold of all that arms are compared in."""
    common = sorted(set.intersection(*(set(result.widths) for result in results)))
    return [
        (name, metric, width, width if whole else None)
        for name, metric, whole in METRICS
        for width in common
    ]


def differences(
    results: Sequence[ArmResult], pairs: Sequence[tuple[str, str]]
) -> list[dict[str, Any]]:
    """Arms minus the arms they are held against, paired over problems within every seed.

    Args:
        results: Of all arms and seeds.
        pairs: The arm, and the arm that is subtracted.
    """
    lines = []
    for arm, other in pairs:
        pair = [result for result in results if result.arm in (arm, other)]
        for name, metric, width, threshold in cells(results):
            found = compare(pair, other, metric=metric, width=width, threshold=threshold)
            row = next(row for row in found.rows if row.arm == arm)
            lines.append(
                {
                    "arm": arm,
                    "against": other,
                    "metric": name,
                    "width": width,
                    "over_seeds": to_json(row.gain_over_seeds),
                    "over_problems": to_json(row.gain),
                    "by_seed": {
                        seed: gain.value for seed, gain in (row.gain_by_seed or {}).items()
                    },
                }
            )
    return lines


def relative_gains(results: Sequence[ArmResult]) -> list[dict[str, Any]]:
    """Of every coupled arm: its gain in pass@1 over the base, relative to that of the best arm of
    independent rows."""
    independent = {result.arm for result in results if not result.coupled}
    lines = []
    for arm in arms_of(results):
        if arm in independent:
            continue
        shown = [result for result in results if result.arm in independent | {arm}]
        for width in results[0].widths:
            found = compare(shown, BASE, metric="pass@1", width=width)
            row = next(row for row in found.rows if row.arm == arm)
            lines.append(
                {
                    "arm": arm,
                    "next_best": row.next_best,
                    "metric": "pass@1",
                    "width": width,
                    "over_seeds": to_json(row.relative_gain_over_seeds),
                    "over_problems": to_json(row.relative_gain),
                }
            )
    return lines


def costs(config: Config, places: Places) -> dict[str, Any]:
    """CPU-seconds of training on one core by arm, warm-up apart, of runs that were not resumed."""
    spent: dict[str, list[float]] = {}
    for unit in plan(config):
        outcome = places.outcome(unit)
        if unit.kind != "evaluate" and outcome is not None and not outcome["resumed"]:
            name = unit.arm if unit.kind == "train" else f"warm-up, {unit.arm}"
            spent.setdefault(name, []).append(outcome["cpu_seconds"])
    return {name: to_json(seed_interval(values)) for name, values in spent.items()}


def pick(lines: Iterable[Mapping[str, Any]], **wanted: Any) -> Mapping[str, Any]:
    """The line with these values."""
    return next(line for line in lines if all(line[k] == value for k, value in wanted.items()))


def _over(own: Sequence[ArmResult], entry: Measurement, width: int | None = None) -> Estimate:
    at = entry.width if width is None else width
    values = [result.get(entry.metric, at, entry.threshold).estimate.value for result in own]
    return seed_interval(values)
