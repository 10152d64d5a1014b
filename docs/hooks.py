"""MkDocs hooks: pages of the repository's root, and the source of each equation."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT_PAGES = ("CONTRIBUTING.md", "CHANGELOG.md")


def on_files(files: Files, config: Any) -> Files:
    """Add the root's pages, with links that hold from inside docs/."""
    root = Path(config["config_file_path"]).parent
    for name in ROOT_PAGES:
        text = (root / name).read_text(encoding="utf-8").replace("](docs/", "](")
        files.append(File.generated(config, name.lower(), content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Name the functions that implement an equation below its heading."""
    if page.file.src_path != "equations.md":
        return markdown
    root = Path(config["config_file_path"]).parent
    written: str = runpy.run_path(str(root / "docs" / "equations.py"))["with_sources"](
        markdown, root
    )
    return written
