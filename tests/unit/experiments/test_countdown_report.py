"""experiments/01-countdown: how finds are counted and rows picked, what is reported."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from support.processes import ROOT

NAME = "01-countdown"


HIT, MISS = ("( 1 + 2 ) * 3 = 9", True), ("( 1 + 2 ) + 3 = 6", False)


def test_finds_are_counted_by_what_siblings_found_before(countdown: Any) -> None:
    # Row 0 hits at try 1; row 1 misses, then writes it too; row 2 misses three times.
    counts = countdown.finds.count([[[HIT], [MISS, HIT], [MISS, MISS, MISS]]])
    assert counts["found, 2: at risk"] == 2
    assert counts["found, 2: hits"] == counts["found, 2: the same"] == 1
    assert counts["found, 3: at risk"] == 1
    assert counts["found, any: at risk"] == 3
    assert counts["not found, any: at risk"] == 0


def test_a_find_of_the_same_try_or_of_the_row_itself_is_none_given(countdown: Any) -> None:
    counts = countdown.finds.count([[[MISS, HIT], [MISS, HIT], [HIT, MISS]]][:1])
    assert counts["found, 2: at risk"] == 2
    alone = countdown.finds.count([[[MISS, HIT, MISS], [MISS, HIT]]])
    assert alone["not found, 2: at risk"] == 2
    assert alone["not found, 2: hits"] == 2
    assert alone["found, any: at risk"] == alone["found, any: hits"] == 0


def test_tries_are_judged_one_by_one(countdown: Any) -> None:
    from interlace.evaluation.records import GroupRecord
    from interlace.tasks import get_task

    task = get_task("tiny-countdown", size=1)
    example = task[0]
    right = task.reference_text(example)
    low = "1 + 1 = 2"
    record = GroupRecord(
        task.name, example.id, 2, 0, 0, True, ("", ""), (True, False), (1, 0), (9, 9),
        texts=(f"{low} ; {right} yes {right}", low),
    )  # fmt: skip
    judged = countdown.finds.judged_tries(task, record)
    assert judged == [[(low, False), (right, True), (right, True)], [(low, False)]]


def test_tables_go_between_their_marks_and_nowhere_else(countdown: Any, tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text("a\n<!-- begin arms -->\nold\n<!-- end arms -->\nb\n")
    countdown.tables.fill(page, {"arms": r"| \1 |"})
    assert page.read_text() == "a\n<!-- begin arms -->\n\n| \\1 |\n\n<!-- end arms -->\nb\n"
    with pytest.raises(KeyError, match="seeds"):
        countdown.tables.fill(page, {"seeds": "x"})


def _line(value: float, **place: Any) -> dict[str, Any]:
    interval = {"value": value, "low": value - 0.05, "high": value + 0.05}
    return {**place, "over_seeds": interval, "by_seed": {"0": value, "1": value}}


def _differences(countdown: Any, values: dict[str, float]) -> list[dict[str, Any]]:
    """All cells of mixed widths minus each arm, every cell the same."""
    cells = {(metric, width) for _, metric, width, _ in countdown.tables.COLUMNS}
    return [
        _line(value, arm="bridge-mixed", against=other, metric=metric, width=width)
        for other, value in values.items()
        for metric, width in cells
    ]


def test_differences_are_from_the_arm_that_their_line_names(countdown: Any, config: Any) -> None:
    lines = _differences(countdown, {"rlvr": 0.1, "bridge8": 0.2})
    first, second = countdown.tables.differences_table(lines, config["labels"]).splitlines()[2:]
    assert first.startswith("| Bridge, mixed minus RLVR-only | +10.0 [+5.0, +15.0] |")
    assert second.startswith("| Bridge, mixed minus Bridge, width 8 | +20.0 [+15.0, +25.0] |")


def test_a_single_seed_has_intervals_over_problems(countdown: Any, config: Any) -> None:
    lines = _differences(countdown, {"rlvr": 0.1})
    for line in lines:
        line |= {"over_seeds": None, "by_seed": {"0": 0.1}}
        line["over_problems"] = {"value": 0.1, "low": 0.08, "high": 0.12}
    row = countdown.tables.differences_table(lines, config["labels"]).splitlines()[2]
    assert row.startswith("| Bridge, mixed minus RLVR-only | +10.0 [+8.0, +12.0] |")


def test_rows_are_picked_by_their_own_verdict(countdown: Any) -> None:
    says, silent = (True, True, "9"), (False, False, "8")
    groups = [[says, silent, (True, False, "7")], [silent, (False, True, "9")]]
    # One of two that say yes is right; of the other group, in which none does, one of two.
    assert countdown.picking.picked(groups) == 0.5
    assert countdown.picking.yes_right(groups) == 0.5
    assert countdown.picking.picked([[says, silent, silent]]) == 1.0


def test_a_row_that_ends_before_its_last_try_holds_its_answer_for_a_hit(countdown: Any) -> None:
    hit, miss = HIT[0], MISS[0]
    texts = [hit, f"{miss} ; {hit}", f"{miss} ; " * 3 + hit, f"{miss} ; " * 3 + miss] * 2
    record = replace(_record("a", 8, 0, True), texts=tuple(texts))
    picking = countdown.picking
    (rows,) = picking.groups_of_eight(record, picking.ENDS)
    assert [says for says, *_ in rows] == [True, True, False, False] * 2


def test_where_no_row_says_yes_none_of_them_is_counted_as_wrong(countdown: Any) -> None:
    silent = countdown.picking.measured([_record("a", 8, 0, True)])
    assert silent["yes_right"] is None
    found = countdown.picking.over_seeds({0: silent, 1: silent})
    assert found["yes_right"] is None
    assert found["picked"]["value"] == 1.0


def test_rows_that_say_yes_vote_and_all_do_where_none_does(countdown: Any) -> None:
    right, wrong, silent = (True, True, "9"), (True, False, "7"), (False, False, "8")
    vote = countdown.picking.filtered_vote
    assert vote([[silent, silent, right]]) == 1.0  # two votes that do not count
    assert vote([[wrong, right]]) == 0.0  # a tie goes to the answer seen first
    assert vote([[right, wrong]]) == 1.0
    assert vote([[(False, True, "9"), silent, silent]]) == 0.0
    assert vote([[(True, False, None), silent]]) == 0.0  # nobody votes


def _record(example: str, width: int, group: int, coupled: bool) -> Any:
    from interlace.evaluation.records import GroupRecord

    answers = tuple(f"{group}.{row}" for row in range(width))
    rows = (True,) * width, (1.0,) * width, (40,) * width
    return GroupRecord("t", example, width, group, 0, coupled, answers, *rows, texts=("",) * width)


def test_sixteen_rows_are_two_groups_of_eight_of_coupled_rows(countdown: Any) -> None:
    coupled = [_record("a", 8, 1, True), _record("a", 1, 0, True), _record("a", 8, 0, True)]
    (rows,) = countdown.picking.groups_of_sixteen(coupled)
    assert [answer for *_, answer in rows[::8]] == ["0.0", "1.0"]
    (rows,) = countdown.picking.groups_of_sixteen([_record("a", 16, 0, False)])
    assert [answer for *_, answer in rows] == [f"0.{row}" for row in range(16)]


def test_ends_of_intervals_of_shares_are_cut_in_tables(countdown: Any) -> None:
    show = countdown.tables.show_share
    assert show({"value": 0.94, "low": 0.864, "high": 1.015}) == "94.0 [86.4, 100.0]"
    assert show({"value": 0.01, "low": -0.02, "high": 0.04}) == "1.0 [0.0, 4.0]"
    assert show({"value": 0.5, "low": None, "high": None}) == "50.0"


def test_bases_are_means_over_their_own_seeds(countdown: Any, config: Any) -> None:
    lines = [
        {"arm": "base", "metric": metric, "width": width, "by_seed": {"0": 0.1, "1": 0.5, "2": 0.3}}
        for _, metric, width, _ in countdown.tables.COLUMNS
    ]
    by_seed = {"0": 0.4, "1": 0.9, "2": 0.6}
    picked = [{"arm": "base", "by_seed": {"picked": by_seed, "yes_right": by_seed}}]
    bases = countdown.report.seeds_of_bases(config, [0, 1, 2])
    table = countdown.tables.bases_table(lines, picked, bases, config["labels"])
    assert table.splitlines()[2:] == [
        "| base | tiny (0, 2) | 20.0 | 20.0 | 20.0 | 50.0 | 50.0 |",
        "| base | tiny-second (1) | 50.0 | 50.0 | 50.0 | 90.0 | 90.0 |",
    ]


class _Measured:
    """A result whose every metric has these values over the problems."""

    def __init__(self, *values: float) -> None:
        self.example_ids = tuple(map(str, range(len(values))))
        self.numbers = values

    def get(self, metric: str, width: int, threshold: int | None) -> Any:
        return SimpleNamespace(values=self.numbers)


def test_the_best_model_is_measured_on_problems_that_did_not_choose_it(
    countdown: Any, config: Any
) -> None:
    early, late = (
        countdown.longer.Model("rlvr-long", rollouts, 360, {"0": _Measured(*values)}, {})
        for rollouts, values in ((60, (1.0, 0.0, 0.8, 0.2)), (360, (0.0, 0.5, 0.4, 0.5)))
    )
    found = countdown.longer.best_by_half([early, late], "0")
    assert [chosen["rollouts"] for chosen in found["chosen"]] == [60, 360]
    # The first half takes `early`, whose other half has .1; the second `late`, whose other has .2.
    assert found["pass@1"] == pytest.approx((0.1 + 0.2) / 2)
    labels = countdown.units.queue_config(config, "extra")["labels"]
    table = countdown.longer.best_table([{"line": "RLVR-only", "seed": "0", **found}], labels)
    assert "60 of RLVR-only, 360 rollouts; 360 of RLVR-only, 360 rollouts | 15.0 |" in table


@pytest.mark.parametrize(
    "there", [[("short", 60)], [("bridge-again", 1080)], [("rlvr-plateau", 270)]]
)
def test_long_runs_of_a_half_done_queue_are_reported(
    countdown: Any, there: list[tuple[str, int]], tmp_path: Path
) -> None:
    models = [
        countdown.longer.Model(
            arm, done, 60 if arm == "short" else 1080, {"0": _Measured(1.0, 0.0)}, {"0": 0.5}
        )
        for arm, done in there
    ]
    found = countdown.longer.longer(models)
    assert len(found["best"]) == 1
    countdown.longer.draw_longer(models, tmp_path)
    assert (tmp_path / "longer.png").stat().st_size > 0


@pytest.mark.parametrize(
    ("gain", "difference", "reached"),
    [
        (0.51, 0.06, [True] * 7),
        (0.43, 0.05, [False, True, True, *[False] * 4]),  # an interval that begins at 0
        (0.49, -0.02, [False] * 7),
    ],
)
def test_aims_are_reached_where_the_intervals_say_so(
    countdown: Any, gain: float, difference: float, reached: list[bool]
) -> None:
    budget = {
        "relative_gains": [_line(gain, arm="bridge-mixed", width=8)],
        "differences": _differences(countdown, {"rlvr": difference, "bridge8": difference}),
    }
    assert [aim["reached"] for aim in countdown.report.aims(budget)] == reached


@pytest.mark.parametrize("kind", ["main", "extra", "tuning"])
def test_readme_says_what_the_results_say(
    countdown: Any, config: Any, kind: str, tmp_path: Path
) -> None:
    folder = ROOT / NAME / ("" if kind == "main" else kind)
    values = json.loads((folder / "results.json").read_text())
    sections = getattr(countdown.report, f"{kind}_sections")
    labels = countdown.units.queue_config(config, kind)["labels"]
    readme = (ROOT / NAME / "README.md").read_text()
    copy = tmp_path / "README.md"
    copy.write_text(readme)
    assert countdown.tables.fill(copy, sections(values, labels)).read_text() == readme


def test_a_queue_that_grows_is_reported_over_arms_that_all_its_seeds_have(
    countdown: Any, config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(countdown.outcomes, "load", lambda places, unit: (unit.arm, unit.seed))
    places = countdown.units.Places(tmp_path)
    for name in ("seed-0/rlvr", "seed-0/base", "seed-0/pmatch", "seed-1/rlvr", "seed-1/base"):
        folder = places.results(f"{name}/final")
        folder.mkdir(parents=True)
        (folder / "done.json").write_text("{}")
    results, left_out = countdown.outcomes.evaluated_so_far(config, places)
    assert results == [("base", 0), ("rlvr", 0), ("base", 1), ("rlvr", 1)]
    assert left_out == ["pmatch", "bridge8", "bridge-mixed"]
    assert countdown.outcomes.evaluated(config, places, "final") == []  # it asks for every arm
    assert countdown.outcomes.evaluated_so_far(config, countdown.units.Places(tmp_path / "no"))[
        1
    ] == list(config["arms"])


def test_report_names_the_arms_left_out(countdown: Any, config: Any) -> None:
    values = {"table": [], "differences": [], "left_out": ["pmatch", "rlvr"]}
    sections = countdown.report.extra_sections(values, config["labels"])
    assert "not every seed has them yet: P-Match; RLVR-only." in sections["extra"]
