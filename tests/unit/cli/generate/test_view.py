"""The columns: what fits on which screen, and what model text cannot do to it."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from interlace.answers import Aggregate, MajorityVote, Medoid, Responses
from interlace.cli.generate.view import Columns, class_styles, outcome_view, plain
from interlace.engine.types import Step


def screen(columns: int, lines: int) -> Console:
    return Console(
        file=io.StringIO(), width=columns, height=lines, force_terminal=True, color_system=None
    )


def shown(console: Console) -> list[str]:
    text = console.file.getvalue()
    return [line.rstrip() for line in text.splitlines()]


def grown(texts: list[str], unfinished: int = 0) -> Columns:
    columns = Columns(len(texts), "tiny")
    for text in texts:
        assert text
    last = len(texts) - unfinished
    columns.take(
        Step(
            tokens=[1] * len(texts),
            alive=[True] * len(texts),
            texts=texts,
            finish_reasons=["stop" if row < last else None for row in range(len(texts))],
        )
    )
    return columns


@pytest.mark.parametrize(
    ("width", "size", "across"),
    [(8, (140, 40), 4), (8, (80, 24), 3), (3, (80, 24), 3), (6, (140, 40), 3), (1, (20, 10), 1)],
)
def test_rows_stand_side_by_side_as_far_as_there_is_room(
    width: int, size: tuple[int, int], across: int
) -> None:
    console = screen(*size)
    console.print(grown([f"answer {row}" for row in range(width)], unfinished=1).growing(console))
    lines = shown(console)
    tops = [line.count("╭") for line in lines if "╭" in line]
    assert tops[0] == across
    assert sum(tops) == width
    assert len(lines) < size[1]
    assert max(map(len, lines)) <= size[0]
    assert lines[-1] == ""  # room for the echo of a Ctrl-C
    for row in range(width):
        assert sum(f"answer {row}" in line for line in lines) == 1


def test_a_screen_too_low_for_panels_has_a_line_for_each_row() -> None:
    console = screen(60, 12)
    columns = grown([f"start {row} " + "x" * 500 + f" end {row}" for row in range(20)])
    console.print(columns.growing(console))
    lines = shown(console)
    assert len(lines) <= 12
    assert "end 0" in lines[1]
    assert "start 0" not in lines[1]
    assert lines[-2:] == ["and 12 more rows", ""]
    assert max(map(len, lines)) <= 60


def test_the_end_of_a_long_row_shows_while_it_grows_and_all_of_it_afterwards() -> None:
    text = "\n".join(f"line {i}" for i in range(200))
    columns = grown([text, "short"], unfinished=2)
    console = screen(80, 20)
    console.print(columns.growing(console))
    lines = shown(console)
    assert any("line 199" in line for line in lines)
    assert not any("line 100 " in line for line in lines)
    assert len(lines) < 20
    columns.end()
    console = screen(80, 20)
    console.print(columns.final(console, ["green", "red"], ["5", None]))
    lines = shown(console)
    assert sum("line " in line for line in lines) == 200
    assert "broken off at 1 tokens" in lines[1]
    assert lines[-1].index("5") < 40


def test_model_text_cannot_steer_the_terminal_or_be_markup() -> None:
    hostile = "\x1b[2J\x1b]0;owned\x07 [bold]x[/bold] [/nope] \x9b31m \r\b done"
    console = screen(100, 20)
    columns = grown([hostile, hostile])
    console.print(columns.growing(console))
    columns.end()
    console.print(columns.final(console, ["green", "red"], [hostile, None]))
    outcome = Aggregate("medoid", hostile, None, 0)
    console.print(outcome_view(outcome, ["green", "red"]))
    text = console.file.getvalue()
    assert not any(sign in text for sign in "\x1b\x07\x9b\r\x08")
    assert "[bold]x[/bold] [/nope]" in text


def test_columns_follow_the_stream() -> None:
    columns = Columns(2, "tiny")
    columns.take(Step([5, 6], [True, True], ["a", "b"], [None, "stop"]))
    columns.take(Step([7, None], [True, False], ["c", ""], [None, None]))
    columns.end()
    assert [row.text for row in columns.rows] == ["ac", "b"]
    assert [row.tokens for row in columns.rows] == [2, 1]
    assert [row.finish_reason for row in columns.rows] == ["interrupted", "stop"]
    assert (columns.tokens, columns.steps) == (3, 2)


def test_live_columns_draw_in_place_and_leave_nothing() -> None:
    console = screen(80, 24)
    columns = Columns(2, "tiny")
    with columns.live(console) as live:
        columns.take(Step([5, 6], [True, True], ["hello", "there"], [None, None]))
        live.refresh()
        assert "hello" in console.file.getvalue()
    assert console.file.getvalue().rstrip().endswith("\x1b[2K")  # its last act: erase its lines


def test_the_colour_of_an_answer_is_its_rows_colour() -> None:
    outcome = MajorityVote()(Responses("q", ["4", "5", "none", "4.0", "5", "5.0"]))
    styles = class_styles(outcome, 6)
    assert styles == ["cyan", "green", "bright_black", "cyan", "green", "green"]
    console = screen(80, 24)
    console.print(outcome_view(outcome, styles))
    lines = shown(console)
    rows = [line.split() for line in lines if "█" in line]
    assert [(row[0], row[1], row[-3:]) for row in rows] == [
        ("5", "3", ["2,", "5,", "6"]),
        ("4", "2", rows[1][-3:]),
    ]
    assert rows[1][-2:] == ["1,", "4"]
    assert any("no answer" in line and line.endswith("3") for line in lines)
    assert lines[-1] == "majority vote: 5  60% of the votes"


def test_ties_and_empty_votes_are_told() -> None:
    console = screen(80, 24)
    for texts in (["4", "5"], ["none", "nothing"]):
        outcome = MajorityVote()(Responses("q", texts))
        console.print(outcome_view(outcome, class_styles(outcome, 2)))
    text = console.file.getvalue()
    assert "majority vote: 4  50% of the votes  (a tie: seen first wins)" in text
    assert "majority vote: no row has an answer" in text


def test_without_a_terminal_there_is_plain_text() -> None:
    columns = grown(["one 4", "two 5", "three 5"])
    columns.end()
    outcome = MajorityVote()(Responses("q", [row.text for row in columns.rows]))
    assert plain(columns, outcome).splitlines() == [
        "--- row 1 of 3: stop, 1 tokens ---",
        "one 4",
        "",
        "--- row 2 of 3: stop, 1 tokens ---",
        "two 5",
        "",
        "--- row 3 of 3: stop, 1 tokens ---",
        "three 5",
        "",
        "=== majority (5: 2, 4: 1) ===",
        "5",
    ]
    outcome = Medoid()(Responses("q", ["a b c", "a b c", "x"]))
    assert plain(columns, outcome).splitlines()[-2:] == ["=== medoid: row 1 ===", "a b c"]
    assert plain(columns, None).splitlines()[-1] == "three 5"
