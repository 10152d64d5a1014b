"""What a run writes: JSON lines that follow its steps, the table of sampled completions, and its
bar."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import ProgressCallback

from interlace.errors import RunError, reading
from interlace.files import naming
from interlace.jsonl import Store, as_line, read
from interlace.terminal import Table


@dataclass(frozen=True)
class Journal:
    """A file of one JSON object a line, each with the optimizer step that it belongs to."""

    path: Path

    def rewind(self, step: int) -> None:
        """Drop what was written after `step`, or was cut off in writing."""
        if not self.path.exists():
            return
        partial = self.path.with_suffix(".partial")
        # A new file: who follows the journal sees by that that lines were taken back.
        with naming(self.path), partial.open("wb") as stream:
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
        """Write one line."""
        with reading(RunError, f"{self.path} cannot be written"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        with Store(self.path, RunError, sync_seconds=math.inf) as store:
            store.begin()
            store.append({"step": step, **entry})


class ProgressBar(ProgressCallback):
    """Hugging Face's bar, which shows what people watch; metrics.jsonl and TensorBoard have all."""

    WATCHED = ("loss", "reward", "pass@1", "coverage", "vote")
    shown: Mapping[str, str] = {}

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Show the latest values behind the bar, and those of an evaluation in a line above it."""
        if self.training_bar is None or not logs:
            return
        if "loss" in logs:
            new = {name: f"{logs[name]:.3g}" for name in self.WATCHED if name in logs}
            self.shown = {**self.shown, **new}
            self.training_bar.set_postfix(self.shown)
        found = [
            f"{name.removeprefix('eval_').replace('_', ' ')} {value:.1%}"
            for name, value in logs.items()
            if name.startswith("eval_") and name.rpartition("/")[2] in self.WATCHED[2:]
        ]
        if found:
            self.training_bar.write(f"Held-out, step {state.global_step}: {', '.join(found)}")


_LONGEST = 400  # characters of a text that are shown


def as_markdown(groups: Sequence[Mapping[str, Any]]) -> str:
    """One table a group, given as in completions.jsonl: each row's text, verdict, reward and
    advantage."""
    return "\n\n".join(map(_table, groups))


def show_in_tensorboard(
    callbacks: Sequence[Any], groups: Sequence[Mapping[str, Any]], step: int
) -> None:
    """Write the table wherever a TensorBoard callback writes."""
    for callback in callbacks:
        writer = getattr(callback, "tb_writer", None)
        if writer is not None:
            writer.add_text("completions", as_markdown(groups), step)


def _table(group: Mapping[str, Any]) -> str:
    rows = [
        [
            str(number),
            "yes" if row["correct"] else "",
            f"{row['reward']:.2f}",
            "" if row["advantage"] is None else f"{row['advantage']:.2f}",
            _short(row["text"]),
        ]
        for number, row in enumerate(group["rows"])
    ]
    table = Table(("row", "correct", "reward", "advantage", "text"), rows)
    return f"**{_short(str(group['prompt']))}**\n\n{table.markdown()}"


def _short(text: str) -> str:
    """A text in one line that is no HTML."""
    text = text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."
    return " ".join(text.replace("<", "&lt;").split())
