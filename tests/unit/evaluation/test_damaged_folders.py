"""Damaged files of a run folder, and folders of something else: one error each, bytes unchanged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from interlace.errors import DataFileError, InterlaceError, RunError
from interlace.evaluation.evaluate import evaluate
from interlace.evaluation.run import RunFolder, load_run
from support.text import number_engine, sums

DAMAGE = {
    "null": b"null",
    "list": b"[1]",
    "deep": b'{"settings":' + b"[" * 99_999,
    "no UTF-8": b'{"a": "\xff"}',
    "digits": b'{"width": ' + b"9" * 5000 + b"}",
    "empty object": b"{}",
    "zeros": bytes(40),
}
SCHEMA_ALONE = [
    {"schema": "interlace.run/1"},
    {"schema": "interlace.run/1", "settings": None, "environments": []},
    {"schema": "interlace.run/1", "settings": {}, "environments": {}},
    {"schema": "interlace.run/1", "settings": {}, "environments": [3]},
    {"schema": "interlace.run/9", "settings": {}, "environments": []},
]


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    evaluate(number_engine(), sums(3), [1, 2], groups_per_problem=1, output=folder, figures=())
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.is_file()}


def settings(folder: Path) -> dict:
    return dict(json.loads((folder / "config.json").read_text())["settings"])


@pytest.mark.parametrize("name", ["config.json", "records.jsonl", "timings.jsonl"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_one_error_with_its_place(
    damage: str, name: str, begun: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(begun, tmp_path / "run")
    before = settings(folder)
    path = folder / name
    line = b"\n" if name.endswith("l") else b""
    path.write_bytes(DAMAGE[damage] + line + (path.read_bytes() if line else b""))
    damaged = contents(folder)
    for action in (lambda: load_run(folder), lambda: RunFolder(folder, before)):
        with pytest.raises((RunError, DataFileError), match=name):
            action()
    assert contents(folder) == damaged


@pytest.mark.parametrize("config", SCHEMA_ALONE, ids=str)
def test_a_configuration_without_its_parts_is_refused(
    config: dict, begun: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(begun, tmp_path / "run")
    before = settings(folder)
    (folder / "config.json").write_text(json.dumps(config))
    for action in (lambda: load_run(folder), lambda: RunFolder(folder, before)):
        with pytest.raises(RunError, match=r"config.json"):
            action()


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_something_else_is_left_alone(overwrite: bool, tmp_path: Path) -> None:
    """A model's folder has a config.json, too."""
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "records.jsonl").write_text("precious notes")
    before = contents(tmp_path)
    with pytest.raises(InterlaceError, match=r"config.json is not the configuration of a run"):
        RunFolder(tmp_path, {}, overwrite=overwrite)
    assert contents(tmp_path) == before


def test_figures_of_something_else_are_left_alone(tmp_path: Path) -> None:
    """The folder of figures is replaced as a whole, which deleted what else it held."""
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "photo.png").write_bytes(b"precious")
    with pytest.raises(RunError, match=r"has figures, but no config\.json"):
        RunFolder(tmp_path, {})
    assert (tmp_path / "figures" / "photo.png").exists()


@pytest.mark.parametrize("name", ["records.jsonl", "timings.jsonl", "result.json", "report.md"])
def test_files_without_a_configuration_are_left_alone(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("precious notes without an end")
    before = contents(tmp_path)
    with pytest.raises(RunError, match=rf"has {name}, but no config\.json"):
        RunFolder(tmp_path, {})
    assert contents(tmp_path) == before
