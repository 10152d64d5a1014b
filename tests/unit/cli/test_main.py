"""The command line's frame: help, suggestions, clean errors, exit statuses."""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch

import interlace
from interlace.cli import main as module
from interlace.cli.main import COMMANDS, main
from interlace.configuration import Parser
from interlace.errors import ConfigError


@dataclass(frozen=True)
class Settings:
    """Options.

    Args:
        number: Number of it.
    """

    number: int = 0


def a_command(monkeypatch: pytest.MonkeyPatch, run: object) -> None:
    """Add a command `try` that does `run`."""

    def build_parser(prog: str) -> Parser:
        parser = Parser(prog, "[options]", "Try it.", config="number: 3")
        parser.add_options(Settings)
        return parser

    monkeypatch.setitem(COMMANDS, "try", ("interlace.cli.try", "a test"))
    monkeypatch.setitem(
        sys.modules, "interlace.cli.try", SimpleNamespace(build_parser=build_parser, run=run)
    )


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_help_lists_every_command(arguments: list[str], capsys: pytest.CaptureFixture) -> None:
    assert main(arguments) == 0
    text = capsys.readouterr().out
    for name, (_, what) in COMMANDS.items():
        assert name in text
        assert what in text


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_keeps_to_the_pattern(name: str, capsys: pytest.CaptureFixture) -> None:
    command = importlib.import_module(COMMANDS[name][0])
    assert callable(command.run)
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    assert f"usage: interlace {name}" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"interlace {interlace.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inof"], "There is no command 'inof'. Did you mean 'info'?"),
        (["x" * 10_000], f"There is no command {'x' * 100!r}. `interlace --help`"),
        (["xyzzy"], "`interlace --help` lists the commands"),
        (["info", "--widht", "4", "x"], "has no option '--widht'. Did you mean '--width'?"),
        (["info"], "Say which model: interlace info"),
        (["info", "x", "--width", "eight"], "--width takes a whole number; got 'eight'"),
    ],
)
def test_a_wrong_command_line_is_corrected(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""


def test_our_errors_are_one_clean_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def run(arguments: argparse.Namespace) -> None:
        raise ConfigError("Seven is too many.")

    a_command(monkeypatch, run)
    assert main(["try"]) == 2
    assert capsys.readouterr().err == "interlace: Seven is too many.\n"
    assert main(["try", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.setenv(module.DEBUG, "1")
    assert main(["try"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_an_error_does_not_flood_the_terminal_and_does_not_steer_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def run(arguments: argparse.Namespace) -> None:
        raise ConfigError(f"\x1b[31mA list holds numbers; got {'9, ' * 10**6}. Use fewer.")

    a_command(monkeypatch, run)
    assert main(["try"]) == 2
    text = capsys.readouterr().err
    assert text.startswith("interlace: [31mA list holds")
    assert text.endswith("Use fewer.\n")
    assert len(text) < 3100


def test_other_errors_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(arguments: argparse.Namespace) -> None:
        raise ZeroDivisionError

    a_command(monkeypatch, run)
    with pytest.raises(ZeroDivisionError):
        main(["try"])


def test_ctrl_c_exits_with_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def run(arguments: argparse.Namespace) -> None:
        raise KeyboardInterrupt

    a_command(monkeypatch, run)
    assert main(["try"]) == 130
    assert capsys.readouterr().err == "interlace: interrupted\n"


def test_a_command_s_status_is_the_exit_status(monkeypatch: pytest.MonkeyPatch) -> None:
    a_command(monkeypatch, lambda arguments: arguments.number)
    assert main(["try"]) == 0
    assert main(["try", "--number", "3"]) == 3


def test_the_frame_and_help_need_no_torch() -> None:
    code = (
        "import sys; from interlace.cli.main import main; main(['--help'])\n"
        "try: main(['info', '--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'transformers', 'rich'} & set(sys.modules), 'heavy'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_reader_that_leaves_early_is_no_error() -> None:
    code = "import sys; from interlace.cli.main import main; sys.stdin.read(); sys.exit(main([]))"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
    )
    assert process.stdout is not None
    process.stdout.close()
    _, errors = process.communicate(b"")
    assert process.returncode == 0
    assert not errors


GROWS = """
import sys
from contextlib import suppress
from pathlib import Path

from interlace.cli.main import console

sys.argv = ["interlace", "generate", "--help"]
with suppress(SystemExit):
    console()
import torch

weight = torch.ops.mkldnn._reorder_linear_weight(torch.randn(17, 13))
mib = lambda: int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20
for rows in range(1, 901):
    torch.ops.mkldnn._linear_pointwise(torch.randn(rows, 13), weight, None, "none", [], "")
    if rows == 600:
        before = mib()
print("grown", mib() - before)
"""


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")
@pytest.mark.skipif(sys.platform != "linux", reason="/proc says what a process takes")
def test_a_command_keeps_a_bounded_number_of_kernels() -> None:
    """Else each number of rows that a product has for the first time takes half a MiB for
    good, and a server's memory grows for thousands of requests."""
    done = subprocess.run(
        [sys.executable, "-c", GROWS], capture_output=True, text=True, check=True, timeout=300
    )
    assert float(done.stdout.split("grown")[-1]) < 80  # some 150 without the bound
