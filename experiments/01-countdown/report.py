"""From raw results to `results.json`, the figures and the tables of README.md.

Tables stand in the README between `<!-- begin NAME -->` and `<!-- end NAME -->`; in another folder
than the experiment's own they make up a `report.md`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from figures import draw, series
from finds import finds
from outcomes import (
    BASE,
    FINAL,
    REFERENCE,
    costs,
    differences,
    evaluated,
    pick,
    relative_gains,
    table,
)
from units import EXTRA, HERE, MAIN, TUNING, Config, Places, plan

from interlace.evaluation.results import ArmResult

Lines = Sequence[Mapping[str, Any]]
# Heading, metric, width, whether in per cent.
COLUMNS = (
    ("pass@1, W = 1", "pass@1", 1, True),
    ("W = 8", "pass@1", 8, True),
    ("W = 16", "pass@1", 16, True),
    ("maj@16", "maj", 16, True),
    ("any of 8", "coverage", 8, True),
    ("all 8 right", "all_right", 8, True),
    ("distinct of 8", "distinct_answers", 8, False),
    ("tokens of 16", "tokens", 16, False),
)
GAINS = COLUMNS[:-1]
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
        "costs": costs(config, places),
    }


def main_sections(values: Mapping[str, Any], labels: Mapping[str, str]) -> dict[str, str]:
    """The README's tables, from `results.json` alone."""
    budgets = list(values["budgets"].values())
    final, *others = budgets
    return {
        "aims": aims_table(budgets),
        **{name: part for name, (_, part) in budget_tables(final, labels).items()},
        "other-budgets": "\n\n".join(
            f"**{title}, after {budget['rollouts']} rollouts**\n\n{part}"
            for budget in others
            for title, part in budget_tables(budget, labels).values()
        ),
        "finds": finds_table(values["finds"], labels),
        "costs": costs_table(values["costs"], labels),
    }


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
    results = evaluated(config, places, FINAL)
    if not results:
        raise SystemExit("No seed has all its arms yet; run without --stage.")
    pairs = [(arm, a["against"]) for arm, a in config["arms"].items() if "against" in a]
    return {
        "experiment": "01-countdown, extra",
        "seeds": sorted({result.seed for result in results if result.seed is not None}),
        "table": table(results),
        "differences": differences(results, pairs),
    }


def extra_sections(values: Mapping[str, Any], labels: Mapping[str, str]) -> dict[str, str]:
    """The README's tables of the extra queue, from its `results.json` alone."""
    return {
        "extra": arms_table(values["table"], labels),
        "extra-differences": differences_table(values["differences"], labels),
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
            " / ".join(f"{rate:.0e}" for rate in line["learning_rates"]),
            f"{100 * line['last']:.1f}",
        ]
        for line in values["arms"]
    ]
    head = ["arm", "learning rate, old / new weights", f"pass@1 of the last {LAST} rollouts"]
    return {"tuning": markdown(head, rows)}


def budget_tables(
    budget: Mapping[str, Any], labels: Mapping[str, str]
) -> dict[str, tuple[str, str]]:
    """The tables of one budget: name, title, table."""
    return {
        "arms": ("Arms", arms_table(budget["table"], labels)),
        "differences": ("Differences", differences_table(budget["differences"], labels)),
        "relative": ("Relative gains", relative_table(budget["relative_gains"], labels)),
        "seeds": ("By seed", seeds_table(budget["table"], labels)),
    }


def arms_table(lines: Lines, labels: Mapping[str, str]) -> str:
    """Arms by metrics."""
    rows = [
        [
            labels[arm],
            *(_cell(lines, percent, arm=arm, metric=m, width=w) for _, m, w, percent in COLUMNS),
        ]
        for arm in dict.fromkeys(line["arm"] for line in lines)
    ]
    return markdown(["arm", *(heading for heading, *_ in COLUMNS)], rows)


