"""The demo's figure: pass@1 and maj@W against width."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from interlace.evaluation.results import ArmResult

FIGURE = "figure.png"


def draw(results: Sequence[ArmResult], path: Path, dpi: int = 200) -> None:
    """Draw both panels, intervals included, and write a PNG."""
    import matplotlib as mpl

    from interlace.evaluation.drawing import (
        STYLE,
        draw_line,
        height,
        label_ends,
        looks,
        new_figure,
        width_axis,
    )

    with mpl.rc_context(STYLE):
        figure, panels = new_figure(2)
        titles = ("pass@1 (%)", "maj@W (%)")
        for axes, metric, title in zip(panels, ("pass@1", "maj"), titles, strict=True):
            ends = []
            for place, (result, look) in enumerate(looks(results)):
                # A mean over independent rows is one number that holds at every width.
                one = metric == "pass@1" and not result.coupled
                shift = 1 if one else 2 ** (0.045 * (place - (len(results) - 1) / 2))
                points = [(width * shift, entry) for width, entry in result.series(metric)]
                draw_line(axes, points, look, band=one, markers=not one)
                ends.append((points[-1][0], height(points[-1][1])[0], result.arm, look))
            width_axis(axes, results[0].widths)
            axes.set_title(title, loc="left")
            axes.set_ylim(bottom=0)
            label_ends(axes, ends)
        figure.savefig(path, dpi=dpi)
