"""What if one may pick a row by its own verdict? A row that has written "yes" holds its answer for
a hit. It needs no reference, only a response that judges itself, so it is a baseline that
independent rows have, too.

Where a find ends its row, a row that ends before its last try says the same without a word (ENDS).

Picked: one of the rows that say yes, drawn at random; of all rows where none does. The filtered
vote: the most frequent answer of the rows that say yes; of all rows where none does.

Sixteen rows are one sample of independent rows, and two groups of eight of coupled ones, because
texts of coupled rows were kept at width 8.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from finds import ROWS
from outcomes import FINAL, records
from units import Config, Places, plan

from interlace.answers import majority_vote
from interlace.evaluation.intervals import seed_interval
from interlace.evaluation.records import GroupRecord
from interlace.evaluation.results import ArmResult
from interlace.jsonl import to_json
from interlace.tasks.tiny_countdown import TRIES, tries_of

YES = " yes "
ENDS = "ends"  # of rows that end at their find
MORE = 2 * ROWS
Row = tuple[bool, bool, str | None]  # whether it says yes, whether it is right, its answer
Group = Sequence[Row]


def picking(
    config: Config, places: Places, results: Sequence[ArmResult], against: str
) -> list[dict[str, Any]]:
    """By arm, over the seeds: how often a picked row, a yes and a filtered vote are right.

    Args:
        config: The experiment's settings.
        places: Where its files are.
        results: Of the final models; their seeds are taken.
        against: The arm whose vote of 16 rows, all of them, is subtracted from filtered votes.
    """
    seeds = {result.seed for result in results}
    plain = {r.seed: r.get("maj", MORE).estimate.value for r in results if r.arm == against}
    found: dict[str, dict[int, dict[str, float | None]]] = {}
    for unit in plan(config):
        if unit.kind == "evaluate" and unit.name.endswith(FINAL) and unit.seed in seeds:
            numbers = measured(records(places, unit))
            numbers["vote_16_minus_plain"] = numbers["vote_16"] - plain[unit.seed]
            found.setdefault(unit.arm, {})[unit.seed] = numbers
    return [
        {"arm": arm, **over_seeds(by_seed), "against": against} for arm, by_seed in found.items()
    ]


def over_seeds(by_seed: dict[int, dict[str, float | None]]) -> dict[str, Any]:
    """Every number with its interval, and of every seed; None where no seed has it."""
    names = next(iter(by_seed.values()))
    values = {name: [n[name] for n in by_seed.values() if n[name] is not None] for name in names}
    return {
        **{name: to_json(seed_interval(own)) if own else None for name, own in values.items()},
        "by_seed": {
            name: {str(seed): numbers[name] for seed, numbers in by_seed.items()} for name in names
        },
    }


def measured(kept: Sequence[GroupRecord], said: str = YES) -> dict[str, float | None]:
    """All numbers of one model's records; those of sixteen rows if so many were sampled.

    Args:
        kept: The records, with texts.
        said: What a row writes that holds its answer for a hit, or ENDS.
    """
    eight = [group for record in kept for group in groups_of_eight(record, said)]
    sixteen = groups_of_sixteen(kept, said)
    found: dict[str, float | None] = {"picked": picked(eight), "yes_right": yes_right(eight)}
    if sixteen:
        found |= {"picked_16": picked(sixteen), "vote_16": filtered_vote(sixteen)}
    return found


def groups_of_eight(record: GroupRecord, said: str = YES) -> list[Group]:
    """A coupled group of eight as it is; independent rows, being exchangeable, eight by eight."""
    whole = record.width == ROWS or (not record.coupled and record.width > ROWS)
    if record.texts is None or not whole:
        return []
    rows = [
        (says_yes(text, said), right, answer)
        for text, right, answer in zip(record.texts, record.correct, record.answers, strict=True)
    ]
    return [rows[start : start + ROWS] for start in range(0, len(rows), ROWS)]


def says_yes(text: str, said: str) -> bool:
    """Whether a row holds its answer for a hit."""
    return len(tries_of(text)) < TRIES if said == ENDS else said in text


def groups_of_sixteen(kept: Sequence[GroupRecord], said: str = YES) -> list[Group]:
    """Every problem's rows, two eights together."""
    rows: dict[str, list[Row]] = defaultdict(list)
    for record in sorted(kept, key=lambda record: (record.example_id, record.group)):
        for eight in groups_of_eight(record, said):
            rows[record.example_id] += eight
    return [
        own[start : start + MORE]
        for own in rows.values()
        for start in range(0, len(own) - MORE + 1, MORE)
    ]


def picked(groups: Sequence[Group]) -> float:
    """How often a row is right that is drawn from those that say yes, or from all."""
    shares = []
    for rows in groups:
        chosen = [right for _, right, _ in believed(rows)]
        shares.append(sum(chosen) / len(chosen))
    return sum(shares) / len(shares)


def filtered_vote(groups: Sequence[Group]) -> float:
    """How often the vote of the rows that say yes, or of all, is right.

    Answers and ties as in the experiment's other votes, which ask no symbolic check either.
    """
    hits = 0
    for rows in groups:
        asked = believed(rows)
        winner = majority_vote([answer for *_, answer in asked], equal=None).index
        hits += winner is not None and asked[winner][1]
    return hits / len(groups)


def believed(rows: Group) -> Group:
    """The rows that say yes; all of them where none does."""
    return [row for row in rows if row[0]] or rows


def yes_right(groups: Sequence[Group]) -> float | None:
    """Of the rows that say yes, the share that is right; None where no row does."""
    said = [right for rows in groups for yes, right, _ in rows if yes]
    return sum(said) / len(said) if said else None