def differences_table(lines: Lines, labels: Mapping[str, str]) -> str:
    """Arms minus the arm they are held against."""
    rows = [
        [
            f"{labels[arm]} minus {labels[other]}",
            *(
                _cell(lines, percent, arm=arm, against=other, metric=m, width=w)
                for _, m, w, percent in GAINS
            ),
        ]
        for arm, other in dict.fromkeys((line["arm"], line["against"]) for line in lines)
    ]
    return markdown(["difference", *(heading for heading, *_ in GAINS)], rows)


def relative_table(lines: Lines, labels: Mapping[str, str]) -> str:
    """Gains over the base relative to those of the best arm of independent rows."""
    rows = [
        [
            labels[line["arm"]],
            str(line["width"]),
            labels[line["next_best"]],
            show(line["over_seeds"], 100, sign=True),
            show(line["over_problems"], 100, sign=True),
        ]
        for line in lines
    ]
    return markdown(["arm", "W", "next best", "over seeds", "over problems"], rows)


def seeds_table(lines: Lines, labels: Mapping[str, str]) -> str:
    """pass@1 at widths 1 and 8 of every seed."""
    seeds = list(lines[0]["by_seed"])
    rows = []
    for arm in dict.fromkeys(line["arm"] for line in lines):
        for width in (1, 8):
            values = pick(lines, arm=arm, metric="pass@1", width=width)["by_seed"]
            shown = [f"{100 * values[seed]:.1f}" for seed in seeds]
            rows.append([labels[arm], str(width), *shown])
    return markdown(["arm", "W", *(f"seed {seed}" for seed in seeds)], rows)


def finds_table(found: Lines, labels: Mapping[str, str]) -> str:
    """Hits of a try by what the siblings had found before it."""
    rows = []
    for line in found:
        if line["try"] == "any":
            same = line["same_as_sibling"]
            copied = "" if line["given"] != "found" or same is None else f"{100 * same:.0f}"
            cells = [labels[line["arm"]], line["rows"], line["given"]]
            rows.append([*cells, show(line["over_seeds"], 100), f"{line['at_risk']:,}", copied])
    head = ["arm", "rows", "a sibling has", "tries that hit", "tries", "hits as the sibling wrote"]
    return markdown(head, rows)


def costs_table(spent: Mapping[str, Any], labels: Mapping[str, str]) -> str:
    """CPU-seconds of training."""
    rows = [[labels.get(name, name), show(value, 1, 0)] for name, value in spent.items()]
    return markdown(["training of", "CPU-seconds, one core"], rows)


def show(
    estimate: Mapping[str, Any] | None, scale: float, digits: int = 1, sign: bool = False
) -> str:
    """A number with its interval."""
    if estimate is None or estimate["value"] is None:
        return ""
    plus = "+" if sign else ""
    number = f"{scale * estimate['value']:{plus}.{digits}f}"
    if estimate["low"] is None or estimate["high"] is None:
        return number
    low, high = (f"{scale * estimate[end]:{plus}.{digits}f}" for end in ("low", "high"))
    return f"{number} [{low}, {high}]"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def fill(path: Path, sections: Mapping[str, str]) -> Path:
    """Put the tables where the README wants them.

    Raises:
        KeyError: if the README has no place for one.
    """
    text = path.read_text(encoding="utf-8")
    for name, content in sections.items():
        begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
        if begin not in text or end not in text:
            raise KeyError(f"{path} has no lines {begin} and {end}.")
        between = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        text = between.sub(lambda _, c=content, b=begin, e=end: f"{b}\n\n{c}\n\n{e}", text)
    path.write_text(text, encoding="utf-8")
    return path


def together(places: Places, sections: Mapping[str, str]) -> Path:
    """All tables one below the other."""
    path = places.out / "report.md"
    parts = [f"## {name}\n\n{content}\n" for name, content in sections.items()]
    path.write_text("\n".join(parts), encoding="utf-8")
    return path


def _cell(lines: Lines, percent: bool, **wanted: Any) -> str:
    scale = 100 if percent else 1
    return show(pick(lines, **wanted)["over_seeds"], scale, sign="against" in lines[0])


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
