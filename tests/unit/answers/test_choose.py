"""One response of several: by a score, or the most central."""

import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlace.answers import best_of_n, medoid
from interlace.errors import AggregationError


def test_the_highest_score_wins_and_ties_go_to_the_first():
    choice = best_of_n(["aa", "bbb", "ccc", ""], len)
    assert (choice.text, choice.index, choice.tie) == ("bbb", 1, True)
    assert choice.scores == (2, 3, 3, 0)


def test_a_reward_function_gets_what_trl_gives_it():
    seen = {}

    def reward(prompts, completions, answer, **columns):
        seen.update(prompts=prompts, completions=completions, answer=answer, columns=columns)
        return [None, 0.5, -1.0]

    choice = best_of_n(["a", "b", "c"], reward, prompt="q", columns={"answer": "b", "level": 3})
    assert (choice.text, choice.index, choice.scores) == ("b", 1, (None, 0.5, -1.0))
    assert seen == {
        "prompts": ["q"] * 3,
        "completions": ["a", "b", "c"],
        "answer": ["b"] * 3,
        "columns": {"level": [3] * 3},
    }


def test_without_any_score_nothing_is_chosen():
    choice = best_of_n(["a", "b"], lambda text: None)
    assert (choice.text, choice.index, choice.tie) == (None, None, False)
    assert best_of_n([], len).text is None


@pytest.mark.parametrize("score", [math.nan, "good", [1.0]])
def test_what_is_no_score_is_refused(score):
    with pytest.raises(AggregationError, match="row 0"):
        best_of_n(["a"], lambda text: score)


def test_a_reward_function_with_too_few_scores_is_refused():
    with pytest.raises(AggregationError, match="got 1 for 2 rows"):
        best_of_n(["a", "b"], lambda completions, **columns: [1.0])
    with pytest.raises(AggregationError, match="got float for 2 rows"):
        best_of_n(["a", "b"], lambda completions, **columns: 1.0)


def test_a_single_string_is_refused():
    for choose in (medoid, lambda texts: best_of_n(texts, len)):
        with pytest.raises(AggregationError, match="Wrap it in a list"):
            choose("abc")


def test_the_medoid_is_the_most_central():
    texts = [
        "I would rather talk about the weather.",
        "The bridge was built in 1890 across the river.",
        "It was built in 1890: the bridge across the river.",
        "The bridge across the river was built in 1890.",
    ]
    choice = medoid(texts)
    assert choice.index in (1, 2, 3)
    assert choice.scores[0] == min(choice.scores)
    # The definition, pair by pair, is the oracle for the sum that is linear in W.
    assert choice.scores == pytest.approx(
        [
            sum(_cosine(text, other) for j, other in enumerate(texts) if j != i) / 3
            for i, text in enumerate(texts)
        ]
    )


def _cosine(left, right):
    def counts(text):
        text = f" {text.casefold()} "
        grams = [text[i : i + 3] for i in range(len(text) - 2)]
        return {gram: grams.count(gram) for gram in grams}

    a, b = counts(left), counts(right)
    dot = sum(count * b.get(gram, 0) for gram, count in a.items())
    lengths = sum(c * c for c in a.values()) * sum(c * c for c in b.values())
    return dot / math.sqrt(lengths)


@given(st.lists(st.text(max_size=20), max_size=8), st.randoms(use_true_random=False))
def test_the_medoid_does_not_depend_on_the_order_of_rows(texts, random):
    shuffled = texts[:]
    random.shuffle(shuffled)
    before, after = medoid(texts), medoid(shuffled)
    assert before.tie == after.tie
    if before.index is None:
        assert not any(text.strip() for text in texts)
    elif not before.tie:
        assert before.text == after.text
    else:
        assert before.scores[before.index] == after.scores[after.index]


def test_blank_rows_are_not_central():
    choice = medoid(["", "  ", "word"])
    assert (choice.text, choice.scores) == ("word", (None, None, 1.0))
    assert medoid(["", ""]).text is None
    assert medoid([]).text is None


def test_long_responses_take_bounded_time():
    texts = [f"{row} " * 50_000 for row in range(64)]
    started = time.process_time()
    medoid(texts)
    assert time.process_time() - started < 5
