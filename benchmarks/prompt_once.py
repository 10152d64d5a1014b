"""How much faster is score and backward where a prompt is computed once for its group?

Method: a random model of SmolLM2-135M's shape, cut to a few layers, with Bridge (5 % new
parameters, W_O random), all weights training, on the CPU, one thread; groups of W rows with prompts
and completions of fixed lengths. Each repeat runs score and backward once, in every row, in every
row, once; its ratio is of the sums, so that a drift of the machine's speed cancels. The clock is
CPU time of the process. Also said: the largest difference of the log-probabilities, and of a
gradient relative to its tensor's norm.

Usage: python benchmarks/prompt_once.py [--prompt 512] [--tokens 128] [--width 8] [--groups 1]
    [--layers 6] [--dtype float32] [--repeats 2] [--quick]
Progress goes to stderr; the last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from typing import Any

import torch
from torch import Tensor, nn
from train_step_trl import arguments, short_smollm2_with_bridge

import interlace
from interlace.training.batch import GroupBatch, collate_ids


def made(args: argparse.Namespace, vocabulary: int) -> GroupBatch:
    """Random groups."""
    prompts = torch.randint(1, vocabulary, (args.groups, args.prompt)).tolist()
    rows = torch.randint(1, vocabulary, (args.groups, args.width, args.tokens)).tolist()
    return collate_ids(prompts, rows, pad_token_id=0)


def step(model: nn.Module, batch: GroupBatch, once: Any) -> tuple[float, Tensor]:
    """Seconds of score and backward, and the log-probabilities."""
    model.zero_grad()
    began = time.process_time()
    logprobs = interlace.score(model, batch, prompt_once=once).logprobs
    logprobs.sum().backward()
    return time.process_time() - began, logprobs.detach()


def compare(model: nn.Module, batch: GroupBatch) -> dict[str, float]:
    """How far the two ways are apart; also the unmeasured first pass of each."""
    _, full = step(model, batch, "never")
    wanted = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    _, once = step(model, batch, "auto")
    norms = {n: float(tensor.norm()) for n, tensor in wanted.items()}
    gaps = [
        float((p.grad - wanted[n]).norm()) / max(norms[n], 1e-12)
        for n, p in model.named_parameters()
        if p.grad is not None
    ]
    return {"logprobs": float((once - full).abs().max()), "gradients": max(gaps)}


def main() -> None:
    """Measure both ways."""
    args = arguments(
        __doc__,
        {"layers": 2, "prompt": 64, "tokens": 16, "repeats": 1},
        prompt=512,
        tokens=128,
        width=8,
        groups=1,
        layers=6,
        dtype="float32",
        repeats=2,
    )
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = short_smollm2_with_bridge(args.layers).to(getattr(torch, args.dtype)).train()
    batch = made(args, int(model.config.vocab_size))
    apart = compare(model, batch)
    ratios, seconds = [], []
    for _ in range(args.repeats):
        took = [step(model, batch, once)[0] for once in ("auto", "never", "never", "auto")]
        seconds.append(((took[0] + took[3]) / 2, (took[1] + took[2]) / 2))
        ratios.append(seconds[-1][1] / seconds[-1][0])
        print(f"once and in every row: {seconds[-1]} s", file=sys.stderr, flush=True)
    once, every = (round(statistics.median(s), 2) for s in zip(*seconds, strict=True))
    result = {
        "benchmark": "prompt_once",
        "times faster": round(statistics.median(ratios), 2),
        "seconds": {"once": once, "in every row": every},
        "largest difference": apart,
        "sizes": {k: v for k, v in vars(args).items() if k not in ("quick", "repeats")},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
