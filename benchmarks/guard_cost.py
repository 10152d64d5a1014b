"""What does the guard of invariant I7 cost in a step in lower precision?

Method: two real trainers (as in train_step.py) on copies of one random model of SmolLM2-135M's
shape, cut to a few layers, with Bridge (5 % new parameters, W_O random), weights in bfloat16, on
the CPU, one thread; one has the guard, the other has not. They take turns in one process, by steps:
on, off, off, on. With guard_every=2 every second rollout is checked exactly (one group is sampled
again in fp32 by a copy of the model), and the ones between are held against it. Ratios are of CPU
time, for each kind of rollout; "mean of 10 rollouts" is what guard_every=10
makes of them, the default.

Usage: python benchmarks/guard_cost.py [--prompts 8] [--generations 8] [--tokens 32] [--layers 6]
    [--repeats 2] [--quick]
Progress goes to stderr; the last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
from typing import Any

import torch
from train_step import OurTraining
from train_step_trl import (
    arguments,
    random_prompts,
    short_smollm2_with_bridge,
    word_tokenizer,
)


def trainers(args: argparse.Namespace) -> dict[str, OurTraining]:
    """One with the guard and one without, each with a copy of the same weights."""
    model = short_smollm2_with_bridge(args.layers).to(torch.bfloat16)
    tokenizer = word_tokenizer(model.config.vocab_size)
    prompts = random_prompts(args.prompts, args.prompt_tokens, model.config.vocab_size)
    sizes = (tokenizer, prompts, args.generations, args.tokens, args.generations)
    options: dict[str, Any] = {"guard_every": 2}
    return {
        name: OurTraining(copy.deepcopy(model), *sizes, guard=name == "on", **options)
        for name in ("on", "off")
    }


def main() -> None:
    """Measure both kinds of rollouts."""
    args = arguments(
        __doc__,
        {"prompts": 2, "generations": 2, "tokens": 4, "layers": 2, "repeats": 1},
        prompts=8,
        prompt_tokens=32,
        generations=8,
        tokens=32,
        layers=6,
        repeats=2,
    )
    torch.set_num_threads(1)
    torch.manual_seed(0)
    both = trainers(args)
    for trainer in both.values():
        trainer.step()  # the first rollout has an exact check, and is not measured
    ratios: dict[str, list[float]] = {"between": [], "exact": []}
    for repeat in range(args.repeats):
        for kind, order in (("between", ("on", "off")), ("exact", ("off", "on"))):
            seconds = {name: both[name].step()["total"] for name in order}
            ratios[kind].append(seconds["on"] / seconds["off"])
            print(f"repeat {repeat}, {kind}: {seconds}", file=sys.stderr, flush=True)
    for trainer in both.values():
        trainer.close()
    medians = {kind: statistics.median(found) for kind, found in ratios.items()}
    result = {
        "benchmark": "guard_cost",
        "with the guard over without": {
            "exact check": round(medians["exact"], 3),
            "between": round(medians["between"], 3),
            "mean of 10 rollouts": round((medians["exact"] + 9 * medians["between"]) / 10, 3),
        },
        "smallest and largest": {
            k: [round(min(r), 3), round(max(r), 3)] for k, r in ratios.items()
        },
        "sizes": {k: v for k, v in vars(args).items() if k not in ("quick", "repeats")},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
