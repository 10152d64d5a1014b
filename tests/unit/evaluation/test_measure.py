"""From records to results: every (width, k), dependent rows never in part, by hand."""

from __future__ import annotations

import dataclasses
import json
from itertools import combinations

import numpy as np
import pytest

from interlace.errors import DataFileError, MetricError
from interlace.evaluation.measure import measure
from interlace.evaluation.records import GroupRecord
from interlace.evaluation.results import ArmResult
from support.evaluation import KnownModel, as_records


def group(example: str, answers: str, *, index: int = 0, coupled: bool = True) -> GroupRecord:
    """One row a letter: R right, - without an answer, other letters wrong answers."""
    width = len(answers)
    return GroupRecord(
        task="toy",
        example_id=example,
        width=width,
        group=index,
        seed=index,
        coupled=coupled,
        answers=tuple(None if letter == "-" else letter for letter in answers),
        correct=tuple(letter == "R" for letter in answers),
        scores=tuple(1.0 if letter == "R" else 0.5 for letter in answers),
        tokens=tuple(range(10, 10 + width)),
        logprob_sums=tuple(-1.0 * (row + 1) * (10 + row) for row in range(width)),
        texts=tuple(f"it is {letter}" for letter in answers),
        finish_reasons=tuple("length" if letter == "-" else "stop" for letter in answers),
        scorers={"judge": tuple(float(row == width - 1) for row in range(width))},
        seconds=2.0 + index,
    )


def values(result: ArmResult, metric: str, width: int, threshold: int | None = None) -> list[float]:
    return result.get(metric, width, threshold).values.tolist()


@pytest.fixture
def coupled() -> ArmResult:
    records = [
        group("a", "RRxx"),
        group("a", "xyzR", index=1),
        group("b", "RRRR"),
        group("b", "R---", index=1),
        group("a", "Rx"),
        group("b", "RR"),
    ]
    (result,) = measure(records, "Bridge", seed=5)
    return result


def test_coupled_groups_count_whole(coupled):
    assert (coupled.arm, coupled.task, coupled.seed, coupled.coupled) == ("Bridge", "toy", 5, True)
    assert coupled.example_ids == ("a", "b")
    assert coupled.widths == [2, 4]
    assert values(coupled, "pass@1", 4) == [3 / 8, 5 / 8]
    assert values(coupled, "coverage", 4) == [1.0, 1.0]
    assert values(coupled, "maj", 4) == [0.5, 1.0]  # RRxx: a tie, R came first; xyzR: x did
    assert values(coupled, "g_pass", 4, 1) == [1.0, 1.0]
    assert values(coupled, "g_pass", 4, 2) == [0.5, 0.5]
    assert values(coupled, "g_pass", 4, 4) == [0.0, 0.5]
    assert values(coupled, "mg_pass", 4) == [0.0, 0.5]
    assert values(coupled, "pass@1", 2) == [0.5, 1.0]
    assert values(coupled, "maj", 2) == [1.0, 1.0]


def test_diversity_cost_and_other_votes(coupled):
    assert values(coupled, "distinct_answers", 4) == [3.0, 1.0]
    assert values(coupled, "answer_entropy", 4) == [1.5, 0.0]
    assert values(coupled, "answered", 4) == [1.0, 5 / 8]
    assert values(coupled, "truncated", 4) == [0.0, 3 / 8]
    assert values(coupled, "score", 4) == [(3 + 2.5) / 8, (5 + 1.5) / 8]
    # "it is R" and so on: "it", "is" and the different letters, of 12 words.
    assert values(coupled, "distinct_1", 4) == [(4 / 12 + 6 / 12) / 2, (3 / 12 + 4 / 12) / 2]
    assert values(coupled, "distinct_2", 4) == [(3 / 8 + 5 / 8) / 2, (2 / 8 + 3 / 8) / 2]
    assert values(coupled, "row_tokens", 4) == [11.5, 11.5]
    assert values(coupled, "tokens", 4) == [46.0, 46.0]
    # Mean log-probabilities -1, -2, -3, -4: the first row is the likeliest.
    assert values(coupled, "best_of_n:likelihood", 4) == [0.5, 1.0]
    # exp(-1) + exp(-2) beats exp(-3) + exp(-4); then x alone beats the others.
    assert values(coupled, "weighted:likelihood", 4) == [0.5, 1.0]
    # The judge likes the last row; where that has no answer, the first with one.
    assert values(coupled, "best_of_n:judge", 4) == [0.5, 1.0]
    # Of R--- the judge gives weight to a row that does not vote: no winner.
    assert values(coupled, "weighted:judge", 4) == [0.5, 0.5]


def test_every_number_has_its_width_and_k(coupled):
    for entry in coupled.measurements:
        assert entry.k == (1 if entry.label == "pass@1" or entry.k == 1 else entry.width)
        assert entry.rows == (8 if entry.width == 4 else 2)
        assert (entry.threshold is not None) == (entry.metric == "g_pass")
    assert coupled.get("g_pass", 4, 3).label == "G-Pass@4 (tau = 3/4)"


def test_independent_rows_are_pooled_over_groups_and_taken_for_every_k():
    letters = "RRxyxR"
    records = [
        group("a", letters[:3], coupled=False),
        group("a", letters[3:], index=1, coupled=False),
    ]
    (result,) = measure(records, "base", ks=[1, 2, 3, 6])
    assert result.widths == [1, 2, 3, 6]
    for k in result.widths:
        sets = list(combinations(letters, k))
        for need in range(1, k + 1):
            expected = np.mean([s.count("R") >= need for s in sets])
            assert values(result, "g_pass", k, need) == pytest.approx([expected])
        assert values(result, "coverage", k) == values(result, "g_pass", k, 1)
        # max takes the first of the most frequent: the rule for ties.
        assert values(result, "maj", k) == pytest.approx(
            [np.mean([max(s, key=s.count) == "R" for s in sets])]
        )
        distinct = np.mean([len(set(s)) for s in sets])
        assert values(result, "distinct_answers", k) == pytest.approx([distinct])
        assert values(result, "tokens", k) == pytest.approx([11.0 * k])
        assert result.get("maj", k).width == k
    assert values(result, "pass@1", 6) == values(result, "pass@1", 1) == [0.5]
    assert [width for width, _ in result.series("pass@1")] == [1, 2, 3, 6]


