"""The demo's folder and options: whose the folder is, and what is refused.

Each test was seen to fail: a --restart that moves the folder of a demo at work, or a home folder.
"""

from __future__ import annotations

import fcntl
import signal
from pathlib import Path

import pytest

import interlace.cli.demo as demo
import interlace.cli.demo.outcome as outcome
from interlace.cli.demo import build_parser, claimed, settle
from interlace.cli.demo.work import PLAN, Settings
from interlace.cli.main import main
from interlace.errors import ConfigError, RunError
from support.processes import MINIATURE, started_demo, wait_for


def test_another_demo_in_the_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with claimed(folder, MINIATURE):
        pass
    other = Settings(**{**vars(MINIATURE), "seed": 3})
    with (
        pytest.raises(RunError, match=r"settings.seed was 0 and is 3.*--restart"),
        claimed(folder, other),
    ):
        pass


def test_restart_moves_the_folder_aside(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with claimed(folder, MINIATURE):
        pass
    other = Settings(seed=3)
    with claimed(folder, other, restart=True) as known:
        assert not known
        assert (tmp_path / "run.before-1" / PLAN).exists()
        with pytest.raises(RunError, match="at work"), claimed(folder, other):
            pass
    with claimed(folder, other) as known:
        assert known


def test_folder_moved_aside_between_opening_and_locking_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    with claimed(folder, MINIATURE):
        pass
    flock = fcntl.flock

    def after_another_restart(*arguments: int) -> None:
        folder.rename(tmp_path / "moved")
        folder.mkdir()
        (folder / ".lock").touch()
        flock(*arguments)

    monkeypatch.setattr(fcntl, "flock", after_another_restart)
    with pytest.raises(RunError, match="at work"), claimed(folder, MINIATURE, restart=True):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"run", "moved"}


def test_output_here_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for given, name in ((".", tmp_path.name), ("..", tmp_path.parent.name), ("a/b", "b")):
        folder, _ = settle(build_parser("interlace demo").parse(["--output", given]))
        assert folder.name == name


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the folder is at stake: nothing is trained and nothing shown."""
    monkeypatch.setattr(demo, "run_lanes", lambda *_: None)
    monkeypatch.setattr(outcome, "show", lambda *_: None)


@pytest.mark.usefixtures("no_work")
def test_restart_leaves_a_demo_at_work_alone(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    with started_demo(folder, Settings()) as parent:
        wait_for(lambda: (folder / ".lane-1.lock").exists())
        assert main(["demo", "--restart", "--output", str(folder)]) == 2
        assert "Another demo is at work in" in capsys.readouterr().err
        assert [path.name for path in tmp_path.iterdir()] == ["run"]
        assert parent.poll() is None
        parent.send_signal(signal.SIGINT)
        output, _ = parent.communicate(timeout=600)
    assert parent.returncode == 130, output


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("options", [[], ["--restart"]])
def test_folder_that_is_no_demos_is_left_alone(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, options: list[str]
) -> None:
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / "thesis.tex").touch()
    assert main(["demo", *options, "--output", str(folder)]) == 2
    assert "holds no demo" in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*")] == ["home", "thesis.tex"]


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("below", ["", "run"])
def test_output_that_is_a_file_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, below: str
) -> None:
    (tmp_path / "notes.txt").touch()
    assert main(["demo", "--output", str(tmp_path / "notes.txt" / below)]) == 2
    error = capsys.readouterr().err
    assert "notes.txt" in error
    assert "another folder with --output" in error


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--quick", "--steps", "10"], "trains nothing"),
        (["--steps", "0"], "from 1 on; got 0"),
        (["--problems", "1"], "2 to 395"),
        (["--problems", str(Settings().asked + 1)], "2 to 395"),
        (["--seed", "-1"], "from 0 on"),
    ],
)
def test_options_that_cannot_be_are_refused(options: list[str], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        settle(build_parser("interlace demo").parse(options))
