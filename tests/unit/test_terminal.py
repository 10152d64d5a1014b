"""Text of models, manifests and arms on a terminal: nothing steers it, and nothing is markup."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from interlace.cli.main import main
from interlace.evaluation.compare import compare
from interlace.evaluation.report import Report, print_report, to_markdown
from interlace.terminal import Table, facts, printable, say
from support.architectures import tiny_config
from support.evaluation import made

HOSTILE = "\x1b[31m[/foo] [bold]\x9b2J\x07 \u202egnp.exe\u2066\u200f :skull: a|b"
STEERS = re.compile("[\x1b\x9b\x07\u202e\u2066\u200f]")
SHOWN = "[31m[/foo] [bold]2J gnp.exe :skull: a"


def terminal(width: int = 120) -> Console:
    return Console(
        file=io.StringIO(),
        force_terminal=True,
        width=width,
        color_system=None,
        legacy_windows=False,
    )


def shown(console: Console) -> str:
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_line_is_said_as_it_is() -> None:
    console = terminal()
    say(console, f"Left out {HOSTILE}", "yellow")
    assert SHOWN in shown(console)
    assert not STEERS.search(shown(console))
    assert printable("line\n\ttab é 日本語 مرحبا") == "line\n\ttab é 日本語 مرحبا"


def test_cells_headings_and_titles_are_no_markup() -> None:
    table = Table((HOSTILE, "W"), [(HOSTILE, (f"1{HOSTILE}", "0", "2"))], HOSTILE)
    console = terminal(400)
    table.print(console)
    assert shown(console).count(SHOWN) == 4
    assert not STEERS.search(shown(console))
    assert not STEERS.search(table.markdown())
    assert "a\\|b" in table.markdown()


def test_names_of_arms_and_models_reach_no_terminal_as_they_are() -> None:
    values = {"pass@1": {1: np.full(9, 0.5)}}
    arms = [made(name, values) for name in (HOSTILE, "base")]
    report = Report(tuple(arms), (compare(arms, "base", width=1),), provenance={HOSTILE: HOSTILE})
    for content in (report, Report(tuple(arms), provenance={"model": HOSTILE})):
        console = terminal()
        print_report(content, console)
        assert SHOWN in shown(console)
        assert not STEERS.search(shown(console))
        assert not STEERS.search(to_markdown(content))


@pytest.mark.parametrize("width", [40, 120])
def test_a_manifest_and_a_folder_with_markup_in_their_names(
    width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", str(width))
    folder = tmp_path / "[" / "foo]"
    tiny_config("llama").save_pretrained(folder)
    (folder / "model.safetensors").write_bytes(b"")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": [HOSTILE]}))
    status = main(["info", str(folder)])
    output = "".join(capsys.readouterr())
    assert status == 0, output
    assert "Traceback" not in output
    assert not re.search("\x1b\\[31m|[\x9b\x07\u202e]", output)


@pytest.mark.parametrize("command", ["generate", "eval", "info", "train"])
def test_a_model_named_like_markup_is_one_clean_error(
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    name = "./\x1b[31m[/foo]\u202e"
    words = {
        "generate": ["--model", name, "3 4 9 -> 21 :"],
        "eval": ["--model", name, "--task", "tiny-countdown"],
        "info": [name],
        "train": ["grpo", "tiny", f"model={name}", "attach=none"],
    }
    monkeypatch.chdir(tmp_path)
    assert main([command, *words[command]]) == 2
    error = capsys.readouterr().err
    assert "[/foo]" in error
    assert not re.search("\x1b\\[31m|\u202e", error)


def test_intervals_stand_below_numbers_where_it_is_narrow() -> None:
    table = Table(("arm", "gain"), [("Bridge", ("+3.5", "+1.2", "+5.8")), ("base", "")], "Gains")
    wide, narrow = terminal(40), terminal(16)
    table.print(wide)
    table.print(narrow)
    assert "Bridge  +3.5 [+1.2, +5.8]" in shown(wide)
    lines = [line.rstrip() for line in shown(narrow).splitlines()]
    assert "Bridge      +3.5" in lines or any(line.endswith("+3.5") for line in lines)
    assert not any("[" in line for line in lines)


def test_facts_leave_out_what_is_not_known() -> None:
    table = facts("x", [{"layers": 3, "base": None, "parameters": 12345}, {"share": "5 %"}])
    assert table.rows == [("layers", "3"), ("parameters", "12,345"), ("", ""), ("share", "5 %")]
