"""Huge pages: the same bytes, never an error, and a process that starts itself again once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from interlace import Engine, SamplingParams, huge_pages
from interlace.cli.main import main
from support.architectures import attach_random, build

# It tells when it begins, and then what the allocator was told and what a child would inherit.
PROGRAM = """
import os, sys
from pathlib import Path
from interlace import huge_pages
print("began as", os.getpid(), flush=True)
huge_pages._SETTING = Path(sys.argv[1])
huge_pages.restart()
huge_pages.restart()
environment = Path("/proc/self/environ").read_text()  # glibc itself may cut its tunables there
print(*[text for text in environment.replace(":", "\\0").split("\\0") if "glibc.malloc" in text])
print(sys.stdin.read(), os.environ.get("GLIBC_TUNABLES"))
sys.exit(7)
"""
NAMES = ("GLIBC_TUNABLES", huge_pages.SWITCH)

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has such a setting")
on_glibc = pytest.mark.skipif(not huge_pages._has_tunable(), reason="no such tunable here")


def run(folder: Path, setting: str = "always [madvise] never", **more: str) -> tuple[int, str, str]:
    """How often the program began, what its allocator was told, and its last line."""
    (folder / "enabled").write_text(setting)
    child = subprocess.run(
        [sys.executable, "-P", "-c", PROGRAM, str(folder / "enabled")],
        input="what was sent",
        capture_output=True,
        text=True,
        timeout=60,
        env={k: v for k, v in os.environ.items() if k not in NAMES} | more,
    )
    assert (child.returncode, child.stderr) == (7, "")
    *starts, told, last = child.stdout.splitlines()
    assert len(set(starts)) == 1  # it stays one process, which others may wait for or kill
    return len(starts), told, last


@on_glibc
def test_starts_again_once_and_no_child_asks(tmp_path: Path) -> None:
    """Breaks if it starts without end, loses its input, or has its children ask, too."""
    asking = "GLIBC_TUNABLES=glibc.malloc.hugetlb=1"
    assert run(tmp_path) == (2, asking, "what was sent None")


@on_glibc
def test_tunables_of_the_user_stay(tmp_path: Path) -> None:
    own = "glibc.malloc.arena_max=3"
    asking = f"GLIBC_TUNABLES={own} glibc.malloc.hugetlb=1"
    assert run(tmp_path, GLIBC_TUNABLES=own) == (2, asking, f"what was sent {own}")


@on_glibc
def test_a_mark_of_another_process_is_no_mark(tmp_path: Path) -> None:
    """Breaks if a child that inherited the mark by some way takes it for its own."""
    assert run(tmp_path, INTERLACE_RESTARTED="1")[0] == 2


@on_linux
@pytest.mark.parametrize(
    ("setting", "more"),
    [
        ("[always] madvise never", {}),
        ("always madvise [never]", {}),
        ("no such text", {}),
        ("always [madvise] never", {huge_pages.SWITCH: "0"}),
    ],
)
def test_starts_once_where_nothing_would_change(
    tmp_path: Path, setting: str, more: dict[str, str]
) -> None:
    assert run(tmp_path, setting, **more) == (1, "", "what was sent None")


def spans(*tensors: Tensor) -> list[huge_pages.Span]:
    return [(tensor.data_ptr(), tensor.nbytes) for tensor in tensors]


def test_memory_keeps_its_contents(capfd: pytest.CaptureFixture) -> None:
    """Both neighbours, too: the kernel moves whole pages."""
    tensors = [torch.arange(start, start + 3 * 2**20) for start in (0, 5, 11)]
    before = [tensor.clone() for tensor in tensors]
    moved = huge_pages.collapse(spans(tensors[1], tensors[0]))
    assert moved % huge_pages.SIZE == 0
    assert 0 <= moved <= 2 * tensors[0].nbytes + huge_pages.SIZE
    assert all(map(torch.equal, tensors, before))


@on_linux
def test_a_kernel_that_refuses_is_harmless() -> None:
    """Addresses that are not the process's, and none at all."""
    unmapped = [(8 * huge_pages.SIZE, 4 * huge_pages.SIZE)]
    assert huge_pages.collapse(unmapped) == 0
    assert huge_pages.collapse([]) == 0


@pytest.mark.parametrize("why", ["platform", "switch", "setting"])
def test_nothing_is_asked_where_it_is_not_wanted(
    why: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if why == "platform":
        monkeypatch.setattr(sys, "platform", "darwin")
    elif why == "switch":
        monkeypatch.setenv(huge_pages.SWITCH, "0")
    else:
        monkeypatch.setattr(huge_pages, "_SETTING", tmp_path / "there is none")
    monkeypatch.setattr(huge_pages.ctypes, "CDLL", None)  # calling it would raise
    monkeypatch.setattr(huge_pages.os, "execve", None)
    assert huge_pages.collapse(spans(torch.ones(2**21))) == 0
    huge_pages.restart()


def test_only_whole_pages_are_moved() -> None:
    """What lies close together is one piece, in any order; what lies at its rims stays."""
    size = huge_pages.SIZE
    near = [(3 * size - 7, size + 9), (size // 2, size), (3 * size // 2 + 4096, size + size // 4)]
    assert huge_pages._whole_pages(near) == [(size, 4 * size)]
    assert huge_pages._whole_pages([(1, size), (5 * size, size - 1)]) == []


def test_same_results_with_and_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit, with weights that are packed and some that are large enough to be moved."""
    model = attach_random(build("llama", vocab_size=70_001, dtype=torch.bfloat16), "bridge")
    params = SamplingParams(width=3, max_new_tokens=5, seed=2)
    asked: list[int] = []
    collapse = huge_pages.collapse
    monkeypatch.setattr(huge_pages, "collapse", lambda s: asked.append(collapse(s)))
    (moved,) = Engine(model).generate([[5, 6, 7]], params)
    monkeypatch.setenv(huge_pages.SWITCH, "0")
    (left,) = Engine(model).generate([[5, 6, 7]], params)
    assert moved.completions == left.completions
    assert asked[-1] == 0


def test_copies_that_are_made_anew_stay_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """After each step of a trainer, moving them took more time than it gave."""
    model = attach_random(build("llama", dtype=torch.bfloat16), "bridge")
    asked: list[int] = []
    monkeypatch.setattr(huge_pages, "collapse", lambda spans: asked.append(len(list(spans))))
    engine = Engine(model, backend="cpu")
    for _ in range(2):
        engine.generate([[5, 6, 7]], SamplingParams(width=3, max_new_tokens=3))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.01)
    assert len(asked) == 1
    assert asked[0] > 0


def test_verbose_says_what_was_got(capsys: pytest.CaptureFixture) -> None:
    assert main(["--verbose", "--version"]) == 0
    said = capsys.readouterr().err
    assert said.startswith("interlace: memory on huge pages: ")
    assert sys.platform != "linux" or " of " in said
