"""How much memory a call may take, computed from what is free when it begins."""

from __future__ import annotations

from pathlib import Path

import torch

# Of what is free. The rest is for activations and logits, and for the copy by which stores grow.
_SHARE = 0.5
_UNKNOWN = 4 * 2**30  # where the system does not say what is free
_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def budget_for(device: torch.device) -> int:
    """Bytes that keys and values may take on a device: half of what is free."""
    return int(free_bytes(device) * _SHARE)


def free_bytes(device: torch.device) -> int:
    """Bytes that a device can still give."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    return _free_memory()


def _free_memory() -> int:
    """Bytes that the system can still give, within the container's limit where there is one."""
    try:
        lines = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        free = _UNKNOWN
    try:
        limit = int((_CGROUP / "memory.max").read_text())  # "max" where there is none
        used = int((_CGROUP / "memory.current").read_text())
        stat = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        return max(0, min(free, limit - used + int(stat["inactive_file"])))
    except (OSError, KeyError, ValueError):
        return free


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and (
        "can't allocate memory" in text or "out of memory" in text
    )
