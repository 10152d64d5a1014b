"""Folders that change all at once or not at all, whatever stops the writer.

`writing(folder)` collects new files in a staging folder, and one rename makes them count. After
it the files move to their places one by one; whoever reads in between finds them through
`locate`, or has them moved by `settled` where all must lie in one folder. A full disk, an error or
a kill at any moment leaves either all old or all new files.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

WRITING = ".interlace-writing"  # being filled: does not count, and the next writer throws it away
WRITTEN = ".interlace-written"  # complete: its entries count and are on their way to their places

MANIFEST, CONFIG = "interlace.json", "config.json"  # what says that a folder holds a model


@contextmanager
def writing(folder: Path, remove: Iterable[str] = ()) -> Iterator[Path]:
    """Write files into `folder` all together; other files there stay as they are.

    Args:
        folder: Folder to write, created if it does not exist. One writer at a time.
        remove: Entries of `folder` that the new files make obsolete.

    Yields:
        An empty folder to write into. An error inside leaves `folder` as it was.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settled(folder)
    stage = folder / WRITING
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir()
    try:
        yield stage
        _sync(stage)
        stage.rename(folder / WRITTEN)
    except BaseException:
        shutil.rmtree(stage, ignore_errors=True)
        raise
    _sync_one(folder)
    settled(folder)
    for name in remove:
        _delete(folder / name)


def locate(folder: Path, name: str) -> Path:
    """Where the entry `name` of a folder is, also while its last change is still settling."""
    written = folder / WRITTEN / name
    return written if written.exists() else folder / name


def is_complete(folder: Path) -> bool:
    """Whether a folder holds a model that was written to its end, also while it is being put in
    place."""
    if locate(folder, MANIFEST).exists():
        return True
    weights = [*folder.glob("*.safetensors"), *(folder / WRITTEN).glob("*.safetensors")]
    return locate(folder, CONFIG).exists() and bool(weights)


def settled(folder: Path) -> None:
    """Move what was written to its place; a second try after a kill goes on where the first
    ended. Does nothing where nothing is on its way."""
    written = folder / WRITTEN
    if not written.exists():
        return
    with _alone(written):
        for entry in sorted(written.iterdir()) if written.exists() else ():
            target = folder / entry.name
            if target.is_dir() or entry.is_dir():  # a rename replaces files only
                _delete(target)
            entry.replace(target)
        if written.exists():
            written.rmdir()
    _sync_one(folder)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep a reader that settles what a kill left from meeting a writer that is at work: two that
    move the same entries could delete what the other has just put in place. The lock ends with its
    process."""
    try:
        import fcntl
    except ImportError:  # Windows: there readers must not come while a writer is at work
        yield
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:  # another process has just settled it
        yield
        return
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(root: Path) -> None:
    for path in (*root.rglob("*"), root):
        _sync_one(path)


def _sync_one(path: Path) -> None:
    """Have the disk write down a file, or a folder's entries, before anything builds on them."""
    if path.is_dir() and not hasattr(os, "O_DIRECTORY"):  # Windows cannot open folders
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
