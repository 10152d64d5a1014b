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
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Num
from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table as Grid
from rich.text import Text

from interlace.cli.demo.work import (
    BRIDGE,
    BRIDGE_RUNS,
    LABELS,
    RECORDS,
    RLVR,
    SFT,
    WIDTHS,
    Settings,
)
from interlace.evaluation.compare import paired_difference
from interlace.evaluation.intervals import RESAMPLES, resampled_means
from interlace.evaluation.records import read_records
from interlace.evaluation.report import make_report
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
    """Print the table, the group and the limits, and write the report.

    Args:
        folder: Folder of a demo whose jobs are done.
        settings: Settings of the demo.
        console: Console to print to.
        seconds: Seconds that this start took so far.
    """
    results = [_result(folder, arm) for arm in settings.arms]
    table, sentences = table_of(results), sentences_of(results, settings)
    view = GroupView(*_texts(folder))
    limits = [*LIMITS, *([PACKAGED] if settings.quick else [])]
    table.print(console)
    say(console, LEGEND, "dim")
    say(console, _bullets(sentences))
    say(console, "\nA group from inside\n", "bold")
    if console.is_terminal:
        view.play(console)
    else:
        say(console, view.plain())
    say(console, _bullets(view.sentences()))
    say(console, "\nWhat the numbers do not say\n", "bold")
    say(console, _bullets(limits))
    done = "packaged arms" if settings.quick else f"{settings.steps} optimizer steps"
    head = [
        "# Interlace demo",
        f"{settings.problems} held-out problems of `tiny-countdown`, seed {settings.seed}; {done}.",
        _bullets(sentences),
        table.markdown(),
        LEGEND,
        f"## A group from inside\n\n```text\n{view.plain()}\n```",
        _bullets(view.sentences()),
        "## What the numbers do not say",
        _bullets(limits),
    ]
    # The library's report and figures follow.
    (place, *_) = results[0].provenance["environments"]
    write_report(folder, make_report(results, base=LABELS[RLVR], provenance=place), ("png",))
    path = folder / REPORT
    write_text(path, "\n\n".join([*head, path.read_text("utf-8")]))
    say(console, f"\nThis start took {seconds:.0f} s. Report: {path}")


def _bullets(sentences: Sequence[str]) -> str:
    return "\n".join(f"- {sentence}" for sentence in sentences)


# The numbers ------------------------------------------------------------------------------------


def _result(folder: Path, arm: str) -> ArmResult:
    """An arm's result; widths that two processes shared, together."""
    names = BRIDGE_RUNS if arm == BRIDGE else (arm,)
    parts = [load_run(folder / "evaluation" / name) for name in names]
    measured = tuple(entry for part in parts for entry in part.measurements)
    return dataclasses.replace(parts[0], measurements=measured)


def table_of(results: Sequence[ArmResult]) -> Table:
    """A table: a row for each arm at each width."""

    def row(result: ArmResult, width: int) -> list[Cell]:
        # Rows alone have one pass@1 for all widths, and no set at width 1.
        shown = {"pass@1": result.coupled or width == 1, "coverage": width > 1, "maj": width > 1}
        cells: list[Cell] = []
        for metric, is_shown in shown.items():
            found = result.get(metric, width).estimate
            ends = (f"{100 * (found.low or 0):.0f}", f"{100 * (found.high or 0):.0f}")
            cells.append((percent(found.value), *ends) if is_shown else "")
        return [
            result.arm,
            str(width),
            *cells,
            f"{result.get('tokens', width).estimate.value:,.0f}",
        ]

    rows = [row(result, width) for result in results for width in WIDTHS]
    return Table(("arm", "W", "pass@1", "coverage", "maj@W", "tokens"), rows)


