"""From the results that there are to `results.json` and the tables of README.md.

An arm stands in a table with the seeds that it has; a difference is of the seeds that both have.
Arms that the config names under `reference` are read from 01-countdown.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from finds import finds_of
from orders import HERE, MAIN, plan
from orders_figure import draw
from outcomes import differences, load, pick, records, table
from picking import YES, measured, over_seeds
from tables import COLUMNS, fill, finds_table, markdown, show, show_share, together
from units import HERE as MACHINE
from units import Config, Places, Unit, queue_config
from units import load_config as first_config
from units import plan as first_plan

from interlace.evaluation.intervals import seed_interval
from interlace.evaluation.results import ArmResult
from interlace.jsonl import to_json

SHARES = ("yes_right", "picked", "picked_16", "vote_16")  # of picking
LEFT_OUT = ("W = 16", "maj@16", "tokens of 16")  # W = 16 is measured in few arms
SHOWN = (*(c for c in COLUMNS if c[0] not in LEFT_OUT), ("maj@8", "maj", 8, True))


def write_report(config: Config, places: Places, home: Path = HERE, queue: str = MAIN) -> None:
    """Measure the raw results anew and write all that follows from them."""
    real = places.out in (home.resolve(), (home / queue).resolve())
    if not real:  # a smoke run measures fewer problems than 01-countdown
        config = {**config, "reference": {}}
    values = measured_values(config, places, f"{home.name}, {queue}")
    path = places.out / "results.json"
    path.write_text(json.dumps(values, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    sections = sections_of(values, config["labels"])
    if queue != MAIN:
        sections = {f"{queue}-{name}": section for name, section in sections.items()}
    tables = fill(home / "README.md", sections) if real else together(places, sections)
    print(f"wrote {path} and {tables}")
    if config.get("curves") and real:
        draw(values, config["curves"], places.out / "figures")


def measured_values(config: Config, places: Places, name: str) -> dict[str, Any]:
    """The numbers of all evaluations that are done."""
    done = [u for u in plan(config) if u.kind == "evaluate" and places.outcome(u) is not None]
    if not (done or config.get("reference")):
        raise SystemExit("No evaluation is done yet.")
    results: dict[str, list[ArmResult]] = {}
    for unit in done:
        results.setdefault(name_of(unit), []).append(load(places, unit))
    for arm, source in config.get("reference", {}).items():
        results[arm] = of_first_experiment(source)
    results = {arm: results[arm] for arm in [*config["labels"], *results] if arm in results}
    return {
        "experiment": name,
        "arms": {arm: table(own) for arm, own in results.items()},
        "differences": [
            line for arm, other in pairs(config) for line in difference(results, arm, other)
        ],
        "widths": widths(places, done),
        "picking": picking(places, done, config.get("verdict", YES)),
        "costs": costs(config, places),
        **({"finds": finds_of(done, places)} if config.get("finds") else {}),
    }


def sections_of(values: Mapping[str, Any], labels: Mapping[str, str]) -> dict[str, str]:
    """The README's tables."""
    return {
        "arms": arms_table(values["arms"], labels),
        "differences": differences_table(values["differences"], labels),
        "widths": widths_table(values["widths"], labels),
        "picking": picking_table(values["picking"], labels),
        "costs": costs_table(values["costs"], labels),
        **({"finds": finds_table(values["finds"], labels)} if "finds" in values else {}),
    }


def of_first_experiment(name: str) -> list[ArmResult]:
    """Final models of an arm of 01-countdown; "extra/NAME" is one of that queue."""
    queue, _, arm = name.rpartition("/")
    queue = queue or MAIN
    places = Places(MACHINE if queue == MAIN else MACHINE / queue)
    units = [u for u in first_plan(queue_config(first_config(), queue)) if u.arm == arm]
    return [load(places, u) for u in units if u.name.endswith("final") and places.outcome(u)]


def name_of(unit: Unit) -> str:
    """The arm; of a snapshot with its optimizer step."""
    moment = unit.name.rpartition("/")[2]
    return unit.arm if moment == "final" else f"{unit.arm}@{moment}"


def pairs(config: Config) -> list[tuple[str, str]]:
    """Every arm and the one that it starts from; then what the config compares."""
    found = [(arm, options["from"]) for arm, options in config["arms"].items() if "from" in options]
    return [*found, *((arm, other) for arm, other in config.get("compare", []))]


def difference(
    results: Mapping[str, Sequence[ArmResult]], arm: str, other: str
) -> list[dict[str, Any]]:
    """The arm minus the other over the seeds that both have."""
    seeds = {r.seed for r in results.get(arm, ())} & {r.seed for r in results.get(other, ())}
    own = [r for name in (arm, other) for r in results.get(name, ()) if r.seed in seeds]
    named = [replaced(r, arm if r in results[arm] else other) for r in own]
    return differences(named, [(arm, other)]) if seeds else []


def replaced(result: ArmResult, arm: str) -> ArmResult:
    """The result under this arm's name: a snapshot's is its run's else."""
    return replace(result, arm=arm)


