"""The table of sampled completions in TensorBoard, beside the file that keeps them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from interlace.training.rollout import RolledGroup

_LONGEST = 400  # characters of a text that are shown


def as_markdown(rolled: Sequence[RolledGroup]) -> str:
    """One table a group: each row's text, verdict, reward and advantage."""
    return "\n\n".join(_table(entry) for entry in rolled)


def show_in_tensorboard(callbacks: Sequence[Any], rolled: Sequence[RolledGroup], step: int) -> None:
    """Write the table wherever a TensorBoard callback writes."""
    for callback in callbacks:
        writer = getattr(callback, "tb_writer", None)
        if writer is not None:
            writer.add_text("completions", as_markdown(rolled), step)


def _table(entry: RolledGroup) -> str:
    lines = [
        f"**{_one_line(str(entry.group.prompt))}**",
        "",
        "| row | correct | reward | advantage | text |",
        "| --- | --- | --- | --- | --- |",
    ]
    for number, row in enumerate(entry.to_dict()["rows"]):
        gain = "" if row["advantage"] is None else f"{row['advantage']:.2f}"
        mark = "yes" if row["correct"] else ""
        lines.append(
            f"| {number} | {mark} | {row['reward']:.2f} | {gain} | {_one_line(row['text'])} |"
        )
    return "\n".join(lines)


def _one_line(text: str) -> str:
    """A text that cannot leave its cell."""
    text = text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())
