"""A rollout: prompts in, groups with rewards and advantages out.

Letters: P groups, W width, M groups of one prompt.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interlace.answers import extract_answer, majority_vote
from interlace.engine.engine import Engine
from interlace.engine.types import GroupOutput, SamplingParams
from interlace.errors import ConfigError, RewardError
from interlace.tasks.base import Example, Task, Verdict
from interlace.training.advantages import advantages, without_variance
from interlace.training.arguments import GRPOConfig
from interlace.training.data import RowsTask, as_completion, columns_of
from interlace.training.rewarding import NamedReward, Verdicts, add_up
from interlace.training.schedule import draw_indices, draw_width, sampling_seed
from interlace.training.tally import Tally


@dataclass
class RolledGroup:
    """A group that was sampled and judged.

    Attributes:
        position: of its prompt in the rollout.
        example: its problem.
        group: the engine's.
        verdicts: `[W]`; None where nothing judges the rows.
        rewards: `[W]`.
        advantages: `[W]`; None until `Rollouts.weigh`.
        kept: False if it is left out for want of variance.
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


class Rollouts:
    """Makes rollouts for one process's share of the prompts.

    Args:
        task: Problems.
        args: Options.
        judge: Judge of what was sampled.
    """

    def __init__(self, task: Task, args: GRPOConfig, judge: Judge) -> None:
        self._task, self._args, self._judge = task, args, judge

    def sample(self, engine: Engine, number: int, positions: Sequence[int]) -> list[GroupOutput]:
        """The groups of these positions' prompts, a prompt's groups one after the other."""
        prompts, params, ids, _ = self._requests(number, positions)
        return engine.generate(prompts, params, sample_ids=ids)

    def judge(
        self,
        groups: list[GroupOutput],
        number: int,
        positions: Sequence[int],
        tally: Tally,
        state: Any = None,
    ) -> list[RolledGroup]:
        """Verdicts and rewards for the groups that `sample` gave."""
        return self._judge(groups, self._requests(number, positions)[3], tally, state)

    def weigh(self, rolled: Sequence[RolledGroup], tally: Tally) -> None:
        """Give every group its advantages."""
        by_width: dict[int, list[RolledGroup]] = defaultdict(list)
        for entry in rolled:  # a prompt's groups have one width, so each is whole here
            by_width[entry.width].append(entry)
        flat = 0
        for entries in by_width.values():
            rewards = torch.tensor([e.rewards for e in entries], dtype=torch.float64)
            prompts = torch.tensor([e.position for e in entries])
            args = self._args
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

    def _requests(self, number: int, positions: Sequence[int]) -> Any:
        args, seed = self._args, int(self._args.seed)
        count = args.prompts_per_rollout
        indices = draw_indices(seed, len(self._task), number * count, (number + 1) * count)
        prompts, params, ids, owners = [], [], [], []
        for position in positions:
            example = self._task[indices[position]]
            width = draw_width(seed, number, position, args.widths)
            own = SamplingParams(
                width=width,
                max_new_tokens=args.max_new_tokens,
                temperature=args.temperature,
                seed=sampling_seed(seed, number),
            )
            for group in range(args.num_generations // width):
                prompts.append(self._task.prompt(example))
                params.append(own)
                # The position: a small task's prompt can come twice in a rollout.
                ids.append(f"{position}.{group}")
                owners.append((position, example))
        return prompts, params, ids, owners


def describe(rolled: Sequence[RolledGroup], widths: Sequence[int], tally: Tally) -> None:
    """Tally what the sampled groups say of the model."""
    for width in ["", *widths]:
        prefix = f"width_{width}/" if width else ""
        chosen = [entry for entry in rolled if width in ("", entry.width)]
        _describe(chosen, prefix, tally)
    completions = [c for entry in rolled for c in entry.group.completions]
    lengths = [len(c.token_ids) for c in completions]
    tally.mean("completion_length", sum(lengths), len(lengths))
    cut = sum(c.finish_reason == "length" for c in completions)
    tally.mean("truncated", cut, len(completions))
    tally.total("tokens/rollout", sum(lengths))


def _describe(chosen: Sequence[RolledGroup], prefix: str, tally: Tally) -> None:
    judged = [entry.verdicts for entry in chosen if entry.verdicts is not None]
    if len(judged) < len(chosen):
        return  # nothing says which rows are right
    rows = [verdict.correct for verdicts in judged for verdict in verdicts]
    tally.mean(f"{prefix}pass@1", sum(rows), len(rows))
    votes = solved = distinct = 0
    for verdicts in judged:
        answers = [verdict.answer for verdict in verdicts]
        distinct += len(Counter(a for a in answers if a is not None))
        solved += any(verdict.correct for verdict in verdicts)
        winner = majority_vote(answers, normalise=_as_it_is, equal=None).index
        votes += winner is not None and verdicts[winner].correct
    tally.mean(f"{prefix}coverage", solved, len(judged))
    tally.mean(f"{prefix}vote", votes, len(judged))
    tally.mean(f"{prefix}distinct_answers", distinct, len(judged))


def _as_it_is(answer: str) -> str:
    return answer
