"""Rewards with TRL's signature: `f(prompts, completions, **columns) -> list[float | None]`.

One value a completion; None where the reward does not apply to a row. A completion is a text or,
where the prompt is chat messages, a list of them: `text_of` reads both. Columns are lists with one
entry a completion:

- `examples`: the problem, as an `Example`, its `to_dict()` or its id; None for a row of another
  task, which then gets None.
- `groups`: the index of the group that the completion belongs to, for rewards of whole groups (W
  rows of one prompt that see each other). Completions with equal indices are one group, in the
  order given. A reward built with `width=W` takes each W consecutive completions as a group when
  the column is absent. Under TRL's own trainer each process sees its own completions only, so a
  group must not be spread over processes.
- `completion_ids`: token ids, for lengths in tokens.

    reward = CombinedReward([Correctness(task), SelfConsistency(task)], weights=[1.0, 0.2])
    reward(prompts, completions, examples=examples, groups=[0, 0, 0, 0, 1, 1, 1, 1])
"""

from interlace.rewards.base import Completion, Reward, RewardFunction, Rewards, text_of
from interlace.rewards.combined import CombinedReward
from interlace.rewards.of_groups import PassAtK, SelfConsistency
from interlace.rewards.of_rows import Correctness, Format, Length, StepVerification

__all__ = [
    "CombinedReward",
    "Completion",
    "Correctness",
    "Format",
    "Length",
    "PassAtK",
    "Reward",
    "RewardFunction",
    "Rewards",
    "SelfConsistency",
    "StepVerification",
    "text_of",
]
