"""How rows use each other: does a try hit more often once a sibling's try has hit?

Letters: W = 8 rows of a group, four tries a row, in the same columns.

A row is at risk at try t if it has that try and none of its earlier ones hit. Its siblings have
found if one of *their* earlier tries hit. Coupled rows see each other; the isolated ones come from
the same weights at width 1, put into groups of eight of the same problem afterwards, so that both
are conditioned alike on problems that are easy enough for a sibling to find.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from outcomes import FINAL, records
from units import Config, Places, Unit, plan

from interlace.evaluation.intervals import seed_interval
from interlace.evaluation.records import GroupRecord
from interlace.jsonl import to_json
from interlace.tasks import Example, Task, get_task
from interlace.tasks.tiny_countdown import tries_of

ROWS = 8
PAIR = re.compile(r"[0-9]{2}(?:\+|-[0-9]{2}=)[0-9]{2}")  # a try of pair-sum
Try = tuple[str, bool]  # the expression with its value, and whether it hits the target


def finds(config: Config, places: Places, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Shares of hits by arm, coupling, try and whether a sibling has found, over the seeds."""
    units = [unit for unit in plan(config) if unit.kind == "evaluate" and unit.needs]
    return finds_of([u for u in units if u.name.endswith(FINAL) and u.seed in seeds], places)


def finds_of(units: Iterable[Unit], places: Places) -> list[dict[str, Any]]:
    """The same of certain evaluations; those of independent rows are passed over."""
    counts: dict[tuple[str, str], list[Counter[str]]] = {}
    for unit in units:
        if not unit.coupled:
            continue
        for coupling, groups in groups_of(places, unit).items():
            counts.setdefault((unit.arm, coupling), []).append(count(groups))
    return [
        {"arm": arm, "rows": coupling, "try": number, "given": given, **line}
        for (arm, coupling), found in counts.items()
        for number in ("any", "2", "3", "4")
        for given in ("found", "not found")
        if (line := share(found, f"{given}, {number}")) is not None
    ]


def groups_of(places: Places, unit: Unit) -> dict[str, list[list[list[Try]]]]:
    """A unit's groups of eight: those that saw each other, and those put together afterwards."""
    options = dict(unit.settings["task"])
    task = get_task(options.pop("name"), split="test", **options)
    kept = records(places, unit)
    coupled = [judged_tries(task, r) for r in kept if r.width == ROWS]
    alone: dict[str, list[list[Try]]] = {}
    for record in kept:
        if record.width == 1:
            alone.setdefault(record.example_id, []).extend(judged_tries(task, record))
    isolated = [
        rows[start : start + ROWS]
        for rows in alone.values()
        for start in range(0, len(rows) - ROWS + 1, ROWS)
    ]
    return {"coupled": coupled, "isolated": isolated}


def judged_tries(task: Task, record: GroupRecord) -> list[list[Try]]:
    """Every row's tries."""
    return tries_in(task, task.find(record.example_id), record.texts or ())


def tries_in(task: Task, example: Example, texts: Iterable[str]) -> list[list[Try]]:
    """The tries of responses to a problem."""
    known: dict[str, bool] = {}
    rows = []
    for text in texts:
        tries = PAIR.findall(text) if task.name == "pair-sum" else tries_of(text)
        for one in tries:
            if one not in known:
                known[one] = task.verify(example, one).correct
        rows.append([(one, known[one]) for one in tries])
    return rows


def count(groups: Iterable[Sequence[Sequence[Try]]]) -> Counter[str]:
    """Tries at risk, hits among them, and hits that write what a sibling had found."""
    found: Counter[str] = Counter()
    for rows in groups:
        for row in rows:
            for t in range(1, len(row)):
                if any(hit for _, hit in row[:t]):
                    break
                before = {text for other in rows for text, hit in other[:t] if hit}  # not its own
                given = "found" if before else "not found"
                text, hit = row[t]
                for number in ("any", str(t + 1)):
                    key = f"{given}, {number}"
                    found[f"{key}: at risk"] += 1
                    found[f"{key}: hits"] += hit
                    found[f"{key}: the same"] += text in before
    return found


def share(counts: Sequence[Counter[str]], key: str) -> dict[str, Any] | None:
    """Hits of those at risk over the seeds, and how many of the hits repeat a sibling's."""
    usable = [entry for entry in counts if entry[f"{key}: at risk"]]
    if not usable:
        return None
    hits = [entry[f"{key}: hits"] for entry in usable]
    shares = [n / entry[f"{key}: at risk"] for n, entry in zip(hits, usable, strict=True)]
    same = sum(entry[f"{key}: the same"] for entry in usable)
    return {
        "over_seeds": to_json(seed_interval(shares)),
        "at_risk": sum(entry[f"{key}: at risk"] for entry in usable),
        "same_as_sibling": same / sum(hits) if sum(hits) else None,
    }
