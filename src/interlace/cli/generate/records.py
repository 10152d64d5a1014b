"""Prompts from a JSONL file: every line is checked before the first is sampled."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interlace.errors import DataFileError, GenerationError
from interlace.jsonl import BadLineError, parse, raw_lines

MAX_SHOWN = 5

Encode = Callable[[Any], list[int]]


@dataclass(frozen=True)
class Record:
    """One prompt of a file.

    Attributes:
        line: its line's number, from 1.
        id: the line's `id`, else its number and a hash of its prompt.
        prompt: as the line has it.
        token_ids: what the model is fed.
        sample_id: how often this very prompt came before, so that its groups differ.
        columns: the line's other fields.
    """

    line: int
    id: str | int
    prompt: Any
    token_ids: list[int]
    sample_id: int
    columns: dict[str, Any]


def read_records(
    path: Path, field: str, encode: Encode, skip_bad: bool = False
) -> tuple[list[Record], list[str]]:
    """All prompts of a file.

    Args:
        path: a file with one JSON object a line; blank lines do not count.
        field: the name of the prompt's field; for "prompt" also "messages" will do.
        encode: prompt to token ids; raises GenerationError for what cannot be one.
        skip_bad: leave out lines that cannot be used.

    Returns:
        The records in order, and what is wrong with the lines that were left out.

    Raises:
        DataFileError: if the file cannot be read, or has bad lines and `skip_bad` is False.
    """
    try:
        lines = list(raw_lines(path))
    except OSError as error:
        raise DataFileError(f"The prompts in {path} cannot be read: {error}.") from error
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
        raise BadLineError(f"its id is {_short(name)}; an id is a text or a whole number")
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


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."
