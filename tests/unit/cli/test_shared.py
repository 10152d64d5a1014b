"""How far a run is: in a terminal, in a log, and at its end."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from rich.console import Console

from interlace.batch import Tally
from interlace.cli.shared import Bar, line_of, summary


def tally() -> Tally:
    """Half way through; 20 tokens a row so far, and 100 a second."""
    now = time.monotonic()
    return Tally(
        all_groups=20,
        all_rows=80,
        width=4,
        groups=10,
        rows=40,
        resumed_rows=20,
        correct=7,
        tokens=500,
        kept_tokens=400,
        started=now - 5,
        ended=now,
    )


def test_time_left_counts_tokens_under_way():
    assert tally().seconds_left == pytest.approx((20 * 60 - 500) / 100)
    assert line_of(tally()) == "width 4: 40 of 80 rows, 7 correct, 100 tokens/s, about 7 s left"
    assert line_of(replace(tally(), correct=None)).startswith(
        "width 4: 40 of 80 rows, 100 tokens/s"
    )
    assert summary(tally()) == [
        "20 rows, 500 tokens in 5 s: 100 tokens/s; 20 rows were there before"
    ]


def test_a_start_that_finds_everything_says_so():
    assert summary(Tally(all_groups=2, all_rows=8, groups=2, rows=8, resumed_rows=8)) == [
        "All 8 rows were there before"
    ]


def test_in_a_terminal_a_bar_tells_how_far_it_is(tmp_path):
    with (tmp_path / "screen").open("w+") as screen:
        console = Console(file=screen, force_terminal=True, width=100, color_system=None)
        with Bar(console) as progress:
            progress(tally())
        screen.seek(0)
        shown = screen.read()
    assert "sampling width 4" in shown
    assert "40/80 rows  100 tokens/s" in shown
    assert "about 7 s left" in shown


def test_without_a_terminal_a_line_now_and_then_tells_how_far_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr("interlace.cli.shared.SECONDS_BETWEEN_LINES", 0.0)
    with (tmp_path / "lines").open("w+") as lines:
        with Bar(Console(file=lines, width=100)) as progress:
            progress(tally())
        lines.seek(0)
        assert lines.read() == line_of(tally()) + "\n"
