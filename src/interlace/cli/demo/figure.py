"""The demo's figure: pass@1 and maj@W against width."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from interlace.evaluation.results import ArmResult

FIGURE = "figure.png"


def draw(results: Sequence[ArmResult], path: Path, dpi: int = 200) -> None:
    """Draw both panels, intervals included, and write a PNG."""
    import matplotlib as mpl

    from interlace.evaluation.drawing import STYLE
    from interlace.evaluation.figures import against_width, lines_of

    with mpl.rc_context(STYLE):
        panels = (("pass@1", "pass@1 (%)"), ("maj", "maj@W (%)"))
        figure = against_width([(lines_of(results, name), title) for name, title in panels])
        if figure is not None:
            figure.savefig(path, dpi=dpi)
