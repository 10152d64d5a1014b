"""How many files and lines `src/interlace` has, by package: `make size`; by feature: `--features`.

A line is code, part of a docstring, a comment of its own, or blank. A feature that came after the
core and the house has the files that exist for it alone; what it takes inside other files is not
counted, so its true size is larger.
"""

from __future__ import annotations

import argparse
import ast
import io
import subprocess
import tokenize
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src" / "interlace"
KINDS = ("files", "lines", "code", "docstrings", "comments", "blank")
CORE = "core and house"
# Feature -> the files, or folders, that exist for it alone.
LATER = {
    "server, and its client": ("server/", "cli/serve.py", "remote.py"),
    "vLLM: the folder that it serves": ("saving/vllm.py", "cli/export.py"),
    "one function, slots, graphs, native": (
        *(f"engine/backends/{name}.py" for name in ("flat", "graph", "native")),
        "engine/slots.py",
    ),
    "rivals (gated, LaneRoPE, ...)": tuple(
        f"coupling/{name}.py"
        for name in (*("gated", "joint", "lanerope", "hogwild"), *("attention", "mix", "parscale"))
    ),
    "reach (finished, history)": ("coupling/reach.py", "engine/kept.py"),
    "blocks last: splicing, pair-sum": ("tasks/splicing.py", "tasks/pair_sum.py"),
    "responses made elsewhere": ("evaluation/responses.py",),
    "who listens to whom": ("cli/generate/listening.py",),
    "huge pages": ("huge_pages.py",),
}


def counted(path: Path) -> Counter[str]:
    """The lines of a file, by kind."""
    text = path.read_text(encoding="utf-8")
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                docstrings.update(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    comments = {
        token.start[0]
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type == tokenize.COMMENT and not token.line[: token.start[1]].strip()
    }
    lines = text.split("\n")[:-1]
    blank = {n for n, line in enumerate(lines, 1) if not line.strip()} - docstrings
    rest = len(lines) - len(docstrings) - len(comments) - len(blank)
    return Counter(
        files=1, lines=len(lines), code=rest, docstrings=len(docstrings), comments=len(comments),
        blank=len(blank),
    )  # fmt: skip


def feature_of(name: str) -> str:
    """The later feature that a file exists for, or the core and the house."""
    for feature, places in LATER.items():
        if name in places or any(
            place.endswith("/") and name.startswith(place) for place in places
        ):
            return feature
    return CORE


def table(names: Iterable[str], group_of: Callable[[str], str]) -> str:
    """A line for each group of files, the smallest first, and the sum."""
    found: dict[str, Counter[str]] = {}
    for name in names:
        found.setdefault(group_of(name), Counter()).update(counted(SOURCE / name))
    total = sum(found.values(), Counter())
    ordered = sorted(found.items(), key=lambda pair: pair[1]["lines"])
    rows = [[f"{one[kind]:,}" for kind in KINDS] + [name] for name, one in ordered]
    rows.append([f"{total[kind]:,}" for kind in KINDS] + ["total"])
    return "\n".join("".join(f"{cell:>11}" for cell in row[:-1]) + f"  {row[-1]}"
                     for row in [[*KINDS, ""], *rows])  # fmt: skip


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--features", action="store_true", help="count by feature")
    by_feature = parser.parse_args().features
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=SOURCE, capture_output=True,
                            text=True, check=True).stdout.split()  # fmt: skip

    def package_of(name: str) -> str:
        first, slash, _ = name.partition("/")
        return first + slash

    print(table(listed, feature_of if by_feature else package_of))


if __name__ == "__main__":
    main()
