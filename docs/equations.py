"""Which function or class of the source implements which numbered equation of `equations.md`.

A docstring says so itself: "Equation (3)." or "Equations (1), (8)."
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

NAMED = re.compile(r"Equations? (\(\d+\)(?:, \(\d+\))*)")
HEADING = re.compile(r"^### Equation (\d+):.*$", re.M)


def documented(node: ast.AST, above: str = "") -> Iterator[tuple[str, str]]:
    """The dotted names below a node of the syntax tree, with their docstrings."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.ClassDef):
            yield above + child.name, ast.get_docstring(child) or ""
            yield from documented(child, f"{above}{child.name}.")


def sources_of_equations(package: Path) -> dict[int, list[str]]:
    """For each number that a docstring names, the places that name it."""
    found: dict[int, list[str]] = defaultdict(list)
    for path in sorted(package.rglob("*.py")):
        place = path.relative_to(package.parents[1]).as_posix()
        for symbol, text in documented(ast.parse(path.read_text(encoding="utf-8"))):
            for numbers in NAMED.findall(text):
                for number in re.findall(r"\d+", numbers):
                    found[int(number)].append(f"`{symbol}` in `{place}`")
    return dict(found)


def with_sources(page: str, root: Path) -> str:
    """The page of equations with a list of places below each heading."""
    found = sources_of_equations(root / "src" / "interlace")
    return HEADING.sub(
        lambda m: "\n".join([m[0], "", *(f"- {place}" for place in found[int(m[1])])]), page
    )
