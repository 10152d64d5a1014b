"""Groups enter, run and end whole, whatever happens to one of their rows; and each of the
scheduler's rules is needed: without it, a test sees wrong numbers or an error."""

from __future__ import annotations

from typing import Any

import pytest
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import RequestStatus

from compare import largest_gap
from interlace_vllm.rows import GroupSplitError
from interlace_vllm.scheduler import GroupScheduler
from served import TOLERANCE, params, prompts, sampled, scheduler_of


class Driver:
    """vLLM's engine, step by step."""

    def __init__(self, llm: Any) -> None:
        self.engine, self.scheduler = llm.llm_engine, scheduler_of(llm)
        self.done: dict[str, Any] = {}

    def add(self, name: str, prompt: list[int], n: int, **options: Any) -> None:
        from vllm.sampling_params import RequestOutputKind

        asked = params(n, **options)
        asked.output_kind = RequestOutputKind.FINAL_ONLY
        self.engine.add_request(name, {"prompt_token_ids": prompt}, asked)

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            for output in self.engine.step():
                if output.finished:
                    self.done[output.request_id] = output

    def finish(self) -> dict[str, Any]:
        while self.engine.has_unfinished_requests():
            self.step()
        return self.done

    def fed(self) -> dict[int, set[int]]:
        """For each group whose rows are all past their prompt: their positions."""
        return {
            id(group): {row.num_computed_tokens for row in group.live.values()}
            for group in self.scheduler.groups.values()
            if all(row.num_output_tokens for row in group.live.values())
        }


@pytest.fixture
def driver(llama: tuple[Any, Any]) -> Driver:
    driver = Driver(llama[1])
    assert not driver.scheduler.groups
    return driver


def test_groups_go_in_step_and_seats_are_not_exceeded(driver: Driver) -> None:
    for number, prompt in enumerate(prompts(9, longest=90, seed=2)):
        driver.add(f"r{number}", prompt, [8, 5, 1, 3, 12, 2, 1, 16, 4][number], max_tokens=20)
    while driver.engine.has_unfinished_requests():
        driver.step()
        groups = driver.scheduler.groups.values()
        assert sum(len(g.live) for g in groups if g.entered) <= 16
        assert all(len(positions) <= 1 for positions in driver.fed().values())
    assert len(driver.done) == 9
    assert not driver.scheduler.groups


def test_an_abort_ends_its_group_alone(llama: tuple[Any, Any], driver: Driver) -> None:
    model, _ = llama
    first, second, third = prompts(3, 20, 60, seed=3)
    driver.add("goes", first, 8, max_tokens=40, stop_token_ids=[])
    driver.add("stays", second, 4)
    driver.add("waits", third, 8)
    driver.step(6)
    driver.engine.abort_request(["goes"])
    driver.add("late", first, 2)
    done = driver.finish()
    assert set(done) == {"stays", "waits", "late"}
    assert largest_gap(model, list(done.values())) < TOLERANCE
    assert not driver.scheduler.groups
    assert driver.scheduler.get_kv_cache_usage() == 0.0


def test_an_abort_of_a_group_that_waits_lets_the_next_one_in(driver: Driver) -> None:
    first, second, third = prompts(3, seed=4)
    driver.add("runs", first, 12, stop_token_ids=[])
    driver.add("waits", second, 12)
    driver.add("behind", third, 4)
    driver.step(2)
    assert len(driver.scheduler.waiting) == 16
    driver.engine.abort_request(["waits"])
    driver.step(2)
    assert not driver.scheduler.waiting
    assert set(driver.finish()) == {"runs", "behind"}


def test_a_row_that_is_ended_from_outside_is_awaited_by_nobody(driver: Driver) -> None:
    driver.add("g", prompts(1, seed=8)[0], 4, stop_token_ids=[])
    driver.step(9)
    child = next(name for name in driver.scheduler.requests if name.startswith("2_"))
    driver.scheduler.finish_requests(child, RequestStatus.FINISHED_ABORTED)
    assert len(driver.scheduler.requests) == 3
    while driver.scheduler.requests:
        driver.step()
    driver.engine.abort_request(["g"])  # the front end still waits for the row
    assert not driver.scheduler.groups


def test_pausing_lets_groups_that_have_entered_end(driver: Driver) -> None:
    """A row that has entered needs its siblings, which have entered with it."""
    first, second = prompts(2, 100, 150, seed=9)
    driver.add("in", first, 8)
    driver.step()  # 64 tokens: some of its rows are not begun
    driver.add("out", second, 2)
    driver.scheduler.set_pause_state(PauseState.PAUSED_NEW)
    for _ in range(80):
        driver.step()
    assert set(driver.done) == {"in"}
    driver.scheduler.set_pause_state(PauseState.UNPAUSED)
    assert set(driver.finish()) == {"in", "out"}


