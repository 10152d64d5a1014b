"""How often does an interval over problems hold the truth, and which method should be used?

Question: coverage of 95 % intervals of a mean over problems, for the interval that the evaluation
uses (`score`) and for the common alternatives, where the truth is known.

Method
- A run is E freshly drawn problems; problem e has p ~ Beta(mean c, (1 - mean) c) and m rows, each
  right with probability p; its value is the share of right rows. m = 1 is what votes, coverage and
  all-right give with one group a problem.
- The truth is the mean: in `middle` it is drawn anew for every run between .1 and .9; in `edge` it
  is .02.
- Compared: `score` (Wilson with an effective sample size and a quarter of a problem at 0 and at 1,
  `interlace.evaluation.intervals.proportion_interval`), the same without those pseudo-problems, the
  plain t interval, the percentile bootstrap and BCa (1,000 resamples, 1 run in 4 for these two).
- Reported: the share of runs whose interval holds the truth, lowest and highest over the settings.

Usage: python benchmarks/interval_coverage.py [--runs 2000] [--seed 0] [--quick]
Takes about a minute. Progress goes to stderr; the last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from statistics import NormalDist

import numpy as np
from scipy import stats

from interlace.evaluation.intervals import mean_interval, proportion_interval, resampled_means

PROBLEMS = (30, 100, 500)
ROWS = (1, 4, 16)
CONCENTRATIONS = (0.5, 2.0)
RESAMPLES = 1000
Ends = tuple[float, float]


def score(values: np.ndarray) -> Ends:
    found = proportion_interval(values)
    return found.low, found.high


def bare_score(values: np.ndarray) -> Ends:
    """Wilson's interval with the effective size of the bare variance."""
    mean, variance, count = values.mean(), values.var(ddof=1), len(values)
    size = count * mean * (1 - mean) / variance if variance > 0 else count
    per_draw = NormalDist().inv_cdf(0.975) ** 2 / size
    centre = (mean + per_draw / 2) / (1 + per_draw)
    half = np.sqrt(per_draw * (mean * (1 - mean) + per_draw / 4)) / (1 + per_draw)
    return centre - half, centre + half


def plain_t(values: np.ndarray) -> Ends:
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return values.mean() - half, values.mean() + half


def percentile(values: np.ndarray) -> Ends:
    low, high = np.quantile(resampled_means(values, RESAMPLES, 0), [0.025, 0.975])
    return low, high


def bca(values: np.ndarray) -> Ends:
    found = mean_interval(values, resamples=RESAMPLES)
    return found.low, found.high


METHODS: dict[str, tuple[Callable[[np.ndarray], Ends], int]] = {
    "score": (score, 1),
    "score, bare variance": (bare_score, 1),
    "t": (plain_t, 1),
    "percentile bootstrap": (percentile, 4),
    "BCa bootstrap": (bca, 4),
}


def coverage(method: str, values: np.ndarray, truths: np.ndarray) -> float:
    interval, every = METHODS[method]
    ends = [interval(run) for run in values[::every]]
    pairs = zip(ends, truths[::every], strict=True)
    return float(np.mean([low <= truth <= high for (low, high), truth in pairs]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="8 runs")
    options = parser.parse_args()
    if options.quick:
        options.runs = 8
    rng = np.random.default_rng(options.seed)
    found: dict[str, dict[str, list[float]]] = {}
    for problems in PROBLEMS:
        for rows in ROWS:
            for concentration in CONCENTRATIONS if rows > 1 else (2.0,):
                for place in ("middle", "edge"):
                    truths = (
                        rng.uniform(0.1, 0.9, options.runs)
                        if place == "middle"
                        else np.full(options.runs, 0.02)
                    )
                    a, b = truths * concentration, (1 - truths) * concentration
                    p = rng.beta(a[:, None], b[:, None], (options.runs, problems))
                    values = rng.binomial(rows, p) / rows
                    shares = {name: coverage(name, values, truths) for name in METHODS}
                    setting = f"E={problems} m={rows} c={concentration} {place}"
                    print(setting, shares, file=sys.stderr, flush=True)
                    for name, share in shares.items():
                        found.setdefault(place, {}).setdefault(name, []).append(share)
    summary = {
        place: {name: {"lowest": min(s), "highest": max(s)} for name, s in methods.items()}
        for place, methods in found.items()
    }
    for place, methods in summary.items():
        print(f"{place}: coverage of 95 % intervals, lowest and highest over the settings")
        for name, ends in methods.items():
            print(f"  {name:24s} {ends['lowest']:.3f} {ends['highest']:.3f}")
    print(json.dumps({"runs": options.runs, "seed": options.seed, "coverage": summary}))


if __name__ == "__main__":
    main()
