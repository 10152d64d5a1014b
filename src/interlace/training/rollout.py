"""A rollout: prompts in, groups with verdicts, rewards and advantages out.

Prompts, widths and seeds follow from the run's seed and the rollout's number alone, so that a
resumed run draws what an uninterrupted one does, on any number of processes.

Letters: P groups, W width, M groups of one prompt.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import hashlib
import inspect
import itertools
import math
import random
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from interlace.answers import extract_answer
from interlace.engine.types import GroupOutput, HidingParams, SamplingParams
from interlace.errors import ConfigError, RewardError
from interlace.jsonl import as_line
from interlace.tasks.base import Example, Prompt, Task, Verdict
from interlace.training.arguments import GroupArguments, GRPOConfig
from interlace.training.data import LEFT_OUT, RESERVED, NamedReward, RowsTask
from interlace.training.losses import advantages, without_variance
from interlace.user_code import blame

if TYPE_CHECKING:
    from interlace.answers.vote import Normalise
    from interlace.training.trainer import Tally

# What is drawn ------------------------------------------------------------------------------------


def draw_indices(seed: int, count: int, start: int, stop: int) -> list[int]:
    """Positions `start:stop` of an endless stream: one shuffle of `range(count)` after the other.

    >>> first = draw_indices(0, 5, 0, 5)
    >>> sorted(first), draw_indices(0, 5, 3, 5) == first[3:]
    ([0, 1, 2, 3, 4], True)
    """
    found: list[int] = []
    for epoch in range(start // count, -(-stop // count)):
        offset = epoch * count
        first, last = max(start - offset, 0), max(min(stop - offset, count), 0)
        found += _shuffled(seed, count, epoch)[first:last]
    return found


@functools.lru_cache(maxsize=4)  # a run asks for one stream, epoch after epoch
def _shuffled(seed: int, count: int, epoch: int) -> array[int]:
    order = list(range(count))
    random.Random(f"{seed}:order:{epoch}").shuffle(order)
    return array("q", order)


def draw_width(seed: int, rollout: int, position: int, widths: Sequence[int]) -> int:
    """The width of a rollout's prompt."""
    return random.Random(f"{seed}:width:{rollout}:{position}").choice(list(widths))


def draw_hidden(
    seed: int, place: tuple[int, int, int], width: int, probability: float
) -> list[tuple[int, int]]:
    """Pairs (row, sibling) of a group whose row does not see the sibling. A place holds the
    numbers of the rollout, of the prompt in it, and of the group."""
    draw = random.Random(f"{seed}:hidden:{place}")
    pairs = itertools.permutations(range(width), 2)
    return [pair for pair in pairs if draw.random() < probability] if probability else []


def sampling_seed(seed: int, rollout: int) -> int:
    """The engine's seed for a rollout: the run's, with the rollout mixed in (invariant I11)."""
    digest = hashlib.sha256(f"{seed}:sampling:{rollout}".encode()).digest()
    return int.from_bytes(digest[:6], "big")


@runtime_checkable
class Sampler(Protocol):
    """What a trainer asks for groups: `interlace.Engine`, or vLLM by its plug-in."""

    def generate(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams],
        *,
        sample_ids: Sequence[str],
    ) -> list[GroupOutput]:
        """One group for each prompt, in order, under the weights that the model has now."""


@dataclass
class Requests:
    """Groups to sample, as the engine takes them, and whose they are."""

    prompts: list[Prompt] = field(default_factory=list)
    params: list[SamplingParams] = field(default_factory=list)
    sample_ids: list[str] = field(default_factory=list)  # from which the uniforms follow
    # Position of each group's prompt in the rollout, and its problem.
    owners: list[tuple[int, Example]] = field(default_factory=list)


