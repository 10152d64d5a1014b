"""What a demo found: tables and sentences, one group from inside, and what the numbers do not say.

Finds are read off the texts alone. A response is four tries of ten tokens, so try k of every row
stands in the same columns. A find is a try whose expression hits the target; a row that has one
writes it again. A row's find is the same as a sibling's earlier one if its canonical form is.
Whether it was taken over, the texts do not say: rows alone, which see nobody, have such finds as
well, by chance. So both are counted over the same problems, and what coupled rows have beyond rows
alone is what they take over.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table as Grid
from rich.text import Text

from interlace.cli.demo.work import BRIDGE, LABELS, RECORDS, RLVR, SFT, WIDTHS, Settings, runs_of
from interlace.evaluation.intervals import Estimate, difference_interval
from interlace.evaluation.records import read_records
from interlace.evaluation.report import Report, make_report
from interlace.evaluation.results import ArmResult
from interlace.evaluation.run import REPORT, load_run, write_report
from interlace.files import write_text
from interlace.tasks import get_task
from interlace.tasks.base import Example, Task
from interlace.tasks.tiny_countdown import TRIES, TRY_TOKENS, tries_of
from interlace.terminal import Cell, Table, percent, printable, say

SHOWN = 8  # the width that sentences and the group are of
# Where the package is installed without it, a path alone would lead nowhere.
EXPERIMENT = "experiments/07-blocks-last in Interlace's repository"
LEGEND = (
    "Per cent, with 95 % intervals over problems; 16 rows a problem at every width. Rows that do "
    "not see each other have one pass@1 for all widths. coverage: any of W rows right. maj@W: the "
    "most frequent answer of W rows right. tokens: sampled for W rows of a problem."
)
LIMITS = (
    "This is one training seed: another can move any number by several points, and the intervals "
    f"do not cover that, since they are over problems only. {EXPERIMENT} has five seeds.",
    "The model has 0.4 M parameters and knows one kind of puzzle, in which a find is easy to "
    "recognise and to copy. It shows the mechanism, not what a large model on other tasks gains.",
    "Whoever can pick the best of W rows afterwards gets the coverage, from independent rows as "
    "well. Bridge's gain is that of every single row, and of votes: it picks inside the group, so "
    "coverage is its ceiling.",
    "More RLVR lifts single rows, too, and leaves less to gain: the same experiment says how much.",
    "Bridge costs more: its own training, 5 % more weights, and more processor time for the same "
    "tokens. On a model this small the extra operations weigh far more than on a large one.",
)
PACKAGED = (
    "RLVR-only and P-Match had 120 rollouts of GRPO each. Bridge is this RLVR-only model, whose "
    "blocks alone were trained afterwards; P-Match is a run of its own."
)
# What a try is: its sign, its style on a terminal, and what that means.
MARKS = {
    "miss": (" ", "dim", ""),
    "first": ("*", "bold black on cyan", "first find"),
    "same": (">", "bold cyan", "same as a sibling's earlier find"),
    "unseen": ("~", "bold yellow", "the same, unseen: no row sees another"),
    "own": ("+", "green", "another find"),
    "again": ("=", "cyan", "hits again"),
}
NOTE = (
    "An expression that reaches the target is a find. What stands after = is the model's own "
    "arithmetic, which does not count and may be wrong (frac: not whole; neg: below 0). A row that "
    "has fewer than four tries ended itself there."
)
SECONDS_A_TOKEN, SECONDS_A_TRY = 0.06, 0.7


def show(folder: Path, settings: Settings, console: Console, seconds: float) -> None:
    """Print the table, the group and the limits, and write the report."""
    results = []
    for arm in settings.arms:  # widths that two processes shared, together
        parts = [load_run(run) for run in runs_of(folder, settings, arm)]
        entries = tuple(entry for part in parts for entry in part.measurements)
        results.append(dataclasses.replace(parts[0], measurements=entries))
    (place, *_) = results[0].provenance["environments"]
    report = make_report(results, base=LABELS[RLVR], provenance=place)
    view, table = GroupView(*_texts(folder, settings)), table_of(results)
    done = "packaged arms" if settings.quick else f"{settings.steps} optimizer steps"
    asked = f"{settings.asked} held-out problems of `tiny-countdown`, seed {settings.seed}; {done}."
    found, inside = _bullets(sentences_of(report, settings.quick)), _bullets(view.sentences())
    limits = _bullets([*LIMITS, *([PACKAGED] if settings.quick else [])])
    titles = ("A group from inside", "What the numbers do not say")
    table.print(console)
    say(console, f"{LEGEND}\n{found}")
    say(console, f"\n{titles[0]}\n", "bold")
    if console.is_terminal:
        view.play(console)
    else:
        say(console, view.plain())
    say(console, inside)
    say(console, f"\n{titles[1]}\n", "bold")
    say(console, limits)
    group = f"## {titles[0]}\n\n```text\n{view.plain()}\n```"
    head = ["# Interlace demo", asked, found, table.markdown(), LEGEND, group, inside,
            f"## {titles[1]}", limits]  # fmt: skip
    write_report(folder, report, ("png",))  # the library's own, which follows
    path = folder / REPORT
    write_text(path, "\n\n".join([*head, path.read_text("utf-8")]))
    say(console, f"\nThis start took {seconds:.0f} s. Report: {path}")


def _bullets(sentences: Sequence[str]) -> str:
    return "\n".join(f"- {sentence}" for sentence in sentences)


def _texts(folder: Path, settings: Settings) -> list[dict[str, list[str]]]:
    """Bridge's responses at width `SHOWN` and at width 1: for each problem, group after group."""
    found: dict[int, dict[str, list[str]]] = {SHOWN: {}, 1: {}}
    for run in runs_of(folder, settings, BRIDGE):
        for record in read_records(run / RECORDS):
            if record.width in found:
                found[record.width].setdefault(record.example_id, []).extend(record.texts or ())
    return list(found.values())