def test_default_set_sizes_are_powers_of_two_and_all_rows():
    right = KnownModel(0.5, 12).draw(np.random.default_rng(0), 5)
    (result,) = measure(as_records(right, coupled=False), "base")
    assert result.widths == [1, 2, 4, 8, 12]


def test_votes_over_sampled_subsets_agree_with_all_of_them():
    right = KnownModel(0.5, 12).draw(np.random.default_rng(1), 40)
    records = as_records(right, coupled=False)
    (few,) = measure(records, "base", ks=[5], draws=200)
    (every,) = measure(records, "base", ks=[5], draws=1000)  # C(12, 5) = 792
    difference = few.get("maj", 5).values - every.get("maj", 5).values
    assert np.abs(difference).max() < 0.15
    assert abs(difference.mean()) < 0.01
    assert few.get("coverage", 5).values.tolist() == every.get("coverage", 5).values.tolist()


def test_narrower_runs_of_independent_rows_are_left_out():
    """The same seed gives the same rows at every width: pooling them would count rows twice."""
    wide = [group("a", "RxRx", coupled=False), group("b", "xxxx", coupled=False)]
    narrow = [group("a", "RR", coupled=False), group("b", "RR", coupled=False)]
    (alone,) = measure(wide, "base")
    (both,) = measure([*narrow, *wide], "base")
    assert values(both, "pass@1", 4) == values(alone, "pass@1", 4) == [0.5, 0.0]
    assert values(both, "maj", 2) == values(alone, "maj", 2)


def test_a_part_of_a_coupled_group_is_refused():
    records = [group("a", "RRxx")]
    with pytest.raises(MetricError, match="2 rows of a width-4 group are not a width-2 run"):
        measure(records, "Bridge", ks=[2])
    with pytest.raises(MetricError, match="widths it was run at"):
        measure(records, "Bridge", ks=[8])
    (result,) = measure(records, "Bridge", ks=[4])
    with pytest.raises(MetricError, match="at width 2: it was measured at widths \\[4\\]"):
        result.get("maj", 2)
    with pytest.raises(MetricError, match=r"no mag at width 4.*but pass@1, score"):
        result.get("mag", 4)


def test_more_rows_than_were_sampled_are_refused():
    with pytest.raises(MetricError, match="1 to n = 4 rows"):
        measure([group("a", "RRxx", coupled=False)], "base", ks=[8])


def test_an_incomplete_run_is_refused():
    records = [group("a", "RR"), group("a", "RR", index=1), group("b", "RR")]
    with pytest.raises(DataFileError, match="at width 2 of task 'toy' these have fewer than 2: b"):
        measure(records, "Bridge")
    with pytest.raises(DataFileError, match=r"at width 4 .* fewer than 1: b"):
        measure([*records, group("b", "RR", index=1), group("a", "RRRR")], "Bridge")


def test_tasks_are_apart():
    records = [group("a", "RR"), dataclasses.replace(group("a", "xx"), task="other")]
    found = measure(records, "Bridge")
    assert [(result.task, values(result, "pass@1", 2)) for result in found] == [
        ("other", [0.0]),
        ("toy", [1.0]),
    ]


def test_answers_are_the_same_by_the_votes_own_rule():
    records = [dataclasses.replace(group("a", "xRR"), answers=("3", "1/2", "0.5"))]
    (result,) = measure(records, "Bridge")
    assert values(result, "maj", 3) == [1.0]
    assert values(result, "distinct_answers", 3) == [2.0]
    loose = dataclasses.replace(group("a", "xRR"), answers=("3", "p", "q"))
    (strict,) = measure([loose], "Bridge")
    (by_rule,) = measure([loose], "Bridge", equal=lambda a, b: {a, b} == {"p", "q"})
    assert (values(strict, "maj", 3), values(by_rule, "maj", 3)) == ([0.0], [1.0])


def test_what_was_not_kept_is_not_measured():
    bare = dataclasses.replace(
        group("a", "Rx"), texts=None, logprob_sums=None, finish_reasons=None, seconds=None
    )
    (result,) = measure([dataclasses.replace(bare, scorers={})], "Bridge")
    assert not {"distinct_1", "truncated", "seconds"} & set(result.metrics)
    assert not [name for name in result.metrics if ":" in name]


def test_width_1_of_a_coupled_arm():
    records = [group("a", letter, index=index) for index, letter in enumerate("RRx")]
    (result,) = measure(records, "Bridge")
    assert values(result, "pass@1", 1) == values(result, "coverage", 1) == pytest.approx([2 / 3])
    assert result.find("mg_pass", 1) is None


def test_json_holds_every_number_and_no_values_of_problems(coupled):
    rows = json.loads(json.dumps(coupled.to_json()))["measurements"]
    assert len(rows) == len(coupled.measurements)
    for row, entry in zip(rows, coupled.measurements, strict=True):
        assert (row["metric"], row["width"], row["k"]) == (entry.metric, entry.width, entry.k)
        assert (row["value"], row["low"]) == (entry.estimate.value, entry.estimate.low)
        assert "values" not in row
