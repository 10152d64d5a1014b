"""JSONL files, and small ones in the layout of the sets that tasks read, all problems made up."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

WORD_PROBLEMS = [
    {
        "question": "Mia has 3 bags of 4 pears and eats 2. How many are left?",
        "answer": "3 bags hold 3*4 = <<3*4=12>>12 pears.\n12 - 2 = 10 are left.\n#### 10",
    },
    {
        "question": "A kite costs $1,200 less than a sail of $2,450. What does it cost?",
        "answer": "2450 - 1200 = 1250\n#### 1,250",
    },
    {"question": "Half of a half of one?", "answer": "#### 0.25"},
]
FORMULAS = [
    {"problem": "Simplify the square root of 8.", "answer": r"2\sqrt{2}"},
    {"problem": "Expand $(x+1)^2$.", "answer": "x^2+2x+1"},
    {"problem": "Name the point two right, half up.", "answer": r"\left(2, \frac{1}{2}\right)"},
    {"problem": "What is 6 times 7?", "answer": "42"},
]
CHOICES = [
    {
        "Question": "Which of these is a prime?",
        "Correct Answer": "19",
        "Incorrect Answer 1": "21",
        "Incorrect Answer 2": "25",
        "Incorrect Answer 3": "27",
    },
    {
        "Question": "Which of these floats on water?",
        "Correct Answer": "cork",
        "Incorrect Answer 1": "iron",
        "Incorrect Answer 2": "slate",
        "Incorrect Answer 3": "brass",
    },
]
PUZZLES = [
    {
        "id": "made-up-2x2",
        "size": "2*2",
        "puzzle": "There are 2 houses. Ada does not live in the first house. Tea is on the left.",
        "solution": {
            "header": ["House", "Name", "Drink"],
            "rows": [["1", "Bo", "tea"], ["2", "Ada", "root beer"]],
        },
    }
]
ARTICLES = [
    {
        "document": "The old bridge over the river was closed on Monday after a barge hit it.",
        "summary": "A bridge has been closed after a barge hit it.",
    }
]


def write_jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    """Writes the rows, and returns the path as text."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def write_lines(path: Path, values: Iterable[Any]) -> Path:
    """A file with one value a line, as JSON unless it is bytes already."""
    lines = [v if isinstance(v, bytes) else json.dumps(v).encode() for v in values]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The values of a JSONL file."""
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]
