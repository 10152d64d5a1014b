"""What does one function over tensors bring over packed modules, and over Hugging Face's own?

Question: time of a decode step at widths 1, 8 and 32, of a model of SmolLM2-135M's shape, through
the engine's `cpu` backend as one function, through the same backend module by module, and through
the `hf` backend; and what Bridge blocks of 5 % add to a step.

Method
- Random weights, a prompt of 100 tokens, CPU, one thread. "modules" is the `cpu` backend that is
  told that no model is of a known family, so that nothing else differs.
- A step is a call with all tokens less one with a single token, by the steps between, in CPU time
  of the process, which other processes' turns on the core do not enter.
- All contenders run in turn, again and again, with one unmeasured round first. Ratios are between
  steps of one round; reported are median, smallest and largest.

Usage: python benchmarks/one_function.py [--dtype bfloat16] [--widths 1 8 32] [--layers 30]
[--tokens 16] [--repeats 5] [--quick]
Progress goes to stderr; the last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from typing import Any
from unittest.mock import patch

import torch
from common.models import attach_random
from decode import SHAPE
from transformers import LlamaConfig, LlamaForCausalLM

import interlace
from interlace.engine.backends import cpu

RATIOS = {
    "modules over one function": ("modules", "function"),
    "Hugging Face over one function": ("hf", "function"),
    "the same, with Bridge": ("modules bridge", "function bridge"),
    "Bridge over plain, one function": ("function bridge", "function"),
    "Bridge over plain, modules": ("modules bridge", "modules"),
}


def model_of(layers: int, dtype: torch.dtype, bridge: bool) -> Any:
    """A random model; W_O of its blocks is random, too."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**(SHAPE | {"num_hidden_layers": layers}))).to(dtype)
    if bridge:
        attach_random(model)
    return model.eval()


def milliseconds(engine: interlace.Engine, kind: str, width: int, tokens: int) -> float:
    """A step."""

    def call(count: int) -> float:
        params = interlace.SamplingParams(width=width, max_new_tokens=count, ignore_eos=True)
        began = time.process_time()
        engine.generate([list(range(100, 200))], params)
        return time.process_time() - began

    known = cpu.why_not_flat if kind == "function" else lambda model: "not asked for"
    with patch.object(cpu, "why_not_flat", known):
        return (call(tokens) - call(1)) / (tokens - 1) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--widths", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="2 layers, 1 repeat")
    args = parser.parse_args()
    if args.quick:
        args.layers, args.repeats = 2, 1
    torch.set_num_threads(1)
    plain, bridged = (
        model_of(args.layers, getattr(torch, args.dtype), bridge) for bridge in (False, True)
    )
    engines = {
        name + suffix: interlace.Engine(model, backend="hf" if name == "hf" else "cpu")
        for suffix, model in (("", plain), (" bridge", bridged))
        for name in ("function", "modules", "hf")
    }
    result: dict[str, Any] = {"benchmark": "one_function", **vars(args)}
    for width in args.widths:
        times: dict[str, list[float]] = {name: [] for name in engines}
        for repeat in range(args.repeats + 1):
            for name, engine in engines.items():
                step = milliseconds(engine, name.split()[0], width, args.tokens)
                if repeat:
                    times[name].append(step)
        found: dict[str, Any] = {n: round(statistics.median(t), 2) for n, t in times.items()}
        for name, (over, under) in RATIOS.items():
            each = [a / b for a, b in zip(times[over], times[under], strict=True)]
            found[name] = [round(f(each), 2) for f in (statistics.median, min, max)]
        result[f"width {width}"] = found
        print(f"width {width}: {found}", file=sys.stderr, flush=True)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
