"""Files and folders that change all at once or not at all, whatever stops the writer; and locks.

`writing(folder)` collects new files in a staging folder, and one rename makes them count. After
it the files move to their places one by one; whoever reads in between finds them through
`locate`, or has them moved by `settled` where all must lie in one folder. A full disk, an error or
a kill at any moment leaves either all old or all new files.

Locks are the system's, on open files (`flock`): they end with the process that holds them, so no
stale lock ever has to be removed by hand. Where the system or the file system has none, two at once
are the user's care.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

WRITING = ".interlace-writing"  # being filled: does not count, and the next writer throws it away
WRITTEN = ".interlace-written"  # complete: its entries count and are on their way to their places

LOCK = ".lock"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
WAY_OUT = "; make room and start the same run again"
MANIFEST, CONFIG = "interlace.json", "config.json"  # what says that a folder holds a model


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Have an error of the system name what is being written, and the way out of a full disk; of
    writes to an open file it says neither."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        if error.errno in FULL and not str(error.strerror).endswith(WAY_OUT):
            error.strerror = f"{error.strerror}{WAY_OUT}"
        raise


@contextmanager
def writing(folder: Path, remove: Iterable[str] = ()) -> Iterator[Path]:
    """Write files into `folder` all together; other files there stay as they are.

    Args:
        folder: Folder to write, created if it does not exist. One writer at a time.
        remove: Entries of `folder` that the new files make obsolete.

    Yields:
        An empty folder to write into. An error inside leaves `folder` as it was.
    """
    with naming(folder):
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
    with alone(written):
        for entry in sorted(written.iterdir()) if written.exists() else ():
            target = folder / entry.name
            if target.is_dir() or entry.is_dir():  # a rename replaces files only
                _delete(target)
            entry.replace(target)
        if written.exists():
            written.rmdir()
    _sync_one(folder)


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold a file or folder, once whoever holds it lets it go: of two that settle the same folder,
    one could delete what the other has just put in place."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:  # another process has just settled it
        yield
        return
    try:
        try_lock(descriptor, wait=True)
        yield
    finally:
        os.close(descriptor)


def try_lock(stream: IO[Any] | int, wait: bool = False) -> bool:
    """Lock an open file until it is closed. False while another holds it, unless told to wait."""
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:  # some network file systems know no locks
        return True
    return True


@contextmanager
def locked_folder(folder: Path, refusal: Exception) -> Iterator[None]:
    """Hold a folder by a lock file in it; `refusal` is raised while another holds it."""
    path = folder / LOCK
    with path.open("a") as stream:
        try:
            # What was opened may have been moved aside since: then the new folder is another's.
            mine = try_lock(stream) and os.path.samestat(os.fstat(stream.fileno()), path.stat())
        except FileNotFoundError:
            mine = False
        if not mine:
            raise refusal
        yield


def write_text(path: Path, text: str) -> None:
    """Write a small file, which a kill leaves as it was or whole.

    Raises:
        OSError: if it cannot be written.
    """
    partial = path.with_name(f".{path.name}")
    with naming(path), partial.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(path)


def move_aside(folder: Path) -> Path:
    """Rename a folder to the first free `<name>.before-N`, which is returned."""
    number = 1
    while (target := folder.with_name(f"{folder.name}.before-{number}")).exists():
        number += 1
    return folder.rename(target)


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
