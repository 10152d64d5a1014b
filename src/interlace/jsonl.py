"""JSON lines: one reader and one append-only store for every file of them.

A line ends at a line feed and nowhere else: the texts of a model hold U+2028, U+2029 and U+0085, at
which `str.splitlines` would cut. In a file that a `Store` writes, whatever follows the last line
end is what a kill left of a line; half a character there is no damage. All else that is no JSON
object is damage, and one error with the number of its line.
"""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from interlace.errors import DataFileError, InterlaceError, shortened
from interlace.files import naming, try_lock

BOM = b"\xef\xbb\xbf"
_BLOCK = 2**16
# Half of a surrogate pair, which UTF-8 lacks; what steers a terminal, where lines are printed, too;
# and what ends a line for others.
_ESCAPED = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class BadLineError(ValueError):
    """Bytes that are no JSON object; the message says what they are, to follow the line's name."""


def parse(content: bytes) -> dict[str, Any]:
    """The JSON object in these bytes: a line, or a whole file.

    Raises:
        BadLineError: for anything else, whatever the bytes are.
    """
    try:
        value = json.loads(content.removesuffix(b"\n").decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BadLineError(f"is not UTF-8 at byte {error.start + 1}") from error
    except json.JSONDecodeError as error:
        near = error.doc[max(error.pos - 20, 0) : error.pos + 20]
        what = error.msg.removesuffix(" at")
        raise BadLineError(
            f"is not JSON: {what} at character {error.pos + 1}, near {near!r}"
        ) from error
    except (ValueError, RecursionError) as error:  # numbers with too many digits; deep nesting
        raise BadLineError(f"is not JSON that can be read: {error}") from error
    if not isinstance(value, dict):
        raise BadLineError(f"is {shortened(json.dumps(value), 40)} and not an object")
    return value


def raw_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a file with their numbers from 1, ends included, without a byte order mark.

    Raises:
        OSError: if the file cannot be read.
    """
    with path.open("rb") as stream:  # binary files are split at b"\n" only
        for number, line in enumerate(stream, start=1):
            yield number, line.removeprefix(BOM) if number == 1 else line


def read(
    path: Path, raises: type[InterlaceError] = DataFileError, *, own: bool = False
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file with the numbers of their lines.

    Args:
        path: File of one JSON object a line.
        raises: Error for a file or a line that cannot be read.
        own: Whether a `Store` wrote it. Then a last line without its end is a remainder that does
            not count; in a user's file it is a line, and blank lines are skipped.
    """
    try:
        for number, line in raw_lines(path):
            if own and not line.endswith(b"\n"):
                return
            if not own and not line.strip():
                continue
            try:
                value = parse(line)
            except BadLineError as error:
                raise raises(f"{path}, line {number} {error}.") from error
            yield number, value
    except OSError as error:
        raise raises(f"{path} cannot be read: {error}.") from error


def read_object(path: Path, raises: type[InterlaceError], way_out: str) -> dict[str, Any]:
    """The JSON object that a whole file holds; `way_out` ends the message if it is none.

    Raises:
        FileNotFoundError: if there is none, since some callers do well without.
    """
    try:
        return parse(path.read_bytes().removeprefix(BOM))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise raises(f"{path} cannot be read: {error}. {way_out}") from error
    except BadLineError as error:
        raise raises(f"{path} cannot be read: it {error}. {way_out}") from error


class Store:
    """A file of JSON lines that grows at its end, with one writer; use as a context manager.

    Opening creates the file if there is none, and locks it, but changes no byte: the caller looks
    at what is there and calls `begin` once it is sure whose it is.

    Args:
        path: File to write.
        raises: Error for a file that cannot be written, or that another process is writing.
        sync_seconds: Longest time in which a power failure may lose lines; 0 to have the disk
            write down each, infinite to leave it to the system. A kill loses none.
    """

    def __init__(
        self,
        path: Path,
        raises: type[InterlaceError] = DataFileError,
        *,
        sync_seconds: float = 1.0,
    ) -> None:
        self.path = path
        self._raises = raises
        self._sync_seconds = sync_seconds
        self._synced = time.monotonic()
        self._begun = False
        if path.exists() and not path.is_file():
            raise raises(f"{path} is no file that lines can be added to. Choose another output.")
        try:
            # Unbuffered: what a failed write left in a buffer would be written again on closing.
            with naming(path):
                self._file = path.open("a+b", buffering=0)
        except OSError as error:
            raise raises(f"{path} cannot be written: {error}. Choose another output.") from error
        if not try_lock(self._file):
            self._file.close()
            raise raises(
                f"Another process is writing to {path}; wait for it, or choose another output."
            )

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Have the disk write down what there is, and release the file."""
        try:
            if self._begun and math.isfinite(self._sync_seconds):
                with naming(self.path):
                    os.fsync(self._file.fileno())
        finally:
            self._file.close()

    def begin(self, *, anew: bool = False) -> None:
        """Make ready to append: cut off what a kill left of a last line, or everything."""
        try:
            end = 0 if anew else self._whole()
            if end < self._file.seek(0, os.SEEK_END):
                self._file.truncate(end)
        except OSError as error:
            raise self._raises(f"{self.path} cannot be begun: {error}.") from error
        self._begun = True

    def append(self, value: Mapping[str, Any]) -> None:
        """Write one line; a kill after this call does not lose it."""
        if not self._begun:
            raise RuntimeError("Store.begin comes before Store.append.")
        try:
            # A kill leaves all of it, or a beginning without a line end that `begin` cuts off.
            rest = memoryview(as_line(value).encode("utf-8"))
            while rest:
                rest = rest[self._file.write(rest) or 0 :]
            if time.monotonic() - self._synced >= self._sync_seconds:
                os.fsync(self._file.fileno())
                self._synced = time.monotonic()
        except OSError as error:
            raise self._raises(
                f"Writing to {self.path} failed: {error}. Make room and start the same run again: "
                "it goes on from there."
            ) from error

    def _whole(self) -> int:
        """Where the last whole line ends."""
        end = self._file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - _BLOCK)
            self._file.seek(start)
            found = self._file.read(end - start).rfind(b"\n")
            if found >= 0:
                return start + found + 1
            end = start
        return 0


def as_line(value: Any) -> str:
    """A value as one line of JSON, by `to_json`.

    >>> as_line({"score": float("-inf"), "text": "a"})
    '{"score": null, "text": "a"}\\n'
    """
    plain = to_json(value)
    line = json.dumps(plain, ensure_ascii=False, allow_nan=False)
    return (json.dumps(plain, allow_nan=False) if _ESCAPED.search(line) else line) + "\n"


def to_json(value: Any) -> Any:
    """A value as JSON has it: dataclasses by their fields, tuples as lists; numbers that JSON lacks
    (infinite, NaN) are null.

    >>> to_json({"pair": (1, float("nan"))})
    {'pair': [1, None]}
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if is_dataclass(value):
        return {entry.name: to_json(getattr(value, entry.name)) for entry in fields(value)}
    return value
