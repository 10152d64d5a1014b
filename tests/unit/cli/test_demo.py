"""The demo: a miniature of it from training to the report, killed and gone on with; what jobs cost.

Each test was seen to fail: jobs that are done again, a worker that outlives its parent, a cost that
leaves out a start.
"""

from __future__ import annotations

import dataclasses
import io
import os
import re
import resource
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from rich.console import Console

import interlace.models.source
import interlace.saving.manifest
from interlace.cli.demo import plan as plans
from interlace.cli.demo.children import Workers
from interlace.cli.demo.command import carry_out
from interlace.cli.demo.folder import claimed
from interlace.cli.demo.options import HELD_OUT, Settings
from interlace.cli.demo.outcome import read_outcome
from interlace.cli.demo.plan import Plan
from interlace.cli.demo.training import recipe_of
from interlace.cli.demo.usage import Start, metered, starts_of
from interlace.errors import RunError, WorkerError
from interlace.tasks import get_task
from support.demo_runs import MINIATURE, start, wait_for


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, dict[str, object]]:
    """A demo that was killed with SIGKILL after the first training, and gone on with: its folder,
    what the second start printed, and the jobs that the first start finished, with their costs."""
    folder = tmp_path_factory.mktemp("demo") / "run"
    first = start(folder)
    try:
        wait_for(lambda: finished(folder))
    finally:
        first.kill()
        first.communicate()
    before = {name: usage(folder)[name] for name in finished(folder)}
    second = start(folder)
    output, _ = second.communicate(timeout=600)
    assert second.returncode == 0, output
    return folder, output, before


def jobs(folder: Path) -> dict[str, plans.Job]:
    plan = Plan(folder, MINIATURE)
    return {f"{j.arm} {j.kind} {j.name}": j for lane in plan.lanes for j in lane}


def finished(folder: Path) -> list[str]:
    return [name for name, job in jobs(folder).items() if Plan(folder, MINIATURE).is_done(job)]


def usage(folder: Path) -> dict[str, list[Start]]:
    return {name: starts_of(Plan(folder, MINIATURE), job) for name, job in jobs(folder).items()}


def test_demo_that_was_killed_goes_on_and_does_nothing_twice(
    killed: tuple[Path, str, dict],
) -> None:
    folder, output, before = killed
    after = usage(folder)
    assert before
    assert len(after) == 8  # 3 trainings, 4 evaluations (Bridge's in two parts), 1 group
    assert all(after.values())
    for name, starts in before.items():
        # A job that had ended has one start; its last note may have been lost with the kill.
        assert len(after[name]) == len(starts) == 1, name
        assert after[name][0].process == starts[0].process
    assert output.startswith("Going on with the demo")


def test_output_in_a_pipe_is_plain_and_says_it_all(killed: tuple[Path, str, dict]) -> None:
    folder, output, _ = killed
    assert "\x1b" not in output
    assert "Bridge, eval W=2,4,16: done" in output
    assert "groups of 4 problems" in output
    assert re.search(r"pass@1 at width 8: Bridge [\d.]+ %, RLVR-only [\d.]+ %, difference", output)
    assert "One group of 8: rows see each other" in output
    assert "one training seed" in output
    assert output.rstrip().endswith(f"Report: {folder / 'report.md'}")


def test_report_holds_table_figure_group_recipe_versions_and_cost(
    killed: tuple[Path, str, dict],
) -> None:
    folder, _, _ = killed
    text = (folder / "report.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (base|RLVR-only|Bridge) \| (\d+) \|", text, re.M)
    assert rows == [(arm, str(w)) for arm in ("base", "RLVR-only", "Bridge")
                    for w in (1, 2, 4, 8, 16)]  # fmt: skip
    assert "![pass@1 and maj@W against width](figure.png)" in text
    assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert "The same weights, rows alone" in text
    assert "prompts_per_rollout: 4" in text
    assert "max_steps: 8" in text
    assert "- torch: 2" in text
    assert re.search(r"s in 2 starts; at most [\d.]+ GiB of memory", text)
    assert "experiments/01-countdown" in text


def test_shown_again_without_work(killed: tuple[Path, str, dict]) -> None:
    folder, _, _ = killed
    before = usage(folder)
    console = Console(file=io.StringIO(), width=100)
    assert carry_out(Plan(folder, MINIATURE), console) == 0
    assert usage(folder) == before


