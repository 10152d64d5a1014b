"""What the tests of losses, advantages, metrics and intervals are worth: one wrong term at a time.

A mutation replaces a piece of a function's source, and the named test has to fail. The piece must
stand in the function exactly once, so that a mutation cannot outlive the line that it breaks.
"""

from __future__ import annotations
import __future__

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from interlace.evaluation import (
    compare,
    intervals,
    metrics,
    report,
    results,
    scaling,
    votes,
)
from interlace.training import losses
from unit.evaluation import (
    test_compare,
    test_efficiency,
    test_intervals,
    test_measure,
    test_metrics,
    test_report,
    test_scaling,
    test_votes,
)
from unit.training import test_advantages, test_losses

# What a failing test raises: a comparison, `pytest.raises` without its error, another error.
FAILURES = (AssertionError, pytest.fail.Exception, ValueError)
CACHES = (metrics._tail, metrics._mean_tail, intervals._weights, votes.subset_draws)


def fails_for_many_hits() -> None:
    test_metrics.test_refuses_counts_that_contradict_each_other((4, 5, 2))


def loss(kind: str, level: str) -> Callable[[], None]:
    return lambda: test_losses.test_loss_is_its_formula_and_parts_add_up(kind, level)


@dataclass(frozen=True)
class Mutation:
    """A fault: a function, what is replaced in its source and by what, and the test that fails."""

    function: Callable[..., Any]
    old: str
    new: str
    check: Callable[[], None]

    def __str__(self) -> str:
        return f"{inspect.unwrap(self.function).__qualname__}: {self.old} -> {self.new}"


