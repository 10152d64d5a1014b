"""The folder of a run: its settings, its raw generations, its results.

    config.json     what the numbers depend on, and where it ran; another configuration is refused
    records.jsonl   raw generations, a line a group, appended as groups finish
    timings.jsonl   seconds of groups that ran alone, a line a group
    result.json     every number with its interval; made from the files above, as are
    report.md       tables for people, and
    figures/        PNG, SVG and PDF

The first three are all it takes: the others can be made again at any time.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from interlace import files
from interlace.answers import symbolically_equal
from interlace.errors import DataFileError, RunError, differences
from interlace.evaluation.figures import FORMATS, write_figures
from interlace.evaluation.intervals import LEVEL
from interlace.evaluation.measure import measure, with_latency
from interlace.evaluation.provenance import summary
from interlace.evaluation.records import GroupRecord, Timing, read_records, read_timings
from interlace.evaluation.report import SCHEMA as REPORT_SCHEMA
from interlace.evaluation.report import Report, make_report, to_markdown
from interlace.evaluation.results import ArmResult, set_sizes
from interlace.jsonl import BadLineError, Store, parse, read_object

CONFIG, RECORDS, TIMINGS = "config.json", "records.jsonl", "timings.jsonl"
RESULT, REPORT, FIGURES = "result.json", "report.md", "figures"


SCHEMA = "interlace.run/1"
Key = tuple[str, str, int, int]


class RunFolder:
    """A run being written, or kept in memory only. One process at a time; use as a context manager.

    Nothing in the folder changes before it is certain that it is a run's.

    Args:
        path: Path of the folder, made if missing; None keeps the run in memory.
        settings: Settings that the numbers depend on, as JSON values.
        overwrite: Whether to begin anew.

    Attributes:
        records: Groups that are there, by key.
        timings: Groups that were timed.
        environments: Where groups were sampled, the first environment first.

    Raises:
        RunError: if the folder holds a run of another configuration, something else, or is being
            written by another process.
        DataFileError: for damaged records.
    """

    def __init__(
        self, path: str | Path | None, settings: Mapping[str, Any], *, overwrite: bool = False
    ) -> None:
        self.records: dict[Key, GroupRecord] = {}
        self.timings: list[Timing] = []
        self.environments: list[dict[str, Any]] = []
        self.settings, self._opened = settings, ExitStack()
        self._stores: dict[str, Store] = {}
        self._in_memory, self.path = path is None, Path(path or "")
        if not self._in_memory:
            self._refuse_foreign(overwrite)
            with ExitStack() as opened:
                try:
                    self._open(opened, overwrite)
                except OSError as error:
                    raise RunError(
                        f"The run folder {self.path} cannot be written: {error}."
                    ) from error
                self._opened = opened.pop_all()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def append(self, record: GroupRecord) -> None:
        """Keep a group; a kill after this call does not lose one that a folder holds."""
        self._write(RECORDS, record.to_json())
        self.records[record.key] = record

    def append_timing(self, timing: Timing) -> None:
        """Keep the seconds of a group."""
        self._write(TIMINGS, vars(timing))
        self.timings.append(timing)

    def note_environment(self, environment: Mapping[str, Any]) -> None:
        """Note where this process samples, unless that is known already."""
        if dict(environment) not in self.environments:
            self.environments.append(dict(environment))
            self._write_config()

    def _write(self, name: str, line: Mapping[str, Any]) -> None:
        if not self._in_memory:
            self._stores[name].append(line)

    def _open(self, opened: ExitStack, overwrite: bool) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        for name, seconds in ((RECORDS, 0.0), (TIMINGS, math.inf)):
            store = Store(self.path / name, RunError, sync_seconds=seconds)
            self._stores[name] = opened.enter_context(store)
        if not overwrite:
            self.environments = self._settle()
            found = read_records(self.path / RECORDS, drop_partial=True)
            self.records = {record.key: record for record in found}
            self.timings = read_timings(self.path / TIMINGS)
        for store in self._stores.values():
            store.begin(anew=overwrite)
        for name in (CONFIG, RESULT, REPORT) if overwrite else ():
            (self.path / name).unlink(missing_ok=True)

    def _refuse_foreign(self, overwrite: bool) -> None:
        """Raise if the folder holds files with our names that are not a run's."""
        config = self.path / CONFIG
        if config.exists():
            try:
                found = parse(config.read_bytes())
            except (OSError, BadLineError):
                found = {"schema": SCHEMA}  # damaged: only --overwrite goes on from here
            if not str(found.get("schema")).startswith(SCHEMA.partition("/")[0]):
                raise RunError(
                    f"{config} is not the configuration of a run but a file of something else, so "
                    "the folder is left alone. Choose another output folder."
                )
            return
        names = (RECORDS, TIMINGS, RESULT, REPORT, FIGURES)
        full = [name for name in names if _holds_something(self.path / name)]
        if full and not overwrite:
            raise RunError(
                f"{self.path} has {', '.join(full)}, but no {CONFIG} that says what they are of. "
                "Choose another output folder, or overwrite it."
            )

    def _settle(self) -> list[dict[str, Any]]:
        """The environments of an earlier start, if its configuration is this one's."""
        if not (self.path / CONFIG).exists():
            return []
        before = read_config(self.path)
        changed = differences(before["settings"], self.settings)
        if changed:
            raise RunError(
                f"{self.path} holds a run with another configuration: {'; '.join(changed)}. Go "
                "on with the old one, choose another output folder, or overwrite it."
            )
        return list(before["environments"])

    def _write_config(self) -> None:
        if self._in_memory:
            return
        content = {
            "schema": SCHEMA,
            "settings": dict(self.settings),
            "environments": self.environments,
        }
        files.write_text(self.path / CONFIG, json.dumps(content, indent=1) + "\n")


