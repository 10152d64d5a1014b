"""What do attached Bridge blocks cost, in time and memory?

Question: time and peak memory with Bridge (5 % new parameters) over without, of a forward pass, of
a forward and backward pass, and of one cached decode step, at width 1, 8 and 32.

Method
- Model: SmolLM2-135M's shape (hidden 576, 30 layers, 9 heads, 3 key-value heads, intermediate
  1536, vocabulary 49,152, tied), random weights, sdpa attention, on the CPU, one thread.
- A is the base model, B a copy of the same weights with blocks attached and W_O random. Both get
  the same batch: one group of W rows of S positions. B also gets an alive mask in which the last
  quarter of every other row is finished, so that masking is paid for.
- Backward: the mean next-token loss, gradients of all parameters, gradients freed before each pass.
- A and B alternate in one process: each repeat runs A, B, B, A, and its ratio is the sum over B by
  the sum over A, so that a drift of the machine's speed cancels. One unmeasured repeat comes first.
- Time is CPU time of the process (one thread), which other processes' turns on the core do not
  enter. Reported: the median of the repeats' ratios, their quartiles, smallest and largest, and the
  base model's median seconds.
- glibc is told to keep freed memory. Otherwise a third of the time was the kernel's, zeroing pages
  anew in every pass, and the repeats' ratios spread from 0.8 to 1.2.
- Memory (not of a decode step) is what the allocator was asked for, from the profiler's record of
  every allocation: the parameters' bytes plus the highest sum of live allocations during the pass,
  gradients included.

Usage: python benchmarks/attach.py [--positions 64] [--repeats 5] [--widths 1 8 32] [--dtype ...]
The default takes about ten minutes, --quick ten seconds. Progress goes to stderr; the last line of
stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers
from common.models import SMOLLM2, attach_random
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForCausalLM

import interlace
from interlace.attaching import count_parameters

# Read when the process starts: glibc keeps freed memory, and the profiler keeps quiet.
ENVIRONMENT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "-1", "KINETO_LOG_LEVEL": "99"}
PASSES = ("forward", "forward_backward", "decode_step")


def smollm2_shape(dtype: torch.dtype, layers: int) -> LlamaForCausalLM:
    """SmolLM2-135M without its weights."""
    sizes = SMOLLM2 | {"num_hidden_layers": layers}
    config = LlamaConfig(**sizes, attn_implementation="sdpa")
    torch.manual_seed(0)
    return LlamaForCausalLM(config).to(dtype)


def with_bridge(base: LlamaForCausalLM) -> LlamaForCausalLM:
    """A copy of `base` with blocks that do something."""
    return attach_random(copy.deepcopy(base))


def alive_mask(width: int, positions: int) -> Tensor:
    """One group, `[1, W, S]`: the last quarter of every other row is finished."""
    alive = torch.ones(1, width, positions, dtype=torch.bool)
    alive[:, 1::2, positions - positions // 4 :] = False
    return alive


def make_pass(kind: str, model: nn.Module, width: int, positions: int) -> Callable[[], None]:
    """A function that runs one pass of `kind` through `model`."""
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(0, SMOLLM2["vocab_size"], (width, positions), generator=generator)
    extra: dict[str, Any] = {}
    if hasattr(model, "interlace_attachment"):
        extra["groups"] = interlace.Groups(width, alive_mask(width, positions))

    def forward() -> None:
        with torch.no_grad():
            model(ids, use_cache=False, **extra)

    def forward_backward() -> None:
        logits = model(ids, use_cache=False, **extra).logits
        loss = nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten()
        )
        loss.backward()

    if kind != "decode_step":
        return {"forward": forward, "forward_backward": forward_backward}[kind]

    with torch.no_grad():
        cache = model(ids, use_cache=True, **extra).past_key_values
    if extra:
        extra["groups"] = extra["groups"].columns(-1, None)

    def decode_step() -> None:
        with torch.no_grad():
            model(ids[:, -1:], past_key_values=cache, use_cache=True, **extra)
        cache.crop(-1)

    return decode_step


def seconds(run: Callable[[], None], model: nn.Module, calls: int) -> float:
    """CPU seconds of one call."""
    model.zero_grad(set_to_none=True)
    start = time.process_time()
    for _ in range(calls):
        run()
    return (time.process_time() - start) / calls


def peak_bytes(run: Callable[[], None], model: nn.Module) -> int:
    """The parameters' bytes and the highest sum of live allocations while `run` runs."""
    model.zero_grad(set_to_none=True)
    with profile(
        activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True
    ) as profiler:
        run()
    live = peak = 0
    events = (e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]")
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    model.zero_grad(set_to_none=True)
    return peak + sum(p.numel() * p.element_size() for p in model.parameters())


