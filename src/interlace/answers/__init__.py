"""From W responses to one: votes, a best or most central one, or a synthesis. Pure Python."""

from interlace.answers.choose import (
    Aggregate,
    Aggregator,
    BestOfN,
    Choice,
    MajorityVote,
    Medoid,
    Responses,
    WeightedVote,
    best_of_n,
    medoid,
)
from interlace.answers.equal import symbolically_equal
from interlace.answers.extract import extract_answer
from interlace.answers.normalise import normalise_answer
from interlace.answers.synthesis import (
    SYNTHESIS_TEMPLATE,
    Synthesis,
    synthesis_prompt,
    synthesize,
)
from interlace.answers.vote import (
    Vote,
    answer_classes,
    logprob_weights,
    majority_vote,
    weighted_vote,
)

__all__ = [
    "SYNTHESIS_TEMPLATE",
    "Aggregate",
    "Aggregator",
    "BestOfN",
    "Choice",
    "MajorityVote",
    "Medoid",
    "Responses",
    "Synthesis",
    "Vote",
    "WeightedVote",
    "answer_classes",
    "best_of_n",
    "extract_answer",
    "logprob_weights",
    "majority_vote",
    "medoid",
    "normalise_answer",
    "symbolically_equal",
    "synthesis_prompt",
    "synthesize",
    "weighted_vote",
]
