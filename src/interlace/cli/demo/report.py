"""The demo's report: Markdown in its folder, a table on the terminal."""

from __future__ import annotations

import os
from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from interlace.cli.demo.figure import FIGURE, draw
from interlace.cli.demo.group_view import GroupView
from interlace.cli.demo.options import PACKAGED_ROLLOUTS, ROLLOUTS
from interlace.cli.demo.outcome import EXPERIMENT, Line, Outcome
from interlace.cli.demo.plan import LABELS, WIDTHS
from interlace.cli.demo.progress_view import duration
from interlace.evaluation.intervals import Estimate

REPORT = "report.md"
HEADINGS = ("arm", "W", "pass@1", "coverage", "maj@W", "tokens", "CPU time")
LEGEND = (
    "Per cent, with 95 % intervals over problems; 16 rows a problem at every width. Rows that do "
    "not see each other have one pass@1 for all widths. coverage: any of W rows right. maj@W: the "
    "most frequent answer of W rows right. tokens: sampled for W rows of a problem. CPU time: "
    "processor seconds of one group alone, over RLVR-only's at that width."
)
LIMITS = (
    "This is one training seed: another can move any number by several points, and the intervals "
    f"do not cover that, since they are over problems only. {EXPERIMENT} has five seeds.",
    "The model has 0.4 M parameters and knows one kind of puzzle, in which a find is easy to "
    "recognise and to copy. It shows the mechanism, not what a large model on other tasks gains; "
    "with rows that end at their find, so that nobody reads it, the same experiment saw no gain.",
    "Whoever can pick the best of W rows afterwards gets the coverage, from independent rows as "
    "well. Bridge's gain is that of every single row, and of votes.",
    "Bridge costs more: a warm-up before GRPO, 5 % more weights, and more processor time for the "
    "same tokens. On a model this small the extra operations weigh far more than on a large one.",
)
SHORT = (
    "Training was cut short to fit into minutes. Every arm gains by more of it, and after "
    f"1,080 rollouts RLVR-only has caught up with Bridge: {EXPERIMENT} trains for longer."
)
PACKAGED = (
    f"The packaged arms had {PACKAGED_ROLLOUTS} rollouts of GRPO each; `interlace demo` without "
    f"--quick trains for {ROLLOUTS}, so its pass@1 is lower. After 1,080 rollouts RLVR-only "
    f"has caught up with Bridge: {EXPERIMENT}."
)


def table(lines: Sequence[Line]) -> Table:
    """The table for a terminal."""
    found = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for name in HEADINGS:
        found.add_column(name, justify="left" if name == "arm" else "right", no_wrap=True)
    for line in lines:
        label = Text(line.arm, "bold") if line.width == WIDTHS[0] else ""
        cells = [_cell(e) for e in (line.one, line.coverage, line.majority)]
        best = "bold cyan" if line.arm == "Bridge" else ""
        found.add_row(
            label,
            str(line.width),
            *cells,
            f"{line.tokens:,.0f}",
            _ratio(line),
            style=best,
            end_section=line.width == WIDTHS[-1],
        )
    return found


def write(outcome: Outcome, seconds: Sequence[float], peak: int | None) -> None:
    """Write report.md and the figure.

    Args:
        outcome: what to report.
        seconds: of every start of the command.
        peak: the most memory of the process that looked on, in bytes.
    """
    folder = outcome.plan.folder
    draw(outcome.results, folder / FIGURE)
    partial = folder / f".{REPORT}.tmp"
    partial.write_text(_text(outcome, seconds, peak), encoding="utf-8")
    os.replace(partial, folder / REPORT)


def cost(outcome: Outcome, seconds: Sequence[float], peak: int | None) -> str:
    """Seconds and memory in a sentence."""
    by_process: dict[int, int] = {}
    for one in (one for _, found in outcome.usage for one in found):
        by_process[one.process] = max(one.peak_bytes or 0, by_process.get(one.process, 0))
    largest = sum(sorted(by_process.values())[-2:]) + (peak or 0)
    starts = f" in {len(seconds)} starts" if len(seconds) > 1 else ""
    return (
        f"{duration(sum(seconds))}{starts}; at most {largest / 2**30:.2f} GiB of memory, the "
        "peaks of its three processes added up"
    )


