"""The memory that a call may take."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from interlace import Engine
from interlace.engine import core as memory
from support.architectures import build

CPU = torch.device("cpu")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 1000 KiB free, in no container."""
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  4000 kB\nMemFree:  100 kB\nMemAvailable:    1000 kB\n")
    monkeypatch.setattr(memory, "_MEMINFO", meminfo)
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    return tmp_path


def contain(machine: Path, limit: str, used: int, cached: int = 0) -> None:
    (machine / "memory.max").write_text(f"{limit}\n")
    (machine / "memory.current").write_text(f"{used}\n")
    (machine / "memory.stat").write_text(f"anon 5\ninactive_file {cached}\nfile 7\n")


def test_half_of_what_is_available(machine: Path) -> None:
    assert memory.budget_for(CPU) == 500 * 1024


def test_a_containers_limit_counts(machine: Path) -> None:
    contain(machine, str(600 * 1024), used=300 * 1024, cached=100 * 1024)
    assert memory.budget_for(CPU) == 200 * 1024
    contain(machine, str(100), used=500)
    assert memory.budget_for(CPU) == 0


@pytest.mark.parametrize("limit", ["max", str(2**60)])
def test_a_container_without_a_limit(machine: Path, limit: str) -> None:
    contain(machine, limit, used=300)
    assert memory.budget_for(CPU) == 500 * 1024


def test_a_system_that_does_not_say(machine: Path) -> None:
    (machine / "meminfo").unlink()
    assert memory.budget_for(CPU) == 2 * 2**30


def test_this_machine_has_memory() -> None:
    assert memory.budget_for(CPU) > 2**20


def test_an_engines_own_budget_goes_before() -> None:
    engine = Engine(build("llama"), memory_budget=12345)
    assert engine._limits().memory == 12345
    assert Engine(build("llama"))._limits().memory > 2**20
