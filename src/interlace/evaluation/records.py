"""Raw generations on disk: one JSON line a group, from which every metric can be recomputed.

Letters: W rows of a group. A file belongs to one arm. Lines are appended as groups finish, in any
order; a reader sorts them. What an interrupted writer left of its last line is told apart from
damage: only a last line without its newline can be such a remainder.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from interlace.errors import DataFileError, nearest
from interlace.jsonl import BadLineError, as_line, parse, raw_lines, read

RECORD_VERSION = 1


@dataclass(frozen=True)
class GroupRecord:
    """One group: W rows of one prompt, sampled together and verified.

    Args:
        task: Name of the task.
        example_id: Id of the example, unique within the task.
        width: Number of rows of the group, W.
        group: Index among this example's groups at this width, from 0.
        seed: Seed that the group was sampled with.
        coupled: Whether the rows saw each other: True for a model with Bridge blocks. Rows of a
            coupled group are dependent, so that no metric takes a part of it; see METHOD.
        answers: Extracted answers, `[W]`; None where a row has none.
        correct: Verdicts, `[W]`.
        scores: Scores of the verdicts, `[W]`, 0 to 1.
        tokens: Number of sampled tokens of each row, `[W]`.
        logprob_sums: Sums of the log-probabilities (nats, temperature 1) of each row's tokens,
            `[W]`; None if not kept. They weigh votes that need no scorer.
        texts: Completions, `[W]`; None if not kept.
        finish_reasons: Reasons as the engine gives them, `[W]`; None if not kept.
        scorers: Scores of each scorer, `[W]` numbers of at least 0 that may choose or weigh rows
            without knowing the right answer.
        seconds: Wall-clock time from the group's admission to its last token, in whatever batch it
            ran; None if not measured.

    Raises:
        DataFileError: for fields that contradict each other.
    """

    task: str
    example_id: str
    width: int
    group: int
    seed: int
    coupled: bool
    answers: tuple[str | None, ...]
    correct: tuple[bool, ...]
    scores: tuple[float, ...]
    tokens: tuple[int, ...]
    logprob_sums: tuple[float, ...] | None = None
    texts: tuple[str, ...] | None = None
    finish_reasons: tuple[str, ...] | None = None
    scorers: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    seconds: float | None = None

    def __post_init__(self) -> None:
        if self.width < 1 or self.group < 0:
            self._refuse("width is at least 1 and group at least 0", (self.width, self.group))
        per_row: dict[str, Any] = {
            name: getattr(self, name)
            for name in ("answers", "correct", "scores", "tokens", *_OPTIONAL_ROWS)
        }
        per_row |= {f"scorers[{name!r}]": values for name, values in self.scorers.items()}
        for name, values in per_row.items():
            if values is not None and len(values) != self.width:
                self._refuse(f"{name} has one entry a row ({self.width})", len(values))
        if not all(0 <= score <= 1 for score in self.scores):
            self._refuse("scores of verdicts lie between 0 and 1", self.scores)
        if not all(count >= 0 for count in self.tokens):
            self._refuse("token counts are at least 0", self.tokens)
        if not all(math.isfinite(total) for total in self.logprob_sums or ()):
            self._refuse("sums of log-probabilities are finite", self.logprob_sums)
        if self.seconds is not None and not (math.isfinite(self.seconds) and self.seconds >= 0):
            self._refuse("seconds are finite and at least 0", self.seconds)
        for name, values in self.scorers.items():
            if not all(math.isfinite(value) and value >= 0 for value in values):
                self._refuse(
                    f"scorer {name!r} gives finite numbers of at least 0, since they may be "
                    "weights (pass logits through a sigmoid first)",
                    values,
                )

    @property
    def key(self) -> tuple[str, str, int, int]:
        """What makes a group unique in a file: task, example id, width, group."""
        return (self.task, self.example_id, self.width, self.group)

    def to_line(self) -> str:
        """The record as one line of JSON with its newline."""
        return as_line(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """The record as JSON values; optional fields only where given."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        given = {name: value for name, value in values.items() if value is not None and value != {}}
        return {"v": RECORD_VERSION, **given}

    @classmethod
    def from_line(cls, line: str | bytes) -> GroupRecord:
        """The record of one line.

        Raises:
            DataFileError: for damaged JSON, another version, wrong fields or types.
        """
        try:
            values = parse(line.encode() if isinstance(line, str) else line)
        except BadLineError as error:
            raise DataFileError(f"A record is one line of JSON; this one {error}.") from error
        if values.pop("v", None) != RECORD_VERSION:
            raise DataFileError(
                f'A record is a JSON object with "v": {RECORD_VERSION}; got {line[:80]!r}. '
                "Read files of another version with the release that wrote them."
            )
        return cls(**_fields(cls, values))

    def _refuse(self, rule: str, got: object) -> None:
        raise DataFileError(
            f"In a record {rule}; got {got!r} in group {self.group} of example "
            f"{self.example_id!r} at width {self.width} of task {self.task!r}."
        )


