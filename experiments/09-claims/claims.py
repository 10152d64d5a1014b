"""Laws of accuracy against width, and what RLVR-only's accuracy costs: from records alone.

    python experiments/09-claims/claims.py    # writes claims.json and the tables of README.md

Laws are fitted to the widths from 1 to 8 of every training seed of 01-countdown and held against
width 16, which the fit has not seen; then to the widths from 1 to 16 of four models and held
against 32 and 64 (`wide/`).
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
FIRST = HERE.parent / "01-countdown"
sys.path.insert(0, str(FIRST))

from curves import series  # noqa: E402
from outcomes import load  # noqa: E402
from tables import fill, markdown, show  # noqa: E402
from units import Config, Places, Unit, load_config, plan  # noqa: E402

from interlace.evaluation.compare import check_same_problems  # noqa: E402
from interlace.evaluation.intervals import LEVEL, Estimate, seed_interval  # noqa: E402
from interlace.evaluation.results import ArmResult  # noqa: E402
from interlace.evaluation.scaling import ScalingFit, fit_scaling  # noqa: E402
from interlace.jsonl import to_json  # noqa: E402

ARMS = ("bridge8", "bridge-mixed")
MOMENTS = {"step-240": 60, "final": 120}  # rollouts
LAWS: dict[str, dict[str, Any]] = {
    "a P^-b": {"form": "power"},
    "c + a P^-b": {"form": "power", "floor": True},
    "a (k ln P + 1)^-1": {"form": "log"},
    "c + a (k ln P + 1)^-1": {"form": "log", "floor": True},
}
MODELS = {
    "mixed": "Bridge, mixed (01-countdown, seed 0)",
    "spliced": "blocks last, spliced (07-blocks-last, seed 0)",
    "long": "blocks last after 1,080 rollouts (05-long-run, seed 2)",
    "smollm2": "blocks last on SmolLM2-135M (08-smollm2, seed 2)",
}
WINDOWS = (10, 20, 30)  # rollouts whose training prompts are averaged; the first is the table's
ROWS = 64 * 8  # responses of a rollout
RESAMPLES = 200  # draws of problems


def main() -> None:
    """Compute all claims anew."""
    config, places = load_config(), Places(FIRST)
    units = {unit.name: unit for unit in plan(config)}
    values = {
        "laws": laws(config, places, units),
        "extrapolation": extrapolation(places, units),
        "costs": costs(config, places, units),
        "readings": [
            {"window": window, "stays": stays, "costs": costs(config, places, units, window, stays)}
            for window in WINDOWS
            for stays in (False, True)
        ],
    }
    path = HERE / "claims.json"
    path.write_text(json.dumps(values, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    print(f"wrote {path} and {fill(HERE / 'README.md', sections_of(values))}")


def sections_of(values: Mapping[str, Any]) -> dict[str, str]:
    """The README's tables."""
    labels = load_config()["labels"]
    return {
        "law": laws_table(values["laws"], labels),
        "extrapolation": extrapolation_table(values["extrapolation"]),
        "efficiency": costs_table(values["costs"]),
        "readings": readings_table(values["readings"]),
    }


# Laws -------------------------------------------------------------------------------------------


def laws(config: Config, places: Places, units: Mapping[str, Unit]) -> list[dict[str, Any]]:
    """Every law over the seeds: its error where it was fitted, and at width 16 where it was not."""
    lines = []
    for arm in ARMS:
        for moment, rollouts in MOMENTS.items():
            names = [f"seed-{seed}/{arm}/{moment}" for seed in config["seeds"]]
            results = [load(places, units[name]) for name in names]
            measured = [result.get("pass@1", 16).estimate.value for result in results]
            for name, options in LAWS.items():
                fits = [fitted(result, 8, options) for result in results]
                wrong = [
                    value - (1 - fit.predict([16])[0])
                    for value, fit in zip(measured, fits, strict=True)
                ]
                lines.append(
                    {
                        "arm": arm,
                        "rollouts": rollouts,
                        "law": name,
                        "rmse": float(np.mean([fit.rmse for fit in fits])),
                        "measured": to_json(seed_interval(measured)),
                        "off": to_json(seed_interval(wrong)),
                    }
                )
    return lines


