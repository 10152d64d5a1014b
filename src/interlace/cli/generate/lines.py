"""From a file of prompts to a file with one line a group, in the same order; a run can go on.

Every line of the input is checked before the first is sampled. Beside `out.jsonl` stands
`out.jsonl.settings.json`, written first, with what the lines depend on. That file says whose the
lines are: what has none beside it is left as it is, byte for byte. A later run with the same
settings checks the ids of all lines, cuts off what a kill left of the last one, and appends the
rest.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interlace.batch import Job, Tally
from interlace.cli.generate.outcome import Aggregation, line_of, responses_of
from interlace.errors import DataFileError, GenerationError, differences, reading, shortened
from interlace.evaluation.provenance import as_json
from interlace.files import write_text
from interlace.jsonl import BadLineError, Store, parse, raw_lines, read_object

if TYPE_CHECKING:
    from interlace.engine.types import GroupOutput

MAX_SHOWN = 5

Encode = Callable[[Any], Any]


@dataclass(frozen=True)
class Record:
    """One prompt of a file."""

    line: int  # from 1
    id: str | int  # of the line, else its number and a hash of its prompt
    prompt: Any
    token_ids: Any  # for a server the prompt
    sample_id: int  # times that this very prompt came before, so that its groups differ
    columns: dict[str, Any]  # fields of the line besides these


def read_records(
    path: Path, field: str, encode: Encode, skip_bad: bool = False
) -> tuple[list[Record], list[str]]:
    """All prompts of a file with one JSON object a line, in order, and what is wrong with the lines
    that `skip_bad` left out. Blank lines do not count; for the field "prompt" "messages" will do.

    Raises:
        DataFileError: if the file cannot be read, or has bad lines and `skip_bad` is False.
    """
    with reading(DataFileError, f"The prompts in {path} cannot be read"):
        lines = list(raw_lines(path))
    records: list[Record] = []
    bad: list[str] = []
    ids: dict[str | int, int] = {}
    seen: Counter[str] = Counter()
    for number, line in lines:
        if not line.strip():
            continue
        try:
            record = _record(number, line, field, encode, ids, seen)
        except BadLineError as error:
            bad.append(f"line {number}: {error}")
            continue
        ids[record.id] = number
        records.append(record)
    if bad and not skip_bad:
        raise DataFileError(_complaint(path, bad))
    return records, bad


def content_hash(value: Any) -> str:
    """Eight hexadecimal digits that stand for a JSON value."""
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _record(
    number: int,
    line: bytes,
    field: str,
    encode: Encode,
    ids: dict[str | int, int],
    seen: Counter[str],
) -> Record:
    columns = parse(line)
    try:
        json.dumps(columns, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise BadLineError("has half of a surrogate pair, which is no character") from error
    if field not in columns and field == "prompt" and "messages" in columns:
        field = "messages"
    if field not in columns:
        has = ", ".join(map(repr, columns)) or "nothing"
        raise BadLineError(f"has no field {field!r}; it has {has}. --field names the prompt's.")
    prompt = columns.pop(field)
    digest = content_hash(prompt)
    name = columns.pop("id", None)
    if name is None:
        name = f"{number}-{digest}"
    if isinstance(name, bool) or not isinstance(name, str | int):
        raise BadLineError(
            f"its id is {shortened(json.dumps(name), 40)}; an id is a text or a whole number"
        )
    if name in ids:
        raise BadLineError(f"its id {name!r} is that of line {ids[name]} too")
    try:
        token_ids = encode(prompt)
    except GenerationError as error:
        raise BadLineError(str(error)) from error
    seen[digest] += 1
    return Record(number, name, prompt, token_ids, seen[digest] - 1, columns)


def _complaint(path: Path, bad: Sequence[str]) -> str:
    shown = "\n".join(f"  {reason}" for reason in bad[:MAX_SHOWN])
    more = f"\n  and {len(bad) - MAX_SHOWN} more" if len(bad) > MAX_SHOWN else ""
    count = "One line" if len(bad) == 1 else f"{len(bad)} lines"
    return f"{count} of {path} cannot be used:\n{shown}{more}\n--skip-bad goes on without them."


_OUT = "Choose another --output, or --overwrite it."


class Results:
    """The output of a run over a file. Of its lines, which have these ids, `done` are there, unless
    it begins anew (`overwrite`), whatever the file holds.

    Raises:
        DataFileError: if the file holds anything but the first lines of this very run, or another
            process is writing it.
    """

    def __init__(
        self,
        path: Path,
        ids: Sequence[str | int],
        settings: dict[str, Any],
        overwrite: bool = False,
    ) -> None:
        self.path = path
        self.done = 0
        self._settings_path = path.with_name(path.name + ".settings.json")
        now = as_json(settings)
        if not path.exists():
            # The settings come first, so that a kill leaves no file without them.
            self._write_settings(now, overwrite)
        self._store = Store(path)
        try:
            if not overwrite:
                before = self._settings()
                self.done = self._check(ids)
                if self.done and (changed := differences(before, now)):
                    raise DataFileError(
                        f"{path} was begun with other settings: {'; '.join(changed)}. Go on with "
                        "the old ones, choose another --output, or --overwrite it."
                    )
            if not self.done:
                self._write_settings(now, overwrite)
            self._store.begin(anew=overwrite)
        except BaseException:
            self._store.close()
            raise

    def __enter__(self) -> Results:
        return self

    def __exit__(self, *_: object) -> None:
        self._store.close()

    def append(self, line: dict[str, Any]) -> None:
        """Write one line; a kill after this call does not lose it."""
        self._store.append(line)
        self.done += 1

    def _settings(self) -> dict[str, Any]:
        """The settings of the run that wrote the file."""
        try:
            return read_object(self._settings_path, DataFileError, _OUT)
        except FileNotFoundError as error:
            raise DataFileError(
                f"{self.path} exists, but {self._settings_path.name}, which records the settings "
                f"of its lines, does not. The file may be anything, so it is left alone. {_OUT}"
            ) from error

    def _check(self, ids: Sequence[str | int]) -> int:
        """How many lines there are, after checking that they are this run's."""
        done = 0
        for number, line in raw_lines(self.path):
            if line.endswith(b"\n"):
                self._check_line(number, line, ids)
                done = number
        return done

    def _check_line(self, number: int, line: bytes, ids: Sequence[str | int]) -> None:
        try:
            found = parse(line)["id"]
        except (BadLineError, KeyError) as error:
            raise DataFileError(
                f"Line {number} of {self.path} is no result of this command, so no run can go on "
                f"from there. {_OUT}"
            ) from error
        if number > len(ids) or found != ids[number - 1]:
            expected = repr(ids[number - 1]) if number <= len(ids) else "no line at all"
            raise DataFileError(
                f"Line {number} of {self.path} has the id {found!r:.80}, and the input has "
                f"{expected} there: the input has changed. Restore it, choose another --output, or "
                "--overwrite this one."
            )

    def _write_settings(self, now: dict[str, Any], overwrite: bool) -> None:
        path = self._settings_path
        if path.exists() and not overwrite:
            before = read_object(path, DataFileError, _OUT)
            if before.keys() != now.keys():
                raise DataFileError(
                    f"{path} does not hold the settings of a run of this command, so it is left "
                    f"alone. {_OUT}"
                )
        with reading(
            DataFileError, f"The output {self.path} cannot be written", "Choose another --output."
        ):
            write_text(path, json.dumps(now, indent=2) + "\n")