def sentences_of(results: Sequence[ArmResult], settings: Settings) -> list[str]:
    """Sentences that say what the numbers show, and what they do not show."""
    by_name = {result.arm: result for result in results}
    rlvr, bridge = by_name[LABELS[RLVR]], by_name[LABELS[BRIDGE]]
    found = []
    for metric, width, name in (
        ("pass@1", SHOWN, f"pass@1 at width {SHOWN}"),
        ("maj", SHOWN, f"maj@{SHOWN}"),
        ("coverage", SHOWN, f"coverage at width {SHOWN} (any of the rows right)"),
        ("pass@1", 1, "pass@1 alone (width 1)"),
    ):
        gain = paired_difference(rlvr, bridge, metric, width)
        values = [percent(one.get(metric, width).estimate.value) for one in (bridge, rlvr)]
        points = [percent(one or 0, sign=True) for one in (gain.value, gain.low, gain.high)]
        verdict = "no clear difference on these problems"
        if gain.excludes(0):
            side = "ahead" if gain.value > 0 else "behind"
            verdict = f"Bridge is {side}, by more than the choice of problems explains"
        found.append(
            f"{name}: Bridge {values[0]} %, RLVR-only {values[1]} %, difference {points[0]} points "
            f"[{points[1]}, {points[2]}]: {verdict}."
        )
    if not settings.quick:
        control = paired_difference(rlvr, by_name[LABELS[SFT]], "pass@1", 1)
        found.append(
            "The control, an SFT of all weights on the same texts without blocks: "
            f"{percent(control.value, sign=True)} points of pass@1 over RLVR-only at every width."
        )
    if not paired_difference(rlvr, bridge, "pass@1", SHOWN).is_above(0):
        more = "More --problems" if settings.quick else "More --steps"
        found.append(
            f"So this run does not show the gain that {EXPERIMENT} shows. {more}, or another "
            "--seed, may."
        )
    return found


# A group from inside ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Try:
    """One try of one row.

    Attributes:
        tokens: Tokens, the model's verdict left out.
        form: Expression in canonical form; None if it is none.
        hit: Whether it reaches the target.
    """

    tokens: tuple[str, ...]
    form: str | None
    hit: bool


@functools.cache  # most tries are written many times
def _judged(task: Task, example_id: str, text: str) -> Try:
    verdict = task.verify(task.find(example_id), text)
    return Try(tuple(text.split())[: TRY_TOKENS - 1], verdict.answer, verdict.correct)


class Found:
    """The tries of a group's rows.

    Args:
        task: Task that judges them.
        example: Problem of the group.
        texts: Responses of the rows.
        coupled: Whether the rows saw each other.
    """

    def __init__(
        self, task: Task, example: Example, texts: Sequence[str], coupled: bool = True
    ) -> None:
        self.coupled = coupled
        self.rows = [
            [_judged(task, example.id, one) for one in tries_of(text)[:TRIES]] for text in texts
        ]
        # The place of each row's first find: what comes after it is no search any more.
        self.finds = [next((k for k, one in enumerate(row) if one.hit), TRIES) for row in self.rows]

    @functools.cached_property
    def marks(self) -> list[list[str]]:
        """What each try is: keys of `MARKS`."""
        return [[self._mark(b, k) for k in range(len(row))] for b, row in enumerate(self.rows)]

    def _mark(self, row: int, k: int) -> str:
        one, find = self.rows[row][k], self.finds[row]
        if not one.hit:
            return "miss"
        if find < k:
            return "again"
        if find == min(self.finds):
            return "first"
        others = [other for b, other in enumerate(self.rows) if b != row]
        if not any(t.hit and t.form == one.form for other in others for t in other[:k]):
            return "own"
        return "same" if self.coupled else "unseen"

    def count(self, mark: str) -> int:
        """How many tries are of this mark."""
        return sum(marks.count(mark) for marks in self.marks)


def counts(groups: Sequence[Found]) -> Float[np.ndarray, 4]:
    """Hits and tries after a sibling has hit, then hits and tries before any has; of rows without a
    find, from their second try on."""
    found = np.zeros((2, 2))
    for group in groups:
        for b, row in enumerate(group.rows):
            sibling = min(group.finds[:b] + group.finds[b + 1 :], default=TRIES)
            for k, one in list(enumerate(row))[1 : group.finds[b] + 1]:
                found[int(sibling >= k)] += (one.hit, 1)
    return found.ravel()