def _holds_something(path: Path) -> bool:
    if path.is_dir():
        return any(path.iterdir())
    return path.exists() and path.stat().st_size > 0


def refuse_foreign_report(folder: Path) -> None:
    """Raise if a folder holds files with a report's names that are not a report's: writing one
    replaces them, a whole folder of figures too.

    Raises:
        RunError: naming them.
    """
    full = [name for name in (RESULT, REPORT, FIGURES) if _holds_something(folder / name)]
    try:
        ours = str(parse(files.locate(folder, RESULT).read_bytes()).get("schema"))
    except (OSError, BadLineError):
        ours = ""
    if full and not ours.startswith(REPORT_SCHEMA.partition("/")[0]):
        raise RunError(
            f"{folder} has {', '.join(full)} of something else, which this report would replace. "
            "Choose another output folder."
        )


def read_config(path: str | Path) -> dict[str, Any]:
    """The `settings` and `environments` of a run folder."""
    target = Path(path) / CONFIG
    try:
        values = read_object(
            target, RunError, "Choose another output folder, or overwrite this run."
        )
    except FileNotFoundError:
        raise RunError(
            f"{path} is no run folder: it has no {CONFIG}. `interlace eval --output` makes one."
        ) from None
    if values.get("schema") != SCHEMA:
        raise RunError(
            f"{target} is no configuration of a run with the schema {SCHEMA!r}. Read it with the "
            "release that wrote it."
        )
    settings, places = values.get("settings"), values.get("environments")
    if not (isinstance(settings, dict) and isinstance(places, list)) or not all(
        isinstance(place, dict) for place in places
    ):
        raise RunError(
            f"{target} is damaged: settings is an object, and environments a list of objects. "
            "Choose another output folder, or overwrite this run."
        )
    return values


def load_run(
    path: str | Path, *, ks: Sequence[int] | None = None, level: float = LEVEL
) -> ArmResult:
    """The result of a run folder, computed anew from its raw generations.

    Args:
        path: Path of a folder that `interlace.evaluate(..., output=path)` wrote.
        ks: Sizes of sets of independent rows; by default those of the run.
        level: Coverage of the intervals.

    Raises:
        RunError: if it is no run folder, or the run is unfinished.
        DataFileError: for damaged records.
        MetricError: if `ks` asks for parts of coupled groups.
    """
    path = Path(path)
    config = read_config(path)
    try:
        records = read_records(path / RECORDS, drop_partial=True)
    except OSError as error:
        raise DataFileError(f"The raw generations of {path} cannot be read: {error}.") from error
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
    """What a complete run measured; by default at the set sizes of the run, and powers of two."""
    kept = list(records)
    if not settings["coupled"] and ks is None:
        ((width, count),) = settings["groups"].items()
        ks = sorted({*settings["widths"], *set_sizes(int(width) * count)})
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


@functools.lru_cache(maxsize=1)  # written by `evaluate`, then shown by the command: fits take time
def report_of(result: ArmResult) -> Report:
    """The report of a single run, with what it came from at its head."""
    settings = result.provenance["settings"]
    head = summary(settings, result.provenance["environments"])
    return make_report([result], provenance=head)


def write_report(path: Path, report: Report, formats: Sequence[str] = FORMATS) -> None:
    """Write `result.json`, `report.md` and the figures, if any, into a folder: all or nothing."""
    shown = next((kind for kind in ("png", "svg") if kind in formats), None)
    with files.writing(path, remove=() if formats else (FIGURES,)) as stage:
        drawn = write_figures(report, stage / FIGURES, formats) if formats else []
        report.save(stage / RESULT)
        links = [f"{FIGURES}/{file.name}" for file in drawn if file.suffix == f".{shown}"]
        (stage / REPORT).write_text(to_markdown(report, links), encoding="utf-8")
