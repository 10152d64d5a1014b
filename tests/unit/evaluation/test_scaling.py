"""Fits recover known laws, agree with scipy, and say what few widths cannot tell."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import curve_fit

from interlace.errors import MetricError
from interlace.evaluation.scaling import ScalingFit, fit_scaling
from support.evaluation import made

WIDTHS = [1, 2, 4, 8, 16]


def exact(failure, widths=WIDTHS):
    """An arm whose mean failure is this at every width, without noise between problems."""
    curve = {w: 1 - failure(w) * np.linspace(0.9, 1.1, 41) for w in widths}
    return made("Bridge", {"pass@1": curve})


def noisy(failure, seed, problems=200, widths=WIDTHS):
    """Problems with a difficulty of their own; 4 rows of each group in four groups."""
    rng = np.random.default_rng(seed)
    difficulty = rng.beta(8, 8, problems) * 2
    curve = {
        w: 1 - rng.binomial(4 * w, np.clip(failure(w) * difficulty, 0, 1)) / (4 * w) for w in widths
    }
    return made("Bridge", {"pass@1": curve})


def value(fit: ScalingFit, name: str) -> float:
    return fit.parameters[name].value


def test_recovers_a_power_law():
    fit = fit_scaling(exact(lambda w: 0.6 * w**-0.4))
    assert (value(fit, "a"), value(fit, "b")) == pytest.approx((0.6, 0.4), abs=1e-4)
    assert fit.parameters["c"].method == "fixed"
    assert fit.rmse < 1e-4
    assert fit.r2 > 0.999999
    assert fit.formula == "failure = a P^-b"
    assert fit.predict([32]) == pytest.approx([0.6 * 32**-0.4], abs=1e-4)


def test_recovers_a_power_law_with_a_floor():
    fit = fit_scaling(exact(lambda w: 0.2 + 0.5 * w**-0.7), floor=True)
    assert [value(fit, name) for name in "abc"] == pytest.approx([0.5, 0.7, 0.2], abs=1e-3)
    without = fit_scaling(exact(lambda w: 0.2 + 0.5 * w**-0.7))
    assert without.rmse > 10 * fit.rmse


def test_recovers_the_parallel_scaling_law():
    law = exact(lambda w: 0.6 * (0.8 * np.log(w) + 1) ** -1)
    fit = fit_scaling(law, form="log")
    assert (value(fit, "a"), value(fit, "k")) == pytest.approx((0.6, 0.8), abs=1e-3)
    assert value(fit, "rate") == pytest.approx(0.8, abs=1e-3)
    assert fit.parameters["alpha"].method == "fixed"
    assert fit.predict([64]) == pytest.approx([0.6 / (0.8 * np.log(64) + 1)], abs=1e-3)
    steep = fit_scaling(exact(lambda w: 0.6 * (2 * np.log(w) + 1) ** -0.4), form="log", alpha=0.4)
    assert value(steep, "k") == pytest.approx(2, abs=1e-2)


def test_recovers_a_free_exponent():
    law = exact(lambda w: 0.6 * (1.5 * np.log(w) + 1) ** -0.6)
    fit = fit_scaling(law, form="log", alpha=None, resamples=100)
    assert value(fit, "alpha") == pytest.approx(0.6, abs=0.01)
    assert value(fit, "k") == pytest.approx(1.5, abs=0.05)
    floor = exact(lambda w: 0.1 + 0.6 * (1.5 * np.log(w) + 1) ** -1, [1, 2, 4, 8, 16, 32])
    found = fit_scaling(floor, form="log", floor=True)
    assert value(found, "c") == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_scipys_least_squares(seed):
    result = noisy(lambda w: 0.6 * (0.8 * np.log(w) + 1) ** -0.7, seed)
    fit = fit_scaling(result, form="log", alpha=None, resamples=50)
    errors = np.array(fit.residuals) / np.array(fit.standardised)

    def law(widths, a, rate, alpha):
        return a * (rate / alpha * np.log(widths) + 1) ** -alpha

    best, _ = curve_fit(
        law,
        np.array(WIDTHS, float),
        fit.failures,
        p0=[0.6, 0.5, 1],
        sigma=errors,
        bounds=([0, 0, 0.05], [2, 20, 50]),
        maxfev=20_000,
    )
    theirs = (np.array(fit.failures) - law(np.array(WIDTHS), *best)) / errors
    assert sum(z * z for z in fit.standardised) <= np.sum(theirs**2) * 1.001 + 1e-9


def test_intervals_cover_the_exponent():
    """100 runs of 200 problems."""
    covered = 0
    for seed in range(100):
        fit = fit_scaling(noisy(lambda w: 0.5 * w**-0.3, seed), resamples=200)
        b = fit.parameters["b"]
        assert b.method == "percentile"
        covered += b.low <= 0.3 <= b.high
    assert 88 <= covered <= 99


def test_the_interval_is_as_wide_as_fits_vary():
    """Over 40 runs: 2 * 1.96 standard deviations of the fitted exponent."""
    fits = [fit_scaling(noisy(lambda w: 0.5 * w**-0.3, seed), resamples=100) for seed in range(40)]
    found = [fit.parameters["b"] for fit in fits]
    width = np.mean([b.high - b.low for b in found])
    assert width == pytest.approx(3.92 * np.std([b.value for b in found], ddof=1), rel=0.3)


def test_the_residuals_judge_the_law():
    power = noisy(lambda w: 0.6 * w**-0.9, 1, problems=3000)
    right, wrong = (fit_scaling(power, form=form, resamples=50) for form in ("power", "log"))
    assert max(map(abs, right.standardised)) < 3
    assert max(map(abs, wrong.standardised)) > 5
    assert np.array(right.residuals) == pytest.approx(
        np.array(right.failures) - np.array(right.fitted)
    )


def test_what_the_law_explains_is_weighted_as_the_fit_is():
    fit = fit_scaling(noisy(lambda w: 0.5 * w**-0.5, 3), resamples=50)
    failures, residuals = np.array(fit.failures), np.array(fit.residuals)
    weights = (np.array(fit.standardised) / residuals) ** 2
    centre = np.average(failures, weights=weights)
    unexplained = np.sum(weights * residuals**2) / np.sum(weights * (failures - centre) ** 2)
    assert fit.r2 == pytest.approx(1 - unexplained)
    assert fit.rmse == pytest.approx(np.sqrt(np.mean(residuals**2)))


def test_a_failure_that_does_not_fall_has_no_exponent():
    fit = fit_scaling(exact(lambda w: 0.4))
    assert fit.parameters["b"].method == "not identified"
    assert value(fit, "b") == pytest.approx(0, abs=1e-6)
    rising = fit_scaling(exact(lambda w: 0.4 + 0.01 * w))
    assert value(rising, "b") == pytest.approx(0, abs=1e-6)


def test_a_power_law_leaves_the_log_laws_exponent_open():
    """alpha grows without end at a fixed rate; only the rate is told by the widths."""
    fit = fit_scaling(noisy(lambda w: 0.6 * w**-0.4, 0, 100), form="log", alpha=None)
    assert fit.parameters["alpha"].method == "not identified"
    assert fit.parameters["k"].method == "not identified"
    assert value(fit, "rate") == pytest.approx(0.4, abs=0.08)


def test_a_floor_is_never_below_zero():
    """Failure falling evenly with log width: without the bound the floor would dive."""
    fit = fit_scaling(exact(lambda w: 0.6 - 0.13 * np.log2(w)), floor=True, resamples=50)
    assert value(fit, "c") == 0
    assert min(fit.predict([32, 1024])) >= 0


def test_no_failure_at_all():
    fit = fit_scaling(made("Bridge", {"pass@1": {w: np.ones(30) for w in WIDTHS}}))
    assert value(fit, "a") == 0
    assert fit.r2 == 0.0


@pytest.mark.parametrize(
    ("widths", "options", "needed"),
    [
        ([1, 2], {}, 3),
        ([1, 2, 4], {"floor": True}, 4),
        ([1, 2, 4], {"form": "log", "alpha": None}, 4),
        ([1, 2, 4, 8], {"form": "log", "alpha": None, "floor": True}, 5),
    ],
)
def test_too_few_widths_are_refused(widths, options, needed):
    result = exact(lambda w: 0.5 * w**-0.3, widths)
    with pytest.raises(MetricError, match=f"needs at least {needed} widths"):
        fit_scaling(result, **options)


def test_only_shares_fail():
    result = made("Bridge", {"tokens": {w: np.ones(5) for w in WIDTHS}})
    with pytest.raises(MetricError, match="tokens is no share"):
        fit_scaling(result, "tokens")
