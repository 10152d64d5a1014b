"""experiments/01-countdown: what is run and redone."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from support.processes import ROOT

NAME = "01-countdown"


def test_every_unit_comes_after_what_it_needs(countdown: Any, config: Any) -> None:
    for queue in countdown.units.QUEUES:
        settings = countdown.units.queue_config(config, queue)
        seen: set[str] = set()
        for unit in countdown.units.plan(settings):
            assert seen.issuperset(unit.needs), unit.name
            assert unit.name not in seen
            seen.add(unit.name)


def test_a_smoke_run_has_four_steps_in_every_queue(countdown: Any) -> None:
    smoke = countdown.units.load_config(smoke=True)
    for queue in countdown.units.QUEUES:
        units = countdown.units.plan(countdown.units.queue_config(smoke, queue))
        for unit in units:
            if unit.kind == "train":
                assert unit.settings["trainer"]["max_steps"] == 4, unit.name
                assert all(step < 4 for step in unit.settings["snapshots"]), unit.name


def test_an_arm_may_have_snapshots_of_its_own(countdown: Any, config: Any) -> None:
    extra = countdown.units.queue_config(config, "extra")
    names = [unit.name for unit in countdown.units.plan(extra)]
    steps = extra["arms"]["rlvr-plateau"]["snapshots"]
    own = [f"seed-0/rlvr-plateau/{moment}" for moment in ["final", *(f"step-{s}" for s in steps)]]
    assert [name for name in names if "-0/rlvr-plateau" in name and "train" not in name] == own
    assert not [name for name in names if "/rlvr-long/step-" in name]


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


def test_size_of_an_evaluation_is_of_the_problems_held_out(countdown: Any, config: Any) -> None:
    sizes = {u.name: u.size for u in countdown.units.plan(config) if u.kind == "evaluate"}
    assert sizes["seed-0/rlvr/final"] == 395
    assert sizes["seed-0/bridge8/final"] == 395 * (16 + 8 + 4 + 2 + 1)


def test_a_unit_waits_for_the_process_that_has_it(countdown: Any, tmp_path: Path) -> None:
    import threading

    places = countdown.units.Places(tmp_path)
    unit = countdown.units.plan(countdown.units.load_config(smoke=True))[0]
    order: list[str] = []

    def second() -> None:
        with countdown.workers.only_process(places, unit):
            order.append("second")

    other = threading.Thread(target=second)
    with countdown.workers.only_process(places, unit):
        other.start()
        other.join(timeout=0.2)
        order.append("first")
    other.join(timeout=10)
    assert order == ["first", "second"]


def test_outcomes_name_the_commit_of_the_source(
    countdown: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(countdown.work, "HERE", tmp_path / "a" / "b")  # no repository
    assert countdown.work.source_commit() == "unknown"
    monkeypatch.setattr(countdown.work.torch, "set_num_threads", lambda count: None)
    monkeypatch.setattr(countdown.work, "evaluate", lambda *args: None)
    monkeypatch.setattr(countdown.work, "source_commit", lambda: "abc")
    config = countdown.units.load_config(smoke=True)
    unit = next(u for u in countdown.units.plan(config) if u.kind == "evaluate")
    places = countdown.units.Places(tmp_path)
    countdown.work.carry_out(unit, config, places)
    assert places.outcome(unit)["commit"] == "abc"
    assert not places.is_stale(unit)


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
    monkeypatch.setattr(countdown.workers, "POLL", 0.01)
    config = countdown.units.load_config(smoke=True)
    units = [unit for unit in countdown.units.plan(config) if unit.seed == 0]
    places, told = countdown.units.Places(tmp_path / "out"), []
    assert not countdown.workers.Queue(units, config, places, 2, told.append, script).run()
    done = (tmp_path / "out" / "order").read_text().split()
    expected = {u.name for u in units if "pmatch" not in u.name}
    assert set(done) == expected
    assert done.index("seed-0/warmup-bridge") < done.index("seed-0/bridge8/train")
    assert any("no luck" in line for line in told)
    countdown.workers.Queue(units, config, places, 2, told.append, script).run()
    assert (tmp_path / "out" / "order").read_text().split() == done  # nothing was done twice


def test_queue_ends_what_runs_when_its_minutes_are_over_and_goes_on_with_it(
    countdown: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "run.py"
    script.write_text("import time\ntime.sleep(600)\n")
    monkeypatch.setattr(countdown.workers, "POLL", 0.01)
    config = countdown.units.load_config(smoke=True)
    units = [unit for unit in countdown.units.plan(config) if unit.name == "seed-0/warmup-bridge"]
    places, told = countdown.units.Places(tmp_path / "out"), []
    queue = countdown.workers.Queue(units, config, places, 1, told.append, script)
    assert not queue.run(minutes=1e-4)
    assert told[-1].endswith("the 0.0001 minutes are over")
    assert queue.running[0].process.poll() is not None
    assert not queue.failed


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
