"""An evaluation as one JSON file, and as Markdown.

The JSON holds every number with its (width, k), interval and method, and where it came from. It
needs no raw records to be read: Markdown and figures come from it alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from interlace.evaluation.compare import Comparison, compare
from interlace.evaluation.efficiency import ParallelEfficiency, parallel_efficiency
from interlace.evaluation.pairing import average_seeds
from interlace.evaluation.results import ArmResult, arms_of
from interlace.evaluation.scaling import ScalingFit, fit_scaling

SCHEMA = "interlace.evaluation/1"
# A fit needs more widths than its two parameters; with exactly one more it is hardly judged.
FIT_WIDTHS = 4
FITTED = ("pass@1", "maj", "coverage")


@dataclass(frozen=True)
class Report:
    """Results of one or more arms, and what was derived from them.

    Attributes:
        results: One for each arm and task, averaged over training seeds.
        comparisons: Arms over the same problems.
        efficiencies: What independent voting needs to reach coupled arms.
        fits: Laws of failure against width.
        provenance: Where all of it came from. Any JSON values.
    """

    results: tuple[ArmResult, ...]
    comparisons: tuple[Comparison, ...] = ()
    efficiencies: tuple[ParallelEfficiency, ...] = ()
    fits: tuple[ScalingFit, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """JSON values, the schema's version first."""
        return {
            "schema": SCHEMA,
            "provenance": dict(self.provenance),
            "results": [entry.to_json() for entry in self.results],
            "comparisons": [entry.to_json() for entry in self.comparisons],
            "efficiencies": [entry.to_json() for entry in self.efficiencies],
            "fits": [entry.to_json() for entry in self.fits],
        }

    def save(self, path: str | Path) -> None:
        """Write the JSON; the same report gives the same bytes."""
        text = json.dumps(self.to_json(), indent=1, allow_nan=False)
        Path(path).write_text(text + "\n", encoding="utf-8")


def make_report(
    results: Sequence[ArmResult],
    *,
    base: str | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Report:
    """All that can be derived from results: comparisons, parallel efficiency and fits.

    Args:
        results: Any arms, tasks and training seeds.
        base: The arm that gains are over; by default the first one where there are several.
        provenance: Where the results came from.

    Returns:
        With several arms, comparisons of pass@1, maj@W, coverage and all-right at every width that
        all arms have; for every pair of a coupled and an independent arm the parallel efficiency at
        every width of the coupled one; fits for whoever has `FIT_WIDTHS` widths.

    Raises:
        ComparisonError: for arms that do not cover the same problems.
    """
    averaged = average_seeds(results)
    arms = arms_of(results)
    comparisons = []
    if len(arms) > 1:
        common = set.intersection(*(set(result.widths) for result in averaged))
        for width in sorted(common):
            chosen: list[tuple[str, int | None]] = [("pass@1", None)]
            if width > 1:
                chosen += [("maj", None), ("coverage", None), ("g_pass", width)]
            for metric, threshold in chosen:
                comparisons.append(
                    compare(
                        results, base or arms[0], metric=metric, width=width, threshold=threshold
                    )
                )
    efficiencies = [
        parallel_efficiency(coupled, independent, width)
        for coupled in averaged
        for independent in averaged
        if coupled.coupled and not independent.coupled and coupled.task == independent.task
        for width in coupled.widths
        if len(independent.widths) > 1
    ]
    fits = [
        fit_scaling(result, metric, form)
        for result in averaged
        if len(result.widths) >= FIT_WIDTHS
        for metric in FITTED
        # A mean over independent rows does not depend on the width.
        if result.coupled or metric != "pass@1"
        for form in ("power", "log")
    ]
    return Report(
        results=tuple(averaged),
        comparisons=tuple(comparisons),
        efficiencies=tuple(efficiencies),
        fits=tuple(fits),
        provenance=provenance or {},
    )