def fitted(result: ArmResult, most: int, options: Mapping[str, Any]) -> ScalingFit:
    """A law fitted to the widths up to `most`; its own intervals are not used here."""
    kept = tuple(entry for entry in result.measurements if entry.width <= most)
    return fit_scaling(replace(result, measurements=kept), resamples=2, **options)


def extrapolation(places: Places, units: Mapping[str, Unit]) -> list[dict[str, Any]]:
    """Four models far beyond the widths that were trained."""
    known_of = {
        "mixed": [load(places, units["seed-0/bridge-mixed/final"])],
        "spliced": [final("07-blocks-last", "seed-0/spliced-120"), wide("spliced-narrow")],
        "long": [final("05-long-run", "seed-2/spliced-1080"), wide("long-narrow")],
        "smollm2": [final("08-smollm2", "seed-2/spliced"), wide("smollm2-narrow")],
    }
    lines = []
    for model, known in known_of.items():
        found = wide(model)
        entries = tuple(entry for result in known for entry in result.measurements)
        narrow = replace(known[0], measurements=entries)
        for law, options in LAWS.items():
            fit = fitted(narrow, 16, options)
            lines += [
                {
                    "model": model,
                    "law": law,
                    "widths": list(fit.widths),
                    "width": width,
                    "predicted": 1 - fit.predict([width])[0],
                    "measured": to_json(found.get("pass@1", width).estimate),
                    "missed": to_json(missed(narrow, found, width, options)),
                }
                for width in found.widths
            ]
    return lines


