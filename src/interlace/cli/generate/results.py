"""Results to a JSONL file that survives a kill: append-only, in the order of the prompts.

Beside `out.jsonl` stands `out.jsonl.settings.json`, written first, with what the lines depend on.
That file says whose the lines are: what has none beside it is left as it is, byte for byte. A later
run with the same settings checks the ids of all lines, cuts off what a kill left of the last one,
and appends the rest.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from interlace.errors import DataFileError
from interlace.jsonl import BadLineError, Store, parse, raw_lines, read_object

_OUT = "Choose another --output, or --overwrite it."


class Results:
    """The output of a run over a file.

    Args:
        path: File to write; created if it does not exist.
        ids: Ids of all lines to come, in order.
        settings: What the lines depend on besides the prompts.
        overwrite: Whether to begin anew, whatever the file holds.

    Attributes:
        done: Number of lines that are there.

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
        if path.exists() and not path.is_file():
            raise DataFileError(
                f"The output {path} is no file that can be gone on with. Without --output, lines "
                "go to standard output."
            )
        now = json.loads(json.dumps(settings))
        if not path.exists():
            # The settings come first, so that a kill leaves no file without them.
            self._write_settings(now, overwrite)
        self._store = Store(path)
        try:
            if not overwrite:
                before = self._settings()
                self.done = self._check(ids)
                if self.done:
                    self._check_same(before, now)
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
                f"{self.path} is there, but {self._settings_path.name} is not, which says what "
                f"its lines were made with: the file may be anything, so it is left alone. {_OUT}"
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
                f"Line {number} of {self.path} is no result of this command, so it does not go on "
                f"from there. {_OUT}"
            ) from error
        if number > len(ids) or found != ids[number - 1]:
            expected = repr(ids[number - 1]) if number <= len(ids) else "no line at all"
            raise DataFileError(
                f"Line {number} of {self.path} has the id {found!r:.80}, and the input has "
                f"{expected} there: the input has changed. Restore it, choose another --output, or "
                "--overwrite this one."
            )

    def _check_same(self, before: dict[str, Any], now: dict[str, Any]) -> None:
        names = sorted(before.keys() | now.keys())
        changed = [
            f"{name} was {before.get(name)!r:.80} and is {now.get(name)!r:.80}"
            for name in names
            if before.get(name) != now.get(name)
        ]
        if changed:
            raise DataFileError(
                f"{self.path} was begun with other settings: {'; '.join(changed)}. Go on with the "
                "old ones, choose another --output, or --overwrite it."
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
        partial = path.with_name(path.name + ".tmp")
        try:
            partial.write_text(json.dumps(now, indent=2) + "\n", encoding="utf-8")
            partial.replace(path)
        except OSError as error:
            raise DataFileError(
                f"The output {self.path} cannot be written: {error}. Choose another --output."
            ) from error
