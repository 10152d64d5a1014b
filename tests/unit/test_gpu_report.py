"""The report of a GPU goes all its ways on a CPU, and says what it left out."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from support.processes import script

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu_report.py"


@pytest.fixture
def report() -> Iterator[ModuleType]:
    with script(SCRIPT) as module:
        yield module


def test_it_goes_all_its_ways(
    report: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "report"
    arguments = ["--quick", "--minutes", "60", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", ["gpu_report.py", *arguments])
    report.main()
    sections = json.loads(output.with_suffix(".json").read_text())["sections"]
    assert [s for s in sections.values() if "failed" in s or "skipped" in s] == []
    assert sections["equality"]["rows with the same tokens"] == sections["equality"]["rows"]
    page = output.with_suffix(".md").read_text()
    assert all(f"## {name}" in page for name in sections)


def test_without_time_it_says_what_it_skipped(
    report: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "new" / "report"  # failed after all sections: there was no such folder
    arguments = ["--quick", "--minutes", "0", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", ["gpu_report.py", *arguments])
    report.main()
    sections = json.loads(output.with_suffix(".json").read_text())["sections"]
    assert len(sections) == 7
    assert "nothing about a GPU" in output.with_suffix(".md").read_text()
    assert all("skipped" in section for section in sections.values())
