"""Aggregators: one shape for all ways from W responses to one."""

import json

import pytest

from interlace.answers import (
    Aggregate,
    Aggregator,
    BestOfN,
    MajorityVote,
    Medoid,
    Responses,
    WeightedVote,
)
from interlace.errors import AggregationError

RESPONSES = Responses(
    prompt="1 + 1?",
    texts=["It is 3.", r"So \boxed{2}", "no idea", "The answer is 2.", "3", "2.0"],
    logprobs=[[-0.1, -0.1], [-1.0], [-0.01], [-1.5, -2.0], [-0.1], [-3.0]],
)

AGGREGATORS: list[tuple[Aggregator, Aggregate]] = [
    (MajorityVote(), Aggregate("majority", r"So \boxed{2}", "2", 1)),
    (WeightedVote(), Aggregate("weighted", "It is 3.", "3", 0)),
    (WeightedVote(scorer=lambda text: 1.0), Aggregate("weighted", r"So \boxed{2}", "2", 1)),
    (BestOfN(), Aggregate("best-of-n", "no idea", None, 2)),
    (BestOfN(scorer=len), Aggregate("best-of-n", "The answer is 2.", None, 3)),
    (Medoid(), Aggregate("medoid", "The answer is 2.", None, 3)),
]


@pytest.mark.parametrize(("aggregator", "expected"), AGGREGATORS)
def test_outcome(aggregator, expected):
    outcome = aggregator(RESPONSES)
    assert outcome.text == expected.text
    assert (outcome.method, outcome.answer, outcome.index) == (
        expected.method,
        expected.answer,
        expected.index,
    )
    json.dumps(outcome.details, allow_nan=False)


@pytest.mark.parametrize(("aggregator", "expected"), AGGREGATORS)
def test_a_group_of_blanks_has_no_outcome(aggregator, expected):
    outcome = aggregator(Responses("Q", ["", " "], logprobs=[[], []]))
    if aggregator == AGGREGATORS[4][0]:
        assert outcome.text == " "  # the given scorer, len, likes it best
    else:
        assert outcome.text is None
    assert outcome.answer is None


def test_a_vote_shows_how_it_came_about():
    details = MajorityVote()(RESPONSES).details
    assert details["answers"] == ["3", "2", None, "2", "3", "2.0"]
    assert details["classes"] == [0, 1, None, 1, 0, 1]
    assert details["counts"] == {"2": 3, "3": 2}
    assert details["tie"] is False


def test_length_normalisation_reaches_the_weights():
    responses = Responses("Q", ["1", "2"], logprobs=[[-0.5] * 10, [-1.0]])
    assert WeightedVote()(responses).answer == "1"
    assert WeightedVote(length_normalised=False)(responses).answer == "2"


@pytest.mark.parametrize("aggregator", [WeightedVote(), BestOfN()])
def test_log_probabilities_are_asked_for(aggregator):
    with pytest.raises(AggregationError, match="got none for 2 rows"):
        aggregator(Responses("Q", ["1", "2"]))
    with pytest.raises(AggregationError, match="got 1 for 2 rows"):
        aggregator(Responses("Q", ["1", "2"], logprobs=[[-1.0]]))


@pytest.mark.parametrize("aggregator", [WeightedVote, BestOfN])
def test_reward_functions_get_the_prompt_and_the_other_columns(aggregator):
    def reward(prompts, completions, answer, **columns):
        assert (prompts, columns) == (["Q", "Q"], {"level": [1, 1]})
        return [float(text == right) for text, right in zip(completions, answer, strict=True)]

    columns = {"answer": "4", "level": 1}
    assert aggregator(scorer=reward)(Responses("Q", ["5", "4"], columns=columns)).index == 1
