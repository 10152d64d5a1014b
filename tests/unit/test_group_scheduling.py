"""The simulation of the plug-in's scheduler goes by its rules: cases that were worked by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from support import processes

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "group_scheduling.py"


@pytest.fixture
def script() -> Iterator[ModuleType]:
    with processes.script(SCRIPT) as module:
        yield module


@pytest.fixture
def start(script: ModuleType) -> Callable[..., Any]:
    """A simulation of groups by their lengths; prompts of 1 token, a KV block a row."""

    def begin(
        *groups: list[int], seats: int, prompt: int = 1, agrees: str = "", **rules: Any
    ) -> Any:
        workload = script.Workload(lambda rng, prompts: np.ones((prompts, 32)), 15, prompt)
        width = len(groups[0])
        votes = [mark == "x" for mark in agrees.ljust(width)]
        queue = iter([script.Group(group, [prompt] * width, votes) for group in groups])
        return script.Simulation(script.Rules(width, seats, **rules), workload, queue)

    return begin


def tokens(run: Any, steps: int) -> list[int]:
    """How many tokens each of the next steps gives."""
    given = []
    for _ in range(steps):
        before = run.counts["tokens"]
        run.step()
        given.append(run.counts["tokens"] - before)
    return given


def test_a_group_waits_for_all_its_seats(start: Callable[..., Any]) -> None:
    run = start([2, 4], [1, 3], seats=3)
    # The second enters in step 3: one seat is free at first, two once a row of two tokens ended.
    assert tokens(run, 6) == [2, 2, 3, 2, 1, 0]
    assert run.counts["empty"] == 1 + 1 + 0 + 1 + 2 + 3
    assert run.times == [4, 3]


def test_a_group_waits_for_its_blocks_up_to_max_tokens(start: Callable[..., Any]) -> None:
    assert tokens(start([2], [2], [2], [2], seats=4), 3) == [4, 4, 0]
    assert tokens(start([2], [2], [2], [2], seats=4, memory=0.5), 5) == [2, 2, 2, 2, 0]


def test_the_head_holds_up_those_behind_it(start: Callable[..., Any], script: ModuleType) -> None:
    run = start([3], seats=3)
    rows = [script.Group([length] * width, [1] * width, [False] * width) for length, width in
            ((1, 3), (1, 1))]  # fmt: skip
    run.queue, run.head = iter([*rows]), run.head
    assert tokens(run, 6) == [1, 1, 1, 3, 1, 0]  # the single row would have fitted at once


def test_rows_are_held_until_their_siblings_are_past_the_prompt(start: Callable[..., Any]) -> None:
    run = start([3, 2], seats=2, prompt=4, budget=4)
    assert tokens(run, 4) == [1, 1, 2, 1]
    assert run.counts["held"] == 1


def test_rows_past_their_prompt_come_before_prompts(start: Callable[..., Any]) -> None:
    run = start([4], [1], seats=2, prompt=3, budget=3)
    # Step 1 has room for the first prompt, steps 2 and 3 for two tokens of the second.
    assert tokens(run, 4) == [1, 1, 2, 1]


def test_a_cap_cuts_who_is_over_the_p95(start: Callable[..., Any]) -> None:
    run = start([1, 2, 9], seats=3, cap="cut")
    assert tokens(run, 3) == [3, 2, 0]
    assert (run.counts["cut"], run.counts["unwritten"], run.times) == (1, 7, [2])


def test_who_goes_on_alone_keeps_its_seat(start: Callable[..., Any]) -> None:
    run = start([1, 2, 9], seats=3, cap="alone")
    assert tokens(run, 10) == [3, 2, 1, 1, 1, 1, 1, 1, 1, 0]
    assert (run.counts["cut"], run.counts["solo"], run.times) == (0, 7, [2])


@pytest.mark.parametrize(
    ("agrees", "given"), [("xx ", [3, 2, 0]), ("x x", [3, 2, 1, 1, 0]), ("x  ", [3, 2, 1, 1, 0])]
)
def test_a_majority_with_one_answer_ends_the_group(
    start: Callable[..., Any], agrees: str, given: list[int]
) -> None:
    run = start([1, 2, 4], seats=3, agrees=agrees, consensus=True)
    assert tokens(run, len(given)) == given


def test_a_half_is_no_majority(start: Callable[..., Any]) -> None:
    run = start([1, 2, 3, 5], seats=4, agrees="xx", consensus=True)
    assert tokens(run, 6) == [4, 3, 2, 1, 1, 0]


def test_a_majority_ends_rows_whose_prompts_are_not_computed(start: Callable[..., Any]) -> None:
    run = start([1, 1, 4], [2, 2, 2], seats=3, prompt=4, budget=8, agrees="xx", consensus=True)
    assert tokens(run, 4) == [2, 2, 1, 3]
    assert run.counts["unwritten"] == 4
    assert not run.prefilling


def test_all_widths_have_the_same_rows(script: ModuleType) -> None:
    workload = script.workloads()["model: Pareto"]

    def rows(width: int) -> list[tuple[int, int, bool]]:
        groups = script.requests(workload, width, 0.6, seed=3)
        return [
            row
            for _ in range(64 // width)
            for group in [next(groups)]
            for row in zip(group.lengths, group.prompts, group.agrees, strict=True)
        ]

    assert rows(1) == rows(4) == rows(32)
    assert [prompt for _, prompt, _ in rows(8)] == 2 * [200, *[8] * 31]


def test_lengths_are_those_it_names(script: ModuleType) -> None:
    named, rng = script.workloads(), np.random.default_rng(1)
    lengths = {name: workload.draw(rng, 2000) for name, workload in named.items()}
    for name, workload in named.items():
        assert lengths[name].shape == (2000, 32)
        assert 1 <= lengths[name].min() <= lengths[name].max() == workload.max_tokens
    assert np.median(lengths["model: log-normal"]) == pytest.approx(500, rel=0.05)
    # Of a Pareto, 2 ** (1 / alpha) times the least is the median.
    assert np.median(lengths["model: Pareto"]) == pytest.approx(200 * 2 ** (1 / 1.3), rel=0.05)


def test_on_paper_the_paper_s_share_of_new_parameters(script: ModuleType) -> None:
    table = {(e["shape"], e["ranks"]): e for e in script.on_paper()}
    shares = [table[name, 1]["bridge_gb"] / table[name, 1]["base_gb"] for name in ("1.5B", "8B")]
    assert shares == pytest.approx([0.0511, 0.0345], abs=5e-4)
    # Every rank computes the blocks: their bytes do not shrink.
    assert table["70B", 8]["bridge_gb"] == table["70B", 1]["bridge_gb"]
