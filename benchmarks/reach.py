"""What does a longer reach of Bridge blocks cost, beside the paper's?

Question: time and peak memory of one block's teacher-forced pass, forward and backward, at W = 16
and S = 2,048, and time of a decode step at W = 8 over 512 tokens, with `reads` "finished" and
"history", over "position".

Method
- Score: one block of the trial's shape (2 heads of 12, D = 96; `--paper` for 8 heads of 88, 4
  key-value heads, D = 1,536), random weights, a prompt of S / 8 positions; rows end at random
  positions of the second half, so that siblings read them. Peak memory is that of the process (or
  of the GPU) during the passes, less what there was before; each reach has a process of its own.
- Decode: a model of 4 layers and D = 96 (random weights; at this size a step is all overhead, so
  the ratios are the worst case), through this engine on the CPU, both backends; no row ends, or
  half of the rows end at a quarter of the tokens.
- All reaches run in turn, again and again, with one unmeasured round first; a ratio is between
  times of the same round, so that a drift of the machine's speed cancels; reported are median,
  smallest and largest. Time is CPU time of the process on one thread; on a GPU, time between
  events.

Usage: python benchmarks/reach.py [--width 16] [--positions 2048] [--tokens 512] [--repeats 3]
[--device cuda] [--paper] [--only score|decode] [--quick]
Progress goes to stderr; the last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common.models import attach_random
from transformers import LlamaConfig, LlamaForCausalLM

import interlace
from interlace import BridgeConfig, Groups
from interlace.coupling.bridge import BridgeBlock

REACHES = ("position", "finished", "history")
TRIAL = {"num_heads": 2, "num_kv_heads": 2, "head_dim": 12}
PAPER = {"num_heads": 8, "num_kv_heads": 4, "head_dim": 88}


def case(args: argparse.Namespace) -> tuple[torch.Tensor, Groups]:
    """Hidden states of one group, and its rows that end in the second half."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(args.width, args.positions, 1536 if args.paper else 96, generator=generator)
    half = args.positions // 2
    ends = torch.randint(half, 2 * half, (1, args.width, 1), generator=generator)
    alive = torch.arange(args.positions) < ends
    start = torch.tensor([args.positions // 8])
    dtype = torch.bfloat16 if args.device == "cuda" else torch.float32
    return x.to(args.device, dtype), Groups(args.width, alive, start).to(args.device)


def passes(reads: Any, args: argparse.Namespace) -> Callable[[], None]:
    """One forward and backward pass of a block of this reach."""
    x, groups = case(args)
    torch.manual_seed(2)
    config = BridgeConfig(**(PAPER if args.paper else TRIAL), reads=reads)
    block = BridgeBlock(config, x.shape[-1]).to(x)
    torch.nn.init.normal_(block.o_weight, std=0.02)
    x.requires_grad_()

    def run() -> None:
        # Fresh groups: who reads what is found anew in each pass, as in training.
        block(x, Groups(groups.width, groups.alive, groups.completion_start)).sum().backward()

    return run


def clocked(run: Callable[[], None], device: str) -> float:
    """Seconds of one run: of the processor, or of the GPU."""
    if device == "cuda":
        torch.cuda.synchronize()
        began = time.perf_counter()
        run()
        torch.cuda.synchronize()
        return time.perf_counter() - began
    began = time.process_time()
    run()
    return time.process_time() - began


def peak(reads: str, args: argparse.Namespace) -> float:
    """MiB that the passes of a block take at most, beside its inputs and weights."""
    run = passes(reads, args)
    if args.device == "cuda":
        run()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far; a child inherits its parent's
    before = peak_mib()
    run()
    return peak_mib() - before


def peak_mib() -> float:
    """The most memory that this process has had, of the system's record."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**10


def in_own_process(reads: str) -> float:
    """`peak` in a process that has done nothing else."""
    command = [sys.executable, *sys.argv, "--peak", reads]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def in_turn(runs: dict[str, Callable[[], None]], args: argparse.Namespace) -> dict[str, Any]:
    """Times of all, and each one's over "position"."""
    device = args.device if "position" in runs else "cpu"
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(args.repeats + 1):
        for name, run in runs.items():
            seconds = clocked(run, device)
            if repeat:
                times[name].append(seconds)
    found: dict[str, Any] = {
        "ms": {name: round(1e3 * statistics.median(t), 2) for name, t in times.items()}
    }
    for name in REACHES[1:]:
        ratios = [a / b for a, b in zip(times[name], times["position"], strict=True)]
        spread = (statistics.median(ratios), min(ratios), max(ratios))
        found[f"{name}_over_position"] = [round(r, 3) for r in spread]
    print(json.dumps(found), file=sys.stderr, flush=True)
    return found


def small_model(reads: Any) -> Any:
    """A decoder with a block of random weights in each layer."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 96, "intermediate_size": 288}
    heads = {"num_hidden_layers": 4, "num_attention_heads": 4, "max_position_embeddings": 4096}
    model = LlamaForCausalLM(LlamaConfig(**sizes, **heads)).eval()
    return attach_random(model, BridgeConfig(**TRIAL, reads=reads))


def decode_runs(backend: str, ends: list[int], tokens: int) -> dict[str, Callable[[], None]]:
    """A call of the engine for each reach."""
    params = interlace.SamplingParams(
        width=len(ends), max_new_tokens=[min(e, tokens) for e in ends], ignore_eos=True
    )
    engines = {reads: interlace.Engine(small_model(reads), backend=backend) for reads in REACHES}
    return {
        reads: lambda engine=engine: engine.generate([[5, 6, 7]], params)  # type: ignore[misc]
        for reads, engine in engines.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--positions", type=int, default=2048)
    parser.add_argument("--tokens", type=int, default=512, help="new tokens at width 8")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--paper", action="store_true", help="the paper's shape of a block")
    parser.add_argument("--only", choices=["score", "decode"], help="one of the two questions")
    parser.add_argument("--quick", action="store_true", help="W = 4, S = 256, 64 tokens, 1 repeat")
    parser.add_argument("--peak", choices=REACHES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.quick:
        args.width, args.positions, args.tokens, args.repeats = 4, 256, 64, 1
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="The blocks add")
    if args.peak:
        print(peak(args.peak, args))
        return
    result: dict[str, Any] = {
        "benchmark": "reach",
        "torch": torch.__version__,
        "machine": torch.cuda.get_device_name()
        if args.device == "cuda"
        else platform.processor() or platform.machine(),
        "score": {"width": args.width, "positions": args.positions, "paper": args.paper},
    }
    if args.only != "decode":
        result["score"] |= in_turn({reads: passes(reads, args) for reads in REACHES}, args)
        result["score"]["peak_mib"] = {reads: round(in_own_process(reads), 1) for reads in REACHES}
    if args.only != "score":
        ends = {"none ends": [args.tokens] * 8, "half end": [args.tokens // 4, args.tokens] * 4}
        result["decode"] = {
            f"{backend}, {name}": in_turn(decode_runs(backend, each, args.tokens), args)
            for backend in ("hf", "cpu")
            for name, each in ends.items()
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
