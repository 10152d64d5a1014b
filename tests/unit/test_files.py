"""Folders that change all at once or not at all. Kills and full disks are in
tests/unit/saving/test_checkpoint.py."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from interlace.files import WRITING, WRITTEN, is_complete, locate, settled, writing


def contents(folder: Path) -> dict[str, str]:
    """The text of every file."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): p.read_text() for p in paths}


def test_files_appear_together(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    with writing(folder) as stage:
        (stage / "a").write_text("1")
        (stage / "deep").mkdir()
        (stage / "deep" / "b").write_text("2")
        assert not (folder / "a").exists()
    assert contents(folder) == {"a": "1", "deep/b": "2"}


def test_old_entries_are_replaced_removed_or_left_alone(tmp_path: Path) -> None:
    for name in ("a", "deep/old", "gone/x", "other", "swap"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("old")
    with writing(tmp_path, remove=["gone", "never"]) as stage:
        (stage / "a").write_text("new")
        for name in ("deep", "swap"):  # a folder over a folder, and over a file
            (stage / name).mkdir()
            (stage / name / "b").write_text("new")
    assert contents(tmp_path) == {"a": "new", "deep/b": "new", "other": "old", "swap/b": "new"}
    assert not (tmp_path / "gone").exists()


def test_an_error_leaves_everything_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with pytest.raises(ZeroDivisionError), writing(tmp_path, remove=["a"]) as stage:  # noqa: PT012
        (stage / "a").write_text("new")
        raise ZeroDivisionError
    assert contents(tmp_path) == {"a": "old"}
    assert not (tmp_path / WRITING).exists()


def test_what_a_killed_writer_had_completed_counts(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    (tmp_path / "b").write_text("old")
    (tmp_path / WRITTEN).mkdir()
    (tmp_path / WRITTEN / "a").write_text("new")  # complete, but not yet moved
    (tmp_path / WRITING).mkdir()
    (tmp_path / WRITING / "b").write_text("hal")  # not complete
    assert locate(tmp_path, "a").read_text() == "new"
    assert locate(tmp_path, "b").read_text() == "old"
    with writing(tmp_path) as stage:
        (stage / "c").write_text("newer")
    assert contents(tmp_path) == {"a": "new", "b": "old", "c": "newer"}
    assert {p.name for p in tmp_path.iterdir()} == {"a", "b", "c"}


def test_a_model_on_its_way_is_complete_and_can_be_settled(tmp_path: Path) -> None:
    (tmp_path / WRITING).mkdir()
    (tmp_path / WRITING / "config.json").write_text("half")
    (tmp_path / WRITING / "model.safetensors").write_text("half")
    assert not is_complete(tmp_path)
    settled(tmp_path)
    assert not is_complete(tmp_path)
    (tmp_path / WRITING).rename(tmp_path / WRITTEN)
    assert is_complete(tmp_path)
    (tmp_path / WRITTEN / "config.json").rename(tmp_path / "config.json")  # killed in between
    assert is_complete(tmp_path)
    settled(tmp_path)
    assert is_complete(tmp_path)
    assert contents(tmp_path) == {"config.json": "half", "model.safetensors": "half"}
    assert not (tmp_path / WRITTEN).exists()


def test_writers_and_readers_that_settle_at_once_lose_nothing(tmp_path: Path) -> None:
    for number in range(30):
        for name in ("a", "deep"):
            (tmp_path / WRITTEN / name).mkdir(parents=True)
            (tmp_path / WRITTEN / name / "x").write_text(str(number))
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(settled, [tmp_path] * 4))
        assert contents(tmp_path) == {"a/x": str(number), "deep/x": str(number)}
