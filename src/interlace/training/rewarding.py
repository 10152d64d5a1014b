"""Rewards by name, as a recipe gives them, and verdicts that are reached once."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from interlace.errors import ConfigError, RewardError
from interlace.own_code import named_object
from interlace.rewards import (
    CombinedReward,
    Correctness,
    Format,
    PassAtK,
    RewardFunction,
    SelfConsistency,
    StepVerification,
)
from interlace.tasks.base import Example, Task, Verdict

NAMED: dict[str, Callable[[Task], RewardFunction]] = {
    "correctness": Correctness,
    "partial": lambda task: Correctness(task, partial=True),
    "self-consistency": SelfConsistency,
    "steps": StepVerification,
    "format": lambda _: Format(),
    "pass@k": PassAtK,
}


class Verdicts:
    """Verdicts that are reached once, however many rewards and metrics ask.

    Attributes:
        task: the task, but with `verify` of this class; for rewards.
    """

    def __init__(self, task: Task) -> None:
        self._verify = task.verify
        self._known: dict[tuple[str, str], Verdict] = {}
        self.task = copy.copy(task)
        vars(self.task)["verify"] = self.verify

    def verify(self, example: Example, text: str) -> Verdict:
        """As the task's."""
        key = example.id, text
        if key not in self._known:
            self._known[key] = self._verify(example, text)
        return self._known[key]

    def forget(self) -> None:
        """Drop what is known, after a rollout."""
        self._known.clear()


@dataclass(frozen=True)
class NamedReward:
    """One term of the reward.

    Attributes:
        name: what it is logged by: the recipe's name, of a function of your own without its place.
        weight: of it in the sum.
        function: with TRL's signature.
    """

    name: str
    weight: float
    function: RewardFunction


def named_rewards(
    weights: Mapping[str, float], task: Task, *, warn: bool = True
) -> list[NamedReward]:
    """The rewards that a recipe names.

    Args:
        weights: name -> weight; `module:function` and `file.py:function` are imported.
        task: judges, for those that need it.
        warn: whether a self-consistency reward warns that it stands alone; of several processes one
            does.

    Raises:
        ConfigError: for a name that is not known or cannot be imported.
    """
    short = {name: name.rpartition(":")[2] for name in weights}
    twice = {own for own, count in Counter(short.values()).items() if count > 1}
    found = [
        NamedReward(name if short[name] in twice else short[name], float(w), _function(name, task))
        for name, w in weights.items()
    ]
    # Tells a self-consistency reward whether correctness stands beside it; else it warns.
    CombinedReward([r.function for r in found], [r.weight for r in found])
    for reward in found:
        if isinstance(reward.function, SelfConsistency) and not warn:
            reward.function.mixed = True
    return found


def add_up(
    rewards: Sequence[NamedReward], prompts: Sequence[Any], texts: Sequence[str], columns: Any
) -> tuple[list[float], dict[str, list[float | None]]]:
    """Each row's weighted sum, and the parts; a part's None counts as nothing.

    Raises:
        RewardError: for a function that returns another number of values, or one that is no number.
    """
    totals = [0.0] * len(texts)
    parts: dict[str, list[float | None]] = {}
    for reward in rewards:
        values = reward.function(prompts=prompts, completions=texts, **columns)
        if hasattr(values, "tolist"):  # a tensor or an array will do
            values = values.tolist()
        if not isinstance(values, Sequence) or len(values) != len(texts):
            raise RewardError(
                f"A reward returns a list with one value a completion, {len(texts)} here; "
                f"{reward.name} returned {values!r:.80}."
            )
        parts[reward.name] = list(values)
        for row, value in enumerate(values):
            if value is not None:
                totals[row] += reward.weight * _number(value, reward.name)
    return totals, parts


def _number(value: Any, name: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise RewardError(
            f"A reward's values are finite numbers, or None where it does not apply; {name} "
            f"returned {value!r:.80}."
        )
    return number


def _function(name: str, task: Task) -> RewardFunction:
    if name in NAMED:
        return NAMED[name](task)
    if ":" not in name:
        raise ConfigError(
            f"There is no reward {name!r}. Rewards are {', '.join(NAMED)}, or your own as "
            "module:function or file.py:function, with the signature "
            "f(prompts, completions, **columns) -> list of numbers."
        )
    try:
        found = named_object(name)
    except ImportError as error:
        raise ConfigError(f"The reward {name!r} cannot be imported: {error}.") from error
    if not callable(found):
        raise ConfigError(f"The reward {name!r} is no function, but {found!r:.80}.")
    return found  # type: ignore[no-any-return]
