"""The table of TRL's options in docs/guide/trl.md, from `interlace.training.trl_fields`.

    python docs/tables/trl_fields.py

writes it into the page. A test compares the two.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from interlace.training.trl_fields import FIELDS, Accepted, Entry, Mapped

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "guide" / "trl.md"
STORED = ROOT / "tests" / "unit" / "training" / "trl_grpo_fields.json"
MARK = re.compile(r"(<!-- table -->\n).*?(<!-- end of table -->)", re.S)


def table() -> str:
    """The table in Markdown: every field of TRL's GRPOConfig."""
    stored = json.loads(STORED.read_text(encoding="utf-8"))
    lines = ["| field of TRL's `GRPOConfig` | here | |", "| --- | --- | --- |"]
    listed = {name: FIELDS[name] for name in stored["fields"] if name in FIELDS}
    groups: dict[Entry, list[str]] = {}
    for name, entry in listed.items():
        groups.setdefault(_key(entry), []).append(name)
    for kind in (Mapped, Accepted, None):
        for entry, names in groups.items():
            if isinstance(entry, kind) if kind else not isinstance(entry, Mapped | Accepted):
                lines.append(_line(entry, names))
    rest = ", ".join(f"`{name}`" for name in stored["fields"] if name not in FIELDS)
    return "\n".join(lines) + f"\n\nAs Hugging Face's `TrainingArguments` have them: {rest}.\n"


def _key(entry: Entry) -> Entry:
    """Fields with one reason share a line; a table of values cannot be hashed."""
    if isinstance(entry, Mapped) and entry.values is not None:
        values = ", ".join(f"{a!r} is {b!r}" for a, b in entry.values.items())
        return Mapped(entry.to, None, "; ".join(filter(None, [values, entry.note])))
    if isinstance(entry, Mapped | Accepted):
        return entry
    return type(entry)(entry.reason)


def _line(entry: Entry, names: list[str]) -> str:
    fields = ", ".join(f"`{name}`" for name in names)
    if isinstance(entry, Mapped):
        return f"| {fields} | mapped: `{entry.to}` | {entry.note} |"
    if isinstance(entry, Accepted):
        return f"| {fields} | accepted | {entry.note} |"
    return f"| {fields} | refused | {entry.reason} |"


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(MARK.sub(lambda m: m[1] + table() + m[2], text), encoding="utf-8")
