"""How far the demo is: lines that are counted, bars, and a line now and then."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import Progress

import interlace.cli.demo as demo
from interlace.cli.demo import Lines, bars, numbers
from interlace.cli.demo.work import Settings, lanes

SETTINGS, CONTROL = Settings(steps=400), "SFT on the same texts"


def half_trained(folder: Path) -> None:
    """A demo whose control has done a quarter of its steps, and Bridge has all of its texts."""
    responses = folder / "bridge" / "warmup" / "responses"
    responses.mkdir(parents=True)
    (responses / "0-of-1.jsonl").write_text("{}\n" * 1000)
    run = folder / "sft" / "warmup"
    run.mkdir(parents=True)
    lines = [{"step": s, "loss": s / 200} for s in range(1, 101)]
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    (run / "metrics.jsonl").write_text(text + '{"step": 101, "lo')  # the line that is being written


def test_lines_are_counted_and_metrics_told(tmp_path: Path) -> None:
    half_trained(tmp_path)
    found = {job.title: job for lane in lanes(SETTINGS) for job in lane}
    reached = {name: job.reached(tmp_path) for name, job in found.items() if job.kind != "evaluate"}
    assert reached == {"Bridge, training": 1000, f"{CONTROL}, training": 100}
    assert found[f"{CONTROL}, training"].total == 400
    assert found["Bridge, training"].total == 1400
    # The mean of the last eight.
    assert numbers(tmp_path, found[f"{CONTROL}, training"]) == "loss 0.483"
    assert numbers(tmp_path, found["Bridge, training"]) == ""


@pytest.mark.parametrize("width", [60, 80, 120])
def test_bars_fit_the_terminal(tmp_path: Path, width: int) -> None:
    half_trained(tmp_path)
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    progress = Progress(*bars(), console=console)
    for job in (job for lane in lanes(SETTINGS) for job in lane):
        task = progress.add_task(job.title, total=job.total, numbers=numbers(tmp_path, job))
        progress.update(task, completed=job.reached(tmp_path))
    console.print(progress.get_renderable())
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert max(map(len, lines)) <= width
    assert len(lines) == 6
    (line,) = [line for line in lines if line.startswith(f"{CONTROL}, training")]
    assert "25%" in line
    assert width == 60 or "loss 0.483" in line


def test_without_a_terminal_a_line_tells_what_ended_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half_trained(tmp_path)
    monkeypatch.setattr(demo, "SECONDS_BETWEEN_LINES", 0)
    console = Console(file=io.StringIO(), width=80)
    said = Lines(console, tmp_path)
    (job,) = [
        job for lane in lanes(SETTINGS) for job in lane if job.title == f"{CONTROL}, training"
    ]
    for reached in (0, 100, 400, 400):
        said.say(job, reached)
    assert console.file.getvalue().splitlines() == [  # type: ignore[attr-defined]
        f"{CONTROL}, training: 100 of 400, loss 0.483",
        f"{CONTROL}, training: done",
    ]
