"""Tables of the report as Markdown, from the lines of `results.json`; their places in a page."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from outcomes import pick
from units import Places

from interlace.terminal import Table

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


def arms_table(lines: Lines, labels: Mapping[str, str], columns: Any = COLUMNS) -> str:
    """Arms by metrics."""
    rows = [
        [
            labels[arm],
            *(_cell(lines, percent, arm=arm, metric=m, width=w) for _, m, w, percent in columns),
        ]
        for arm in dict.fromkeys(line["arm"] for line in lines)
    ]
    return markdown(["arm", *(heading for heading, *_ in columns)], rows)


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
            _ratio(line["over_seeds"]),
            _ratio(line["over_problems"]),
        ]
        for line in lines
    ]
    return markdown(["arm", "W", "next best", "over seeds", "over problems"], rows)


def _ratio(estimate: Mapping[str, Any] | None) -> str:
    """Undefined where the next best arm's gain is not clearly above 0."""
    return show(estimate, 100, sign=True) or ("" if estimate is None else "undefined")


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
            rows.append([*cells, show_share(line["over_seeds"]), f"{line['at_risk']:,}", copied])
    head = ["arm", "rows", "a sibling has", "tries that hit", "tries", "hits as the sibling wrote"]
    return markdown(head, rows)


def picking_table(lines: Lines, labels: Mapping[str, str]) -> str:
    """Rows picked by their own verdict."""
    shares = ("yes_right", "picked", "picked_16", "vote_16")
    rows = [
        [
            labels[line["arm"]],
            *(show_share(line[name]) for name in shares),
            show(line["vote_16_minus_plain"], 100, sign=True),
        ]
        for line in lines
    ]
    head = ["arm", "of the rows that say yes, right", "picked of 8", "picked of 16"]
    plain = f"that vote minus {labels[lines[0]['against']]}'s maj@16"
    return markdown([*head, "vote among yes of 16", plain], rows)


def bases_table(
    lines: Lines, picking: Lines, bases: Mapping[str, Sequence[int]], labels: Mapping[str, str]
) -> str:
    """Arms by base: means over the base's seeds, without intervals."""
    wanted = [*COLUMNS[:2], COLUMNS[4]]
    rows = []
    for arm in dict.fromkeys(line["arm"] for line in lines):
        own = pick(picking, arm=arm)["by_seed"]
        columns = [pick(lines, arm=arm, metric=m, width=w)["by_seed"] for _, m, w, _ in wanted]
        columns += [own["picked"], own["yes_right"]]
        for base, seeds in bases.items():
            means = [sum(column[str(seed)] for seed in seeds) / len(seeds) for column in columns]
            named = f"{base} ({', '.join(map(str, seeds))})"
            rows.append([labels[arm], named, *(f"{100 * mean:.1f}" for mean in means)])
    head = ["arm", "base (seeds)", *(heading for heading, *_ in wanted)]
    return markdown([*head, "picked of 8", "of the rows that say yes, right"], rows)


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


def show_share(estimate: Mapping[str, Any] | None) -> str:
    """A share in per cent. A t interval over few seeds may reach past 0 or 1, which no share does:
    its ends are cut there in tables, and whole in `results.json`."""
    if estimate is None or estimate["low"] is None or estimate["high"] is None:
        return show(estimate, 100)
    ends = {end: min(max(estimate[end], 0.0), 1.0) for end in ("low", "high")}
    return show({**estimate, **ends}, 100)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    return Table(head, rows).markdown()


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
    """Over seeds; of a single seed, which has no such interval, over problems."""
    line = pick(lines, **wanted)
    several = len(line["by_seed"]) > 1
    estimate = line["over_seeds" if several else "over_problems"]
    if percent and "against" not in line:
        return show_share(estimate)
    return show(estimate, 100 if percent else 1, sign="against" in line)
