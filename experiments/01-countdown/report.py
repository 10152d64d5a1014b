"""From raw results to `results.json`, the figures and the tables of README.md.

Tables stand in the README between `<!-- begin NAME -->` and `<!-- end NAME -->`; in another folder
than the experiment's own they make up a `report.md`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from curves import series
from figures import draw
from finds import finds
from longer import best_table, draw_longer, longer, measured, on_the_way_table
from outcomes import (
    BASE,
    FINAL,
    REFERENCE,
    costs,
    differences,
    evaluated,
    evaluated_so_far,
    pick,
    relative_gains,
    table,
)
from picking import picking
from tables import (
    arms_table,
    bases_table,
    budget_tables,
    costs_table,
    differences_table,
    fill,
    finds_table,
    markdown,
    picking_table,
    show,
    together,
)
from units import EXTRA, HERE, MAIN, TUNING, Config, Places, plan

from interlace.evaluation.results import ArmResult

FIXED, MIXED = "bridge8", "bridge-mixed"
LAST = 15  # rollouts by which learning rates are chosen
NOTHING = {"value": None, "low": None, "high": None}
# Question, metric, width, arm that is subtracted; the least value, or None for an interval above 0.
AIMS = (
    ("pass@1 at W = 1, minus RLVR-only", "pass@1", 1, REFERENCE, -0.01),
    ("any of 8 right, minus RLVR-only", "coverage", 8, REFERENCE, -0.01),
    ("maj@16 at equal tokens, minus RLVR-only", "maj", 16, REFERENCE, None),
    ("all 8 right, minus RLVR-only", "all_right", 8, REFERENCE, None),
    ("pass@1 at W = 1, minus fixed width", "pass@1", 1, FIXED, None),
    ("any of 8 right, minus fixed width", "coverage", 8, FIXED, None),
)


def write_report(config: Config, places: Places, queue: str = MAIN) -> None:
    """Measure the raw results anew and write all that follows from them."""
    values_of, sections_of = REPORTS[queue]
    values = values_of(config, places)
    path = places.out / "results.json"
    path.write_text(json.dumps(values, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    sections = sections_of(values, config["labels"])
    home = places.out in (HERE.resolve(), (HERE / queue).resolve())
    tables = fill(HERE / "README.md", sections) if home else together(places, sections)
    print(f"wrote {path} and {tables}")


def main_values(config: Config, places: Places) -> dict[str, Any]:
    """The numbers of the main arms at every budget; draws the figures, too."""
    moments = [FINAL, *(f"step-{step}" for step in reversed(config["snapshots"]))]
    at = {moment: evaluated(config, places, moment) for moment in moments}
    if not all(at.values()):
        raise SystemExit("No seed has all its arms at every budget yet; run without --stage.")
    budgets = {moment: budget_of(config, moment, results) for moment, results in at.items()}
    found = finds(config, places, budgets[FINAL]["seeds"])
    draw(at[FINAL], found, config, places)
    return {
        "experiment": "01-countdown",
        "budgets": budgets,
        "finds": found,
        "picking": picking(config, places, at[FINAL], MIXED),
        "bases": seeds_of_bases(config, budgets[FINAL]["seeds"]),
        "costs": costs(config, places),
    }


def main_sections(values: Mapping[str, Any], labels: Mapping[str, str]) -> dict[str, str]:
    """The README's tables, from `results.json` alone."""
    budgets = list(values["budgets"].values())
    final, *others = budgets
    picked = values["picking"]
    return {
        "aims": aims_table(budgets),
        **{name: part for name, (_, part) in budget_tables(final, labels).items()},
        "other-budgets": "\n\n".join(
            f"**{title}, after {budget['rollouts']} rollouts**\n\n{part}"
            for budget in others
            for title, part in budget_tables(budget, labels).values()
        ),
        "finds": finds_table(values["finds"], labels),
        "picking": picking_table(picked, labels),
        "bases": bases_table(final["table"], picked, values["bases"], labels),
        "costs": costs_table(values["costs"], labels),
    }


def seeds_of_bases(config: Config, seeds: Sequence[int]) -> dict[str, list[int]]:
    """Which seeds train from which base."""
    found: dict[str, list[int]] = {}
    for seed in seeds:
        base = config["bases"][seed % len(config["bases"])]["name"]
        found.setdefault(base, []).append(seed)
    return found


def budget_of(config: Config, moment: str, results: Sequence[ArmResult]) -> dict[str, Any]:
    """All numbers of one budget."""
    trained = [arm for arm in config["arms"] if arm not in (BASE, REFERENCE)]
    pairs = [(arm, REFERENCE) for arm in trained] + [(MIXED, FIXED)]
    budget = {
        "optimizer_steps": _steps(config, moment),
        "rollouts": _steps(config, moment) // config["grpo"]["mini_batches"],
        "seeds": sorted({result.seed for result in results if result.seed is not None}),
        "problems": len(results[0].example_ids),
        "table": table(results),
        "differences": differences(results, pairs),
        "relative_gains": relative_gains(results),
    }
    return budget | {"aims": aims(budget)}


