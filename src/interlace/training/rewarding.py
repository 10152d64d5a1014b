"""From sampled groups to judged ones: rewards by name or as functions, and verdicts, each reached
once."""

from __future__ import annotations

import asyncio
import copy
import inspect
import math
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor

from interlace.answers import extract_answer
from interlace.engine.types import GroupOutput
from interlace.errors import ConfigError, InterlaceError, RewardError
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
from interlace.training.data import RowsTask, as_completion, columns_of
from interlace.training.logging import Tally
from interlace.user_code import named_function

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
        task: Task with `verify` of this class, for rewards.
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
        name: Name in the log: the recipe's name, of a function of your own without its place.
        weight: Weight in the sum.
        function: Function with TRL's signature.
    """

    name: str
    weight: float
    function: RewardFunction


def named_rewards(
    weights: Mapping[str, float], task: Task, *, warn: bool = True
) -> list[NamedReward]:
    """The rewards that a recipe names.

    Args:
        weights: Weights by name; `module:function` and `file.py:function` are imported.
        task: Task that judges, for those that need it.
        warn: Whether a self-consistency reward warns that it stands alone; one of several processes
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
        task: Task as in `named_rewards`.
        warn: Choice as in `named_rewards`.

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


@dataclass
class RolledGroup:
    """A group that was sampled and judged.

    Attributes:
        position: Position of its prompt in the rollout.
        example: Problem that it answers.
        group: Group as the engine gave it.
        verdicts: `[W]`; None where nothing judges the rows.
        rewards: `[W]`.
        advantages: `[W]`; None until `Rollouts.weigh`.
        kept: Whether it stays; False if it is left out for want of variance.
        extras: Columns that rewards logged, `[W]` each.
    """

    position: int
    example: Example
    group: GroupOutput
    verdicts: list[Verdict] | None
    rewards: list[float]
    advantages: Float[Tensor, " W"] | None = None
    kept: bool = True
    extras: dict[str, list[Any]] = field(default_factory=dict)

    @property
    def width(self) -> int:
        """W."""
        return len(self.rewards)

    @property
    def length(self) -> int:
        """The longest row, in tokens, the prompt included."""
        longest = max(len(c.token_ids) for c in self.group.completions)
        return len(self.group.prompt_token_ids) + longest

    def to_dict(self) -> dict[str, Any]:
        """The group as JSON values, for the table of sampled completions."""
        gains = [None] * self.width if self.advantages is None else self.advantages.tolist()
        known = self.verdicts
        judged = [None] * self.width if known is None else [v.correct for v in known]
        rows = zip(self.group.completions, judged, self.rewards, gains, strict=True)
        return {
            "example": self.example.id,
            "prompt": self.group.prompt,
            "width": self.width,
            "rows": [
                {
                    "text": completion.text,
                    "correct": correct,
                    "reward": reward,
                    "advantage": gain,
                    "tokens": len(completion.token_ids),
                    "finish_reason": completion.finish_reason,
                    **{name: values[row] for name, values in self.extras.items()},
                }
                for row, (completion, correct, reward, gain) in enumerate(rows)
            ],
        }


class Judge:
    """Verdicts and rewards for sampled groups.

    Args:
        judge: Verdicts of the task, which the rewards ask, too.
        rewards: Terms of the reward.
        correct: Name of the reward that stands for a verdict, if the problems have no verifier.

    Raises:
        ConfigError: if there is no such reward.
    """

    def __init__(
        self, judge: Verdicts, rewards: Sequence[NamedReward], correct: str | None = None
    ) -> None:
        self._verdicts, self._rewards, self._correct = judge, rewards, correct
        names = [reward.name for reward in rewards]
        if correct is not None and correct not in names:
            raise ConfigError(
                f"correct_reward is the name of a reward, {' or '.join(names)} here; got "
                f"{correct!r}."
            )

    def __call__(
        self,
        groups: Sequence[GroupOutput],
        owners: Sequence[tuple[int, Example]],
        tally: Tally,
        state: Any = None,
    ) -> list[RolledGroup]:
        """The groups with verdicts and rewards.

        Args:
            groups: Groups as the engine gave them.
            owners: Position and problem of each group.
            tally: Tally that the rewards go to.
            state: Trainer's state, for rewards that read it.
        """
        self._verdicts.forget()
        texts = [completion.text for group in groups for completion in group.completions]
        if not isinstance(self._verdicts.task, RowsTask):  # whose rows nothing but rewards judge
            owned = [owner for owner, g in zip(owners, groups, strict=True) for _ in g.completions]
            self._verdicts.reach(
                (example, text) for (_, example), text in zip(owned, texts, strict=True)
            )
        extras: dict[str, list[Any]] = {}

        def log_extra(column: str, values: Any) -> None:
            if len(values) != len(texts):
                raise RewardError(
                    f"log_extra takes one value a completion, {len(texts)}; got {len(values)}."
                )
            extras[column] = list(values)

        columns = self._columns(groups, owners) | {
            "trainer_state": state,
            "log_metric": lambda name, value: tally.mean(name, float(value)),
            "log_extra": log_extra,
        }
        prompts = [group.prompt for group in groups for _ in group.completions]
        completions = list(map(as_completion, prompts, texts))
        totals, parts = add_up(self._rewards, prompts, completions, columns)
        for name, values in parts.items():
            given = [float(v) for v in values if v is not None]
            tally.mean(f"reward/{name}", sum(given), len(given))
        tally.mean("reward", sum(totals), len(totals))
        found, start = [], 0
        for group, (position, example) in zip(groups, owners, strict=True):
            rows = slice(start, start + len(group.completions))
            verdicts = self._judged(example, texts[rows], parts, rows)
            own = {name: values[rows] for name, values in extras.items()}
            found.append(RolledGroup(position, example, group, verdicts, totals[rows], extras=own))
            start = rows.stop
        return found

    def _columns(
        self, groups: Sequence[GroupOutput], owners: Sequence[tuple[int, Example]]
    ) -> dict[str, Any]:
        rows = [(g, c) for g, group in enumerate(groups) for c in group.completions]
        examples = [owners[g][1] for g, _ in rows]
        return columns_of(self._verdicts.task, examples) | {
            "examples": examples,
            "groups": [g for g, _ in rows],
            "completion_ids": [completion.token_ids for _, completion in rows],
            "answers": [example.answer for example in examples],
        }

    def _judged(
        self, example: Example, texts: Sequence[str], parts: dict[str, Any], rows: slice
    ) -> list[Verdict] | None:
        if not isinstance(self._verdicts.task, RowsTask):
            return [self._verdicts.verify(example, text) for text in texts]
        if self._correct is None:
            return None
        values = [float(value or 0.0) for value in parts[self._correct][rows]]
        return [
            Verdict(value >= 1.0, value, extract_answer(text), self._correct)
            for value, text in zip(values, texts, strict=True)
        ]
