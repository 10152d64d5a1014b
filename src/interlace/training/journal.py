"""JSON lines that a run writes as it goes, and takes back when it resumes from an earlier step."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from interlace.errors import RunError


class Journal:
    """A file of one JSON object a line, each with the optimizer step that it belongs to.

    Args:
        path: the file; its folder is created.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def rewind(self, step: int) -> None:
        """Drop what was written after `step`, or was cut off in writing."""
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except (ValueError, KeyError, TypeError):
                break
        partial = self.path.with_suffix(".partial")
        partial.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        os.replace(partial, self.path)

    def add(self, step: int, entry: Mapping[str, Any]) -> None:
        """Write one line.

        Raises:
            RunError: if it cannot be written, as on a full disk.
        """
        line = json.dumps({"step": step, **entry}, ensure_ascii=False) + "\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            raise RunError(
                f"{self.path} cannot be written: {error}. Make room and run the same command again "
                "to go on from the last checkpoint; what was written after it is taken back."
            ) from error