def draw(
    task: Task, args: GRPOConfig, number: int, positions: Sequence[int], widths: Sequence[int]
) -> Requests:
    """What the engine is asked for in a rollout, a prompt's groups one after the other: of the
    prompts at this process's positions, each with one of the widths, drawn with their repeats."""
    seed, count = int(args.seed), args.prompts_per_rollout
    indices = draw_indices(seed, len(task), number * count, (number + 1) * count)
    found = Requests()
    for position in positions:
        example = task[indices[position]]
        width = draw_width(seed, number, position, widths)
        own = HidingParams(
            width=width,
            max_new_tokens=args.max_new_tokens,
            temperature=args.temperature,
            seed=sampling_seed(seed, number),
        )
        for group in range(args.num_generations // width):
            place = (number, position, group)
            pairs = draw_hidden(seed, place, width, args.sibling_dropout)
            found.prompts.append(task.prompt(example))
            found.params.append(replace(own, hidden=pairs) if pairs else own)
            # The position: a small task's prompt can come twice in a rollout.
            found.sample_ids.append(f"{position}.{group}")
            found.owners.append((position, example))
    return found


# Verdicts and rewards -----------------------------------------------------------------------------


@dataclass
class RolledGroup:
    """A group that was sampled and judged; its lists and columns have W values."""

    position: int  # of its prompt in the rollout
    example: Example
    group: GroupOutput
    verdicts: list[Verdict] | None  # None where nothing judges the rows
    rewards: list[float]
    advantages: Float[Tensor, " W"] | None = None  # None until `weigh`
    kept: bool = True  # False if it is left out for want of variance
    extras: dict[str, list[Any]] = field(default_factory=dict)  # columns that rewards logged

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
    """Verdicts, which the rewards ask, too, and rewards for sampled groups. Where problems have no
    verifier, a reward's name says what is `correct`.
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
        """The groups, each with its position and problem, its verdicts and rewards; the rewards go
        to the tally, and read the trainer's state."""
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
            extras[column] = list(map(_as_json, values))

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
        return {
            "answers": [example.answer for example in examples],  # a data set may have its own
            **columns_of(self._verdicts.task, examples),
            "examples": examples,
            "groups": [g for g, _ in rows],
            "completion_ids": [completion.token_ids for _, completion in rows],
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


class Verdicts:
    """Verdicts that are reached once, however many rewards and metrics ask: of `task`, too."""

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


def columns_of(task: Task, examples: Sequence[Example]) -> dict[str, list[Any]]:
    """What rewards get by name, one value an example: a data set's columns, or what a task knows of
    its problems."""
    if isinstance(task, RowsTask):
        rows = [dict(example.data) for example in examples]
    else:
        rows = [{**e.data, "question": e.question, "answer": e.answer} for e in examples]
    names = dict.fromkeys(n for row in rows for n in row if n not in LEFT_OUT | RESERVED)
    return {name: [row.get(name) for row in rows] for name in names}


def as_completion(prompt: Any, text: str) -> Any:
    """A completion as TRL hands it to rewards: messages where the prompt is messages."""
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]


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


def _as_json(value: Any) -> Any:
    """A value for completions.jsonl: numbers of tensors and arrays as such, what JSON lacks as
    text."""
    plain = value.tolist() if hasattr(value, "tolist") else value
    try:
        as_line(plain)
    except TypeError:
        return str(plain)
    return plain


def _values(reward: NamedReward, **given: Any) -> Any:
    try:
        values: Any = reward.function(**given)
        return asyncio.run(values) if inspect.iscoroutine(values) else values
    except BaseException as error:
        blame(error, f"The reward {reward.name}", RewardError, reward.function)


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


def weigh(rolled: Sequence[RolledGroup], args: GRPOConfig, tally: Tally) -> None:
    """Give every group its advantages, and drop it where it has none and options say so."""
    by_width: dict[int, list[RolledGroup]] = defaultdict(list)
    for entry in rolled:  # a prompt's groups have one width, so each is whole here
        by_width[entry.width].append(entry)
    flat = 0
    for entries in by_width.values():
        rewards = torch.tensor([e.rewards for e in entries], dtype=torch.float64)
        prompts = torch.tensor([e.position for e in entries])
        gains = advantages(
            rewards,
            prompts,
            baseline=args.baseline,
            scale=args.scale,
            leave_one_out=args.leave_one_out,
            credit=args.credit,
        )
        dull = without_variance(rewards, prompts, baseline=args.baseline, credit=args.credit)
        flat += int(dull.sum())
        for entry, gain, same in zip(entries, gains, dull.tolist(), strict=True):
            entry.advantages = gain.float()
            entry.kept = not (args.drop_without_variance and same)
    tally.mean("groups_without_variance", flat, len(rolled))


# What a rollout says ------------------------------------------------------------------------------


def describe(
    rolled: Sequence[RolledGroup], widths: Iterable[int], normalise: Normalise, tally: Tally
) -> None:
    """Tally what the sampled groups say of the model; answers are counted in their normal form."""
    normalise = functools.cache(normalise)  # rows repeat answers, and each width is told of again
    # Of all, since a process that has no group of some width notes the same names as the others.
    judged = all(entry.verdicts is not None for entry in rolled)
    for width in ["", *widths] if judged else []:
        prefix = f"width_{width}/" if width else ""
        chosen = [entry for entry in rolled if width in ("", entry.width)]
        _describe([entry.verdicts or [] for entry in chosen], prefix, normalise, tally)
    completions = [c for entry in rolled for c in entry.group.completions]
    lengths = [len(c.token_ids) for c in completions]
    tally.mean("completion_length", sum(lengths), len(lengths))
    cut = sum(c.finish_reason == "length" for c in completions)
    tally.mean("truncated", cut, len(completions))
    tally.total("tokens/rollout", sum(lengths))


def _describe(
    judged: Sequence[list[Verdict]], prefix: str, normalise: Normalise, tally: Tally
) -> None:
    rows = [verdict.correct for verdicts in judged for verdict in verdicts]
    tally.mean(f"{prefix}pass@1", sum(rows), len(rows))
    votes = solved = distinct = 0
    for verdicts in judged:
        forms = [None if v.answer is None else normalise(v.answer) for v in verdicts]
        answers = Counter(form for form in forms if form is not None)
        distinct += len(answers)
        solved += any(verdict.correct for verdict in verdicts)
        if answers:
            (winner, _), *_ = answers.most_common(1)  # of equally many the first seen
            votes += verdicts[forms.index(winner)].correct
    tally.mean(f"{prefix}coverage", solved, len(judged))
    tally.mean(f"{prefix}vote", votes, len(judged))
    tally.mean(f"{prefix}distinct_answers", distinct, len(judged))


_SEED = -2  # no rollout's number, and not the warm-up's


def measure(
    sampler: Sampler,
    task: Task,
    judge: Judge,
    args: GroupArguments,
    width: int,
    tally: Tally,
    state: object = None,
) -> None:
    """Tally what the model says of all problems at a width, of this process's share of them."""
    groups = max((args.num_generations_eval or width) // width, 1)
    mine = range(args.process_index, len(task), args.world_size)
    owners = [(place, task[place]) for place in mine for _ in range(groups)]
    params = SamplingParams(
        width=width,
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        seed=sampling_seed(int(args.seed), _SEED),
    )
    sampled = sampler.generate(
        [task.prompt(example) for _, example in owners],
        params,
        sample_ids=[f"{place}.{group}" for place in mine for group in range(groups)],
    )
    describe(judge(sampled, owners, tally, state), (), task.normalise, tally)