def _text(outcome: Outcome, seconds: Sequence[float], peak: int | None) -> str:
    settings = outcome.plan.settings
    how = (
        f"packaged arms ({PACKAGED_ROLLOUTS} rollouts of GRPO each)"
        if settings.quick
        else f"{settings.rollouts} rollouts of GRPO"
    )
    view = GroupView(outcome.group)
    bullets = [f"- {sentence}" for sentence in outcome.sentences()]
    caveats = [f"- {sentence}" for sentence in limits(outcome)]
    parts = [
        "# Interlace demo",
        f"{settings.problems} held-out problems of `tiny-countdown`, {how}, seed {settings.seed}. "
        f"{cost(outcome, seconds, peak)}.",
        "\n".join(bullets),
        "## Table",
        _markdown(outcome.lines()),
        LEGEND,
        f"![pass@1 and maj@W against width]({FIGURE})",
        "## What the numbers do not say",
        "\n".join(caveats),
        "## A group from inside",
        f"```text\n{view.plain()}\n```",
        " ".join(view.sentences()),
        "## What ran",
        _usage(outcome),
        *_recipes(outcome),
        "## Where",
        _environment(outcome),
    ]
    return "\n\n".join(parts) + "\n"


def limits(outcome: Outcome) -> Sequence[str]:
    """What may not be read into the numbers."""
    return [*LIMITS, PACKAGED if outcome.plan.settings.quick else SHORT]


def _markdown(lines: Sequence[Line]) -> str:
    rows = [
        [
            line.arm,
            str(line.width),
            *(_cell(e) for e in (line.one, line.coverage, line.majority)),
            f"{line.tokens:,.0f}",
            _ratio(line),
        ]
        for line in lines
    ]
    rule = ["---", *["---:"] * (len(HEADINGS) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [list(HEADINGS), rule, *rows])


def _usage(outcome: Outcome) -> str:
    rows = [["job", "starts", "seconds", "processor seconds"], ["---", "---:", "---:", "---:"]]
    for job, found in outcome.usage:
        sums = (sum(one.seconds for one in found), sum(one.cpu_seconds for one in found))
        cells = [f"{number:.0f}" for number in sums] if found else ["not known"] * 2
        widths = f", W = {', '.join(map(str, job.widths))}" if job.widths else ""
        rows.append([f"{LABELS[job.arm]}, {job.kind}{widths}", str(len(found)), *cells])
    text = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"{text}\n\nSeconds of all starts added up; a kill loses up to two seconds of its start."


def _recipes(outcome: Outcome) -> list[str]:
    """The resolved recipes as the runs wrote them."""
    if outcome.plan.settings.quick:
        return []
    found = []
    for arm, stage in (("bridge", "warmup"), ("bridge", "grpo"), ("rlvr", "grpo")):
        path = outcome.plan.folder / arm / stage / "recipe.yaml"
        text = path.read_text(encoding="utf-8").rstrip()
        found.append(f"<details><summary>Recipe: {arm}, {stage}</summary>\n\n```yaml\n{text}\n```\n"
                     "\n</details>")  # fmt: skip
    return found


def _environment(outcome: Outcome) -> str:
    place = outcome.results[0].provenance["environments"][0]
    return "\n".join(f"- {name}: {value}" for name, value in place.items())


def _cell(estimate: Estimate | None) -> str:
    if estimate is None:
        return ""
    value = f"{100 * estimate.value:.1f}"
    if estimate.low is None or estimate.high is None:
        return value
    return f"{value} [{100 * estimate.low:.0f}, {100 * estimate.high:.0f}]"


def _ratio(line: Line) -> str:
    return "" if line.seconds is None else f"{line.seconds:.2f}"
