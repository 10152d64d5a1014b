"""Locks that keep a second process out, and that die with the process that holds them.

They are the system's locks on open files (`flock`): a kill releases them, so no stale lock ever has
to be removed by hand. Where the system or the file system has none, two at once are the user's
care.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

LOCK = ".lock"


def try_lock(stream: IO[Any]) -> bool:
    """Lock an open file until it is closed.

    Args:
        stream: File to lock.

    Returns:
        Whether it is ours; False while another holds it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # some network file systems know no locks
        return True
    return True


@contextmanager
def locked_folder(folder: Path, refusal: Exception) -> Iterator[None]:
    """Hold a folder by a lock file in it.

    Args:
        folder: Folder to hold; it exists.
        refusal: Error to raise while another holds it.
    """
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
