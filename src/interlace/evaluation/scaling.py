"""How failure falls with width: two laws, fitted with intervals and residuals.

Letters: E problems, K widths, B resamples, P the width as the law's variable (streams).

- power law: failure = c + a P^-b
- log law: failure = c + a (k ln P + 1)^-alpha, the parallel scaling law at a fixed model size.
  arXiv 2505.10475 states loss = E + (A / (N (k ln P + 1)))^alpha: P streams act like
  k ln P + 1 times the parameters. One model has one N, so A and N merge into a = (A/N)^alpha.

What few widths can tell: a law needs more widths than parameters, or there is no residual to judge
it by, and it is refused. In the log law k and alpha act through their product, `rate`, the share of
failure that one unit of ln P removes at P = 1, until k ln P is large (with alpha growing at a fixed
rate it becomes the power law with b = rate). Hence alpha = 1 is fixed unless `alpha=None` frees it,
and the rate is reported beside k. A parameter whose interval runs into an end of the range that is
searched (b 0 to 5, rate 0 to 20, alpha .05 to 20) is marked as not identified.

A fit is a weighted least-squares fit of scipy's, from several start values; every resample then
starts at the fit of all problems.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from interlace.errors import MetricError, require
from interlace.evaluation.intervals import LEVEL, PSEUDO_PROBLEMS, Estimate, resampled_means
from interlace.evaluation.results import QUANTITIES, ArmResult

RESAMPLES = 1000
TOLERANCE = 1e-12  # relative change of parameters, and of the error, at which a search ends

Form = Literal["power", "log"]
Parameters = dict[str, float]
# Widths and all parameters by name to failure.
Law = Callable[..., Float[np.ndarray, "K"]]


# Lambdas, because a fit calls its law some thousand times: tests check shapes in functions, slowly.
LAWS: dict[Form, tuple[Law, str]] = {
    "power": (lambda widths, a, b, c: c + a * widths**-b, "a P^-b"),
    "log": (
        lambda widths, a, rate, alpha, c: c + a * (rate / alpha * np.log(widths) + 1) ** -alpha,
        "a (k ln P + 1)^-alpha",
    ),
}
RANGES = {
    "a": (0.0, np.inf),
    "b": (0.0, 5.0),
    "rate": (0.0, 20.0),
    "alpha": (0.05, 20.0),
    "c": (0.0, np.inf),
}
# Shapes from which the fit of all problems is searched.
STARTS = {"b": (0.1, 0.5, 2.0), "rate": (0.1, 0.5, 2.0), "alpha": (0.5, 2.0)}


@dataclass(frozen=True)
class ScalingFit:
    """A law of failure against width.

    Attributes:
        form: Name of the law, `power` or `log`.
        formula: Law in words of its parameters.
        metric: The metric whose failure, 1 - metric, was fitted.
        arm: Name of the arm.
        task: Name of the task.
        parameters: Estimates with percentile bootstrap intervals over problems; fixed ones have
            method `fixed`, ones that these widths do not identify `not identified`.
        widths: Widths, K of them.
        failures: Values of 1 - metric at each.
        fitted: Values of the law at each.
        residuals: Differences failure - fitted at each.
        standardised: Residuals over the standard errors of the failures.
        rmse: Root of the mean squared residual.
        r2: Share of the failures' weighted variance that the law explains.
        problems: Number of problems, E.
    """

    form: Form
    formula: str
    metric: str
    arm: str
    task: str
    parameters: dict[str, Estimate]
    widths: tuple[int, ...]
    failures: tuple[float, ...]
    fitted: tuple[float, ...]
    residuals: tuple[float, ...]
    standardised: tuple[float, ...]
    rmse: float
    r2: float
    problems: int

    def predict(self, widths: Sequence[float]) -> list[float]:
        """Failure that the law gives for these widths."""
        law, _ = LAWS[self.form]
        value = {n: e.value for n, e in self.parameters.items() if n != "k"}
        return [float(failure) for failure in law(np.asarray(widths, dtype=float), **value)]


def fit_scaling(
    result: ArmResult,
    metric: str = "pass@1",
    form: Form = "power",
    *,
    floor: bool = False,
    alpha: float | None = 1.0,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> ScalingFit:
    """Fit a law to one arm's failure, 1 - metric, against width.

    Weighted least squares, each width weighing one over the squared standard error of its failure.
    Widths share their problems: intervals come from refitting to resampled problems.

    Args:
        result: Result of the arm, measured at the widths.
        metric: Name of a metric that is a share.
        form: Name of the law, `power` or `log`; see this module's head.
        floor: Whether to free the failure c that no width removes; otherwise it is 0.
        alpha: Exponent of the log law; None frees it.
        level: Coverage of the intervals.
        resamples: Number of resamples, B.
        seed: Seed of the resamples.

    Raises:
        MetricError: with fewer widths than the parameters and one more.

    A failure that does not fall with width has b (or the rate) at 0, the end of its range.
    """
    if metric in QUANTITIES:
        raise MetricError(
            f"The laws are of failure, 1 - a share; {metric} is no share. Fit pass@1, maj, coverage"
            " or another share."
        )
    series = result.series(metric)
    widths = np.array([width for width, _ in series], dtype=float)
    fixed = {} if floor else {"c": 0.0}
    if form == "log" and alpha is not None:
        fixed["alpha"] = alpha
    search = _Search(form, fixed, widths)
    free = len(search.free)
    if len(widths) <= free:
        raise MetricError(
            f"The {form} law with {free} free parameters needs at least {free + 1} widths, to leave"
            f" a residual; {result.arm!r} has {metric} at {[width for width, _ in series]}. "
            "Measure more widths, fix alpha or leave out the floor."
        )
    failures = 1 - np.stack([entry.values for _, entry in series], axis=1)
    errors = _standard_errors(failures)
    own = search.from_anywhere(failures.mean(axis=0), errors)
    resampled = [
        search.nearby(curve, errors, own) for curve in resampled_means(failures, resamples, seed)
    ]
    mean, fitted = failures.mean(axis=0), search.law(widths, **own)
    weights = errors**-2
    centre = (weights * mean).sum() / weights.sum()
    total = (weights * (mean - centre) ** 2).sum()
    unexplained = (weights * (mean - fitted) ** 2).sum()
    return ScalingFit(
        form=form,
        formula=f"failure = {'c + ' if floor else ''}{LAWS[form][1]}",
        metric=metric,
        arm=result.arm,
        task=result.task,
        parameters=_estimates(search, own, resampled, level, len(failures)),
        widths=tuple(int(width) for width in widths),
        failures=tuple(mean.tolist()),
        fitted=tuple(fitted.tolist()),
        residuals=tuple((mean - fitted).tolist()),
        standardised=tuple(((mean - fitted) / errors).tolist()),
        rmse=float(np.sqrt(np.mean((mean - fitted) ** 2))),
        r2=float(1 - unexplained / total) if total > 0 else 0.0,
        problems=len(failures),
    )


def _standard_errors(failures: Float[np.ndarray, "E K"]) -> Float[np.ndarray, "K"]:
    """Standard errors of the mean failures; pseudo problems keep them above 0."""
    count, extra = len(failures), PSEUDO_PROBLEMS
    total = count + 2 * extra
    mean = (failures.sum(axis=0) + extra) / total
    variance = ((failures**2).sum(axis=0) + extra) / total - mean**2
    return np.sqrt(variance / count)


class _Search:
    """Least squares over the parameters of a law that are not `fixed`."""

    def __init__(self, form: Form, fixed: Parameters, widths: Float[np.ndarray, "K"]) -> None:
        self.law, _ = LAWS[form]
        self.names = ["a", *(["b"] if form == "power" else ["rate", "alpha"]), "c"]
        self.fixed, self.widths = fixed, widths
        self.free = [name for name in self.names if name not in fixed]
        self.low, self.high = np.array([RANGES[name] for name in self.free]).T

    def from_anywhere(
        self, curve: Float[np.ndarray, "K"], errors: Float[np.ndarray, "K"]
    ) -> Parameters:
        """The best fit from all start values."""
        shapes = [name for name in self.free if name in STARTS]
        first = {"a": float(curve[0]), "c": 0.0, **self.fixed}
        fits = [
            self.nearby(curve, errors, first | dict(zip(shapes, start, strict=True)))
            for start in product(*(STARTS[name] for name in shapes))
        ]

        def error(fit: Parameters) -> float:
            return float(((self.law(self.widths, **fit) - curve) ** 2 / errors**2).sum())

        return min(fits, key=error)

    def nearby(
        self, curve: Float[np.ndarray, "K"], errors: Float[np.ndarray, "K"], start: Parameters
    ) -> Parameters:
        """The fit that a search from the start values ends in."""
        require("scipy", "eval", "A fit")
        from scipy.optimize import least_squares, leastsq

        place = np.array([start[name] for name in self.free])
        ends = {"xtol": TOLERANCE, "ftol": TOLERANCE}
        away: Callable[..., Any] = lambda place: (  # noqa: E731
            (
                self.law(self.widths, **dict(zip(self.free, place, strict=True)), **self.fixed)
                - curve
            )
            / errors
        )
        # Without bounds ten times as fast, and good where it ends within them. Beyond them a law
        # may have no value.
        with np.errstate(all="ignore"):
            found = leastsq(away, place, **ends, full_output=True)[0]
        if not ((found >= self.low) & (found <= self.high)).all():
            place = np.clip(place, self.low, self.high)
            bounds = (self.low, self.high)
            found = least_squares(away, place, bounds=bounds, method="dogbox", **ends).x
        return self._named(found)

    def at_end(self, name: str, fits: Sequence[Parameters]) -> float:
        """Share of the fits in which a parameter lies at an end of its range."""
        low, high = RANGES[name]
        near = 1e-4 * (high - low)
        return float(np.mean([not low + near < fit[name] < high - near for fit in fits]))

    def _named(self, place: Float[np.ndarray, "free"]) -> Parameters:
        return {**dict(zip(self.free, place.tolist(), strict=True)), **self.fixed}


def _estimates(
    search: _Search, own: Parameters, resampled: Sequence[Parameters], level: float, count: int
) -> dict[str, Estimate]:
    tail = 0.5 - level / 2
    lost = {n for n in search.free if n in STARTS and search.at_end(n, resampled) > tail}
    found = {}
    for name in search.names:
        if name in search.fixed:
            value = search.fixed[name]
            found[name] = Estimate(value, value, value, "fixed", level, count)
            continue
        low, high = np.quantile([fit[name] for fit in resampled], [tail, 1 - tail]).tolist()
        method = "not identified" if name in lost else "percentile"
        found[name] = Estimate(own[name], low, high, method, level, count)
    if "rate" in found:
        ratios = [fit["rate"] / fit["alpha"] for fit in resampled]
        low, high = np.quantile(ratios, [tail, 1 - tail]).tolist()
        method = "not identified" if lost else "percentile"
        found["k"] = Estimate(own["rate"] / own["alpha"], low, high, method, level, count)
    return found
