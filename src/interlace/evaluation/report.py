"""A report: results and what was derived from them, as one JSON file and as tables.

The JSON holds every number with its (width, k), interval and method, and where it came from. Tables
are made once; Markdown and a terminal show the same ones.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interlace.evaluation.compare import (
    ArmRow,
    Comparison,
    ParallelEfficiency,
    average_seeds,
    compare,
    parallel_efficiency,
)
from interlace.evaluation.intervals import Estimate
from interlace.evaluation.results import (
    QUANTITIES,
    ArmResult,
    Measurement,
    arms_of,
    tasks_of,
)
from interlace.evaluation.scaling import ScalingFit, fit_scaling
from interlace.jsonl import to_json
from interlace.terminal import Cell, Table, number, percent, printable, say

if TYPE_CHECKING:
    from rich.console import Console

SCHEMA = "interlace.evaluation/1"
# A fit needs more widths than its two parameters; with exactly one more it is hardly judged.
FIT_WIDTHS = 4
COMPARISON = "Comparison"
FITTED = ("pass@1", "maj", "coverage")
# Rows of an arm's table: metric, what it is called, whether all rows of the set have to be right.
METRICS = (
    ("pass@1", "pass@1 (%)", False),
    ("maj", "maj@W (%)", False),
    ("coverage", "pass@W (%)", False),
    ("g_pass", "all W right (%)", True),
    ("mg_pass", "mG-Pass@W (%)", False),
    ("answered", "with answer (%)", False),
    ("truncated", "cut off (%)", False),
    ("distinct_answers", "distinct answers", False),
    ("answer_entropy", "entropy (bits)", False),
    ("tokens", "tokens", False),
    ("seconds", "seconds", False),
)
METHODS = {
    "score": "Shares: Wilson's score interval with an effective sample size, problems as clusters.",
    "bca": "Other means: BCa bootstrap over problems.",
    "t": "Gains: t interval of paired differences over problems.",
    "adjusted-t": (
        "Gains with *: fewer than ten problems differ, so two pseudo-problems were added "
        "(Bonett and Price)."
    ),
    "t-seeds": "Gains over seeds: t interval of the seeds' means.",
    "fieller": "Ratios of gains: Fieller's interval; none where the other gain may be 0.",
    "percentile": "Parallel efficiency and fits: percentile bootstrap over problems.",
}


@dataclass(frozen=True)
class Report:
    """Results of one or more arms, and what was derived from them.

    Attributes:
        results: Results, one for each arm and task, averaged over training seeds.
        comparisons: Arms over the same problems.
        efficiencies: Widths that independent voting needs to reach coupled arms.
        fits: Laws of failure against width.
        provenance: Origin of all of it, as any JSON values.
    """

    results: tuple[ArmResult, ...]
    comparisons: tuple[Comparison, ...] = ()
    efficiencies: tuple[ParallelEfficiency, ...] = ()
    fits: tuple[ScalingFit, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """JSON values, the schema's version first."""
        return {
            "schema": SCHEMA,
            "provenance": dict(self.provenance),
            "results": [entry.to_json() for entry in self.results],
            "comparisons": to_json(self.comparisons),
            "efficiencies": to_json(self.efficiencies),
            "fits": to_json(self.fits),
        }

    def save(self, path: str | Path) -> None:
        """Write the JSON; the same report gives the same bytes."""
        text = json.dumps(self.to_json(), indent=1, allow_nan=False)
        Path(path).write_text(text + "\n", encoding="utf-8")