def table_of(results: Sequence[ArmResult]) -> Table:
    """A table: a row for each arm at each width."""

    def row(result: ArmResult, width: int) -> list[Cell]:
        # Rows alone have one pass@1 for all widths, and no set at width 1.
        shown = {"pass@1": result.coupled or width == 1, "coverage": width > 1, "maj": width > 1}
        cells: list[Cell] = [result.arm, str(width)]
        for metric, is_shown in shown.items():
            found = result.get(metric, width).estimate
            ends = (f"{100 * (found.low or 0):.0f}", f"{100 * (found.high or 0):.0f}")
            cells.append((percent(found.value), *ends) if is_shown else "")
        return [*cells, f"{result.get('tokens', width).estimate.value:,.0f}"]

    rows = [row(result, width) for result in results for width in WIDTHS]
    return Table(("arm", "W", "pass@1", "coverage", "maj@W", "tokens"), rows)


def sentences_of(report: Report, quick: bool) -> list[str]:
    """Sentences that say what the numbers show, and what they do not show."""
    rows = {(c.metric, c.width, row.arm): row for c in report.comparisons for row in c.rows}
    found = []
    for metric, width, name in (
        ("pass@1", SHOWN, f"pass@1 at width {SHOWN}"),
        ("maj", SHOWN, f"maj@{SHOWN}"),
        ("coverage", SHOWN, f"coverage at width {SHOWN} (any of the rows right)"),
        ("pass@1", 1, "pass@1 alone (width 1)"),
    ):
        bridge, rlvr = (rows[metric, width, LABELS[arm]] for arm in (BRIDGE, RLVR))
        assert bridge.gain is not None
        verdict = "no clear difference on these problems"
        if bridge.gain.excludes(0):
            side = "ahead" if bridge.gain.value > 0 else "behind"
            verdict = f"Bridge is {side}, by more than the choice of problems explains"
        found.append(
            f"{name}: Bridge {percent(bridge.mean)} %, RLVR-only {percent(rlvr.mean)} %, "
            f"difference {_points(bridge.gain)}: {verdict}."
        )
    if not quick:
        control = rows["pass@1", 1, LABELS[SFT]].gain
        assert control is not None
        found.append(
            "The control, an SFT of all weights on the same texts without blocks: "
            f"{percent(control.value, sign=True)} points of pass@1 over RLVR-only at every width."
        )
    gain = rows["pass@1", SHOWN, LABELS[BRIDGE]].gain
    if gain is None or not gain.is_above(0):
        more = "More --problems" if quick else "More --steps"
        found.append(
            f"So this run does not show the gain that {EXPERIMENT} shows. {more}, or another "
            "--seed, may."
        )
    return found


