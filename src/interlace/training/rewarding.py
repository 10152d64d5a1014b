"""Rewards by name or as functions, and verdicts that are reached once."""

from __future__ import annotations

import asyncio
import copy
import inspect
import math
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from interlace.errors import ConfigError, InterlaceError, RewardError
from interlace.own_code import named_function
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
from interlace.training.data import RowsTask

NAMED: dict[str, Callable[[Task], RewardFunction]] = {
    "correctness": Correctness,
    "partial": lambda task: Correctness(task, partial=True),
    "self-consistency": SelfConsistency,
    "steps": StepVerification,
    "format": lambda _: Format(),
    "pass@k": PassAtK,
}
JUDGED = ("correctness", "partial", "pass@k")  # by the task's verifier
SIGNATURE = "f(prompts, completions, **columns) -> list of numbers"


class Verdicts:
    """Verdicts that are reached once, however many rewards and metrics ask.

    Attributes:
        task: the task, but with `verify` of this class; for rewards.
    """

    def __init__(self, task: Task) -> None:
        self._verify, self._verify_many = task.verify, task.verify_many
        self._known: dict[tuple[str, str], Verdict] = {}
        self.task = copy.copy(task)
        vars(self.task)["verify"] = self.verify

    def reach(self, pairs: Iterable[tuple[Example, str]]) -> None:
        """Reach the verdicts of many texts at once, where the task judges in child processes; each
        one once, in the order of the pairs. Elsewhere they are reached when they are asked for."""
        if not self.task.judges_in_children:
            return
        wanted = {(example.id, text): (example, text) for example, text in pairs}
        missing = {key: pair for key, pair in wanted.items() if key not in self._known}
        found = self._verify_many(missing.values())
        self._known.update(zip(missing, found, strict=True))

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
    return _together(
        [
            NamedReward(name if short[name] in twice else short[name], float(w), _named(name, task))
            for name, w in weights.items()
        ],
        warn,
    )


def given_rewards(
    functions: Any, weights: Sequence[float] | None, task: Task, *, warn: bool = True
) -> list[NamedReward]:
    """The rewards that a trainer is given, in TRL's way.

    Args:
        functions: Function with TRL's signature, name of a reward, or list of them.
        weights: Numbers, one for each; None for 1 each.
        task: as in `named_rewards`.
        warn: as in `named_rewards`.

    Raises:
        ConfigError: for something that is no reward, or weights of another number.
    """
    listed = list(functions) if isinstance(functions, list | tuple) else [functions]
    weights = [1.0] * len(listed) if weights is None else list(weights)
    if not listed or len(weights) != len(listed):
        raise ConfigError(
            "reward_funcs are at least one, and reward_weights has one number for each; got "
            f"{len(listed)} and {len(weights)}."
        )
    names = [_name_of(function) for function in listed]
    found = []
    for place, (function, weight, name) in enumerate(zip(listed, weights, names, strict=True)):
        own = name if names.count(name) == 1 else f"{name}-{names[: place + 1].count(name)}"
        found.append(NamedReward(own, float(weight), _reward(function, task)))
    return _together(found, warn)


def _name_of(function: Any) -> str:
    if isinstance(function, str):
        return function.rpartition(":")[2]
    return str(getattr(function, "__name__", type(function).__name__))


def _reward(function: Any, task: Task) -> RewardFunction:
    if isinstance(function, str):
        return _named(function, task)
    if hasattr(function, "parameters") or not callable(function):
        raise ConfigError(
            f"A reward is a function, {SIGNATURE}, or a name ({', '.join(NAMED)}); got "
            f"{type(function).__name__}. Call a reward model inside a function of your own."
        )
    return function  # type: ignore[no-any-return]


def _together(found: list[NamedReward], warn: bool) -> list[NamedReward]:
    # Tells a self-consistency reward whether correctness stands beside it; else it warns.
    CombinedReward([r.function for r in found], [r.weight for r in found])
    for reward in found:
        if isinstance(reward.function, SelfConsistency) and not warn:
            reward.function.mixed = True
    return found


def add_up(
    rewards: Sequence[NamedReward], prompts: Sequence[Any], completions: Sequence[Any], columns: Any
) -> tuple[list[float], dict[str, list[float | None]]]:
    """Each row's weighted sum, and the parts; a part's None counts as nothing.

    Raises:
        RewardError: for a function that raises, or returns another number of values, or one that is
            no number.
    """
    totals = [0.0] * len(completions)
    parts: dict[str, list[float | None]] = {}
    for reward in rewards:
        values = _values(reward, prompts=prompts, completions=completions, **columns)
        if hasattr(values, "tolist"):  # a tensor or an array will do
            values = values.tolist()
        if not isinstance(values, Sequence) or len(values) != len(completions):
            raise RewardError(
                f"A reward returns a list with one value a completion, {len(completions)} here; "
                f"{reward.name} returned {values!r:.80}."
            )
        parts[reward.name] = list(values)
        for row, value in enumerate(values):
            if value is not None:
                totals[row] += reward.weight * _number(value, reward.name)
    return totals, parts


def _values(reward: NamedReward, **given: Any) -> Any:
    """What a reward returns; whatever it raises becomes one error that says where."""
    try:
        values = reward.function(**given)
        return asyncio.run(_awaited(values)) if inspect.isawaitable(values) else values
    except (InterlaceError, KeyboardInterrupt):
        raise  # of a reward of ours, and says what is wrong; or the user's
    except BaseException as error:  # SystemExit, too: it is the function's, not ours
        what = f"{type(error).__name__}: {error!s:.300}"
        raise RewardError(
            f"The reward {reward.name} failed in {_where(reward.function, error)}: {what}."
        ) from error


async def _awaited(values: Any) -> Any:
    return await values


def _where(function: Any, error: BaseException) -> str:
    """`file.py:line`: where in the function's own file the error passed, or where it is defined."""
    own: Any = inspect.unwrap(getattr(function, "func", function))  # of partial, or decorated
    code = getattr(own, "__code__", getattr(type(own).__call__, "__code__", None))
    frames = traceback.extract_tb(error.__traceback__)
    inside = [f for f in frames if code is not None and f.filename == code.co_filename]
    if inside:
        return f"{inside[-1].filename}:{inside[-1].lineno}"
    if code is not None:  # it could not be called, for instance for its arguments
        return f"{code.co_filename}:{code.co_firstlineno}"
    return f"{frames[-1].filename}:{frames[-1].lineno}"


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


def _named(name: str, task: Task) -> RewardFunction:
    if name in JUDGED and isinstance(task, RowsTask):
        raise ConfigError(
            f"The reward {name!r} needs a task's verifier, and a plain data set has none. Train on "
            f"a task, such as jsonl:FILE, or pass a function: reward_funcs=f, {SIGNATURE}."
        )
    if name in NAMED:
        return NAMED[name](task)
    if ":" not in name:
        raise ConfigError(
            f"There is no reward {name!r}. Rewards are {', '.join(NAMED)}, or your own as "
            f"module:function or file.py:function, with the signature {SIGNATURE}."
        )
    return named_function(name, "The reward")
