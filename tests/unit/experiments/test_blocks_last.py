"""experiments/04 to 09, orders of training: what is run, from what, and in which order."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

import interlace
from interlace.evaluation.provenance import describe_model
from interlace.evaluation.records import GroupRecord
from interlace.tasks import get_task
from interlace.tasks.drawn import Draw
from support.processes import ROOT, modules_of

NAMES = ("orders", "orders_report", "units", "work", "finds", "showing", "orders_figure")
# Experiment and queue.
QUEUES = [
    ("07-blocks-last", "main"),
    ("07-blocks-last", "ending"),
    ("06-width-one", "main"),
    ("05-long-run", "main"),
    ("09-claims", "main"),
    ("08-smollm2", "main"),
    ("08-smollm2", "subtracting"),
    ("08-smollm2", "gpu"),
    ("08-smollm2", "gsm8k"),
    ("04-couplings", "main"),
]


@pytest.fixture(scope="module")
def blocks_last() -> Iterator[Any]:
    before = list(sys.path)  # the scripts add 01-countdown's folder
    try:
        with modules_of("07-blocks-last", *NAMES) as modules:
            yield SimpleNamespace(**dict(zip(NAMES, modules, strict=True)))
    finally:
        sys.path[:] = before


def units_of(
    blocks_last: Any, queue: str, smoke: bool = False, experiment: str = "07-blocks-last"
) -> dict[str, Any]:
    config = blocks_last.orders.load_config(smoke, queue, ROOT / experiment)
    units = blocks_last.orders.plan(config)
    assert len({unit.name for unit in units}) == len(units)
    return {unit.name: unit for unit in units}


@pytest.mark.parametrize("smoke", [False, True])
@pytest.mark.parametrize(("experiment", "queue"), QUEUES)
def test_every_unit_comes_after_what_it_needs_and_has_a_label(
    blocks_last: Any, experiment: str, queue: str, smoke: bool
) -> None:
    config = blocks_last.orders.load_config(smoke, queue, ROOT / experiment)
    compared = {arm.partition("@")[0] for pair in config["compare"] for arm in pair}
    assert compared <= set(config["labels"])
    seen: set[str] = set()
    for name, unit in units_of(blocks_last, queue, smoke, experiment).items():
        assert seen.issuperset(unit.needs), name
        assert unit.arm in config["labels"]
        if smoke and unit.kind == "train":
            assert unit.settings["trainer"]["max_steps"] == 4
        seen.add(name)


def test_rlvr_only_is_that_of_the_first_experiment(blocks_last: Any) -> None:
    first = {u.name: u for u in blocks_last.units.plan(blocks_last.units.load_config())}
    own = units_of(blocks_last, "main")
    for seed in range(5):
        name = f"seed-{seed}/rlvr-120/train"
        theirs = first[f"seed-{seed}/rlvr/train"].settings
        for key in ("base", "base_weights", "task", "attach", "trainer"):
            assert own[name].settings[key] == theirs[key], key


def test_controls_differ_from_the_spliced_arm_in_what_they_name_only(blocks_last: Any) -> None:
    units = units_of(blocks_last, "main")
    spliced, plain, sft = (units[f"seed-3/{arm}-120/train"] for arm in ("spliced", "plain", "sft"))
    rlvr = "seed-3/rlvr-120/train"
    assert (spliced.needs, plain.needs) == ((rlvr,), (rlvr,))
    assert sft.needs == (rlvr, spliced.name)  # the very same texts
    assert spliced.settings["trainer"] == plain.settings["trainer"] | {"splice": 0.8}
    changed = {"train": "all", "learning_rate": 3e-4}
    assert sft.settings["trainer"] == plain.settings["trainer"] | changed
    assert (sft.settings["attach"], sft.settings["blocks"]) == (None, None)


def test_arms_of_width_one_differ_from_the_first_experiment_in_what_they_name(
    blocks_last: Any,
) -> None:
    first = {u.name: u for u in blocks_last.units.plan(blocks_last.units.load_config())}
    own = units_of(blocks_last, "main", experiment="06-width-one")
    theirs = first["seed-2/bridge-mixed/train"].settings
    changes = {
        "ones-120": {"width": [1, 1, 1, 2, 4, 8]},
        "dropout-120": {"sibling_dropout": 0.5},
        "mixed-180": {"max_steps": 720},
    }
    for arm, changed in changes.items():
        unit = own[f"seed-2/{arm}/train"]
        assert unit.settings["trainer"] == theirs["trainer"] | changed
        for key in ("base", "base_weights", "task", "attach"):
            assert unit.settings[key] == theirs[key], key
        assert unit.needs == ("seed-2/plain-base/train",)
    warmup = own["seed-2/plain-base/train"].settings
    same = ("attach", "base", "blocks", "task")
    assert {k: warmup[k] for k in same} == {k: theirs["warmup"][k] for k in same}
    changed = {"save_steps": 50}  # when a killed run goes on from; no result
    assert warmup["trainer"] == theirs["warmup"]["trainer"] | changed


def test_arms_of_the_long_run_share_all_but_what_they_name(blocks_last: Any) -> None:
    units = units_of(blocks_last, "main", experiment="05-long-run")
    rlvr, mixed = (units[f"seed-1/{arm}-1080/train"].settings for arm in ("rlvr", "mixed"))
    assert mixed["trainer"] == rlvr["trainer"] | {"width": [1, 2, 4, 8]}
    assert mixed["snapshots"] == rlvr["snapshots"] == [240, 480, 1440, 2880]  # four a rollout
    assert rlvr["task"] == {"name": "tiny-countdown", "max_number": 25}
    for rollouts in (60, 120, 360, 720, 1080):
        blocks = units[f"seed-1/spliced-{rollouts}/train"].settings
        step = "final" if rollouts == 1080 else f"step-{4 * rollouts}"
        assert (blocks["moment"], blocks["from"]) == (step, rlvr)
        assert blocks["trainer"]["splice"] == 0.8


def test_arms_on_the_language_model_share_budget_and_start(blocks_last: Any) -> None:
    units = units_of(blocks_last, "main", experiment="08-smollm2")
    names = ("spliced", "plain", "sft-texts")
    spliced, plain, texts = (units[f"seed-2/{arm}/train"] for arm in names)
    sft = "seed-2/sft/train"
    assert (spliced.needs, plain.needs, texts.needs) == ((sft,), (sft,), (sft, spliced.name))
    assert spliced.settings["trainer"] == plain.settings["trainer"] | {"splice": 0.8}
    changed = {"train": "all", "learning_rate": 1e-4}
    assert texts.settings["trainer"] == plain.settings["trainer"] | changed
    assert "traces" not in spliced.settings
    rlvr, mixed = (units[f"seed-2/{arm}/train"].settings for arm in ("rlvr", "mixed"))
    assert mixed["trainer"] == rlvr["trainer"] | {"width": [1, 2, 4, 8]}


def test_the_first_model_learns_other_traces_of_the_same_problems_for_every_seed(
    blocks_last: Any, tmp_path: Path
) -> None:
    units = units_of(blocks_last, "main", smoke=True, experiment="08-smollm2")
    unit = units["seed-0/sft/train"]
    task = blocks_last.work.task_of(unit, "train")
    lines = {
        seed: [
            json.loads(line)
            for line in blocks_last.work.write_traces(
                replace(unit, seed=seed), task, tmp_path / "traces.jsonl"
            )
            .read_text(encoding="utf-8")
            .splitlines()
        ]
        for seed in (0, 1)
    }
    problems = unit.settings["trainer"]["problems"]
    for own in lines.values():
        assert [line["prompt"] for line in own] == list(map(task.prompt, task[:problems]))
        assert {len(line["responses"]) for line in own} == {unit.settings["traces"]}
        assert len(set(own[3]["responses"])) > 1
    assert lines[0][3]["responses"] != lines[1][3]["responses"]


def test_a_try_of_a_pair_sum_is_found_and_counted_after_a_siblings(blocks_last: Any) -> None:
    task = get_task("pair-sum", size=1)
    hit = task.reference_text(task[0])[:9]
    miss = next(
        text[:9]
        for number in range(20)
        if ";" in (text := task.trace(task[0], Draw("miss", number)))[:9]
    )
    record = GroupRecord(
        task=task.name,
        example_id=task[0].id,
        width=3,
        group=0,
        seed=0,
        coupled=True,
        answers=(None,) * 3,
        correct=(True, True, False),
        scores=(1.0, 1.0, 0.0),
        tokens=(28,) * 3,
        texts=(hit * 3, miss + hit * 2, miss * 3),
    )
    counted = blocks_last.finds.count([blocks_last.finds.judged_tries(task, record)])
    assert counted["found, any: at risk"] == 3  # the second row's try 2, the third's 2 and 3
    assert counted["found, any: hits"] == counted["found, any: the same"] == 1
    assert counted["not found, any: at risk"] == 0


def test_couplings_differ_in_kind_and_order_only(blocks_last: Any) -> None:
    units = units_of(blocks_last, "main", experiment="04-couplings")
    rlvr = units["seed-1/rlvr-60/train"]
    assert rlvr.settings["trainer"]["max_steps"] == 240
    bridge = units["seed-1/bridge-last/train"].settings
    kinds = ("finished", "history", "gated", "gated-history", "lanerope")
    for name in (*kinds, "lanerope-zero", "mix"):
        last, joint = units[f"seed-1/{name}-last/train"], units[f"seed-1/{name}-joint/train"]
        assert last.needs == (rlvr.name,), name
        assert joint.settings["trainer"] == rlvr.settings["trainer"], name
        if name in kinds:
            warm = units[f"seed-1/{name}-warm/train"]
            assert (joint.needs, warm.needs) == ((warm.name,), ())
            assert last.settings["trainer"] == bridge["trainer"], name
            assert warm.settings["trainer"] | {"splice": 0.8} == bridge["trainer"], name
        else:  # nothing to warm up
            assert (last.kind, joint.needs) == ("attach", ())
        assert joint.settings["blocks"] == last.settings["blocks"]
        assert units[f"seed-1/{name}-last/final"].coupled, name
    assert not units["seed-1/parscale-last/final"].coupled
    assert units["seed-1/sft-last/train"].needs == (rlvr.name, "seed-1/bridge-last/train")


def test_ending_rows_read_finished_siblings_in_one_arm_only(blocks_last: Any) -> None:
    units = units_of(blocks_last, "ending")
    finished, position = (
        units[f"seed-1/{arm}-base/train"].settings for arm in ("finished", "position")
    )
    assert finished["blocks"] == position["blocks"] | {"reads": "finished"}
    assert {**finished, "blocks": None} == {**position, "blocks": None}


def test_a_row_shows_reading_where_it_takes_a_find_over(blocks_last: Any) -> None:
    hit, other, miss = ("3*4=12", True), ("4*3=12", True), ("3+4=7", False)
    shown = blocks_last.showing.showing([[[hit], [miss, hit], [miss, other]], [[hit], [hit]]])
    assert shown == {
        "groups": 2,
        "same_first_try": 1,
        "rows": 5,
        "rows_that_show": 1,
        "share": 0.2,
    }


@pytest.mark.parametrize(
    ("experiment", "alone", "blocks", "texts", "seeds"),
    [
        ("07-blocks-last", "rlvr-120", "spliced-120", "sft-120", 5),
        ("07-blocks-last", "rlvr-2160@step-4320", "spliced-1080", "sft-1080", 5),
        ("05-long-run", "rlvr-1080", "spliced-1080", "sft-1080", 4),
        ("08-smollm2", "sft", "spliced", "sft-texts", 3),
        ("08-smollm2/subtracting", "rlvr", "spliced-rlvr", "texts-rlvr", 3),
    ],
)
def test_the_front_page_has_the_results(
    experiment: str, alone: str, blocks: str, texts: str, seeds: int
) -> None:
    values = json.loads((ROOT / experiment / "results.json").read_text(encoding="utf-8"))
    page = (ROOT.parent / "README.md").read_text(encoding="utf-8")

    def over(entry: dict[str, Any]) -> dict[str, float]:
        found: dict[str, float] = entry[
            "over_seeds" if len(entry["by_seed"]) > 1 else "over_problems"
        ]
        return found

    def share(arm: str, width: int) -> str:
        found = {(e["metric"], e["width"]): e for e in values["arms"][arm]}["pass@1", width]
        assert len(found["by_seed"]) == seeds
        return f"{100 * over(found)['value']:.1f}"

    def gain(arm: str) -> str:
        for e in values["differences"]:
            if (e["arm"], e["against"], e["metric"], e["width"]) == (arm, alone, "pass@1", 8):
                value, low, high = (100 * over(e)[key] for key in ("value", "low", "high"))
                return f"{value:+.1f} [{low:.1f}, {high:.1f}]"
        raise AssertionError(f"no difference of {arm} and {alone}")

    cells = [share(alone, 8), share(blocks, 1), share(blocks, 8), gain(blocks), gain(texts)]
    assert f" | {' | '.join(cells)} |" in page


@pytest.mark.parametrize("name", ["tiny-rlvr", "tiny-bridge"])
def test_packaged_models_are_those_that_were_evaluated(name: str) -> None:
    arm = {"tiny-rlvr": "rlvr-120", "tiny-bridge": "spliced-120"}[name]
    config = ROOT / "07-blocks-last" / "results" / "seed-0" / arm / "final" / "config.json"
    evaluated = json.loads(config.read_text(encoding="utf-8"))["settings"]["model"]
    assert describe_model(interlace.load(name)[0])["weights"] == evaluated["weights"]


@pytest.mark.parametrize(("experiment", "queue"), QUEUES)
def test_the_tables_are_those_of_the_results(blocks_last: Any, experiment: str, queue: str) -> None:
    home = ROOT / experiment
    results = (home if queue == "main" else home / queue) / "results.json"
    if not results.exists():
        pytest.skip("not yet run")
    values = json.loads(results.read_text(encoding="utf-8"))
    labels = blocks_last.orders.load_config(queue=queue, home=home)["labels"]
    page = (home / "README.md").read_text(encoding="utf-8")
    for name, table in blocks_last.orders_report.sections_of(values, labels).items():
        assert table in page, name


@pytest.mark.parametrize(("experiment", "queue"), QUEUES)
def test_the_picture_is_that_of_the_results(
    blocks_last: Any, experiment: str, queue: str, tmp_path: Path
) -> None:
    home = ROOT / experiment
    config = blocks_last.orders.load_config(queue=queue, home=home)
    folder = home if queue == "main" else home / queue
    if not config.get("curves") or not (folder / "results.json").exists():
        pytest.skip("no picture")
    alone, *others = config["curves"].values()
    held = {tuple(pair) for pair in blocks_last.orders_report.pairs(config)}
    assert held >= {(arm, alone[rollouts]) for arms in others for rollouts, arm in arms.items()}
    values = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    drawn = blocks_last.orders_figure.draw(values, config["curves"], tmp_path)
    for path in drawn:
        assert description(path) == description(folder / "figures" / path.name)
    page = (home / "README.md").read_text(encoding="utf-8")
    assert f"({(folder / 'figures' / 'rollouts.png').relative_to(home).as_posix()})" in page
    gains = {
        (e["arm"], e["against"]): 100 * e["over_problems"]["value"]
        for e in values["differences"]
        if (e["metric"], e["width"]) == ("pass@1", 8)
    }
    for arms in others:
        for rollouts, arm in arms.items():
            if (arm, alone[rollouts]) in gains:
                shown = f"{gains[arm, alone[rollouts]]:.1f} after {rollouts:,}"
                assert shown in description(drawn[0]).partition(" | ")[2]


def test_a_picture_of_the_first_arms_shows_what_there_is(blocks_last: Any, tmp_path: Path) -> None:
    home = ROOT / "07-blocks-last"
    curves = blocks_last.orders.load_config(home=home)["curves"]
    values = json.loads((home / "results.json").read_text(encoding="utf-8"))
    first = {"rlvr-120": values["arms"]["rlvr-120"]}
    begun = {"arms": first, "differences": [], "widths": {}}
    assert description(blocks_last.orders_figure.draw(begun, curves, tmp_path)[0]) == (
        "RLVR-only: 43.6 after 120 | "
    )


def test_the_front_page_has_the_picture_of_the_results(blocks_last: Any, tmp_path: Path) -> None:
    for path in blocks_last.orders_figure.draw_front_page(tmp_path):
        assert description(path) == description(ROOT.parent / "docs" / "assets" / path.name)


def description(path: Path) -> str:
    """What a picture holds, in words."""
    if path.suffix == ".png":
        with Image.open(path) as image:
            return str(image.info["Description"])
    found = re.search("<dc:description>(.*?)</dc:description>", path.read_text("utf-8"), re.DOTALL)
    assert found is not None
    return found[1]


def test_tries_are_counted_up_to_a_rows_first_hit(blocks_last: Any) -> None:
    before = list(sys.path)
    try:
        with modules_of("08-smollm2", "tries") as (tries,):
            example = get_task("pair-sum", size=1)[0]  # 15 11 20 29 16 23 > 35
            texts = [
                "11+16=27;20+15=35!20+15=35!",
                "11+16=35!11+16=35!",  # claimed twice, and false
                "11+12=23;35-11=24;",  # not two of the numbers
            ]
            found = tries.counts(example, texts)
            home = ROOT / "08-smollm2"
            labels = blocks_last.orders.load_config(home=home)["labels"]
            page = (home / "README.md").read_text(encoding="utf-8")
            for folder in (home, home / "subtracting"):
                lines = json.loads((folder / "tries.json").read_text(encoding="utf-8"))
                assert tries.table(lines, labels) in page
    finally:
        sys.path[:] = before
    assert found == {
        "tries": 6,
        "hits": 1,
        "subtract": 1,
        "of_the_numbers": 4,
        "sums": 4,
        "claims": 3,
        "false_claims": 2,
    }
