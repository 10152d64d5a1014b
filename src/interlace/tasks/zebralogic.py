"""ZebraLogic (arXiv 2502.01100): logic grid puzzles, judged cell by cell.

A text's answer is the last JSON object in it that gives a house a value: {"House 1": {"Name":
"Arnold", ...}, ...}, alone or below "solution". `score` is the share of right cells, and `correct`
is a full grid. Values are compared without case and blanks at their ends; keys likewise.

Rows have the columns "puzzle" and "solution" ({"header": ["House", ...], "rows": [["1", ...]]}), as
in the data set's configuration "grid_mode". allenai/ZebraLogicBench has its solutions blanked out;
they are in the gated allenai/ZebraLogicBench-private, and in WildEval/ZebraLogic, read here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Unpack

from interlace.answers.extract import final_part
from interlace.errors import TaskError
from interlace.tasks.base import TEMPLATE, Example, Prompt, Verdict
from interlace.tasks.sources import HubSource, Row, SourcedTask, SourceOptions, column

SOURCE = HubSource("WildEval/ZebraLogic", {"test": "test"}, config="grid_mode")
MAX_OBJECTS = 20  # looked at from a text's end
BLANK = "___"

_BRACE = re.compile(r"[{}]")
_HOUSE = re.compile(r"(?:house)?\s*([0-9]{1,2})", re.IGNORECASE)

Grid = dict[str, dict[str, str]]


class ZebraLogic(SourcedTask):
    """The task; see this module's head.

    Args:
        **options: Those of `SourcedTask`; the template may use `{form}`, the empty grid as JSON.
    """

    instruction: str = (
        "Reason step by step, and end with the full solution as one JSON object of this form:"
    )
    max_answer: ClassVar[int] = 20_000

    def __init__(self, **options: Unpack[SourceOptions]) -> None:
        options.setdefault("template", TEMPLATE + "\n{form}")
        super().__init__("zebralogic", SOURCE, **options)

    def to_example(self, row: Row) -> tuple[Prompt, str, Mapping[str, Any]]:
        puzzle = str(column(row, ["puzzle"])).strip()
        solution = column(row, ["solution"])
        try:
            header, rows = list(solution["header"]), [list(cells) for cells in solution["rows"]]
            table = {
                str(number): dict(zip(header[1:], map(str, cells[1:]), strict=True))
                for number, cells in enumerate(rows, 1)
            }
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise TaskError(
                "A solution has a 'header' and 'rows' of the same length, the house first; got "
                f"{solution!r:.80}."
            ) from error
        if any(value == BLANK for features in table.values() for value in features.values()):
            raise TaskError(
                "The solutions of this data set are blanked out. Use data='WildEval/ZebraLogic', "
                "or data='allenai/ZebraLogicBench-private' with its owner's permission."
            )
        houses = {f"House {number}": features for number, features in table.items()}
        form = {house: dict.fromkeys(features, BLANK) for house, features in houses.items()}
        more = {"solution": table, "form": json.dumps({"solution": form}, indent=1)}
        answer = json.dumps({"solution": houses}, ensure_ascii=False)
        return puzzle, answer, more

    def extract(self, text: str) -> str | None:
        """The last JSON object that gives a house a value, as canonical JSON."""
        for candidate in _objects(final_part(text)):
            if len(candidate) <= self.max_answer:
                grid = _grid(candidate)
                if grid:
                    return json.dumps(grid, sort_keys=True, ensure_ascii=False)
        return None

    def reference_text(self, example: Example) -> str:
        """The solution as JSON."""
        return example.answer

    def check(self, example: Example, answer: str) -> Verdict:
        """How many cells are right."""
        given: Grid = _grid(answer) or {}
        cells = [
            given.get(house, {}).get(_key(feature)) == _value(value)
            for house, features in example.data["solution"].items()
            for feature, value in features.items()
        ]
        right = sum(cells)
        reason = f"{right} of {len(cells)} cells right"
        return Verdict(right == len(cells), right / len(cells), answer, reason)


def _objects(text: str) -> Iterator[str]:
    """Stretches between matching braces, those that end last first, at most `MAX_OBJECTS`."""
    opened: list[int] = []
    spans: list[tuple[int, int]] = []
    for brace in _BRACE.finditer(text):
        if brace[0] == "{":
            opened.append(brace.start())
        elif opened:
            spans.append((opened.pop(), brace.end()))
    for start, end in spans[: -MAX_OBJECTS - 1 : -1]:
        yield text[start:end]


def _grid(text: str) -> Grid | None:
    """Houses by number, features by key, of a JSON object; None if it gives no house a value."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    value = value.get("solution", value) if isinstance(value, dict) else None
    if not isinstance(value, dict):
        return None
    grid: Grid = {}
    for house, features in value.items():
        number = _HOUSE.fullmatch(str(house).strip())
        if number and isinstance(features, dict):
            cells = {_key(key): _value(cell) for key, cell in features.items()}
            grid[str(int(number[1]))] = {key: cell for key, cell in cells.items() if cell}
    return grid if any(grid.values()) else None


def _key(text: str) -> str:
    return "".join(text.split()).casefold()


def _value(value: object) -> str:
    """A cell as text; some models put it into a list of one."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return " ".join(str(value).split()).casefold() if isinstance(value, str | int | float) else ""
