"""experiments/07-blocks-last: what is run, from what, and in which order."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from support.experiments import modules_of

NAMES = ("orders", "orders_report", "units")


@pytest.fixture(scope="module")
def blocks_last() -> Iterator[Any]:
    before = list(sys.path)  # the scripts add 01-countdown's folder
    try:
        with modules_of("07-blocks-last", *NAMES) as modules:
            yield SimpleNamespace(**dict(zip(NAMES, modules, strict=True)))
    finally:
        sys.path[:] = before


def units_of(blocks_last: Any, queue: str, smoke: bool = False) -> dict[str, Any]:
    config = blocks_last.orders.load_config(smoke, queue)
    units = blocks_last.orders.plan(config)
    assert len({unit.name for unit in units}) == len(units)
    return {unit.name: unit for unit in units}


@pytest.mark.parametrize("smoke", [False, True])
@pytest.mark.parametrize("queue", ["main", "ending"])
def test_every_unit_comes_after_what_it_needs_and_has_a_label(
    blocks_last: Any, queue: str, smoke: bool
) -> None:
    config = blocks_last.orders.load_config(smoke, queue)
    seen: set[str] = set()
    for name, unit in units_of(blocks_last, queue, smoke).items():
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


def test_ending_rows_read_finished_siblings_in_one_arm_only(blocks_last: Any) -> None:
    units = units_of(blocks_last, "ending")
    finished, position = (
        units[f"seed-1/{arm}-base/train"].settings for arm in ("finished", "position")
    )
    assert finished["blocks"] == position["blocks"] | {"reads": "finished"}
    assert {**finished, "blocks": None} == {**position, "blocks": None}


def test_the_tables_are_those_of_the_results(blocks_last: Any) -> None:
    report, orders = blocks_last.orders_report, blocks_last.orders
    home = (orders.HERE / "README.md").read_text(encoding="utf-8")
    for queue, folder in (("main", orders.HERE), ("ending", orders.HERE / "ending")):
        if not (folder / "results.json").exists():
            continue
        values = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        labels = orders.load_config(queue=queue)["labels"]
        for name, table in report.sections_of(values, labels).items():
            assert table in home, (queue, name)
