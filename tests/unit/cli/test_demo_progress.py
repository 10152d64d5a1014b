"""How far the demo is: lines that are counted, bars, and a line for what ended."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from interlace.cli.demo import showing_progress
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
    found = {job.title: job for lane in lanes(tmp_path, SETTINGS) for job in lane}
    assert found["Bridge, training"].reached() == 1000
    assert found["Bridge, training"].total == 1400
    assert found[f"{CONTROL}, training"].reached() == 100
    assert found[f"{CONTROL}, training"].total == 400


@pytest.mark.parametrize("width", [60, 80, 120])
def test_bars_fit_the_terminal(tmp_path: Path, width: int) -> None:
    half_trained(tmp_path)
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    with showing_progress(
        console, [job for lane in lanes(tmp_path, SETTINGS) for job in lane]
    ) as look:
        look()
    drawn = console.file.getvalue().split("\x1b[1A")[-1]  # type: ignore[attr-defined]
    lines = re.sub("\x1b\\[[0-9;?]*[A-Za-z]", "", drawn).replace("\r", "").strip().splitlines()
    assert len(lines) == 6
    assert max(map(len, lines)) <= width
    (line,) = [line for line in lines if line.startswith(f"{CONTROL}, training")]
    assert "25%" in line
    (line,) = [line for line in lines if line.startswith("Bridge, training")]
    assert "71%" in line


def test_without_a_terminal_a_line_tells_what_ended_once(tmp_path: Path) -> None:
    half_trained(tmp_path)
    console = Console(file=io.StringIO(), width=80)
    with showing_progress(console, lanes(tmp_path, SETTINGS)[1]) as look:
        look()
        model = tmp_path / "sft" / "warmup" / "model"
        model.mkdir()
        for name in ("config.json", "model.safetensors"):
            (model / name).touch()
        look()
        look()
    assert console.file.getvalue().splitlines() == [  # type: ignore[attr-defined]
        f"{CONTROL}, training: done",
    ]