def missed(narrow: ArmResult, found: ArmResult, width: int, options: Mapping[str, Any]) -> Estimate:
    """Measured minus law. Both are of the same problems: the law is fitted anew to every draw."""
    check_same_problems(narrow, found)
    count, generator = len(found.example_ids), np.random.default_rng(0)
    drawn = [np.arange(count), *generator.integers(count, size=(RESAMPLES, count))]
    measured = found.get("pass@1", width).values
    gaps = [
        float(measured[rows].mean() - 1 + fitted(of(narrow, rows), 16, options).predict([width])[0])
        for rows in drawn
    ]
    low, high = np.quantile(gaps[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(gaps[0], float(low), float(high), "bootstrap", LEVEL, count)


def of(result: ArmResult, rows: np.ndarray) -> ArmResult:
    """The result's pass@1 of these problems."""
    kept = [entry for entry in result.measurements if entry.metric == "pass@1"]
    return replace(
        result, measurements=tuple(replace(entry, values=entry.values[rows]) for entry in kept)
    )


def final(experiment: str, arm: str) -> ArmResult:
    """An arm's last evaluation in another experiment."""
    return load(Places(HERE.parent / experiment), evaluated(f"{arm}/final"))


def wide(name: str) -> ArmResult:
    """A model of `wide/`."""
    return load(Places(HERE / "wide"), evaluated(name))


def evaluated(name: str) -> Unit:
    """An evaluation by the folder of its results."""
    return Unit("evaluate", name, name, 0, {})


# Costs ------------------------------------------------------------------------------------------


def costs(
    config: Config,
    places: Places,
    units: Mapping[str, Unit],
    window: int = WINDOWS[0],
    stays: bool = False,
) -> list[dict[str, Any]]:
    """What Bridge with mixed widths spends until its training prompts' rows at width 8 are right as
    often as RLVR-only's at the end, as shares of what RLVR-only spends; by seed."""
    shares: dict[str, list[float]] = {"rollouts": [], "responses": [], "processor seconds": []}
    for seed in config["seeds"]:
        rlvr, mixed = (units[f"seed-{seed}/{arm}/train"] for arm in ("rlvr", "bridge-mixed"))
        level = float(np.mean(series(places, rlvr, "pass@1", None)[-window:]))
        curve = np.array(series(places, mixed, "pass@1", 8))
        reached = first_at(curve, level, window, stays)
        spent, total = (places.outcome(unit) for unit in (mixed, rlvr))
        warmup = places.outcome(units[f"seed-{seed}/warmup-bridge"])
        assert spent
        assert total
        assert warmup
        trainer = warmup["settings"]["trainer"]
        rollouts = len(series(places, rlvr, "pass@1", None))
        sampled = trainer["problems"] * trainer["samples"]
        seconds = warmup["cpu_seconds"] + spent["cpu_seconds"] * reached / len(curve)
        shares["rollouts"].append(reached / rollouts)
        shares["responses"].append((sampled + reached * ROWS) / (rollouts * ROWS))
        shares["processor seconds"].append(seconds / total["cpu_seconds"])
    return [
        {"cost": name, "share": to_json(log_interval(values)), "by_seed": values}
        for name, values in shares.items()
    ]


def first_at(
    curve: Sequence[float] | np.ndarray,
    level: float,
    window: int = WINDOWS[0],
    stays: bool = False,
) -> int:
    """The number of rollouts after which the mean of the last ones first reaches the level; if it
    `stays`, from which on it is never below."""
    stops = range(window, len(curve) + 1)
    above = [bool(np.nanmean(curve[stop - window : stop]) >= level) for stop in stops]
    if not above or not (above[-1] if stays else any(above)):
        raise ValueError(f"The curve ends below {level}.")
    if stays:
        return stops[-1] - above[::-1].index(False) + 1 if False in above else window
    return stops[above.index(True)]


def log_interval(shares: Sequence[float]) -> Any:
    """A t interval of the geometric mean: shares are of a kind with their inverses."""
    found = seed_interval([math.log(share) for share in shares])
    assert found.low is not None
    assert found.high is not None
    value, low, high = (math.exp(end) for end in (found.value, found.low, found.high))
    return replace(found, value=value, low=low, high=high)


# Tables -----------------------------------------------------------------------------------------


def laws_table(lines: Sequence[Mapping[str, Any]], labels: Mapping[str, str]) -> str:
    """Laws by how far off they are."""
    rows = [
        [
            f"{labels[line['arm']]}, {line['rollouts']} rollouts",
            f"`{line['law']}`",
            f"{100 * line['rmse']:.1f}",
            show(line["measured"], 100),
            show(line["off"], 100, sign=True),
        ]
        for line in lines
    ]
    head = ["arm", "law of 1 - pass@1", "error at W = 1 to 8", "measured at W = 16"]
    return markdown([*head, "measured minus law at W = 16"], rows)


def extrapolation_table(lines: Sequence[Mapping[str, Any]]) -> str:
    """Models far beyond their trained widths."""
    rows = [
        [
            MODELS[line["model"]],
            f"`{line['law']}`",
            ", ".join(map(str, line["widths"])),
            str(line["width"]),
            f"{100 * line['predicted']:.1f}",
            show(line["measured"], 100),
            show(line["missed"], 100, sign=True),
        ]
        for line in lines
    ]
    head = ["model", "law of 1 - pass@1", "fitted to W =", "W", "law", "measured"]
    return markdown([*head, "measured minus law"], rows)


def readings_table(lines: Sequence[Mapping[str, Any]]) -> str:
    """The costs by how the crossing is read."""
    rows = [
        [
            str(line["window"]),
            "stays there" if line["stays"] else "is first there",
            *(show(cost["share"], 100) for cost in line["costs"] if cost["cost"] != "rollouts"),
        ]
        for line in lines
    ]
    head = ["mean of rollouts", "until it", "responses, per cent of RLVR-only's"]
    return markdown([*head, "processor seconds"], rows)


def costs_table(lines: Sequence[Mapping[str, Any]]) -> str:
    """Shares of RLVR-only's costs."""
    rows = [
        [
            line["cost"],
            show(line["share"], 100),
            ", ".join(f"{100 * share:.0f}" for share in line["by_seed"]),
        ]
        for line in lines
    ]
    return markdown(["cost", "per cent of RLVR-only's", "by seed"], rows)


if __name__ == "__main__":
    main()