def test_full_disk_under_the_report_says_how_to_go_on(
    killed: tuple[Path, str, dict], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(killed[0], folder)
    console = Console(file=io.StringIO())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))  # stands for the disk
    try:
        with pytest.raises(RunError, match=r"File too large.*Make room.*same command again"):
            carry_out(Plan(folder, MINIATURE), console)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert carry_out(Plan(folder, MINIATURE), console) == 0
    assert "## A group from inside" in (folder / "report.md").read_text()


def test_arms_differ_in_the_blocks_alone(killed: tuple[Path, str, dict]) -> None:
    folder, _, _ = killed
    plan = Plan(folder, MINIATURE)
    bridge, rlvr = (recipe_of(plan, arm).resolved("grpo") for arm in ("bridge", "rlvr"))
    assert {key for key in bridge if bridge[key] != rlvr[key]} == {"attach", "output_dir"}
    assert bridge["grpo"]["width"] == [1, 2, 4, 8]


def test_what_is_written_twice_is_the_same() -> None:
    assert interlace.models.source.PACKAGED["tiny"] == plans.PACKAGED / "tiny"
    assert len(get_task("tiny-countdown")) == HELD_OUT


def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    parent = start(folder, Settings())  # far longer than this test
    try:
        wait_for(lambda: (folder / ".lane-1.lock").exists())
        children = worker_ids(parent.pid)
        assert len(children) == 2
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.communicate()
    wait_for(lambda: not any(is_running(child) for child in children), 20)


def test_interrupt_ends_workers_and_says_how_to_go_on(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    parent = start(folder, Settings())
    wait_for(lambda: (folder / ".lane-1.lock").exists())
    children = worker_ids(parent.pid)
    parent.send_signal(signal.SIGINT)
    output, _ = parent.communicate(timeout=60)
    assert parent.returncode == 130
    assert "the same command goes on from there" in output
    assert not any(is_running(child) for child in children)


def worker_ids(parent: int) -> list[int]:
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True,
                            check=True).stdout  # fmt: skip
    pairs = (map(int, line.split()) for line in listed.splitlines())
    return [pid for pid, above in pairs if above == parent]


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True,
                           check=False).stdout  # fmt: skip
    return bool(state.strip()) and not state.startswith("Z")


def test_failed_worker_shows_its_error_in_full_and_the_way_out(tmp_path: Path) -> None:
    plan = Plan(tmp_path / "run", MINIATURE)
    with claimed(plan):
        pass
    (plan.folder / plans.PLAN).write_text("{}")  # the workers cannot read their plan
    with (
        pytest.raises(WorkerError, match=r"(?s)ended with status 1.*Traceback.*KeyError: 'settings'"
                      r".*The same command goes on"),
        Workers(plan.folder) as workers,
    ):  # fmt: skip
        workers.wait(lambda: None)


def test_cost_of_a_start_that_is_killed_is_kept_and_added_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("interlace.cli.demo.usage.SECONDS_BETWEEN_NOTES", 0.02)
    plan = Plan(tmp_path, MINIATURE)
    job = plan.lanes[0][0]
    with metered(plan, job):
        wait_for(lambda: starts_of(plan, job)[-1].seconds > 0.05, 20)  # noted before its end
    with pytest.raises(ZeroDivisionError), metered(plan, job):
        raise ZeroDivisionError
    assert len(starts_of(plan, job)) == 2
    assert sum(one.seconds for one in starts_of(plan, job)) > 0.05


def test_training_cost_is_that_of_all_starts(
    killed: tuple[Path, str, dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = read_outcome(Plan(killed[0], MINIATURE))
    once, twice = [Start(1, 10, 1, None)], [Start(1, 10, 1, None), Start(2, 5, 2, None)]

    def said(of_warmup: list[Start]) -> str:
        usage = [(j, of_warmup if j.kind == "warmup" else once) for j, _ in outcome.usage]
        return dataclasses.replace(outcome, usage=usage).sentences()[-1]

    assert "20 processor seconds for Bridge" in said(once)
    assert "interrupted" not in said(once)
    assert "25 processor seconds for Bridge" in said(twice)
    assert "It was interrupted" in said(twice)
    assert "is not known" in said([])


def test_damaged_cost_is_not_known_and_stops_nothing(
    killed: tuple[Path, str, dict], tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(killed[0], folder)
    (path,) = (folder / plans.USAGE).glob("rlvr-grpo-*.json")
    path.write_text(path.read_text()[:20])
    console = Console(file=io.StringIO(), width=100)
    assert carry_out(Plan(folder, MINIATURE), console) == 0
    assert "What training took is not known" in (folder / "report.md").read_text()
