"""What do huge pages save, for a decode step and for a training step?

Question: CPU time of a decode step of the engine (bf16) and of a whole GRPO step (fp32), with
memory as the system gives it (`off`), with weights that the kernel was asked to move (`library`:
what engine and trainers do), and with an allocator that asks for all memory (`command`: what
`interlace ...` does).

Method
- Model: random, of SmolLM2-135M's shape; for training with fewer layers and tokens (`--layers`).
- How a process's memory is backed is settled when it starts, so each measurement is a process of
  its own. They take turns: off, library, command, and again; ratios are between neighbours.
- Time is CPU time of the process (one thread), which other processes' turns do not enter; that
  other processes make caches and page walks slower does.
- A decode step is a call of `--tokens` tokens less one of a single token, over the difference, to
  a prompt of 100 tokens; a training step is the second of OurTraining in `train_step.py`.

Usage: python benchmarks/huge_pages.py [--repeats 3] [--widths 1 8] [--layers 8] [--quick]
Progress goes to stderr; the last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from interlace import huge_pages

KINDS = {
    "off": {huge_pages.SWITCH: "0"},
    "library": {},
    "command": {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"},
}


def one(args: argparse.Namespace) -> dict[str, float]:
    """Milliseconds of both steps in this process, and its memory."""
    import torch
    import transformers
    from decode import SHAPE
    from train_step import OurTraining
    from train_step_trl import random_prompts, smollm2_shape, word_tokenizer

    import interlace

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**(SHAPE | ({"num_hidden_layers": 2} if args.quick else {})))
    model = transformers.LlamaForCausalLM(config).to(torch.bfloat16).eval()
    engine = interlace.Engine(model)

    def call(width: int, tokens: int) -> float:
        params = interlace.SamplingParams(width=width, max_new_tokens=tokens, ignore_eos=True)
        began = time.process_time()
        engine.generate([list(range(100, 200))], params)
        return time.process_time() - began

    found = {}
    for width in args.widths:
        call(width, 2)
        steps = [call(width, args.tokens) - call(width, 1) for _ in range(3)]
        found[f"decode W={width}"] = statistics.median(steps) / (args.tokens - 1) * 1e3
    del engine, model
    small = smollm2_shape(num_hidden_layers=args.layers, vocab_size=args.vocabulary)
    tokenizer = word_tokenizer(args.vocabulary)
    training = OurTraining(small, tokenizer, random_prompts(2, 32, args.vocabulary), 4, 16, 4)
    training.step()
    training.step()
    found["train"] = training.step()["total"] * 1e3
    training.close()
    print(f"{args.one}: {huge_pages.report()}", file=sys.stderr)
    return found


def alternate(args: argparse.Namespace) -> dict[str, Any]:
    """The kinds in turn, each in processes of its own."""
    rounds: list[dict[str, dict[str, float]]] = []
    for _ in range(args.repeats):
        rounds.append({})
        for kind, more in KINDS.items():
            child = subprocess.run(
                [sys.executable, *sys.argv, "--one", kind],
                env={k: v for k, v in os.environ.items() if k != huge_pages.SWITCH} | more,
                stdout=subprocess.PIPE,
                check=True,
            )
            rounds[-1][kind] = json.loads(child.stdout)
        print(json.dumps(rounds[-1]), file=sys.stderr, flush=True)
    result: dict[str, Any] = {}
    for what in rounds[0]["off"]:
        result[what] = {"off_ms": round(statistics.median(r["off"][what] for r in rounds), 1)}
        for kind in list(KINDS)[1:]:
            ratios = [r["off"][what] / r[kind][what] for r in rounds]
            shown = (statistics.median(ratios), min(ratios), max(ratios))
            result[what][f"off_over_{kind}"] = [round(ratio, 2) for ratio in shown]
    return result


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--widths", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--tokens", type=int, default=16, help="new tokens for each row")
    parser.add_argument("--layers", type=int, default=8, help="of the model that is trained")
    parser.add_argument("--vocabulary", type=int, default=16384, help="of the same")
    parser.add_argument(
        "--quick", action="store_true", help="width 8, 4 tokens, 1 repeat, 2 layers"
    )
    parser.add_argument("--one", choices=list(KINDS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.quick:
        args.repeats, args.widths, args.tokens, args.layers = 1, [8], 4, 2
    if args.one:
        print(json.dumps(one(args)))
        return
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    print(
        json.dumps(
            {
                "benchmark": "huge_pages",
                "transparent_hugepage": setting.read_text().strip() if setting.exists() else None,
                "load": os.getloadavg(),
                "results": alternate(args),
            }
        )
    )


if __name__ == "__main__":
    main()
