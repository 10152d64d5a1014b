"""How far the demo is: files that are followed, the table, the time left."""

from __future__ import annotations

import io
import json
import re
import time
from pathlib import Path

import pytest
from rich.console import Console

from interlace.cli.demo.follow import Follower, Progress, sparkline
from interlace.cli.demo.options import Settings
from interlace.cli.demo.plan import Plan
from interlace.cli.demo.progress_view import ProgressView


def test_follower_reads_whole_lines_and_notices_a_new_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    follower = Follower(path)
    follower.read(keep=True)
    assert follower.count == 0
    path.write_text('{"step": 1}\n{"step"')
    follower.read(keep=True)
    assert follower.lines == [{"step": 1}]
    with path.open("a") as stream:
        stream.write(": 2}\n")
    follower.read(keep=True)
    assert [line["step"] for line in follower.lines] == [1, 2]
    other = tmp_path / "rewound"
    other.write_text('{"step": 1}\n')
    other.replace(path)
    follower.read(keep=True)
    assert follower.lines == [{"step": 1}]


def half_trained(folder: Path) -> Plan:
    """A demo whose RLVR-only arm has done half of its rollouts, and Bridge all of its warm-up's
    responses."""
    responses = folder / "bridge" / "warmup" / "responses"
    responses.mkdir(parents=True)
    (responses / "0-of-1.jsonl").write_text("{}\n" * 600)
    run = folder / "rlvr" / "grpo"
    run.mkdir(parents=True)
    lines = [
        {"step": s, "pass@1": s / 100, "width_8/pass@1": 0.5, "width_8/coverage": 0.75}
        for s in range(1, 51)
    ]
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return Plan(folder, Settings(rollouts=100))


def test_progress_shows_metrics_and_time_left(tmp_path: Path) -> None:
    plan = half_trained(tmp_path)
    progress = Progress(plan)
    console = Console(file=io.StringIO(), width=140, force_terminal=True, color_system=None)
    console.print(ProgressView(console, progress).table())
    text = console.file.getvalue()  # type: ignore[attr-defined]
    (line,) = [one for one in text.splitlines() if "RLVR-only GRPO" in re.sub(" +", " ", one)]
    assert "rollout 50 of 100" in line
    assert "46.5" in line  # the mean of the last eight
    assert "50.0" in line
    assert "75.0" in line
    assert "▁" in line
    assert "█" in line
    assert re.search(r"about \d+ min \d+ s left", text)


@pytest.mark.parametrize("width", [80, 100, 120])
def test_progress_fits_the_terminal(tmp_path: Path, width: int) -> None:
    progress = Progress(half_trained(tmp_path))
    console = Console(file=io.StringIO(), width=width)
    console.print(ProgressView(console, progress).table())
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in text
    assert "so far" in text.splitlines()[2]
    assert ("━" in text) == (width > 100)


def test_time_left_follows_the_pace_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan(tmp_path, Settings(rollouts=100))
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    progress = Progress(plan)
    at_first = progress.seconds_left
    folder = tmp_path / "bridge" / "warmup"
    (folder / "responses").mkdir(parents=True)
    (folder / "responses" / "0-of-1.jsonl").write_text("{}\n" * 600)
    gained = 600 * 0.06
    now[0] = 2 * gained  # half as fast as was guessed
    progress.read()
    assert progress.seconds_left == pytest.approx(2 * (at_first - gained), rel=0.01)


def test_sparkline_of_many_values_has_few_bars() -> None:
    assert len(sparkline([0.1] * 1000)) == 20
    assert sparkline([]) == ""
    assert sparkline([0.0, 0.0]) == "▁▁"


def test_progress_without_training_leaves_its_columns_out(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=80)
    progress = Progress(Plan(tmp_path, Settings(quick=True)))
    console.print(ProgressView(console, progress).table())
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in text
    assert "pass@1" not in text
    assert "eval W=1,4,8,16" in text
