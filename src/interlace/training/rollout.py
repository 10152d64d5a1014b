"""A rollout: prompts in, groups with rewards and advantages out.

Letters: P groups, W width, M groups of one prompt.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interlace.answers import majority_vote
from interlace.engine.engine import Engine
from interlace.engine.types import GroupOutput, SamplingParams
from interlace.tasks.base import Example, Task, Verdict
from interlace.training.advantages import advantages, without_variance
from interlace.training.arguments import GRPOConfig
from interlace.training.rewarding import Verdicts, add_up, named_rewards
from interlace.training.schedule import draw_indices, draw_width, sampling_seed
from interlace.training.tally import Tally


@dataclass
class RolledGroup:
    """A group that was sampled and judged.

    Attributes:
        position: of its prompt in the rollout.
        example: its problem.
        group: the engine's.
        verdicts: `[W]`.
        rewards: `[W]`.
        advantages: `[W]`; None until `Rollouts.weigh`.
        kept: False if it is left out for want of variance.
    """

    position: int
    example: Example
    group: GroupOutput
    verdicts: list[Verdict]
    rewards: list[float]
    advantages: Float[Tensor, " W"] | None = None
    kept: bool = True

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
        rows = zip(self.group.completions, self.verdicts, self.rewards, gains, strict=True)
        return {
            "example": self.example.id,
            "prompt": self.group.prompt,
            "width": self.width,
            "rows": [
                {
                    "text": completion.text,
                    "correct": verdict.correct,
                    "reward": reward,
                    "advantage": gain,
                    "tokens": len(completion.token_ids),
                    "finish_reason": completion.finish_reason,
                }
                for completion, verdict, reward, gain in rows
            ],
        }


class Rollouts:
    """Makes rollouts for one process's share of the prompts."""

    def __init__(self, task: Task, args: GRPOConfig) -> None:
        self._task = task
        self._judge = Verdicts(task)
        self._args = args
        first = args.process_index == 0
        self._rewards = named_rewards(args.rewards, self._judge.task, warn=first)

    def sample(self, engine: Engine, number: int, positions: Sequence[int]) -> list[GroupOutput]:
        """The groups of these positions' prompts, a prompt's groups one after the other."""
        prompts, params, ids, _ = self._requests(number, positions)
        return engine.generate(prompts, params, sample_ids=ids)

    def judge(
        self, groups: list[GroupOutput], number: int, positions: Sequence[int], tally: Tally
    ) -> list[RolledGroup]:
        """Verdicts and rewards for the groups that `sample` gave."""
        self._judge.forget()
        owners = self._requests(number, positions)[3]
        rows = [(g, o, c) for g, (group, o) in enumerate(zip(groups, owners, strict=True))
                for c in group.completions]  # fmt: skip
        texts = [completion.text for _, _, completion in rows]
        examples = [example for _, (_, example), _ in rows]
        columns = {
            "examples": examples,
            "groups": [g for g, _, _ in rows],
            "completion_ids": [completion.token_ids for _, _, completion in rows],
            "answers": [example.answer for example in examples],
        }
        prompts = [groups[g].prompt for g, _, _ in rows]
        totals, parts = add_up(self._rewards, prompts, texts, columns)
        for name, values in parts.items():
            given = [float(v) for v in values if v is not None]
            tally.mean(f"reward/{name}", sum(given), len(given))
        tally.mean("reward", sum(totals), len(totals))
        found, start = [], 0
        for group, (position, example) in zip(groups, owners, strict=True):
            stop = start + len(group.completions)
            verdicts = [self._judge.verify(example, text) for text in texts[start:stop]]
            found.append(RolledGroup(position, example, group, verdicts, totals[start:stop]))
            start = stop
        return found

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
            for group in range(args.rollouts // width):
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
    rows = [verdict.correct for entry in chosen for verdict in entry.verdicts]
    tally.mean(f"{prefix}pass@1", sum(rows), len(rows))
    votes = solved = distinct = 0
    for entry in chosen:
        answers = [verdict.answer for verdict in entry.verdicts]
        distinct += len(Counter(a for a in answers if a is not None))
        solved += any(verdict.correct for verdict in entry.verdicts)
        winner = majority_vote(answers, normalise=_as_it_is, equal=None).index
        votes += winner is not None and entry.verdicts[winner].correct
    tally.mean(f"{prefix}coverage", solved, len(chosen))
    tally.mean(f"{prefix}vote", votes, len(chosen))
    tally.mean(f"{prefix}distinct_answers", distinct, len(chosen))


def _as_it_is(answer: str) -> str:
    return answer