def _points(gain: Estimate) -> str:
    value, low, high = (percent(n or 0, sign=True) for n in (gain.value, gain.low, gain.high))
    return f"{value} points [{low}, {high}]"


# A group from inside ----------------------------------------------------------------------------


class Try(NamedTuple):
    """One try of one row: its tokens without the model's verdict; its expression in canonical form,
    None if it is none; whether it reaches the target."""

    tokens: tuple[str, ...]
    form: str | None
    hit: bool


@functools.cache  # most tries are written many times
def _judged(task: Task, example_id: str, text: str) -> Try:
    verdict = task.verify(task.find(example_id), text)
    return Try(tuple(text.split())[: TRY_TOKENS - 1], verdict.answer, verdict.correct)


class Found:
    """The tries of a group's rows, and what each of them is: keys of `MARKS`."""

    def __init__(
        self, task: Task, example: Example, texts: Sequence[str], coupled: bool = True
    ) -> None:
        self.rows = [
            [_judged(task, example.id, one) for one in tries_of(text)[:TRIES]] for text in texts
        ]
        # The place of each row's first find: what comes after it is no search any more.
        self._finds = [next((k for k, t in enumerate(row) if t.hit), TRIES) for row in self.rows]
        self._again = "same" if coupled else "unseen"
        self.marks = [
            [self._mark(b, k) for k in range(len(row))] for b, row in enumerate(self.rows)
        ]

    def _mark(self, row: int, k: int) -> str:
        one, find = self.rows[row][k], self._finds[row]
        if not one.hit:
            return "miss"
        if find < k:
            return "again"
        if find == min(self._finds):
            return "first"
        others = [other for b, other in enumerate(self.rows) if b != row]
        is_same = any(t.hit and t.form == one.form for other in others for t in other[:k])
        return self._again if is_same else "own"

    def count(self, *marks: str) -> int:
        """How many tries are of these marks."""
        return sum(row.count(mark) for row in self.marks for mark in marks)


def _share_same(groups: Sequence[Found]) -> float:
    """Share of the rows that found the same as another row before them."""
    return sum(g.count("same", "unseen") for g in groups) / sum(len(g.rows) for g in groups)


