"""Votes: the rule for frequency, ties, missing answers, weights, and their properties."""

import inspect
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

import interlace
from interlace.answers import (
    answer_classes,
    logprob_weights,
    majority_vote,
    weighted_vote,
)
from interlace.errors import AggregationError, UndecidedWarning

some_answers = st.sampled_from(["1", "1.0", "2", "4/2", "3", "yes", "Yes", " ", None])
some_rows = st.lists(some_answers, max_size=13)


def test_most_frequent_normalised_answer_wins():
    vote = majority_vote(["7", "0.5", None, r"\frac{1}{2}", "7", "½"])
    assert (vote.winner, vote.index, vote.tie) == ("0.5", 1, False)
    assert vote.counts == {"0.5": 3, "7": 2}
    assert list(vote.counts) == ["0.5", "7"]
    assert vote.share == 3 / 5
    assert vote.classes == (0, 1, None, 1, 0, 1)


def test_ties_go_to_the_answer_seen_first():
    vote = majority_vote(["b", "a", "a", "b"])
    assert (vote.winner, vote.index, vote.tie, vote.share) == ("b", 0, True, 0.5)
    assert majority_vote(["a", "b", "a", "b"]).winner == "a"


@pytest.mark.parametrize("answers", [[], [None], [None, None], ["", "  "]])
def test_without_votes_there_is_no_winner(answers):
    vote = majority_vote(answers)
    assert (vote.winner, vote.index, vote.counts, vote.share, vote.tie) == (
        None,
        None,
        {},
        0,
        False,
    )
    assert vote.classes == (None,) * len(answers)


@given(some_rows, st.randoms(use_true_random=False))
def test_the_order_of_rows_decides_ties_only(answers, random):
    shuffled = answers[:]
    random.shuffle(shuffled)
    before, after = majority_vote(answers), majority_vote(shuffled)
    assert (before.tie, before.share) == (after.tie, after.share)
    assert sorted(before.counts.values()) == sorted(after.counts.values())
    if not before.tie and before.winner is not None:
        assert answer_classes([before.winner, after.winner]) == (0, 0)


@given(some_rows, st.integers(0, 13))
def test_rows_without_an_answer_never_change_the_winner(answers, position):
    more = [*answers[:position], None, *answers[position:]]
    before, after = majority_vote(answers), majority_vote(more)
    assert (before.winner, before.counts, before.share) == (after.winner, after.counts, after.share)


@given(some_rows, st.integers(0, 13))
def test_one_more_vote_for_the_winner_keeps_it(answers, position):
    winner = majority_vote(answers).winner
    after = majority_vote([*answers[:position], winner, *answers[position:]])
    if winner is not None:
        assert answer_classes([winner, after.winner]) == (0, 0)
        assert not after.tie


@given(some_rows)
def test_the_same_answer_is_an_equivalence(answers):
    classes = answer_classes(answers)
    for row, first in enumerate(classes):
        if first is not None:
            assert first <= row
            assert classes[first] == first


def test_a_relation_that_is_not_transitive_still_gives_classes():
    def near(left, right):
        return abs(float(left) - float(right)) <= 1

    # 1 ~ 2 and 2 ~ 3, but 3 is compared with 1, the first of its class, and opens another.
    assert answer_classes(["1", "2", "3"], equal=near) == (0, 0, 2)
    assert answer_classes(["2", "1", "3"], equal=near) == (0, 0, 0)
    assert answer_classes(["1", "2", "3"], equal=None) == (0, 1, 2)


def test_an_own_normal_form_replaces_the_plain_one():
    vote = majority_vote(
        ["apple", "avocado", "pear", "skip"], normalise=lambda t: {"s": None}.get(t[0], t[0])
    )
    assert (vote.winner, vote.counts) == ("apple", {"apple": 2, "pear": 1})
    assert vote.classes[3] is None