LOSS, ROWS, HALF = losses.policy_loss, losses.advantages, " * 0.5"
WIDTH = test_intervals.test_of_single_draws_it_is_wilsons_interval
MUTATIONS = [
    Mutation(LOSS, "-torch.minimum(", "-torch.maximum(", loss("token", "token")),
    Mutation(LOSS, "-torch.minimum(", "torch.minimum(", loss("sequence", "token")),
    Mutation(LOSS, "ratio * gain, clipped * gain)", "ratio * gain, ratio * gain)",
             loss("token", "token")),
    Mutation(LOSS, "1 - config.clip_low, 1 + config.clip_high",
             "1 - config.clip_high, 1 + config.clip_low", loss("token", "token")),
    Mutation(LOSS, "(per_token * keep).sum()", "per_token.sum()", loss("token", "sequence")),
    Mutation(LOSS, "difference.sum(dim=2, keepdim=True) / lengths",
             "difference.sum(dim=2, keepdim=True)", loss("token", "sequence")),
    Mutation(LOSS, "per_token = per_token / lengths", "pass", loss("sequence", "token")),
    Mutation(losses.denominator, "rows * max_completion", "rows", loss("dr_grpo", "token")),
    Mutation(losses.denominator, "completion_mask.sum()", "completion_mask.numel()",
             loss("token", "token")),
    Mutation(LOSS, "gap.exp() - gap - 1", "gap.exp() - gap", test_losses.test_kl_and_entropy_terms),
    Mutation(LOSS, "(reference_logprobs - logprobs)", "(logprobs - reference_logprobs)",
             test_losses.test_kl_and_entropy_terms),
    Mutation(LOSS, "if config.kl_corrected:", "if not config.kl_corrected:",
             test_losses.test_kl_and_entropy_terms),
    Mutation(LOSS, "per_token - config.entropy_weight", "per_token + config.entropy_weight",
             test_losses.test_kl_and_entropy_terms),
    Mutation(LOSS, "ratio * gain > clipped * gain", "ratio != clipped",
             test_losses.test_clipping_is_counted_where_it_bites),
    Mutation(ROWS, "mean = total / count", "mean = total / count * 0.9",
             test_advantages.test_over_all_rollouts_of_the_prompt),
    Mutation(ROWS, "gained = rewards - mean", "gained = mean - rewards",
             test_advantages.test_over_the_own_group),
    Mutation(ROWS, "(count - 1).clamp(min=1)", "count",
             test_advantages.test_divided_by_the_standard_deviation),
    Mutation(ROWS, "/ (count - rewards.shape[1])", "/ count",
             test_advantages.test_over_the_other_groups_only),
    Mutation(ROWS, "(total - rewards) / (count - 1)", "(total - rewards) / count",
             test_advantages.test_leaving_the_row_out),
    Mutation(ROWS, "rewards.mean(dim=1, keepdim=True).expand_as(rewards)", "rewards",
             test_advantages.test_shared_credit_gives_every_row_its_groups_mean),
    Mutation(losses._sets, 'baseline == "own"', 'baseline == "none"',
             test_advantages.test_over_the_own_group),
    Mutation(losses.without_variance, "return lowest == highest", "return low == high",
             test_advantages.test_groups_without_variance_are_found_by_prompt),
    Mutation(metrics._tail, "range(least,", "range(least + 1,", test_metrics.test_by_hand),
    Mutation(metrics._tail, "comb(n, k)", "comb(n + 1, k)", test_metrics.test_by_hand),
    Mutation(metrics._ways, "comb(n - c, k - j)", "comb(n, k - j)", test_metrics.test_by_hand),
    Mutation(metrics._mean_tail, "(k + 1) // 2", "k // 2",
             test_metrics.test_published_example_of_a_second_implementation),
    Mutation(metrics._mean_tail, "(j - half)", "1", test_metrics.test_published_example_of_g_pass),
    Mutation(metrics.required_correct, "ceil(share * k)", "round(share * k)",
             test_metrics.test_thresholds_are_exact),
    Mutation(metrics.required_correct, "_as_fraction(tau)", "Fraction(tau)",
             test_metrics.test_thresholds_are_exact),
    Mutation(metrics.refuse_subset, "(1, n)", "range(1, n + 1)",
             test_metrics.test_a_subset_of_coupled_rows_is_refused_with_the_rule),
    Mutation(metrics._check, "(0 <= c <= n and", "(0 <= c and", fails_for_many_hits),
    Mutation(votes.vote_winners, "best * (1 - 1e-12)", "best",
             test_votes.test_sums_that_differ_by_rounding_tie),
    Mutation(votes.best_rows, "classes == NO_ANSWER, -np.inf", "classes == 9, -np.inf",
             test_votes.test_best_row_is_the_first_highest_with_an_answer),
    Mutation(votes.distinct_n, "len(set(grams))", "len(grams)",
             test_votes.test_distinct_n_counts_over_the_whole_group),
    Mutation(results.set_sizes, "2**power for power", "power + 1 for power",
             test_measure.test_default_set_sizes_are_powers_of_two_and_all_rows),
    Mutation(intervals.proportion_interval, "half = math.sqrt(", "half = 0.5 * math.sqrt(",
             lambda: WIDTH(20)),
    Mutation(intervals.proportion_interval, "per_draw / 2) / (1", "per_draw) / (1",
             lambda: WIDTH(1)),
    Mutation(intervals._effective_size, "return float(count", "return float(4 * count",
             lambda: WIDTH(20)),
    Mutation(intervals._effective_size, "count, extra = len(values), PSEUDO_PROBLEMS",
             "count, extra = len(values), 1e-9",
             test_intervals.test_one_hit_more_does_not_shrink_the_interval_at_the_edge),
    Mutation(intervals.mean_interval, "confidence_level=level", "confidence_level=0.673",
             test_intervals.test_bca_agrees_with_scipy),
    Mutation(intervals.mean_interval, "batch=JACKKNIFE", 'method="percentile"',
             test_intervals.test_bca_agrees_with_scipy),
    Mutation(intervals.difference_interval, "half = ", "half = 0.5 * ",
             test_intervals.test_differences_agree_with_scipys_paired_t_test),
    Mutation(intervals.difference_interval, "len(used) ** 2", "len(used)",
             test_intervals.test_differences_of_tasks_count_each_task_once),
    Mutation(intervals.difference_interval, "if few else strata", "if False else strata",
             test_intervals.test_arms_that_rarely_differ_keep_an_interval),
    Mutation(intervals.seed_interval, "half = ", "half = 0.5 * ",
             test_intervals.test_seeds_agree_with_scipys_t_interval),
    Mutation(intervals.seed_interval, "ddof=1", "ddof=0",
             test_intervals.test_seeds_agree_with_scipys_t_interval),
    Mutation(intervals._t_quantile, "0.5 + level / 2", "level",
             test_intervals.test_seeds_agree_with_scipys_t_interval),
    Mutation(intervals.ratio_interval, "root = ", "root = 0.5 * ",
             test_intervals.test_fieller_covers_the_ratio),
    Mutation(intervals.ratio_interval, "if a <= 0:", "if a == 0:",
             test_intervals.test_fieller_says_when_the_denominator_may_be_zero),
    Mutation(compare._ends, "side * LEVEL / 2", "side * LEVEL / 4",
             test_efficiency.test_the_interval_is_the_middle_of_the_resamples),
    Mutation(scaling._estimates, "0.5 - level / 2", "0.5 - level / 4",
             test_scaling.test_the_interval_is_as_wide_as_fits_vary),
    Mutation(compare._Gains.relative, ".is_above(0)", ".is_above(-1)",
             lambda: test_compare.test_a_gain_relative_to_a_rival_that_lost_is_undefined(-0.1)),
    Mutation(compare._Gains.rival, "not in (arm, self.base)", "not in (arm,)",
             lambda: test_compare.test_a_gain_relative_to_a_rival_that_lost_is_undefined(-0.1)),
    Mutation(report.make_report, "results=tuple(averaged)", "results=tuple(averaged[:1])",
             test_report.test_a_report_keeps_every_arm_on_every_task),
    Mutation(report.Report.to_json, "for entry in self.results]", "for entry in self.results[:1]]",
             test_report.test_a_report_keeps_every_arm_on_every_task),
]  # fmt: skip


@contextmanager
def applied(mutation: Mutation) -> Iterator[None]:
    """The fault in the running library, wherever the function was imported to."""
    plain = inspect.unwrap(mutation.function)
    source = textwrap.dedent(inspect.getsource(plain))
    assert source.count(mutation.old) == 1, f"not there exactly once: {mutation}"
    tree = ast.parse(source.replace(mutation.old, mutation.new))
    tree.body[0].decorator_list = []  # type: ignore[attr-defined]
    flags = __future__.annotations.compiler_flag
    made: dict[str, Any] = {}
    exec(compile(tree, "mutated", "exec", flags), plain.__globals__, made)
    before = plain.__code__
    try:
        plain.__code__ = made[plain.__name__].__code__
        _forget()
        yield
    finally:
        plain.__code__ = before
        _forget()


def _forget() -> None:
    for cache in CACHES:
        cache.cache_clear()


@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_mutation_is_caught(mutation: Mutation) -> None:
    with applied(mutation), pytest.raises(FAILURES):
        mutation.check()


@pytest.mark.parametrize("check", dict.fromkeys(m.check for m in MUTATIONS))
def test_check_passes_without_mutation(check: Callable[[], None]) -> None:
    check()
