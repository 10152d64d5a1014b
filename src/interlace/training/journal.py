"""JSON lines that a run writes as it goes, and takes back when it resumes from an earlier step."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from interlace.errors import RunError
from interlace.jsonl import Store, as_line, read


class Journal:
    """A file of one JSON object a line, each with the optimizer step that it belongs to.

    Args:
        path: File to write; its folder is created.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def rewind(self, step: int) -> None:
        """Drop what was written after `step`, or was cut off in writing.

        Raises:
            RunError: for a line that is damaged, or has no step.
        """
        if not self.path.exists():
            return
        partial = self.path.with_suffix(".partial")
        # A new file: who follows the journal sees by that that lines were taken back.
        with partial.open("wb") as stream:
            for number, entry in read(self.path, RunError, own=True):
                if type(entry.get("step")) is not int:
                    partial.unlink()
                    raise RunError(
                        f"{self.path}, line {number} has no step, so it is not of this run. Move "
                        "the file away, or begin anew with --restart."
                    )
                if entry["step"] <= step:
                    stream.write(as_line(entry).encode())
        os.replace(partial, self.path)

    def add(self, step: int, entry: Mapping[str, Any]) -> None:
        """Write one line.

        Raises:
            RunError: if it cannot be written, as on a full disk.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"{self.path} cannot be written: {error}.") from error
        with Store(self.path, RunError, sync_seconds=math.inf) as store:
            store.begin()
            store.append({"step": step, **entry})
