"""What if one may pick a row by its own verdict? Eight rows, in which a row that has written "yes"
holds its answer for a hit.

Picked: one of the rows that say yes, drawn at random; of all rows where none does. It needs no
reference, only a response that judges itself, so it is a baseline that independent rows have, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from finds import ROWS
from outcomes import FINAL, records
from units import Config, Places, plan

from interlace.evaluation.intervals import seed_interval
from interlace.evaluation.records import GroupRecord
from interlace.evaluation.results import estimate_to_json

YES = " yes "


def picking(config: Config, places: Places, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """By arm, over the seeds: how often a picked row is right, and a yes."""
    found: dict[str, list[tuple[float, float]]] = {}
    for unit in plan(config):
        if unit.kind == "evaluate" and unit.name.endswith(FINAL) and unit.seed in seeds:
            groups = [g for record in records(places, unit) for g in groups_of_eight(record)]
            found.setdefault(unit.arm, []).append((picked(groups), yes_right(groups)))
    return [
        {
            "arm": arm,
            "picked": estimate_to_json(seed_interval([one for one, _ in values])),
            "yes_right": estimate_to_json(seed_interval([right for _, right in values])),
        }
        for arm, values in found.items()
    ]


Group = list[tuple[bool, bool]]  # of each row: whether it says yes, whether it is right


def groups_of_eight(record: GroupRecord) -> list[Group]:
    """A coupled group of eight as it is; independent rows, being exchangeable, eight by eight."""
    whole = record.width == ROWS or (not record.coupled and record.width > ROWS)
    if record.texts is None or not whole:
        return []
    rows = [(YES in text, right) for text, right in zip(record.texts, record.correct, strict=True)]
    return [rows[start : start + ROWS] for start in range(0, len(rows), ROWS)]


def picked(groups: Sequence[Group]) -> float:
    """How often a row is right that is drawn from those that say yes, or from all."""
    shares = []
    for rows in groups:
        chosen = [right for yes, right in rows if yes] or [right for _, right in rows]
        shares.append(sum(chosen) / len(chosen))
    return sum(shares) / len(shares)


def yes_right(groups: Sequence[Group]) -> float:
    """Of the rows that say yes, the share that is right."""
    said = [right for rows in groups for yes, right in rows if yes]
    return sum(said) / max(len(said), 1)