def test_comparisons_without_an_outcome_are_reported_and_bounded():
    asked = []

    def cannot_tell(left, right):
        asked.append((left, right))
        return None if "hard" in (left, right) else left[0] == right[0]

    answers = ["a1", "hard", "b1", "c1", "d1", "a2", "hard", "e1"]
    with pytest.warns(UndecidedWarning, match=r"within the bounds: 5, such as of 'hard'"):
        vote = majority_vote(answers, equal=cannot_tell)
    assert vote.classes == (0, 1, 2, 3, 4, 0, 1, 7)
    assert (vote.winner, vote.undecided) == ("a1", 5)
    # Twice is enough: it costs the whole bound each time.
    assert sum("hard" in pair for pair in asked) == 2


@pytest.mark.parametrize("answers", ["abc", ["1", 2], [b"1"]])
def test_what_is_no_list_of_answers_is_refused(answers):
    unchecked = inspect.unwrap(answer_classes)  # the tests' own type check would come first
    with pytest.raises(AggregationError, match=r"answers, one a row|An answer is a string"):
        unchecked(answers)


def test_the_heaviest_answer_wins():
    vote = weighted_vote(["4", "5", "5.0", "6", None], [0.9, 0.2, 0.3, None, 9.0])
    assert (vote.winner, vote.index) == ("4", 0)
    assert vote.counts == {"4": 0.9, "5": 0.5}
    assert vote.share == pytest.approx(0.9 / 1.4)
    assert vote.classes == (0, 1, 1, None, None)


@given(some_rows, st.sampled_from([1.0, 0.25, 3.0]))
def test_equal_weights_give_the_majority(answers, weight):
    heavy = weighted_vote(answers, [weight] * len(answers))
    plain = majority_vote(answers)
    assert (heavy.winner, heavy.index, heavy.tie) == (plain.winner, plain.index, plain.tie)


@given(st.lists(st.tuples(some_answers, st.floats(0, 1e6)), max_size=13), st.randoms())
def test_the_order_of_weighted_rows_decides_ties_only(rows, random):
    shuffled = rows[:]
    random.shuffle(shuffled)
    before = weighted_vote([a for a, _ in rows], [w for _, w in rows])
    after = weighted_vote([a for a, _ in shuffled], [w for _, w in shuffled])
    assert before.tie == after.tie
    assert sorted(before.counts.values()) == sorted(after.counts.values())
    if before.winner is not None and not before.tie:
        assert answer_classes([before.winner, after.winner]) == (0, 0)


def test_weights_of_zero_elect_nobody():
    assert weighted_vote(["1", "2"], [0.0, 0.0]).winner is None
    assert weighted_vote(["1", "2"], [0.0, 1e-300]).winner == "2"


@pytest.mark.parametrize("weights", [[1.0], [1.0, -0.1], [math.nan, 1.0], [1.0, math.inf]])
def test_weights_that_cannot_be_are_refused(weights):
    with pytest.raises(AggregationError, match="weight"):
        weighted_vote(["1", "2"], weights)


def test_log_probabilities_become_weights():
    rows = [[-1.0, -1.0], [-1.5], [], [-0.5] * 4]
    assert logprob_weights(rows) == pytest.approx([math.exp(-0.5), math.exp(-1.0), 0.0, 1.0])
    summed = logprob_weights(rows, length_normalised=False)
    assert summed == pytest.approx([math.exp(-0.5), 1.0, 0.0, math.exp(-0.5)])
    assert logprob_weights([]) == []
    assert logprob_weights([[], []]) == [0.0, 0.0]
    # Long rows would underflow: e^-2000 is 0 in double precision.
    assert logprob_weights(
        [[-2.0] * 1000, [-2.0] * 1001], length_normalised=False
    ) == pytest.approx([1.0, math.exp(-2.0)])


@pytest.mark.parametrize("value", [math.nan, 0.5])
def test_what_is_no_log_probability_is_refused(value):
    with pytest.raises(AggregationError, match="row 1"):
        logprob_weights([[-1.0], [-1.0, value]])


def test_public_names():
    assert interlace.majority_vote is majority_vote
    assert interlace.weighted_vote is weighted_vote