def widths(places: Places, units: Sequence[Unit]) -> dict[str, Any]:
    """Of coupled arms: pass@1 at W = 8 minus W = 1 of the same weights, paired over problems; a t
    interval over the seeds, of one seed over its problems."""
    found: dict[str, dict[int, list[float]]] = {}
    for unit in units:
        if unit.coupled:
            right: dict[int, dict[str, list[bool]]] = {1: {}, 8: {}}
            for record in records(places, unit):
                if record.width in right:
                    right[record.width].setdefault(record.example_id, []).extend(record.correct)
            gains = [
                sum(rows) / len(rows) - sum(right[1][name]) / len(right[1][name])
                for name, rows in right[8].items()
            ]
            found.setdefault(name_of(unit), {})[unit.seed] = gains
    lines = {}
    for arm, by_seed in found.items():
        means = {str(seed): sum(own) / len(own) for seed, own in by_seed.items()}
        values = list(means.values()) if len(means) > 1 else next(iter(by_seed.values()))
        lines[arm] = {"over": to_json(seed_interval(values)), "by_seed": means}
    return lines


def widths_table(found: Mapping[str, Any], labels: Mapping[str, str]) -> str:
    """W = 8 minus W = 1."""
    rows = [
        [label(arm, labels), ", ".join(own["by_seed"]), show(own["over"], 100, sign=True)]
        for arm, own in found.items()
    ]
    return markdown(["arm", "seeds", "pass@1, W = 8 minus W = 1"], rows)


def picking(places: Places, units: Sequence[Unit], said: str) -> dict[str, Any]:
    """Of independent rows that RLVR trained: a row picked by its own verdict, a vote among them."""
    found: dict[str, dict[int, dict[str, float | None]]] = {}
    for unit in units:
        if unit.settings["attach"] is None:
            kept = records(places, unit)
            if all(record.texts is not None for record in kept):
                found.setdefault(name_of(unit), {})[unit.seed] = measured(kept, said)
    return {arm: over_seeds(by_seed) for arm, by_seed in found.items()}


def costs(config: Config, places: Places) -> dict[str, list[float]]:
    """CPU-seconds of every arm's own training on one core, of runs that were not resumed."""
    spent: dict[str, list[float]] = {}
    for unit in plan(config):
        outcome = places.outcome(unit)
        if unit.kind != "evaluate" and outcome is not None and not outcome["resumed"]:
            spent.setdefault(unit.arm, []).append(outcome["cpu_seconds"])
    return spent


def arms_table(arms: Mapping[str, Any], labels: Mapping[str, str]) -> str:
    """Arms by metrics, over the seeds that each has."""
    head = ["arm", "seeds", *(heading for heading, *_ in SHOWN)]
    rows = []
    for arm, lines in arms.items():
        seeds = ", ".join(lines[0]["by_seed"])
        rows.append([label(arm, labels), seeds, *(cell(lines, *column) for column in SHOWN)])
    return markdown(head, rows)


def differences_table(lines: Sequence[Mapping[str, Any]], labels: Mapping[str, str]) -> str:
    """Arms minus others."""
    head = ["difference", "seeds", *(heading for heading, *_ in SHOWN)]
    rows = []
    for arm, other in dict.fromkeys((line["arm"], line["against"]) for line in lines):
        own = [line for line in lines if (line["arm"], line["against"]) == (arm, other)]
        names = f"{label(arm, labels)} minus {label(other, labels)}"
        rows.append(
            [names, ", ".join(own[0]["by_seed"]), *(cell(own, *column) for column in SHOWN)]
        )
    return markdown(head, rows)


def cell(lines: Sequence[Mapping[str, Any]], _: str, metric: str, width: int, percent: bool) -> str:
    """A number with its interval over seeds; of a single seed over problems."""
    try:
        line = pick(lines, metric=metric, width=width)
    except StopIteration:
        return ""
    several = len(line["by_seed"]) > 1
    estimate = line["over_seeds" if several else "over_problems"]
    if percent and "against" not in line:
        return show_share(estimate)
    return show(estimate, 100 if percent else 1, sign="against" in line)


def picking_table(found: Mapping[str, Any], labels: Mapping[str, str]) -> str:
    """Picking beside what the blocks reach from the same model."""
    rows = [
        [
            label(arm, labels),
            ", ".join(own["by_seed"]["picked"]),
            *(show_share(own.get(name)) for name in SHARES),
        ]
        for arm, own in found.items()
    ]
    head = ["rows of", "seeds", "of the rows that say yes, right", "picked of 8", "picked of 16"]
    return markdown([*head, "vote among yes of 16"], rows)


def costs_table(spent: Mapping[str, Sequence[float]], labels: Mapping[str, str]) -> str:
    """CPU-seconds."""
    rows = [
        [label(arm, labels), str(len(values)), f"{sum(values) / len(values):.0f}"]
        for arm, values in spent.items()
    ]
    return markdown(["training of", "runs", "CPU-seconds, one core"], rows)


def label(arm: str, labels: Mapping[str, str]) -> str:
    """An arm's name; a snapshot's with its rollouts, of four optimizer steps each."""
    name, _, moment = arm.partition("@")
    named = labels[name]
    named = f"{named} ({name})" if named.startswith("+") else named
    return f"{named}, after {int(moment.rpartition('-')[2]) // 4:,}" if moment else named
