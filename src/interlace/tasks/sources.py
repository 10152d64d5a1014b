"""Where a task's rows come from: a local JSONL file, or a data set on the Hugging Face hub.

A hub data set comes with its own splits. A local file is one pool: it is taken whole, or divided by
the hash of each question (see `drawn.split_of`) when a split is asked for.
"""

from __future__ import annotations

import json
import math
import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

from interlace.errors import TaskError, require
from interlace.jsonl import read
from interlace.tasks.base import Example, Prompt, Split, Task, TaskOptions, is_message
from interlace.tasks.drawn import check_count, example_id, split_of

Row = Mapping[str, Any]

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class HubSource:
    """A data set on the hub."""

    hub_id: str  # "owner/name"
    splits: Mapping[str, str]  # by Interlace's names; a split that is not there is refused
    config: str | None = None  # the data set's configuration, if it has several
    note: str = ""  # for whoever loads it: that it is gated, for instance


class SourceOptions(TaskOptions, total=False):
    """What tasks that read their problems take."""

    data: str | None
    split: Split | None
    size: int | None


class SourcedTask(Task):
    """A task whose problems are the distinct ones of a file or of a data set, in its order.

    Args:
        name: Name of the task; part of the examples' ids.
        source: Data set on the hub.
        data: Path of a JSONL file with the same columns, or another hub id, to read instead; None
            for the source.
        split: "train", "test" or "all"; None for a file as a whole, or the hub's test split.
        size: Number of problems, the first ones; None for all.
        **options: Those of `Task`.

    Raises:
        TaskError: for a file or row that does not fit, or a split that is not there.
        MissingDependencyError: if the hub is needed and `datasets` is not installed.
    """

    def __init__(
        self,
        name: str,
        source: HubSource,
        *,
        data: str | None = None,
        split: Split | None = None,
        size: int | None = None,
        **options: Unpack[TaskOptions],
    ) -> None:
        if size is not None:
            check_count("size", size)
        by_file = data is not None and is_file(data)
        if data is not None and by_file:
            rows: Sequence[Row] = read_jsonl(data)
            chosen: Split = split or "all"
        else:
            if data is not None and not _HUB_ID.fullmatch(data):
                raise TaskError(
                    f"data is a JSONL file or a hub id 'owner/name'; {data!r:.80} is neither."
                )
            chosen = split or ("test" if "test" in source.splits else "train")
            rows = _read_hub(name, source, data or source.hub_id, chosen)
        found: dict[str, Example] = {}
        for row in rows:
            question, answer, more = self.to_example(row)
            canonical = canonical_question(question)
            if by_file and chosen != "all" and split_of(canonical) != chosen:
                continue
            identity = example_id(name, canonical)
            known = found.setdefault(identity, Example(identity, question, answer, dict(more)))
            if by_file and known.answer != answer:
                raise TaskError(
                    f"A question has one reference answer; in {data!r} {canonical[:60]!r} has "
                    f"{known.answer[:40]!r} and {answer[:40]!r}. Keep the right one."
                )
            if len(found) == size:
                break
        if not found or (size is not None and len(found) < size):
            raise TaskError(
                f"{name!r} has {len(found)} distinct problems in the split {chosen!r} of "
                f"{data or source.hub_id!r}; {size or 'at least one'} asked for."
            )
        super().__init__(name, list(found.values()), split=chosen, **options)

    @abstractmethod
    def to_example(self, row: Row) -> tuple[Prompt, str, Mapping[str, Any]]:
        """A row's question, its reference answer, and what else the task knows of it."""


def canonical_question(question: Prompt) -> str:
    """The question's form by which two are the same; blanks do not count."""
    if not isinstance(question, str):
        question = json.dumps(question, ensure_ascii=False, sort_keys=True)
    return " ".join(question.split())


def is_file(data: str) -> bool:
    """Whether `data` names a file rather than a hub id."""
    return data.endswith((".jsonl", ".json")) or Path(data).is_file()


def read_jsonl(path: str) -> list[Row]:
    """The rows of a JSONL file: one JSON object a line, blank lines skipped."""
    return [row for _, row in read(Path(path), TaskError)]


def column(row: Row, names: Sequence[str]) -> Any:
    """The value of the first of these columns that a row has."""
    for name in names:
        if row.get(name) is not None:
            return row[name]
    empty = [name for name in names if name in row]
    raise TaskError(
        f"A row needs the column {' or '.join(map(repr, names))}; this one has "
        + (f"null in {empty[0]!r}." if empty else f"{', '.join(map(repr, row)) or 'none'}.")
    )


def question_in(row: Row, names: Sequence[str]) -> Prompt:
    """The question in the first of these columns that a row has: a text, or chat messages."""
    value = column(row, names)
    if isinstance(value, str) and value.strip():
        return value
    if isinstance(value, list) and all(map(is_message, value)):
        messages = [dict(message) for message in value]
        if any(message["role"] == "user" for message in messages):
            return messages
    raise TaskError(
        "A question is text, or chat messages with a role and a text, one of them the user's; got "
        f"{value!r:.60}. Name the column that holds it: question=..., or --option question=... on "
        "the command line."
    )


def answer_in(row: Row, names: Sequence[str]) -> str:
    """The reference answer in the first of these columns that a row has."""
    value = column(row, names)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        kind = "true or false" if isinstance(value, bool) else f"a {type(value).__name__}"
        raise TaskError(
            f"A reference answer is text or a number; got {kind}, {value!r:.60}. Write the answer "
            'itself, "42" rather than ["42"].'
        )
    endless = isinstance(value, float) and not math.isfinite(value)  # JSON has none, Python's has
    if endless or not any(sign.isprintable() and sign != " " for sign in str(value)):
        raise TaskError(
            f"A reference answer is not empty, nor NaN or infinity; got {value!r:.60}. Leave "
            "out the rows without one."
        )
    return str(value)


def _read_hub(name: str, source: HubSource, hub_id: str, split: Split) -> Sequence[Row]:
    if split not in (*source.splits, "all"):
        raise TaskError(
            f"{name!r} has the split {' and '.join(map(repr, source.splits))} only; got {split!r}. "
            "To divide problems of your own, pass data='file.jsonl'."
        )
    require("datasets", "train", f"Reading {hub_id!r} from the hub, rather than data='file.jsonl',")
    import datasets

    # Under another id the data set's own configurations and splits are unknown: its defaults.
    config = source.config if hub_id == source.hub_id else None
    wanted = source.splits.values() if split == "all" else [source.splits[split]]
    try:
        return [row for own in wanted for row in datasets.load_dataset(hub_id, config, split=own)]
    except Exception as error:  # the hub fails in many ways, each of which has the same way out
        why = f"{type(error).__name__}: {error}"[:300]
        raise TaskError(
            f"The data set {hub_id!r} could not be loaded: {why}. "
            f"{source.note}{' ' if source.note else ''}Offline, pass data='file.jsonl' with the "
            "same columns."
        ) from error
