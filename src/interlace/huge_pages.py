"""Memory on huge pages: 2 MiB a piece, where a processor looks up 512 pieces of 4 KiB otherwise.

A step reads every weight once, so that each page is looked up once, and torch asks for no huge
ones. Most systems give them to those who ask ("madvise"): a command starts itself again with an
allocator that asks, for all that it will hold; a library changes nothing of its process and has
the kernel move the weights that are there.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

SWITCH = "INTERLACE_HUGE_PAGES"  # "0": leave the memory as it is
SIZE = 2**21
_RESTARTED = "INTERLACE_RESTARTED"  # number of the process that started itself again
_TUNABLES, _ASKING = "GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"
_SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_ROLLUP = Path("/proc/self/smaps_rollup")
_COLLAPSE = 25  # MADV_COLLAPSE of Linux 6.1
_NEAR = SIZE // 4  # bytes between two tensors that are moved along

Span = tuple[int, int]  # an address, and so many bytes from there


def restart() -> None:
    """Start this process again, once, with an allocator that asks for huge pages.

    It does nothing where that would change nothing. What the process starts in turn does not ask,
    unless it did before.
    """
    tunables = os.environ.get(_TUNABLES, "")
    if os.environ.get(_RESTARTED) == str(os.getpid()):
        os.environ.pop(_TUNABLES, None)
        if own := tunables.removesuffix(_ASKING).removesuffix(":"):
            os.environ[_TUNABLES] = own
        return
    if why_not() or _setting() != "madvise" or _ASKING in tunables or not _has_tunable():
        return
    asking = f"{tunables}:{_ASKING}" if tunables else _ASKING
    more = {_TUNABLES: asking, _RESTARTED: str(os.getpid())}
    sys.stdout.flush()
    sys.stderr.flush()
    with suppress(OSError):  # without them, then
        os.execve(sys.executable, sys.orig_argv, os.environ | more)


def collapse(spans: Iterable[Span]) -> int:
    """Have the kernel move memory to huge pages, where it can; its contents stay what they are.

    Returns:
        The number of bytes that the kernel says lie on huge pages now.
    """
    if why_not() is not None:
        return 0
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    moved = 0
    for start, end in _whole_pages(spans):
        if madvise(start, end - start, _COLLAPSE) == 0:
            moved += end - start
    return moved


def why_not() -> str | None:
    """Why no huge pages are asked for here; None if they are."""
    if not sys.platform.startswith("linux"):
        return "only on Linux"
    if os.environ.get(SWITCH) == "0":
        return f"{SWITCH}=0"
    setting = _setting()
    return f"the system's setting is {setting}" if setting in ("never", "unknown") else None


def report() -> str:
    """How much of this process's memory lies on huge pages, in a line."""
    try:
        fields = dict(line.split(":", 1) for line in _ROLLUP.read_text().splitlines()[1:])
        huge, all_of_it = (int(fields[name].split()[0]) for name in ("AnonHugePages", "Rss"))
        found = f"{huge / 1024:,.0f} of {all_of_it / 1024:,.0f} MiB"
    except (OSError, KeyError, ValueError):
        found = "not known"
    reason = why_not()
    return f"memory on huge pages: {found}" + (f" ({reason})" if reason else "")


def _setting() -> str:
    """The chosen word of `always [madvise] never`."""
    try:
        return _SETTING.read_text().partition("[")[2].partition("]")[0] or "unknown"
    except OSError:
        return "unknown"


def _has_tunable() -> bool:
    """Whether the C library is one that knows it: glibc since 2.35."""
    try:
        name, version = str(os.confstr("CS_GNU_LIBC_VERSION")).split()
        return name == "glibc" and tuple(map(int, version.split(".")[:2])) >= (2, 35)
    except (OSError, ValueError):
        return False


def _whole_pages(spans: Iterable[Span]) -> list[Span]:
    """Beginnings and ends of the huge pages within what lies close together."""
    merged: list[list[int]] = []
    for start, size in sorted(spans):
        if merged and start <= merged[-1][1] + _NEAR:
            merged[-1][1] = max(merged[-1][1], start + size)
        else:
            merged.append([start, start + size])
    pages = [(-(-start // SIZE) * SIZE, end // SIZE * SIZE) for start, end in merged]
    return [(start, end) for start, end in pages if start < end]
