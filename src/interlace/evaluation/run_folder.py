"""The folder of a run: what was asked, what was sampled, what came of it.

    config.json     what the numbers depend on, and where it ran; another configuration is refused
    records.jsonl   raw generations, a line a group, appended as groups finish
    timings.jsonl   seconds of groups that ran alone, a line a group
    result.json     every number with its interval; made from the files above, as are
    report.md       tables for people, and
    figures/        PNG, SVG and PDF

The first three are all it takes: the others can be made again at any time.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from interlace.errors import RecordError, RunError
from interlace.evaluation.provenance import differences
from interlace.evaluation.records import GroupRecord, append_record, read_records, trim_partial

CONFIG, RECORDS, TIMINGS = "config.json", "records.jsonl", "timings.jsonl"
RESULT, REPORT, FIGURES = "result.json", "report.md", "figures"
SCHEMA = "interlace.run/1"
Key = tuple[str, str, int, int]


@dataclass(frozen=True)
class Timing:
    """How long one group took alone.

    Attributes:
        example_id: The problem.
        width: W.
        seconds: Time from the call to the last token, the prompt included: of the processor on a
            CPU, on the wall on a GPU.
    """

    example_id: str
    width: int
    seconds: float


class Store:
    """The groups of a run, in memory only.

    Attributes:
        records: Groups that are there, by key.
        timings: Groups that were timed.
        environments: Where groups were sampled, the first environment first.
    """

    def __init__(self) -> None:
        self.records: dict[Key, GroupRecord] = {}
        self.timings: list[Timing] = []
        self.environments: list[dict[str, Any]] = []

    def append(self, record: GroupRecord) -> None:
        """Keep a group."""
        self.records[record.key] = record

    def append_timing(self, timing: Timing) -> None:
        """Keep the seconds of a group."""
        self.timings.append(timing)

    def note_environment(self, environment: Mapping[str, Any]) -> None:
        """Note where this process samples, unless that is known already."""
        if dict(environment) not in self.environments:
            self.environments.append(dict(environment))


class RunFolder(Store):
    """A run being written. One process at a time; use as a context manager.

    Args:
        path: The folder; made if missing.
        settings: What the numbers depend on, as JSON values.
        overwrite: Begin anew.

    Attributes:
        path: The folder.
        settings: As given.

    Raises:
        RunError: if the folder holds a run of another configuration, something else, or is being
            written by another process.
        RecordError: for damaged records.
    """

    def __init__(
        self,
        path: str | Path,
        settings: Mapping[str, Any],
        *,
        overwrite: bool = False,
    ) -> None:
        super().__init__()
        self.path = Path(path)
        self.settings = settings
        self._streams: list[IO[str]] = []
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._record_stream = self._opened(RECORDS)
            self._timing_stream = self._opened(TIMINGS)
        except OSError as error:
            self._close()
            raise RunError(f"The run folder {self.path} cannot be written: {error}.") from error
        try:
            self._lock()
            if overwrite:
                self._begin_anew()
            for name in (RECORDS, TIMINGS):
                trim_partial(self.path / name)  # what a kill left of a last line
            self.environments = self._settle()
            self.records = {r.key: r for r in read_records(self.path / RECORDS)}
            self.timings = read_timings(self.path / TIMINGS)
        except BaseException:
            self._close()
            raise

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()

    def append(self, record: GroupRecord) -> None:
        """Keep a group; a kill after this call does not lose it."""
        try:
            append_record(self._record_stream, record)
        except OSError as error:
            raise self._full(RECORDS, error) from error
        super().append(record)

    def append_timing(self, timing: Timing) -> None:
        """Keep the seconds of a group."""
        try:
            self._timing_stream.write(json.dumps(vars(timing)) + "\n")
            self._timing_stream.flush()
        except OSError as error:
            raise self._full(TIMINGS, error) from error
        super().append_timing(timing)

    def note_environment(self, environment: Mapping[str, Any]) -> None:
        """Note where this process samples, unless that is known already."""
        known = len(self.environments)
        super().note_environment(environment)
        if len(self.environments) > known:
            self._write_config()

    def _settle(self) -> list[dict[str, Any]]:
        """Check the configuration of an earlier start, or write this one's."""
        if (self.path / CONFIG).exists():
            before = read_config(self.path)
            changed = differences(before["settings"], self.settings)
            if changed:
                raise RunError(
                    f"{self.path} holds a run with another configuration: {'; '.join(changed)}. Go "
                    "on with the old one, choose another output folder, or overwrite it."
                )
            return list(before["environments"])
        if (self.path / RECORDS).stat().st_size:
            raise RunError(
                f"{self.path} has raw generations, but no {CONFIG} that says what they are of. "
                "Choose another output folder, or overwrite it."
            )
        return []

    def _write_config(self) -> None:
        content = {
            "schema": SCHEMA,
            "settings": dict(self.settings),
            "environments": self.environments,
        }
        partial = self.path / f"{CONFIG}.tmp"
        with partial.open("w", encoding="utf-8") as stream:
            stream.write(json.dumps(content, indent=1) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(self.path / CONFIG)

    def _opened(self, name: str) -> IO[str]:
        stream = (self.path / name).open("a", encoding="utf-8", newline="\n")
        self._streams.append(stream)
        return stream

    def _lock(self) -> None:
        try:
            import fcntl
        except ImportError:  # Windows: two runs at once are the user's care
            return
        try:
            fcntl.flock(self._record_stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunError(
                f"Another process is writing to {self.path}; wait for it, or choose another output "
                "folder."
            ) from error

    def _begin_anew(self) -> None:
        for stream in self._streams:
            stream.truncate(0)
        for name in (CONFIG, RESULT, REPORT):
            (self.path / name).unlink(missing_ok=True)

    def _full(self, name: str, error: OSError) -> RunError:
        return RunError(
            f"Writing to {self.path / name} failed after {len(self.records)} groups: {error}. Make "
            "room and start the same run again: it goes on from there."
        )

    def _close(self) -> None:
        for stream in self._streams:
            stream.close()


def read_config(path: str | Path) -> dict[str, Any]:
    """The `settings` and `environments` of a run folder.

    Raises:
        RunError: if there is none, or it cannot be read.
    """
    target = Path(path) / CONFIG
    try:
        values = json.loads(target.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(
            f"{path} is no run folder: it has no {CONFIG}. `interlace eval --output` makes one."
        ) from None
    except (OSError, ValueError) as error:
        raise RunError(f"{target} cannot be read: {error}.") from error
    if not isinstance(values, dict) or values.get("schema") != SCHEMA:
        raise RunError(
            f"{target} is no configuration of a run with the schema {SCHEMA!r}. Read it with the "
            "release that wrote it."
        )
    return values


def read_timings(path: Path) -> list[Timing]:
    """The timings of a file; none if it is missing.

    Raises:
        RecordError: for a damaged line.
    """
    if not path.exists():
        return []
    found = []
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines[:-1], 1):  # after the last newline: nothing, or a remainder
        try:
            found.append(Timing(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise RecordError(f"{path}, line {number} is no timing: {error}.") from None
    return found
