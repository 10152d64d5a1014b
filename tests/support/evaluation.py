"""Quick evaluations for tests, and what of them does not depend on the clock."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from interlace.engine.engine import Engine
from interlace.engine.types import SamplingParams
from interlace.evaluation.evaluate import evaluate
from interlace.evaluation.results import ArmResult

SHORT = SamplingParams(max_new_tokens=6)


def quick(engine: Engine, *arguments: Any, **options: Any) -> ArmResult:
    """An evaluation without figures and timings, unless asked for."""
    return evaluate(engine, *arguments, **{"params": SHORT, "timed": 0, "figures": (), **options})


def without_times(value: Any) -> Any:
    """A result file without what measures time."""
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items()}
    if isinstance(value, list):
        return [
            without_times(v)
            for v in value
            if not (isinstance(v, dict) and v.get("metric") == "seconds")
        ]
    return value


def result_file(folder: Path) -> Any:
    return without_times(json.loads((folder / "result.json").read_text()))


def records_without_times(folder: Path) -> list[dict[str, Any]]:
    """Lines of the records file, in the file's order."""
    lines = (folder / "records.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]