class GroupView:
    """The group that shows best how a find spreads, and what is counted over all groups: of rows
    that saw each other, and of the same problems and weights where rows saw nobody."""

    def __init__(self, together: dict[str, list[str]], alone: dict[str, list[str]]) -> None:
        task = get_task("tiny-countdown")
        examples = {example.id: example for example in task}

        def groups(texts: dict[str, list[str]], coupled: bool) -> dict[str, list[Found]]:
            return {
                name: [
                    Found(task, examples[name], rows[first : first + SHOWN], coupled)
                    for first in range(0, len(rows), SHOWN)
                ]
                for name, rows in sorted(texts.items())
            }

        coupled, apart = groups(together, True), groups(alone, False)
        self._shares = [np.array([*map(_share_same, kind.values())]) for kind in (coupled, apart)]
        self.problems, self.groups = len(coupled), sum(map(len, coupled.values()))
        pairs = [(name, group) for name, found in coupled.items() for group in found]
        name, self.together = max(pairs, key=lambda pair: worth(pair[1]))
        self.alone = apart[name][0]
        self.prompt = task.prompt(examples[name])
        rows = self.together.rows + self.alone.rows
        self._column = max(len("".join(one.tokens)) for row in rows for one in row)

    def play(self, console: Console) -> None:
        """Replay the steps in place; the last one stays."""
        with Live(console=console, auto_refresh=False) as live:
            for step in range(TRIES * TRY_TOKENS + 1):
                live.update(self.frame(console, step), refresh=True)
                time.sleep(SECONDS_A_TRY if step % TRY_TOKENS == 0 else SECONDS_A_TOKEN)

    def frame(self, console: Console, step: int = TRIES * TRY_TOKENS) -> RenderableType:
        """Both groups as they are after a number of steps."""
        title = f"One group of {len(self.together.rows)}: rows see each other"
        tables = [
            self._grid(title, self.together, step),
            self._grid("The same weights, rows alone", self.alone, step),
        ]
        beside = console.width >= 2 * (TRIES * (self._column + 3) + 5) + 2
        both = Columns(tables, padding=(0, 2)) if beside else Group(tables[0], Text(), tables[1])
        signs = [Text(f"{sign} {text}", style) for sign, style, text in MARKS.values() if text]
        numbers, _, target = str(self.prompt).rstrip(" :").partition(" -> ")
        head = f"Reach {target} with {', '.join(numbers.split())}   step {step}"
        return Group(
            Text(head, "bold"), Text(), both, Text(), Text("   ").join(signs), Text(NOTE, "dim")
        )

    def plain(self) -> str:
        """The last frame as text, in which a sign before a find says what it is."""
        console = Console(file=io.StringIO(), width=100, color_system=None)
        with console.capture() as captured:
            console.print(self.frame(console))
        return "\n".join(line.rstrip() for line in captured.get().rstrip().split("\n"))

    def sentences(self) -> list[str]:
        """Sentences: the group was picked; how often rows find what a sibling found; whether that
        is more than chance."""
        same, width = self.together.count("same"), len(self.together.rows)
        picked = (
            f"This group was picked out of {self.groups} because it shows best how a find spreads: "
            f"{same} of its {width} rows found the same as a sibling before them; of the rows "
            f"alone, which see nobody, {self.alone.count('unseen')} did."
            if same
            else f"In none of the {self.groups} groups did a row find the same as a sibling before "
            "it; this is one of them."
        )
        together, alone = self._shares
        gain = difference_interval([together - alone])
        verdict = "this run does not show that rows take anything over from siblings"
        if gain.is_above(0):
            verdict = "that much is taken over from siblings"
        return [
            picked,
            f"Over all {self.groups} groups of {self.problems} problems, "
            f"{100 * together.mean():.0f} % of the rows found the same as a sibling before them. "
            f"Of the same weights' rows alone, in sets of {width}, {100 * alone.mean():.0f} % did, "
            "by chance.",
            f"The difference is {_points(gain)}: {verdict}.",
        ]

    def _grid(self, title: str, found: Found, step: int) -> Grid:
        grid = Grid(title=title, title_justify="left", title_style="bold", box=None)
        grid.add_column("row", justify="right", style="dim")
        for k in range(TRIES):
            grid.add_column(f"try {k + 1}", min_width=self._column + 1, no_wrap=True)
        for number, (row, marks) in enumerate(zip(found.rows, found.marks, strict=True), 1):
            tries = enumerate(zip(row, marks, strict=True))
            cells = [_written(*one, step - k * TRY_TOKENS) for k, one in tries]
            grid.add_row(str(number), *cells)
        return grid


def worth(found: Found) -> tuple[int, int, int]:
    """How well a group shows spreading: one row finds first, and most others write the same."""
    same, finders = found.count("same"), found.count("first")
    return (same if finders == 1 else 0, same, -finders)


def _written(one: Try, mark: str, tokens: int) -> Text:
    """A try as far as it is written; its mark shows once its value is written."""
    sign, style, _ = MARKS[mark] if tokens >= len(one.tokens) else MARKS["miss"]
    text = printable("".join(one.tokens[: max(tokens, 0)]))
    return Text(sign + text if text else "", "" if tokens < len(one.tokens) else style)
