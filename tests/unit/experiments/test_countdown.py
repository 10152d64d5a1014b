"""experiments/01-countdown: what is run and redone, how finds are counted, what is reported."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from support.experiments import ROOT, modules_of

NAME = "01-countdown"
NAMES = ("units", "workers", "work", "outcomes", "finds", "picking", "tables", "report", "run")


@pytest.fixture(scope="module")
def countdown() -> Iterator[Any]:
    with modules_of(NAME, *NAMES) as modules:
        yield SimpleNamespace(**dict(zip(NAMES, modules, strict=True)))


@pytest.fixture(scope="module")
def config(countdown: Any) -> Any:
    return countdown.units.load_config()


def test_every_unit_comes_after_what_it_needs(countdown: Any, config: Any) -> None:
    for queue in countdown.units.QUEUES:
        settings = countdown.units.queue_config(config, queue)
        seen: set[str] = set()
        for unit in countdown.units.plan(settings):
            assert seen.issuperset(unit.needs), unit.name
            assert unit.name not in seen
            seen.add(unit.name)


def test_bridge_arms_share_a_warm_up_and_rlvr_only_has_none(countdown: Any, config: Any) -> None:
    units = {unit.name: unit for unit in countdown.units.plan(config)}
    for seed in config["seeds"]:
        shared = (f"seed-{seed}/warmup-bridge",)
        assert units[f"seed-{seed}/bridge8/train"].needs == shared
        assert units[f"seed-{seed}/bridge-mixed/train"].needs == shared
        assert units[f"seed-{seed}/pmatch/train"].needs == (f"seed-{seed}/warmup-pmatch",)
        assert units[f"seed-{seed}/rlvr/train"].needs == ()
        assert units[f"seed-{seed}/base/final"].needs == ()


def test_seeds_take_the_bases_in_turn(countdown: Any, config: Any) -> None:
    bases = {unit.seed: unit.settings["base"] for unit in countdown.units.plan(config)}
    first, second = (base["name"] for base in config["bases"])
    assert bases == {0: first, 1: second, 2: first, 3: second, 4: first}


def test_arms_differ_in_what_they_name_only(countdown: Any, config: Any) -> None:
    units = {unit.name: unit for unit in countdown.units.plan(config)}
    fixed, mixed, rlvr = (
        units[f"seed-0/{arm}/train"].settings["trainer"]
        for arm in ("bridge8", "bridge-mixed", "rlvr")
    )
    assert fixed == rlvr
    assert mixed == fixed | {"width": [1, 2, 4, 8]}


def test_equal_tokens_at_every_width(countdown: Any, config: Any) -> None:
    samples = config["evaluation"]["samples"]
    assert all(samples % width == 0 for width in config["evaluation"]["widths"])


def test_only_leaves_the_arms_and_seeds_named_with_what_they_need(
    countdown: Any, config: Any
) -> None:
    units = countdown.units.plan(config)
    chosen = countdown.run.only(["arm=bridge8,arm=rlvr", "seed=3"], units)
    assert {(unit.arm, unit.seed) for unit in chosen} == {("bridge8", 3), ("rlvr", 3)}
    names = [unit.name for unit in countdown.units.with_needs(chosen, units)]
    assert names[0] == "seed-3/warmup-bridge"
    assert len(names) == len(chosen) + 1
    with pytest.raises(SystemExit, match="bridge-mixed"):
        countdown.run.only(["arm=bridge9"], units)


def test_a_changed_setting_makes_what_depends_on_it_stale(countdown: Any, tmp_path: Path) -> None:
    places = countdown.units.Places(tmp_path)
    for unit in countdown.units.plan(countdown.units.load_config(smoke=True)):
        folder = places.results(unit.name)
        folder.mkdir(parents=True)
        (folder / "done.json").write_text(json.dumps({"settings": unit.settings}))
    same = countdown.units.plan(countdown.units.load_config(smoke=True))
    assert not any(map(places.is_stale, same))
    other = countdown.units.load_config(smoke=True, overrides=["warmup.learning_rate=1e-4"])
    changed = countdown.units.plan(other)
    stale = {unit.arm for unit in changed if places.is_stale(unit)}
    assert stale == {"bridge", "pmatch", "bridge8", "bridge-mixed"}
    with pytest.raises(SystemExit, match="other settings"):
        countdown.run.refuse_stale(places, changed, redo=False)
    countdown.run.refuse_stale(places, changed, redo=True)
    assert not any(map(places.is_stale, changed))
    assert places.outcome(next(unit for unit in changed if unit.arm == "rlvr"))


def test_queue_does_what_is_left_in_order_and_leaves_out_what_depends_on_a_failure(
    countdown: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Real processes, of a script that stands in for run.py: fails for P-Match's warm-up.
    script = tmp_path / "run.py"
    script.write_text(
        "import json, pathlib, sys\n"
        "job = json.loads(pathlib.Path(sys.argv[2]).read_text())\n"
        "unit, out = job['unit'], pathlib.Path(job['out'])\n"
        "if unit['name'].endswith('warmup-pmatch'): sys.exit('no luck')\n"
        "folder = out / 'results' / unit['name']; folder.mkdir(parents=True)\n"
        "(out / 'order').open('a').write(unit['name'] + chr(10))\n"
        "outcome = {'settings': unit['settings'], 'resumed': False, 'seconds': 1}\n"
        "(folder / 'done.json').write_text(json.dumps(outcome))\n"
    )
    monkeypatch.setattr(countdown.workers, "__file__", str(tmp_path / "workers.py"))
    monkeypatch.setattr(countdown.workers, "POLL", 0.01)
    config = countdown.units.load_config(smoke=True)
    units = [unit for unit in countdown.units.plan(config) if unit.seed == 0]
    places, told = countdown.units.Places(tmp_path / "out"), []
    assert not countdown.workers.Queue(units, config, places, 2, told.append).run()
    done = (tmp_path / "out" / "order").read_text().split()
    expected = {u.name for u in units if "pmatch" not in u.name}
    assert set(done) == expected
    assert done.index("seed-0/warmup-bridge") < done.index("seed-0/bridge8/train")
    assert any("no luck" in line for line in told)
    countdown.workers.Queue(units, config, places, 2, told.append).run()
    assert (tmp_path / "out" / "order").read_text().split() == done  # nothing was done twice


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
    says, silent = (True, True), (False, False)
    groups = [[says, silent, (True, False)], [silent, (False, True)]]
    assert (
        countdown.picking.picked(groups) == 0.5
    )  # one of two that say yes; one of two that do not
    assert countdown.picking.yes_right(groups) == 0.5
    assert countdown.picking.picked([[says, silent, silent]]) == 1.0


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
    if not (folder / "results.json").exists():
        pytest.skip("not run yet")
    values = json.loads((folder / "results.json").read_text())
    sections = getattr(countdown.report, f"{kind}_sections")
    labels = countdown.units.queue_config(config, kind)["labels"]
    readme = (ROOT / NAME / "README.md").read_text()
    copy = tmp_path / "README.md"
    copy.write_text(readme)
    assert countdown.tables.fill(copy, sections(values, labels)).read_text() == readme
    if kind == "main":
        copy.write_text(front := (ROOT.parent / "README.md").read_text())
        sections = countdown.report.front_sections(values, labels)
        assert countdown.tables.fill(copy, sections).read_text() == front


@pytest.mark.slow
def test_smoke_run_from_the_command_line(tmp_path: Path) -> None:
    import subprocess

    command = [sys.executable, str(ROOT / NAME / "run.py"), "--smoke", "--out", str(tmp_path)]
    command += ["--set", "bases=[{name: tiny, source: tiny}]", "--set", "seeds=[0]"]
    subprocess.run(command, check=True, timeout=900)
    values = json.loads((tmp_path / "results.json").read_text())
    assert set(values["budgets"]) == {"final", "step-2"}
    assert (tmp_path / "figures" / "accuracy.png").stat().st_size > 0
    records = list(tmp_path.glob("results/seed-0/*/final/records.jsonl.xz"))
    assert len(records) == 5
    assert not list(tmp_path.glob("work/**/checkpoint-*"))
