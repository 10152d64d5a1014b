"""How far the demo is: lines that are counted, bars, and a line now and then."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

import interlace.cli.demo as demo
from interlace.cli.demo import watching
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


def test_lines_are_counted(tmp_path: Path) -> None:
    half_trained(tmp_path)
    found = {job.title: job for lane in lanes(SETTINGS) for job in lane if not job.widths}
    reached = {name: job.reached(tmp_path) for name, job in found.items()}
    assert reached == {"Bridge, training": 1000, f"{CONTROL}, training": 100}
    assert found[f"{CONTROL}, training"].total == 400
    assert found["Bridge, training"].total == 1400


@pytest.mark.parametrize("width", [60, 80, 120])
def test_bars_fit_the_terminal_and_tell_the_loss(tmp_path: Path, width: int) -> None:
    half_trained(tmp_path)
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    with watching(console, tmp_path, [job for lane in lanes(SETTINGS) for job in lane]) as look:
        look()
    drawn = console.file.getvalue().split("\x1b[1A")[-1]  # type: ignore[attr-defined]
    lines = re.sub("\x1b\\[[0-9;?]*[A-Za-z]", "", drawn).replace("\r", "").strip().splitlines()
    assert len(lines) == 6
    assert max(map(len, lines)) <= width
    (line,) = [line for line in lines if line.startswith(f"{CONTROL}, training")]
    assert "25%" in line
    assert width == 60 or "loss 0.483" in line  # the mean of the last eight
    (line,) = [line for line in lines if line.startswith("Bridge, training")]
    assert "71%" in line
    assert "loss" not in line


def test_without_a_terminal_a_line_tells_what_ended_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half_trained(tmp_path)
    monkeypatch.setattr(demo, "SECONDS_BETWEEN_LINES", 0)
    console = Console(file=io.StringIO(), width=80)
    jobs = [job for lane in lanes(SETTINGS) for job in lane if job.arm == "sft" and not job.widths]
    with watching(console, tmp_path, jobs) as look:
        look()
        (tmp_path / "sft" / "warmup" / "metrics.jsonl").write_text('{"loss": 0.25}\n' * 400)
        look()
        look()
    assert console.file.getvalue().splitlines() == [  # type: ignore[attr-defined]
        f"{CONTROL}, training: 100 of 400, loss 0.483",
        f"{CONTROL}, training: done",
    ]