_OPTIONAL_ROWS = ("logprob_sums", "texts", "finish_reasons")


def read_records(path: str | Path, *, drop_partial: bool = False) -> list[GroupRecord]:
    """All records of a file, in the order of their keys.

    Args:
        path: Path of a JSONL file of one arm.
        drop_partial: Whether to leave out a last line that an interrupted writer did not finish,
            instead of refusing it.

    Raises:
        DataFileError: for damaged lines, or two records of the same group.
    """
    records = []
    for number, line in raw_lines(Path(path)):
        if not line.endswith(b"\n"):
            if drop_partial:
                break
            raise DataFileError(
                f"{path}, line {number}: the last line has no end, as an interrupted run "
                "leaves it. Resume that run, or read with drop_partial=True."
            )
        try:
            records.append(GroupRecord.from_line(line))
        except DataFileError as error:
            raise DataFileError(f"{path}, line {number}: {error}") from error
    check_records(records)
    return sorted(records, key=lambda record: record.key)


def check_records(records: Iterable[GroupRecord]) -> None:
    """Refuse a group that occurs twice, and a task of which only some records are coupled."""
    seen = set()
    kinds: dict[str, bool] = {}
    for record in records:
        if record.key in seen:
            raise DataFileError(
                f"Every group is recorded once; group {record.group} of example "
                f"{record.example_id!r} at width {record.width} of task {record.task!r} is there "
                "twice. Keep each arm and each run in a file of its own."
            )
        seen.add(record.key)
        if kinds.setdefault(record.task, record.coupled) != record.coupled:
            raise DataFileError(
                f"The rows of one arm are coupled or they are not; the records of task "
                f"{record.task!r} mix both. Keep each arm in a file of its own."
            )


def _fields(kind: type[GroupRecord | Timing], values: dict[str, Any]) -> dict[str, Any]:
    """The fields of a dataclass in JSON values, lists as tuples; refused if they do not fit."""
    hints = get_type_hints(kind)
    for name in values:
        if name not in hints:
            raise DataFileError(
                f"A record has no field {name!r}; it has {', '.join(hints)}.{nearest(name, hints)}"
            )
    found = {}
    for entry in fields(kind):
        if entry.name in values:
            found[entry.name] = _fitting(hints[entry.name], values[entry.name])
            if found[entry.name] is None:
                raise DataFileError(
                    f"A record's {entry.name!r} has another type; got {values[entry.name]!r:.80}."
                )
        elif entry.default is MISSING and entry.default_factory is MISSING:
            raise DataFileError(f"A record needs the field {entry.name!r}; it is missing.")
    return found


def _fitting(hint: Any, value: Any) -> Any:
    """A JSON value as a type has it; None if it does not fit."""
    kind, inner = get_origin(hint) or hint, get_args(hint)
    if kind is UnionType:  # with None, which stands for a field that is left out
        kind, inner = get_origin(inner[0]) or inner[0], get_args(inner[0])
    if kind is tuple and isinstance(value, list):
        return tuple(value) if all(_is(inner[0], item) for item in value) else None
    if kind is Mapping and isinstance(value, dict):
        rows = {name: _fitting(inner[1], row) for name, row in value.items()}
        return None if None in rows.values() else rows
    return value if _is(kind, value) else None


def _is(kind: Any, value: Any) -> bool:
    # True and False are whole numbers to Python, and counts to nobody.
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, int | float if kind is float else kind)


@dataclass(frozen=True)
class Timing:
    """How long one group took alone.

    Attributes:
        example_id: Id of the problem.
        width: Width, W.
        seconds: Seconds from the call to the last token, the prompt included: of the processor on a
            CPU, on the wall on a GPU.
    """

    example_id: str
    width: int
    seconds: float


def read_timings(path: Path) -> list[Timing]:
    """The timings of a file; none if it is missing."""
    if not path.exists():
        return []
    found = []
    for number, values in read(path, DataFileError, own=True):
        try:
            found.append(Timing(**_fields(Timing, values)))
        except DataFileError as error:
            raise DataFileError(
                f"{path}, line {number} is no timing; got {values!r:.80}. Choose another output "
                "folder, or overwrite this run."
            ) from error
    return found