def aims(budget: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the experiment asks of Bridge with mixed widths, and whether the seeds say so."""
    gain = pick(budget["relative_gains"], arm=MIXED, width=8)["over_seeds"] or NOTHING
    found = [
        {
            "question": "gain in pass@1 at W = 8 over that of the next best method",
            "over_seeds": gain,
            "aim": "+50 % at least, lower end above +39 %",
            "reached": _at_least(gain, "value", 0.5) and _above(gain, 0.39),
        }
    ]
    for question, metric, width, against, least in AIMS:
        line = pick(budget["differences"], arm=MIXED, against=against, metric=metric, width=width)
        estimate = line["over_seeds"] or NOTHING
        if least is None:
            aim, reached = "interval above 0", _above(estimate, 0.0)
        else:
            aim, reached = f"{100 * least:+.0f} at least", _at_least(estimate, "value", least)
        found.append({"question": question, "over_seeds": estimate, "aim": aim, "reached": reached})
    return found


def aims_table(budgets: Sequence[Mapping[str, Any]]) -> str:
    """The aims at every budget."""
    rows = [
        [
            line["question"],
            str(budget["rollouts"]),
            show(line["over_seeds"], 100, sign=True),
            line["aim"],
            "yes" if line["reached"] else "no",
        ]
        for place in range(len(budgets[0]["aims"]))
        for budget in budgets
        for line in [budget["aims"][place]]
    ]
    return markdown(["Bridge, mixed", "rollouts", "over seeds", "aim", "reached"], rows)


def extra_values(config: Config, places: Places) -> dict[str, Any]:
    """The numbers of the extra queue, of the arms that all its seeds have."""
    results, left_out = evaluated_so_far(config, places)
    if not results:
        raise SystemExit("No arm has a result of every seed yet; run without --stage.")
    pairs = [
        (arm, options["against"])
        for arm, options in config["arms"].items()
        if "against" in options and not {arm, options["against"]} & set(left_out)
    ]
    values = {
        "experiment": "01-countdown, extra",
        "seeds": sorted({result.seed for result in results if result.seed is not None}),
        "left_out": left_out,
        "table": table(results),
        "differences": differences(results, pairs),
    }
    if models := measured(config, places):
        values |= longer(models)
        draw_longer(models, places.out / "figures")
    return values


def extra_sections(values: Mapping[str, Any], labels: Mapping[str, str]) -> dict[str, str]:
    """The README's tables of the extra queue, from its `results.json` alone."""
    arms = arms_table(values["table"], labels)
    if left_out := values.get("left_out"):
        names = "; ".join(labels[arm] for arm in left_out)
        arms += f"\n\nNot in the table, because not every seed has them yet: {names}."
    return {
        "extra": arms,
        "extra-differences": differences_table(values["differences"], labels),
        "on-the-way": on_the_way_table(values.get("on_the_way", ()), labels),
        "best": best_table(values.get("best", ()), labels),
    }


def tuning_values(config: Config, places: Places) -> dict[str, Any]:
    """pass@1 of the training prompts in the last rollouts of every arm and learning rate."""
    lines = []
    for unit in plan(config):
        if unit.kind == "train" and places.outcome(unit) is not None:
            rates = unit.settings["trainer"]
            shown = [rates["learning_rate"], rates["new_learning_rate"]]
            seen = [x for x in series(places, unit, "pass@1", None) if x == x]
            found = {"last": sum(seen[-LAST:]) / LAST, "rollouts": len(seen)}
            lines.append({"arm": unit.arm, "learning_rates": shown, **found})
    return {"experiment": "01-countdown, tuning", "arms": lines}


def tuning_sections(values: Mapping[str, Any], labels: Mapping[str, str]) -> dict[str, str]:
    """The README's table of learning rates."""
    rows = [
        [
            labels[line["arm"]],
            " / ".join(f"{rate:.2g}" for rate in line["learning_rates"]),
            f"{100 * line['last']:.1f}",
        ]
        for line in values["arms"]
    ]
    head = ["arm", "learning rate, old / new weights", f"pass@1 of the last {LAST} rollouts"]
    return {"tuning": markdown(head, rows)}


def _steps(config: Config, moment: str) -> int:
    _, _, step = moment.partition("-")
    return int(step or config["grpo"]["max_steps"])


def _at_least(estimate: Mapping[str, Any], end: str, least: float) -> bool:
    return estimate[end] is not None and bool(estimate[end] >= least)


def _above(estimate: Mapping[str, Any], value: float) -> bool:
    """Whether the interval, which may have no ends, lies above the value."""
    return estimate["low"] is not None and bool(estimate["low"] > value)


REPORTS = {
    MAIN: (main_values, main_sections),
    EXTRA: (extra_values, extra_sections),
    TUNING: (tuning_values, tuning_sections),
}