def compare(
    kind: str, base: nn.Module, bridge: nn.Module, width: int, positions: int, repeats: int
) -> dict[str, Any]:
    """Ratios of one kind of pass at one width."""
    a, b = (make_pass(kind, model, width, positions) for model in (base, bridge))
    calls = 4 if kind == "decode_step" else 1
    ratios, base_seconds = [], []
    for repeat in range(repeats + 1):
        a1, b1, b2, a2 = (
            seconds(run, model, calls)
            for run, model in ((a, base), (b, bridge), (b, bridge), (a, base))
        )
        if repeat:
            ratios.append((b1 + b2) / (a1 + a2))
            base_seconds.append((a1 + a2) / 2)
    quartiles = statistics.quantiles(ratios, n=4, method="inclusive")
    result: dict[str, Any] = {
        "time_ratio": round(statistics.median(ratios), 3),
        "time_ratio_quartiles": [round(quartiles[0], 3), round(quartiles[2], 3)],
        "time_ratio_range": [round(min(ratios), 3), round(max(ratios), 3)],
        "base_seconds": round(statistics.median(base_seconds), 4),
    }
    if kind != "decode_step":  # its cache lies outside the pass, and its own allocations are tiny
        peaks = [peak_bytes(run, model) for run, model in ((a, base), (b, bridge))]
        result["memory_ratio"] = round(peaks[1] / peaks[0], 3)
        result["base_peak_mb"] = round(peaks[0] / 1e6, 1)
    say(f"width {width:>2}  {kind:<17}" + "  ".join(f"{k} {v}" for k, v in result.items()))
    return result


def say(text: str) -> None:
    """Progress, beside the result."""
    print(text, file=sys.stderr, flush=True)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--positions", type=int, default=64, help="S, positions of a row (default 64)"
    )
    parser.add_argument("--repeats", type=int, default=5, help="measured repeats (default 5)")
    parser.add_argument("--widths", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--passes", nargs="+", default=list(PASSES), choices=PASSES)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument(
        "--quick", action="store_true", help="8 positions, W = 4, 2 repeats, 2 layers"
    )
    options = parser.parse_args()
    options.layers = SMOLLM2["num_hidden_layers"]
    if options.quick:
        options.positions, options.repeats, options.widths, options.layers = 8, 2, [4], 2
    return options


def main() -> None:
    """Measure what the command line asks for."""
    options = arguments()
    if os.environ | ENVIRONMENT != os.environ:
        os.execve(sys.executable, sys.orig_argv, os.environ | ENVIRONMENT)
    torch.set_num_threads(1)
    base = smollm2_shape(getattr(torch, options.dtype), options.layers).train()
    bridge = with_bridge(base)
    share = count_parameters(bridge) / count_parameters(base) - 1
    say(
        f"{count_parameters(base):,} parameters, Bridge adds {share:.2%}; {options.dtype}, "
        f"{options.positions} positions, {options.repeats} repeats"
    )
    results = {
        f"width_{width}": {
            kind: compare(kind, base, bridge, width, options.positions, options.repeats)
            for kind in options.passes
        }
        for width in options.widths
    }
    setting = {
        "benchmark": "attach",
        "dtype": options.dtype,
        "positions": options.positions,
        "repeats": options.repeats,
        "threads": torch.get_num_threads(),
        "parameter_share": round(share, 4),
        "machine": platform.machine(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    print(json.dumps(setting | results))


if __name__ == "__main__":
    main()
