"""The documents are true: their Python runs, every equation has its source, their links lead
somewhere.

Each test was seen to fail: a renamed argument in a page's Python, an equation that no docstring
names, a link to a missing page, a renamed invariant.
"""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

import interlace
from interlace.attached import is_attached

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
HOOKS = runpy.run_path(str(DOCS / "equations.py"))
sources_of_equations, with_sources = HOOKS["sources_of_equations"], HOOKS["with_sources"]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
FENCE = re.compile(
    r"^(?P<skip><!-- not run: .+ -->\n)?(?P<indent> *)```python\n(?P<code>.*?)^ *```$", re.M | re.S
)
LINK = re.compile(r"\]\((?!https?:)(?P<target>[^)#\s]*)(?:#(?P<anchor>[^)\s]+))?\)")
INVARIANT = re.compile(r"`(test_I\d+_\w+)`")


def python_of(page: Path) -> str:
    """The page's Python blocks as one program, each on its own line numbers."""
    text, program = page.read_text(encoding="utf-8"), ""
    for block in FENCE.finditer(text):
        if block["skip"]:
            continue
        line = text.count("\n", 0, block.start("code"))
        program += "\n" * (line - program.count("\n"))
        program += re.sub(f"^{block['indent']}", "", block["code"], flags=re.M)
    return program


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", [p for p in PAGES if python_of(p)], ids=name_of)
def test_python_in_page_runs(page: Path) -> None:
    exec(compile(python_of(page), page, "exec"), {"__name__": "__main__"})


def test_readme_is_short_and_shows_what_its_example_prints(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) <= 900
    shown = text.split("```text\n")[1].split("```")[0].splitlines()
    exec(FENCE.search(text)["code"], {"__name__": "__main__"})
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 9
    assert [*printed[:3], "...", printed[-1]] == shown


def test_every_equation_has_its_source_and_every_source_its_equation() -> None:
    page = (DOCS / "equations.md").read_text(encoding="utf-8")
    numbers = [int(n) for n in re.findall(r"^### Equation (\d+):", page, re.M)]
    named = sources_of_equations(ROOT / "src" / "interlace")
    assert numbers == list(range(1, len(numbers) + 1))
    assert sorted(named) == numbers
    assert any("`Groups.to_groups`" in place for place in named[6])


def test_site_names_the_source_below_each_equation() -> None:
    page = with_sources((DOCS / "equations.md").read_text(encoding="utf-8"), ROOT)
    below = page.split("### Equation 6:")[1].split("### Equation 7:")[0]
    assert "`Groups.to_groups` in `src/interlace/rows.py`" in below
    assert "`Groups.to_rows` in `src/interlace/rows.py`" in below


def test_reference_has_every_public_name() -> None:
    pages = "\n".join(page.read_text() for page in (DOCS / "reference").glob("*.md"))
    assert sorted(re.findall(r"^::: interlace\.(\w+)$", pages, re.M)) == interlace.__all__


def anchors_of(page: Path) -> set[str]:
    """The anchors of a page's headings, as MkDocs and GitHub form them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    plain = (re.sub(r"[^\w\s-]", "", heading.replace("`", "")).strip() for heading in headings)
    return {re.sub(r"\s+", "-", heading).lower() for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.finditer(page.read_text(encoding="utf-8")):
        target = (page.parent / link["target"]) if link["target"] else page
        generated = {DOCS / "contributing.md", DOCS / "changelog.md"}  # docs/hooks.py makes these
        assert target.exists() or target in generated, f"{name_of(page)}: {link.group()}"
        if link["anchor"]:
            assert link["anchor"] in anchors_of(target), f"{name_of(page)}: {link.group()}"


def test_every_invariant_named_has_its_test() -> None:
    tests = "\n".join(
        p.read_text() for p in (ROOT / "tests").rglob("test_*.py") if p != Path(__file__)
    )
    named = INVARIANT.findall((DOCS / "invariants.md").read_text(encoding="utf-8"))
    assert named
    assert not [name for name in named if f"def {name}(" not in tests]


@pytest.mark.parametrize("page", sorted((DOCS / "decisions").glob("0*.md")), ids=name_of)
def test_decision_has_its_parts(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text.startswith(f"# {page.name[:4]}: ")
    for part in ("Context", "Choice", "Measured", "Going back"):
        assert f"\n## {part}\n" in text, f"{name_of(page)} lacks the part {part!r}"
    assert f"({page.name})" in (DOCS / "decisions" / "index.md").read_text(encoding="utf-8")


def test_training_from_python_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    script = ROOT / "examples" / "train_from_python.py"
    monkeypatch.setattr("sys.argv", [script.name, "--steps", "2", "--output", str(tmp_path)])
    runpy.run_path(str(script), run_name="__main__")
    shown = capsys.readouterr().out
    assert re.search(r"^width 4: pass@1 0\.\d\d$", shown, re.M)
    assert is_attached(interlace.load(tmp_path / "grpo" / "model")[0])


def test_first_steps_show_what_they_promise(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(ROOT / "examples" / "first_steps.py"), run_name="__main__")
    shown = capsys.readouterr().out
    assert "the same, bit for bit" in shown
    moved = dict(re.findall(r"^  (\S.*?)  +(exactly 0|\d\.\d+)\s*$", shown, re.M))
    assert float(moved["a token of sibling row 2"]) > 0
    assert float(moved["sibling row 3, before it finished"]) > 0
    assert moved["sibling row 3, after it finished"] == "exactly 0"
    assert moved["a row of the other prompt's group"] == "exactly 0"
    rows = re.findall(r"^ +\d   (\S{24})   (\S+)\s*$", shown, re.M)
    assert len(rows) == 4
    assert any("|" in together for _, together in rows)
