"""A rollout: prompts in, groups with rewards and advantages out.

Letters: P groups, W width, M groups of one prompt.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from interlace.answers import majority_vote
from interlace.engine.engine import Engine
from interlace.engine.types import GroupOutput, HidingParams
from interlace.tasks.base import Task
from interlace.training.advantages import advantages, without_variance
from interlace.training.arguments import GRPOConfig
from interlace.training.data import (
    draw_hidden,
    draw_indices,
    draw_width,
    sampling_seed,
)
from interlace.training.logging import Tally
from interlace.training.rewarding import Judge, RolledGroup


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
            width = draw_width(seed, number, position, args.drawn_widths)
            own = HidingParams(
                width=width,
                max_new_tokens=args.max_new_tokens,
                temperature=args.temperature,
                seed=sampling_seed(seed, number),
            )
            for group in range(args.num_generations // width):
                prompts.append(self._task.prompt(example))
                place = (number, position, group)
                pairs = draw_hidden(seed, place, width, args.sibling_dropout)
                params.append(replace(own, hidden=pairs) if pairs else own)
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