def make_report(
    results: Sequence[ArmResult],
    *,
    base: str | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Report:
    """All that can be derived from results: comparisons, parallel efficiency and fits.

    Args:
        results: Results of any arms, tasks and training seeds.
        base: Name of the arm that gains are over; by default the first one where there are several.
        provenance: Origin of the results.

    Returns:
        With several arms, comparisons of pass@1, maj@W, coverage and all-right at every width that
        all arms have; for every pair of a coupled and an independent arm the parallel efficiency at
        every width of the coupled one; fits for whoever has `FIT_WIDTHS` widths.

    Raises:
        MetricError: for arms that do not cover the same problems.
    """
    if len(results) > 1:  # runs at different moments have no seconds to compare
        results = [_without_seconds(result) for result in results]
    averaged, arms = average_seeds(results), arms_of(results)
    comparisons = []
    if len(arms) > 1:
        common = set.intersection(*(set(result.widths) for result in averaged))
        for width in sorted(common):
            chosen: list[tuple[str, int | None]] = [("pass@1", None)]
            if width > 1:
                chosen += [("maj", None), ("coverage", None), ("g_pass", width)]
            for metric, threshold in chosen:
                comparisons.append(
                    compare(
                        results, base or arms[0], metric=metric, width=width, threshold=threshold
                    )
                )
    efficiencies = [
        parallel_efficiency(coupled, independent, width)
        for coupled in averaged
        for independent in averaged
        if coupled.coupled and not independent.coupled and coupled.task == independent.task
        for width in coupled.widths
        if len(independent.widths) > 1
    ]
    fits = [
        fit_scaling(result, metric, form)
        for result in averaged
        if len(result.widths) >= FIT_WIDTHS
        for metric in FITTED
        # A mean over independent rows does not depend on the width.
        if result.coupled or metric != "pass@1"
        for form in ("power", "log")
    ]
    return Report(
        results=tuple(averaged),
        comparisons=tuple(comparisons),
        efficiencies=tuple(efficiencies),
        fits=tuple(fits),
        provenance=provenance or {},
    )


def _without_seconds(result: ArmResult) -> ArmResult:
    kept = tuple(entry for entry in result.measurements if entry.metric != "seconds")
    return replace(result, measurements=kept)


# Tables -----------------------------------------------------------------------------------------


def to_markdown(report: Report, figures: Sequence[str] = ()) -> str:
    """The report's tables, and its figures by their paths, in Markdown."""
    parts = ["# Evaluation", _bullets(f"{key}: {v}" for key, v in report.provenance.items())]
    for name, tables in tables_by_section(report).items():
        parts.append(f"## {_alone(name)}")
        parts += [f"### {_alone(table.title)}\n\n{table.markdown()}" for table in tables]
    if figures:
        names = [path.rsplit("/", 1)[-1].rsplit(".", 1)[0].replace("-", " ") for path in figures]
        parts += ["## Figures", *(f"![{n}]({p})" for n, p in zip(names, figures, strict=True))]
    parts += ["## How to read this", _bullets(notes(report))]
    return "\n\n".join(part for part in parts if part) + "\n"


def print_report(report: Report, console: Console) -> None:
    """Print a report: its tables on a terminal, Markdown elsewhere."""
    if not console.is_terminal:
        console.file.write(to_markdown(report))
        return
    for name, value in report.provenance.items():
        say(console, f"{name}: {value}", "dim")
    # The comparison holds the arms' own numbers; fits take more room than a terminal has.
    compared = tables_by_section(report)[COMPARISON] if report.comparisons else None
    for table in compared or map(_arm, report.results):
        console.print()
        table.print(console)
    console.print()
    say(console, notes(report)[0], "dim")


def tables_by_section(report: Report) -> dict[str, list[Table]]:
    """Tables by what they are of: a task, or the comparison of arms."""
    found = {}
    for task in tasks_of(report.results):
        found[task] = [_arm(result) for result in report.results if result.task == task]
        found[task] += _fits([fit for fit in report.fits if fit.task == task])
    if report.comparisons or report.efficiencies:
        kinds = {_kind(comparison): None for comparison in report.comparisons}
        grouped = [[c for c in report.comparisons if _kind(c) == kind] for kind in kinds]
        found[COMPARISON] = [_comparison(group) for group in grouped]
        for task in tasks_of(report.results):
            found[COMPARISON] += _efficiency([e for e in report.efficiencies if e.task == task])
    return found


def _arm(result: ArmResult) -> Table:
    """Metrics by widths."""
    kind = "rows see each other, each width is a run of its own"
    if not result.coupled:
        kind = f"independent rows, sampled once: {result.measurements[0].rows} a problem"
    weighted = [name for name in result.metrics if name.startswith(("weighted:", "best_of_n:"))]
    names = [(name, f"{name.replace('_', ' ').replace(':', ', by ')} (%)", False)
             for name in weighted]  # fmt: skip
    rows = []
    for metric, label, whole in (*METRICS[:2], *names, *METRICS[2:]):
        found = [result.find(metric, width, width if whole else None) for width in result.widths]
        if any(found):
            if len({id(entry) for entry in found}) == 1:  # one number that holds at every width
                found[1:] = [None] * (len(found) - 1)
            rows.append([label, *map(_shown, found)])
    title = f"{result.arm}: {len(result.example_ids)} problems; {kind}"
    return Table(["", *(f"W = {width}" for width in result.widths)], rows, title)


def _comparison(group: list[Comparison]) -> Table:
    """A metric's arms, width by width."""
    first = group[0]
    seeds = f", {len(first.seeds)} training seeds" if len(first.seeds) > 1 else ""
    several = any(row.gain_over_seeds for found in group for row in found.rows)
    tasks = list(first.tasks) if len(first.tasks) > 1 else []
    head = ["width", "arm", *tasks, f"mean of {len(tasks)}" if tasks else "%"]
    head += [f"gain over {first.base}", *(["gain, over seeds"] if several else [])]
    head += ["relative to the next best gain", *(["relative, over seeds"] if several else [])]
    rows = [
        [str(found.width), *_comparison_row(row, tasks, several)]
        for found in group
        for row in found.rows
    ]
    where = f"{len(tasks)} tasks" if tasks else first.tasks[0]
    return Table(head, rows, f"{_kind(first)} on {where}: {first.problems} problems{seeds}")


def _comparison_row(row: ArmRow, tasks: list[str], several: bool) -> list[Cell]:
    cells: list[Cell] = [row.arm, *(percent(row.by_task[task]) for task in tasks)]
    cells += [percent(row.mean), _share(row.gain, sign=True)]
    cells += [_share(row.gain_over_seeds, sign=True)] if several else []
    relative = _share(row.relative_gain, sign=True)
    if row.next_best and isinstance(relative, tuple):
        cells.append((f"{relative[0]} ({row.next_best})", *relative[1:]))
    else:
        cells.append(f"{relative} ({row.next_best})" if row.next_best else "")
    return cells + ([_share(row.relative_gain_over_seeds, sign=True)] if several else [])


def _kind(found: Comparison) -> str:
    """The metric's name without its k."""
    if found.metric == "g_pass":
        whole = found.label.endswith("= 1)")
        return "all W rows right" if whole else found.label.replace(f"@{found.width}", "@W")
    return {"maj": "maj@W", "coverage": "coverage (pass@W)"}.get(found.metric, found.metric)


def _efficiency(found: Sequence[ParallelEfficiency]) -> list[Table]:
    """What independent voting needs; none without a pair of arms."""
    if not found:
        return []
    head = ["arm", "width", "reaches", "by", "needs width", "needs tokens", "times the tokens"]
    rows = []
    for entry in found:
        needs = (entry.needed_width, entry.needed_tokens, entry.token_ratio)
        reaches = f"{entry.metric} {percent(entry.target.value)}"
        missed = (
            f"not reached within {entry.largest} ({100 * entry.not_reached:.0f} % of resamples)"
        )
        costs = [*map(_needed, needs)] if entry.reached else [missed, "", ""]
        rows.append([entry.coupled_arm, str(entry.width), reaches, entry.independent_arm, *costs])
    title = (
        f"Parallel efficiency on {found[0].task}: what independent voting needs to reach what a "
        "coupled arm reaches at its width"
    )
    return [Table(head, rows, title)]


def _needed(estimate: Estimate) -> Cell:
    """A cost; the upper end of its interval may lie beyond what was measured."""
    if math.isnan(estimate.value):  # a coupled arm that wrote no token has no ratio
        return "undefined"
    low, high = ("beyond" if e is None else number(e) for e in (estimate.low, estimate.high))
    return number(estimate.value), low, high


def _fits(found: Sequence[ScalingFit]) -> list[Table]:
    """Laws of failure against width; none without fits."""
    if not found:
        return []
    rows = []
    for fit in found:
        free = [
            f"{name} = {_fitted(estimate)}"
            for name, estimate in fit.parameters.items()
            if estimate.method != "fixed"
        ]
        worst = max(fit.standardised, key=abs)
        quality = [f"{100 * fit.rmse:.2f}", f"{worst:+.1f}", f"{fit.r2:.3f}"]
        rows.append([fit.arm, fit.metric, fit.formula, "; ".join(free), *quality])
    head = ["arm", "1 - metric", "law", "parameters", "rmse (%)", "worst residual (SE)", "R²"]
    return [Table(head, rows, "Failure against width")]


def _fitted(estimate: Estimate) -> str:
    low, high = (number(end) if end is not None else "" for end in (estimate.low, estimate.high))
    lost = " (not identified)" if estimate.method == "not identified" else ""
    return f"{number(estimate.value)} [{low}, {high}]{lost}"


def notes(report: Report) -> list[str]:
    """Notes that say how to read the numbers: first the level, then the methods used."""
    estimates = [entry.estimate for result in report.results for entry in result.measurements]
    levels = ", ".join(f"{100 * level:g} %" for level in sorted({e.level for e in estimates}))
    for comparison in report.comparisons:
        for row in comparison.rows:
            kinds = (row.gain, row.gain_over_seeds, row.relative_gain)
            estimates += [estimate for estimate in kinds if estimate is not None]
    used = {estimate.method for estimate in estimates}
    if report.efficiencies or report.fits:
        used.add("percentile")
    return [
        f"Shares are in per cent, with {levels} intervals over problems unless a heading says over "
        "seeds.",
        "Rows of a coupled group are dependent: every width is a run of its own, and its set "
        "metrics look at whole groups only. Independent rows are exchangeable: sampled once, then "
        "every width.",
        *(text for method, text in METHODS.items() if method in used),
    ]


def _shown(entry: Measurement | None) -> Cell:
    if entry is None:
        return ""
    if entry.metric not in QUANTITIES:
        return _share(entry.estimate)
    low, high = entry.estimate.low, entry.estimate.high
    value = number(entry.estimate.value)
    return value if low is None or high is None else (value, number(low), number(high))


def _share(estimate: Estimate | None, sign: bool = False) -> Cell:
    if estimate is None:
        return ""
    if math.isnan(estimate.value):
        return "undefined"
    value = percent(estimate.value, sign) + "*" * (estimate.method == "adjusted-t")
    if estimate.low is None or estimate.high is None:
        return f"{value} [no interval]"
    return value, percent(estimate.low, sign), percent(estimate.high, sign)


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {_alone(line)}" for line in lines)


def _alone(text: str) -> str:
    """Text without line breaks."""
    return " ".join(printable(text).split("\n"))
