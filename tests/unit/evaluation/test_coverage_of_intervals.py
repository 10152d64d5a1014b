"""The evaluation recovers what is known of a synthetic model, and its intervals cover it.

Each of 2,000 runs draws a truth between .1 and .9, a model with that truth, and 100 fresh problems;
the share of the runs whose interval holds the truth must be 93.5 to 96.5 %.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest

from interlace.evaluation.intervals import (
    difference_interval,
    mean_interval,
    proportion_interval,
)
from interlace.evaluation.measure import measure, row_metrics, set_metrics
from support.evaluation import KnownModel, as_records, as_rows

RUNS, PROBLEMS, WIDTH = 2000, 100, 8
COPY = {"independent": 0.0, "copied": 0.6}
MEANS = np.linspace(0.02, 0.98, 200)


def covered(runs: np.ndarray, truths: np.ndarray) -> float:
    """Share of the runs `[runs, E]` whose interval holds the truth."""
    estimates = [proportion_interval(run) for run in runs]
    return float(np.mean([e.low <= t <= e.high for e, t in zip(estimates, truths, strict=True)]))


@lru_cache(maxsize=2)
def simulated(copy: float) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """For each metric the values `[RUNS, PROBLEMS]` of runs whose truth is in [.1, .9], and the
    truths."""
    rng = np.random.default_rng(list(COPY.values()).index(copy) + 1)
    models = [KnownModel(mean, WIDTH, copy) for mean in rng.choice(MEANS, 2 * RUNS)]
    truth_of = {model: model.truth() for model in set(models)}
    right = np.concatenate([model.draw(rng, PROBLEMS) for model in models])
    rows, groups = as_rows(right, coupled=copy > 0), np.arange(WIDTH)[None]
    values = dict(row_metrics(rows))
    for metric, _, _, threshold, found, _ in set_metrics(rows, groups):
        values[metric if threshold is None else f"{metric}:{threshold}"] = found
    chosen = {}
    for metric in truth_of[models[0]]:
        truths = np.array([truth_of[model][metric] for model in models])
        kept = np.flatnonzero((truths >= 0.1) & (truths <= 0.9))[:RUNS]
        assert len(kept) == RUNS
        chosen[metric] = values[metric].reshape(-1, PROBLEMS)[kept], truths[kept]
    return chosen


@pytest.mark.parametrize("kind", COPY)
@pytest.mark.parametrize("metric", ["pass@1", "maj", "coverage", "g_pass:4", "g_pass:8"])
def test_intervals_cover_the_truth(metric, kind):
    runs, truths = simulated(COPY[kind])[metric]
    assert 0.935 <= covered(runs, truths) <= 0.965


def test_plain_t_would_not_do():
    """The claim has teeth: at a truth of .1 the plain t interval misses it."""
    rng = np.random.default_rng(2)
    model = KnownModel(0.1, WIDTH, concentration=0.5)
    runs = model.draw(rng, RUNS * PROBLEMS).mean(axis=(1, 2)).reshape(RUNS, PROBLEMS)
    error = runs.std(axis=1, ddof=1) / np.sqrt(PROBLEMS)
    assert np.mean(np.abs(runs.mean(axis=1) - 0.1) <= 1.984 * error) < 0.935
    assert 0.935 <= covered(runs, np.full(RUNS, 0.1)) <= 0.965


@pytest.mark.parametrize("mean", [0.003, 0.01, 0.99, 0.997])
def test_near_0_and_1_the_interval_does_not_collapse(mean):
    """100 problems, often all wrong or all right: bootstrap and t then have no width at all."""
    rng = np.random.default_rng(2)
    values = KnownModel(mean, 1).draw(rng, RUNS * PROBLEMS, 4).mean(axis=(1, 2))
    runs = values.reshape(RUNS, PROBLEMS)
    assert covered(runs, np.full(RUNS, mean)) >= 0.92
    assert np.mean(runs.std(axis=1) == 0) > 0.04 or mean in (0.01, 0.99)


def test_paired_differences_cover_the_true_gain():
    rng = np.random.default_rng(3)
    first = KnownModel(0.4, WIDTH).draw(rng, RUNS * PROBLEMS).mean(axis=(1, 2))
    # The same problems, where a row that failed is right with probability 1/10 after all.
    second = first + rng.binomial((WIDTH * (1 - first)).astype(int), 0.1) / WIDTH
    gains = (second - first).reshape(RUNS, PROBLEMS)
    found = [difference_interval([run]) for run in gains]
    assert 0.935 <= np.mean([e.low <= 0.06 <= e.high for e in found]) <= 0.965


def test_bootstrap_of_token_counts_covers():
    rng = np.random.default_rng(4)
    runs = rng.lognormal(5, 0.6, (500, PROBLEMS))
    truth = float(np.exp(5 + 0.18))
    found = [mean_interval(run, resamples=1000) for run in runs]
    assert 0.92 <= np.mean([e.low <= truth <= e.high for e in found]) <= 0.975


@pytest.mark.parametrize("copy", [0.0, 0.6], ids=["independent", "copied"])
def test_recovers_a_known_model_from_records(copy):
    """From raw records to estimates, 300 problems with 4 groups each."""
    model = KnownModel(0.45, WIDTH, copy)
    right = model.draw(np.random.default_rng(6), 300, 4)
    (result,) = measure(as_records(right, coupled=copy > 0), "known")
    for metric, truth in model.truth().items():
        name, _, need = metric.partition(":")
        estimate = result.get(name, WIDTH, int(need) if need else None).estimate
        assert estimate.low <= truth <= estimate.high, metric


def test_coupled_rows_taken_for_independent_ones_give_a_wrong_coverage():
    """Why the rule exists: 4 rows of a width-8 group that copies are not a width-4 run."""
    right = KnownModel(0.45, 8, copy=0.6).draw(np.random.default_rng(6), 2000)
    (wrong,) = measure(as_records(right, coupled=False), "mislabelled", ks=[4])
    # A width-4 run has a sharper early copying chain than a 4-subset of 8 rows.
    truth = KnownModel(0.45, 4, copy=0.6).truth()["coverage"]
    assert wrong.get("coverage", 4).estimate.excludes(truth)
