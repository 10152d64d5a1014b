"""From a run's records to its result, and from there to the files people look at."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from interlace import files
from interlace.answers import symbolically_equal
from interlace.errors import RecordError, RunError
from interlace.evaluation.figures import FORMATS, write_figures
from interlace.evaluation.intervals import LEVEL
from interlace.evaluation.latency import with_latency
from interlace.evaluation.markdown import to_markdown
from interlace.evaluation.measure import measure
from interlace.evaluation.provenance import summary
from interlace.evaluation.records import GroupRecord, read_records
from interlace.evaluation.report import Report, make_report
from interlace.evaluation.results import ArmResult
from interlace.evaluation.run_folder import (
    FIGURES,
    RECORDS,
    REPORT,
    RESULT,
    TIMINGS,
    Timing,
    read_config,
    read_timings,
)


def load_run(
    path: str | Path, *, ks: Sequence[int] | None = None, level: float = LEVEL
) -> ArmResult:
    """The result of a run folder, computed anew from its raw generations.

    Args:
        path: What `interlace.evaluate(..., output=path)` wrote.
        ks: Set sizes for independent rows; by default those of the run.
        level: Coverage of the intervals.

    Raises:
        RunError: if it is no run folder, or the run is unfinished.
        RecordError: for damaged records.
        DependentRowsError: if `ks` asks for parts of coupled groups.
    """
    path = Path(path)
    config = read_config(path)
    try:
        records = read_records(path / RECORDS, drop_partial=True)
    except OSError as error:
        raise RecordError(f"The raw generations of {path} cannot be read: {error}.") from error
    settings = config["settings"]
    expected = settings["task"]["problems"] * sum(settings["groups"].values())
    if len(records) != expected:
        raise RunError(
            f"{path} holds {len(records)} of the {expected} groups of its run. Start the same "
            "`interlace eval` again: it goes on from there."
        )
    return result_of(
        settings,
        config["environments"],
        records,
        read_timings(path / TIMINGS),
        ks=ks,
        level=level,
    )


def result_of(
    settings: Mapping[str, Any],
    environments: Sequence[Mapping[str, Any]],
    records: Iterable[GroupRecord],
    timings: Sequence[Timing],
    *,
    ks: Sequence[int] | None = None,
    level: float = LEVEL,
) -> ArmResult:
    """What a complete run measured.

    Args:
        settings: Of the run's configuration.
        environments: Where it was sampled.
        records: All its groups.
        timings: Groups that were timed alone.
        ks: Set sizes for independent rows; by default those of the run, and powers of two.
        level: Coverage of the intervals.
    """
    kept = list(records)
    if not settings["coupled"] and ks is None:
        ((width, count),) = settings["groups"].items()
        rows = int(width) * count
        doubling = [2**power for power in range(rows.bit_length()) if 2**power <= rows]
        ks = sorted({*settings["widths"], *doubling, rows})
    (result,) = measure(
        kept,
        settings["arm"],
        seed=settings["training_seed"],
        ks=ks,
        equal=symbolically_equal if settings["symbolic_votes"] else None,
        level=level,
        provenance={"settings": dict(settings), "environments": [dict(e) for e in environments]},
    )
    return with_latency(result, timings, level)


def report_of(result: ArmResult) -> Report:
    """The report of a single run, with what it came from at its head."""
    settings = result.provenance["settings"]
    head = summary(settings, result.provenance["environments"])
    return make_report([result], provenance=head)


def write_report(path: Path, report: Report, formats: Sequence[str] = FORMATS) -> None:
    """Write `result.json`, `report.md` and the figures into a folder, all of them or none.

    Args:
        path: The folder; made if missing.
        report: What to write.
        formats: File types of the figures; none draws none.
    """
    shown = next((kind for kind in ("png", "svg") if kind in formats), None)
    with files.writing(path, remove=() if formats else (FIGURES,)) as stage:
        drawn = write_figures(report, stage / FIGURES, formats) if formats else []
        report.save(stage / RESULT)
        links = [f"{FIGURES}/{file.name}" for file in drawn if file.suffix == f".{shown}"]
        (stage / REPORT).write_text(to_markdown(report, links), encoding="utf-8")
