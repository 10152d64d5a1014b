"""Longer training: what held-out problems gain on the way, and the best of all models.

A queue that is half done is reported over what is there, as the rest of its report is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib as mpl
import numpy as np
from curves import series
from figures import FORMATS
from jaxtyping import Float
from matplotlib.axes import Axes
from outcomes import FINAL, load
from tables import markdown
from units import Config, Places, Unit, plan

from interlace.evaluation.figures import STYLE, Look, legend, new_figure
from interlace.evaluation.results import ArmResult

LOOKS = {  # as these arms look in the other figures
    "RLVR-only": Look("#5f5f5f", "o", (0, (4, 1.5))),
    "Bridge, mixed": Look("#D55E00", "v", "-"),
}
ASIDE = 1.08  # of a repeat, so that it is told from the run before
WINDOW = 90  # rollouts whose training prompts are averaged
# Arms that differ in the length of their run, by what their line is called.
LINES = {
    "RLVR-only": ("rlvr-long", "rlvr-longest", "rlvr-plateau"),
    "Bridge, mixed": ("short", "bridge-long", "bridge-longest", "bridge-again"),
}
REPEATS = ("bridge-again",)  # of a length that is there already: points beside the line
# Metric, width and threshold, by the heading of their column.
CELLS: dict[str, tuple[str, int, int | None]] = {
    "pass@1": ("pass@1", 8, None),
    "maj@16": ("maj", 16, None),
    "any of 8": ("coverage", 8, None),
    "all 8 right": ("g_pass", 8, 8),
}


@dataclass(frozen=True)
class Model:
    """An arm's model at some moment of its run, measured on held-out problems.

    Attributes:
        arm: The arm.
        rollouts: How many of its run were done.
        length: How many the whole run had.
        results: By seed.
        training: By seed, pass@1 of the training prompts of the rollouts before, at width 8.
    """

    arm: str
    rollouts: int
    length: int
    results: Mapping[str, ArmResult]
    training: Mapping[str, float]

    @property
    def final(self) -> bool:
        """Whether it is that of the end of the run."""
        return self.rollouts == self.length


def measured(config: Config, places: Places) -> list[Model]:
    """The models of all long runs that every seed has a measurement of."""
    units = plan(config)
    arms = [arm for own in LINES.values() for arm in own if arm in config["arms"]]
    models = []
    for arm in arms:
        own = [u for u in units if u.arm == arm and u.kind == "evaluate"]
        trained = [u for u in units if u.arm == arm and u.kind == "train"]
        for moment in dict.fromkeys(u.name.rpartition("/")[2] for u in own):
            now = [u for u in own if u.name.endswith(f"/{moment}")]
            if any(places.outcome(u) is None for u in now):
                continue
            rollouts = _rollouts(config, arm, moment)
            results = {str(u.seed): load(places, u) for u in now}
            training = {str(u.seed): _before(places, u, rollouts) for u in trained}
            length = _rollouts(config, arm, FINAL)
            models.append(Model(arm, rollouts, length, results, training))
    return sorted(models, key=lambda m: (arms.index(m.arm), m.rollouts))


def longer(models: Sequence[Model]) -> dict[str, Any]:
    """The numbers of long runs: on their way, and of the best model by half of the held-out
    problems, by seed."""
    with_snapshots = {model.arm for model in models if not model.final}
    return {
        "on_the_way": [
            {
                "arm": model.arm,
                "rollouts": model.rollouts,
                "held_out": {
                    name: {seed: mean(values(r, cell)) for seed, r in model.results.items()}
                    for name, cell in CELLS.items()
                },
                "training": dict(model.training),
            }
            for model in models
            if model.arm in with_snapshots
        ],
        "best": [
            {"line": line, "seed": seed, **best_by_half(own, seed)}
            for line, own in lines_of(models).items()
            for seed in own[0].results
        ],
    }


def lines_of(models: Sequence[Model]) -> dict[str, list[Model]]:
    """The models of every line that has any."""
    found = {line: [m for m in models if m.arm in arms] for line, arms in LINES.items()}
    return {line: own for line, own in found.items() if own}


def best_by_half(models: Sequence[Model], seed: str) -> dict[str, Any]:
    """The model with the best pass@1 at width 8 on one half of the held-out problems, measured on
    the other half; both ways round, averaged."""
    problems = models[0].results[seed].example_ids
    halves = [np.arange(len(problems)) % 2 == half for half in (0, 1)]
    chosen, found = [], dict.fromkeys(CELLS, 0.0)
    for half, other in (halves, halves[::-1]):
        best = max(models, key=lambda m: mean(values(m.results[seed], CELLS["pass@1"])[half]))
        chosen.append({"arm": best.arm, "rollouts": best.rollouts})
        for name, cell in CELLS.items():
            found[name] += mean(values(best.results[seed], cell)[other]) / 2
    return {"chosen": chosen, **found}


def values(result: ArmResult, cell: tuple[str, int, int | None]) -> Float[np.ndarray, "E"]:
    """A metric of every held-out problem."""
    found = result.get(*cell).values
    assert found is not None  # it was measured from records
    return np.asarray(found)


def best_table(lines: Sequence[Mapping[str, Any]], labels: Mapping[str, str]) -> str:
    """What is chosen, and what it reaches."""
    rows = [
        [
            line["line"],
            line["seed"],
            "; ".join(f"{c['rollouts']:,} of {labels[c['arm']]}" for c in line["chosen"]),
            *(f"{100 * line[name]:.1f}" for name in CELLS),
        ]
        for line in lines
    ]
    return markdown(["", "seed", "chosen by either half: rollouts done of a run", *CELLS], rows)


def on_the_way_table(lines: Sequence[Mapping[str, Any]], labels: Mapping[str, str]) -> str:
    """Snapshots of one run after the other; numbers seed by seed."""
    rows = []
    for line in lines:
        columns = [line["held_out"][heading] for heading in CELLS] + [line["training"]]
        shown = [" / ".join(f"{100 * v:.1f}" for v in column.values()) for column in columns]
        rows.append([labels[line["arm"]], f"{line['rollouts']:,}", *shown])
    head = ["run", "rollouts done", *CELLS]
    return markdown([*head, f"training prompts, {WINDOW} rollouts before"], rows)


def draw_longer(models: Sequence[Model], folder: Path) -> None:
    """Final models by the length of their run; beside them the longest runs on their way."""
    folder.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(STYLE):
        figure, (left, right) = new_figure(2)
        _final_models(left, [m for m in models if m.final])
        _on_their_way(right, models)
        legend(figure)
        for kind in FORMATS:
            path = folder / f"longer.{kind}"
            figure.savefig(path, dpi=200, metadata={"Date": None} if kind == "svg" else None)


def _final_models(axes: Axes, finals: Sequence[Model]) -> None:
    for name, own in lines_of(finals).items():
        line = [m for m in own if m.arm not in REPEATS]
        if line:
            _line_a_seed(axes, _held_out(line), name, LOOKS[name])
        for length, by_seed in _held_out([m for m in own if m.arm in REPEATS]):
            for share in by_seed.values():
                place = [length * ASIDE], [100 * share]
                axes.plot(
                    *place, color=LOOKS[name].colour, marker=LOOKS[name].marker, mfc="white", mew=1
                )
    lengths = sorted({model.rollouts for model in finals})
    axes.set_xscale("log")
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axes.minorticks_off()
    axes.set_xlabel("rollouts of a whole run; hollow: run again")
    axes.set_title("held-out pass@1 at W = 8 (%), final models", loc="left")
    axes.set_ylim(0, 100)


def _on_their_way(axes: Axes, models: Sequence[Model]) -> None:
    with_snapshots = {model.arm for model in models if not model.final}
    for name, own in lines_of([m for m in models if m.arm in with_snapshots]).items():
        look = LOOKS[name]
        training = [(m.rollouts, m.training) for m in own]
        faint = replace(look, marker="", line=":")
        _line_a_seed(axes, training, f"{name}: training", faint)
        _line_a_seed(axes, _held_out(own), name, look)
    axes.set_xlabel("rollouts done of the runs with snapshots")
    axes.set_title("the same on the way, and on training prompts", loc="left")
    axes.set_ylim(0, 100)


Points = list[tuple[int, Mapping[str, float]]]  # rollouts, and a share by seed


def _held_out(models: Sequence[Model]) -> Points:
    """pass@1 at width 8, by rollouts."""
    points = [
        (m.rollouts, {seed: mean(values(r, CELLS["pass@1"])) for seed, r in m.results.items()})
        for m in models
    ]
    return sorted(points, key=lambda point: point[0])


def _line_a_seed(axes: Axes, points: Points, name: str, look: Look) -> None:
    """Draw the lines, named once."""
    lengths = [length for length, _ in points]
    for seed in points[0][1]:
        heights = [100 * by_seed[seed] for _, by_seed in points]
        style = {"color": look.colour, "linestyle": look.line, "marker": look.marker}
        axes.plot(lengths, heights, label=name, **style)


def _rollouts(config: Config, arm: str, moment: str) -> int:
    options = {**config["grpo"], **config["arms"][arm].get("grpo", {})}
    step = options["max_steps"] if moment == FINAL else int(moment.removeprefix("step-"))
    return int(step) // int(options["mini_batches"])


def _before(places: Places, unit: Unit, rollouts: int) -> float:
    """Of mixed widths the prompts that had width 8."""
    mixed = isinstance(unit.settings["trainer"]["width"], list)
    seen = series(places, unit, "pass@1", 8 if mixed else None)
    return float(np.nanmean(seen[max(rollouts - WINDOW, 0) : rollouts]))
