"""Evaluation while training: pass@1, votes and coverage at given widths, on problems of their own.

The uniforms follow from the run's seed alone, the same at every evaluation: what changes between
two of them is the model. For results with intervals there is `interlace eval`.
"""

from __future__ import annotations

from interlace.engine.engine import Engine
from interlace.engine.types import SamplingParams
from interlace.tasks.base import Task
from interlace.training.arguments import GroupArguments
from interlace.training.data import sampling_seed
from interlace.training.logging import Reduce, Tally
from interlace.training.rewarding import Judge
from interlace.training.rollout import describe

_SEED = -2  # no rollout's number, and not the warm-up's


def measure(
    engine: Engine,
    task: Task,
    judge: Judge,
    args: GroupArguments,
    reduce: Reduce,
    state: object = None,
) -> dict[str, float]:
    """Metrics by name, such as "width_8/pass@1", over all problems and processes.

    Args:
        engine: Engine of the model that trains.
        task: Problems to measure on.
        judge: Judge of what is sampled.
        args: Options: `eval_widths`, `num_generations_eval`, and how to sample.
        reduce: Function that adds up over processes.
        state: Trainer's state, for rewards that read it.
    """
    found: dict[str, float] = {}
    for width in args.eval_widths or args.widths:
        tally = Tally()
        groups = max((args.num_generations_eval or width) // width, 1)
        mine = range(args.process_index, len(task), args.world_size)
        owners = [(place, task[place]) for place in mine for _ in range(groups)]
        ids = [f"{place}.{group}" for place in mine for group in range(groups)]
        sampled = engine.generate(
            [task.prompt(example) for _, example in owners], _params(args, width), sample_ids=ids
        )
        describe(judge(sampled, owners, tally, state), (), tally)
        found |= {f"width_{width}/{name}": v for name, v in tally.collect(reduce).items()}
    return found


def _params(args: GroupArguments, width: int) -> SamplingParams:
    return SamplingParams(
        width=width,
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        seed=sampling_seed(int(args.seed), _SEED),
    )