def calls_of(records: Sequence[Record], width: int, size: int) -> list[list[Job]]:
    """The records as jobs, `size` of them in a call; their keys count from 0."""
    jobs = [
        Job(f"line {record.line}", place, width, record.token_ids, record.sample_id, record)
        for place, record in enumerate(records)
    ]
    return [jobs[start : start + size] for start in range(0, len(jobs), size)]


@dataclass(eq=False)
class Lines:
    """Writes a line for each group, as soon as those before it are there."""

    write: Callable[[dict[str, Any]], None]
    done: int  # lines that are there
    aggregation: Aggregation
    tally: Tally
    _waiting: dict[int, tuple[Job, GroupOutput]] = field(default_factory=dict)

    def has(self, job: Job) -> bool:
        """Whether the line is there."""
        return bool(job.key < self.done)

    def take(self, job: Job, group: GroupOutput) -> None:
        """Write the lines whose turn it is."""
        if self.has(job):
            return
        self._waiting[job.key] = job, group
        # Syntheses need the engine, which is busy until the call's last group is there.
        while self.done in self._waiting and not self.aggregation.writes:
            self._finish([self._waiting.pop(self.done)])

    def end_call(self) -> None:
        """Write what waited for the engine."""
        waiting = [self._waiting.pop(key) for key in sorted(self._waiting)]
        if waiting:
            self._finish(waiting)

    def _finish(self, pairs: Sequence[tuple[Job, GroupOutput]]) -> None:
        outcomes = self.aggregation(
            [
                responses_of(group, as_text(job.subject.prompt), job.subject.columns)
                for job, group in pairs
            ]
        )
        for (job, group), outcome in zip(pairs, outcomes, strict=True):
            self.write(line_of(job.subject.id, job.subject.prompt, group, outcome))
            self.done += 1
            self.tally.keep(job.width, group.num_tokens)


def as_text(prompt: Any) -> str:
    """A prompt as readable text; of messages, what the user said last."""
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, list) and prompt and isinstance(prompt[-1], dict):
        said = [m.get("content") for m in prompt if m.get("role") == "user"] or [prompt[-1]]
        return str(said[-1])
    return str(prompt)