def beyond(together: Num[np.ndarray, "E 4"], alone: Num[np.ndarray, "E 4"]) -> list[float] | None:
    """The share of tries that hit once a sibling has hit: of coupled rows minus of rows alone, with
    its 95 % bootstrap interval over problems; None if either has no such try.

    Args:
        together: `counts` of each problem's groups.
        alone: The same of rows alone.

    >>> beyond(np.array([[6, 10, 0, 0], [5, 10, 0, 0]]), np.array([[1, 10, 0, 0], [0, 10, 0, 0]]))
    [0.5, 0.5, 0.5]
    """
    stacked = np.concatenate([together[:, :2], alone[:, :2]], axis=1).astype(float)
    drawn = np.concatenate([stacked.mean(0)[None], resampled_means(stacked, RESAMPLES, seed=0)])
    if not stacked.sum(0)[[1, 3]].all():
        return None
    drawn = drawn[(drawn[:, 1] > 0) & (drawn[:, 3] > 0)]
    shares = drawn[:, 0] / drawn[:, 1] - drawn[:, 2] / drawn[:, 3]
    low, high = np.quantile(shares[1:], [0.025, 0.975])
    return [round(float(value), 6) for value in (shares[0], low, high)]


def _texts(folder: Path) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Bridge's responses at width `SHOWN` and at width 1: for each problem, group after group."""
    found: dict[int, dict[str, list[str]]] = {SHOWN: {}, 1: {}}
    for name in BRIDGE_RUNS:
        for record in read_records(folder / "evaluation" / name / RECORDS):
            if record.width in found:
                texts = found[record.width].setdefault(record.example_id, [])
                texts += record.texts or ()
    return found[SHOWN], found[1]


class GroupView:
    """The group that shows best how a find spreads, and what is counted over all groups.

    Args:
        together: Responses of rows that saw each other, by problem, group after group.
        alone: Responses of the same problems and weights that saw nobody.
    """

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

        by_kind = groups(together, True), groups(alone, False)
        self._counts = [np.array([counts(g) for g in found.values()]) for found in by_kind]
        self.problems = len(by_kind[0])
        pairs = [(name, group) for name, found in by_kind[0].items() for group in found]
        self.groups = len(pairs)
        name, self.together = max(pairs, key=lambda pair: worth(pair[1]))
        self.alone = by_kind[1][name][0]
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
        same, unseen = self.together.count("same"), self.alone.count("unseen")
        together, alone = (one.sum(axis=0) for one in self._counts)
        width = len(self.together.rows)
        picked = (
            f"This group was picked out of {self.groups} because it shows best how a find spreads: "
            f"{same} of its {width} rows found the same as a sibling before them; of the rows "
            f"alone, which see nobody, {unseen} did."
        )
        if not same:
            picked = (
                f"In none of the {self.groups} groups did a row find the same as a sibling before "
                "it; this is one of them."
            )
        return [
            picked,
            f"Over all {self.groups} groups of {self.problems} problems: after a sibling's hit, a "
            f"row without one hits at its next try in {_share(together[:2])}. The same weights and "
            f"problems with rows alone, in sets of {width}: {_share(alone[:2])}; there another "
            "row's hit only says that the problem is easy.",
            taken_over(beyond(*self._counts)),
            f"Before any sibling has hit: {_share(together[2:])}, and alone {_share(alone[2:])}.",
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


def _share(pair: Float[np.ndarray, 2]) -> str:
    hits, tries = pair
    return f"{100 * hits / tries:.0f} % ({hits:.0f} of {tries:.0f} tries)" if tries else "no try"


def taken_over(found: list[float] | None) -> str:
    """A sentence about the difference: only that may be called taken over."""
    if found is None:
        return "That is too little to compare."
    value, low, high = (f"{100 * one:+.0f}" for one in found)
    said = f"The difference is {value} points [{low}, {high}]: "
    if found[1] > 0:
        return said + "that much is taken over from siblings."
    return said + "this run does not show that rows take anything over from siblings."