def test_frozen_groups_go_on_where_they_were(llama: tuple[Any, Any], driver: Driver) -> None:
    """As a server's /pause?mode=keep does, before weights change. Its cache cannot be emptied
    then, and an error says so."""
    model, llm = llama
    core = llm.llm_engine.engine_core.engine_core
    first, second = prompts(2, 100, 150, seed=13)
    driver.add("decodes", second[:9], 4, stop_token_ids=[])
    driver.step(3)
    driver.add("in chunks", first, 8)
    driver.step(1)
    for empty in (False, True):
        if empty:
            with pytest.raises(RuntimeError, match="Failed to reset"):
                core.pause_scheduler("keep", clear_cache=True)
        else:
            core.pause_scheduler("keep", clear_cache=False)
        before = driver.fed()
        driver.step(3)
        assert driver.fed() == before
        core.resume_scheduler()
        driver.step(2)
    assert largest_gap(model, list(driver.finish().values())) < TOLERANCE


def test_the_cache_is_emptied_while_groups_only_wait(driver: Driver) -> None:
    core = driver.engine.engine_core.engine_core
    core.pause_scheduler("abort")
    driver.add("waits", prompts(1, seed=14)[0], 3)
    driver.step(2)
    assert driver.scheduler.reset_prefix_cache(reset_running_requests=True)
    core.resume_scheduler()
    assert set(driver.finish()) == {"waits"}


def test_a_group_that_will_never_fit_ends_with_an_error(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The front end refuses it; the engine, which knows better where layers differ, must not hang
    or die if it did not."""
    monkeypatch.setattr(driver.scheduler, "_room", 3)
    driver.add("large", prompts(1, 60, 60)[0], 4)
    driver.add("small", prompts(1, 3, 3)[0], 2, max_tokens=4)
    done = driver.finish()
    assert [choice.finish_reason for choice in done["large"].outputs] == ["error"] * 4
    assert all(choice.finish_reason != "error" for choice in done["small"].outputs)


def test_the_cache_is_not_reset_under_running_groups(driver: Driver) -> None:
    driver.add("g", prompts(1)[0], 3)
    driver.step(2)
    assert not driver.scheduler.reset_prefix_cache(reset_running_requests=True)
    assert set(driver.finish()) == {"g"}
    assert driver.scheduler.reset_prefix_cache(reset_running_requests=True)


# Without a rule ----------------------------------------------------------------------------------


def test_a_group_that_comes_apart_ends_with_an_error_and_others_go_on(
    llama: tuple[Any, Any], driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows past their prompt do not wait for siblings here."""
    model, _ = llama
    monkeypatch.setattr("interlace_vllm.scheduler.Group.waiting_for_siblings", lambda group: [])
    driver.add("long", prompts(1, 120, 120)[0], 8, stop_token_ids=[])
    driver.add("short", prompts(1, 3, 3)[0], 2)
    done = driver.finish()
    assert {choice.finish_reason for choice in done["long"].outputs} == {"error"}
    assert largest_gap(model, [done["short"]]) < TOLERANCE
    assert not driver.scheduler.groups
    assert driver.scheduler.get_kv_cache_usage() == 0.0


def test_vllms_own_scheduler_is_caught_by_the_runner(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GroupScheduler, "schedule", Scheduler.schedule)
    driver.add("g", prompts(1, 120, 120)[0], 8)
    with pytest.raises(GroupSplitError, match="Another scheduler"):
        driver.finish()
    driver.engine.abort_request(["g"])
    monkeypatch.undo()
    driver.finish()


def test_answers_in_the_prefix_cache_are_caught(
    llama: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, llm = llama
    coordinator = scheduler_of(llm).kv_cache_manager.coordinator
    monkeypatch.setattr(coordinator, "cache_blocks", coordinator.cache_blocks.args[0])
    output = sampled(llm, prompts(1, 40, 40, seed=11), [8], max_tokens=90, stop_token_ids=[])[0]
    answer = list(output.prompt_token_ids) + list(output.outputs[3].token_ids)
    later = sampled(llm, [answer], [2])
    assert largest_gap(model, later) > 0.01


def test_rows_that_the_blocks_do_not_hear_of_are_caught(
    llama: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the width of vLLM's warm-up were baked in."""
    model, llm = llama
    monkeypatch.setattr("interlace_vllm.rows.StepRows.set", lambda *_: None)
    assert largest_gap(model, sampled(llm, prompts(1), [8])) > 0.1


def test_rows_that_run_on_after_their_end_are_caught(llama: tuple[Any, Any]) -> None:
    """As a stop string would have it, which the front end finds some steps later."""
    model, llm = llama
    output = sampled(llm, prompts(1, seed=12), [8], stop_token_ids=[])[0]
    for row, choice in enumerate(output.outputs):
        end = 3 + row
        choice.token_ids, choice.logprobs = choice.token_ids[:end], choice.logprobs[:end]
    assert largest_gap(model, [output]) > 0.01
