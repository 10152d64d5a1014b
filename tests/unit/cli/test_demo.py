"""The demo: a miniature of it from training to the report, killed and gone on with.

Each test was seen to fail: jobs that are done again, a child that outlives its parent, a json.py of
the current folder that children import.
"""

from __future__ import annotations

import io
import os
import re
import resource
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from interlace.cli.demo import carry_out, claimed, run_lanes, work
from interlace.cli.demo.work import PLAN, Settings, lanes
from interlace.errors import RunError, WorkerError
from interlace.tasks import get_task
from support.processes import MINIATURE, started_demo, wait_for


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, dict[str, int]]:
    """A demo that was killed with SIGKILL after the first job, and gone on with: its folder, what
    the second start printed, and the files of the jobs that the first start finished."""
    place = tmp_path_factory.mktemp("demo")
    folder = place / "run"
    # Modules that a child would take for the standard library's, if it looked into this folder.
    for name in ("json.py", "typing.py", "rich.py"):
        (place / name).write_text("raise SystemExit('this is not the module that was meant')")
    with started_demo(folder, cwd=place):
        wait_for(lambda: outcomes(folder))
    before = outcomes(folder)
    with started_demo(folder, cwd=place) as second:
        output, _ = second.communicate(timeout=600)
    assert second.returncode == 0, output
    return folder, output, before


def outcomes(folder: Path) -> dict[str, int]:
    """When each finished job wrote its outcome."""
    done = [job for lane in lanes(folder, MINIATURE) for job in lane if job.is_done()]
    names = {job.title: "result.json" if "eval" in job.title else "*.safetensors" for job in done}
    files = {job.title: [*job.place.rglob(names[job.title])] for job in done}
    return {name: max(path.stat().st_mtime_ns for path in found) for name, found in files.items()}


def test_demo_that_was_killed_goes_on_and_does_nothing_twice(
    killed: tuple[Path, str, dict],
) -> None:
    folder, output, before = killed
    after = outcomes(folder)
    assert before
    assert len(after) == 6  # 2 trainings, 4 evaluations (Bridge's in two parts)
    assert {name: after[name] for name in before} == before
    assert output.startswith("Going on with the demo")


def test_output_in_a_pipe_is_plain_and_says_it_all(killed: tuple[Path, str, dict]) -> None:
    folder, output, _ = killed
    assert "\x1b" not in output
    assert "Bridge, eval W=2,4: done" in output
    assert "groups of 4 problems" in output
    assert re.search(r"pass@1 at width 8: Bridge [\d.]+ %, RLVR-only [\d.]+ %, difference", output)
    assert "One group of 8: rows see each other" in output
    assert "The control, an SFT of all weights on the same texts without blocks" in output
    assert "one training seed" in output
    assert output.rstrip().endswith(f"Report: {folder / 'report.md'}")
    assert "seconds" not in output  # of arms that ran at different moments
    assert "Warning" not in (folder / "logs" / "1.log").read_text()


def test_report_holds_table_figures_group_limits_and_versions(
    killed: tuple[Path, str, dict],
) -> None:
    folder, _, _ = killed
    text = (folder / "report.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (RLVR-only|SFT on the same texts|Bridge) \| (\d+) \|", text, re.M)
    assert rows[:15] == [(arm, str(w)) for arm in ("RLVR-only", "SFT on the same texts", "Bridge")
                         for w in (1, 2, 4, 8, 16)]  # fmt: skip
    assert "](figures/accuracy.png)" in text
    assert (folder / "figures" / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    assert "The same weights, rows alone" in text
    assert "## What the numbers do not say" in text
    assert "gain over RLVR-only" in text
    assert "- torch: 2" in text
    assert "experiments/07-blocks-last" in text


def test_shown_again_without_work(killed: tuple[Path, str, dict]) -> None:
    folder, _, _ = killed
    before = outcomes(folder)
    console = Console(file=io.StringIO(), width=100)
    assert carry_out(folder, MINIATURE, console) == 0
    assert outcomes(folder) == before


def test_full_disk_under_the_report_says_how_to_go_on(
    killed: tuple[Path, str, dict], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(killed[0], folder)
    console = Console(file=io.StringIO())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))  # stands for the disk
    try:
        with pytest.raises(RunError, match=r"File too large.*make room.*same command goes on"):
            carry_out(folder, MINIATURE, console)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert carry_out(folder, MINIATURE, console) == 0
    assert "## A group from inside" in (folder / "report.md").read_text()


def test_control_learns_from_the_same_texts_without_blocks(killed: tuple[Path, str, dict]) -> None:
    folder, _, _ = killed
    bridge, sft = (
        yaml.safe_load((folder / arm / "warmup" / "recipe.yaml").read_text())
        for arm in ("bridge", "sft")
    )
    assert bridge["model"] == sft["model"] == "tiny-rlvr"
    differing = {key for key in bridge if bridge[key] != sft[key]}
    assert differing == {"attach", "output_dir", "warmup"}
    of_training = {key for key, value in bridge["warmup"].items() if sft["warmup"][key] != value}
    assert of_training == {"train", "splice", "data", "learning_rate"}
    assert sft["warmup"]["data"] == str(folder / "bridge" / "warmup" / work.RESPONSES)


def test_all_held_out_problems_are_asked() -> None:
    assert len(get_task("tiny-countdown")) == Settings().asked


def test_what_needs_the_other_lanes_work_waits_for_it(tmp_path: Path) -> None:
    """A model counts once the lane that trains it asks it, not while its files are put in place."""
    (trained, *rest), second = lanes(tmp_path, MINIATURE)
    control, bridge = (job for job in second if job.after is not None)
    assert control.after == trained.place / "metrics.jsonl"
    assert bridge.after == rest[0].place / "config.json"
    assert f"--model={trained.place / 'model'}" in bridge.words


def test_children_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with started_demo(folder, Settings()) as parent:  # far longer than this test
        wait_for(lambda: (folder / ".lane-1.lock").exists())
        children = child_ids(parent.pid)
        assert len(children) == 2
    wait_for(lambda: not any(is_running(child) for child in children), 20)


def test_interrupt_ends_children_and_says_how_to_go_on(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with started_demo(folder, Settings()) as parent:
        wait_for(lambda: (folder / ".lane-1.lock").exists())
        children = child_ids(parent.pid)
        parent.send_signal(signal.SIGINT)
        output, _ = parent.communicate(timeout=600)
    assert parent.returncode == 130
    assert "the same command goes on from there" in output
    assert not any(is_running(child) for child in children)


def child_ids(parent: int) -> list[int]:
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


def test_failed_child_shows_its_error_in_full_and_the_way_out(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with claimed(folder, MINIATURE):
        pass
    (folder / PLAN).write_text("{}")  # the children cannot read their plan
    with pytest.raises(
        WorkerError,
        match=r"(?s)ended with status 1.*Traceback.*KeyError: 'settings'.*The same command goes on",
    ):
        run_lanes(folder, MINIATURE, Console(file=io.StringIO()))
