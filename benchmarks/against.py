"""Is this version slower than an older one, in the engine's steps and in an optimizer step?

Question: CPU time of a decode call (Bridge, bf16, 8 rows, 32 tokens after a prompt of 100) and of a
whole GRPO step and its phases (fp32, with Bridge and without), this checkout over COMMIT.

Method
- `git archive` gives COMMIT's `src` and `benchmarks`. Each version runs in a process of its own,
  builds its trainers by its own `train_step.py`, and waits for its turn: one works at a time.
- Model: random, four layers of SmolLM2-135M's width, 8,192 tokens; one thread, glibc told to
  keep freed memory. A step has 2 prompts of 24 tokens, 4 rollouts of 24 tokens each.
- A round runs old, new, new, old, and its ratio is of the sums, so that a drift of the machine's
  speed cancels; one unmeasured call of each comes first. Time is CPU time of the process. Phases
  below a millisecond are left out.

Usage: python benchmarks/against.py [COMMIT] [--rounds 3] [--quick]
The last line of stdout is one JSON object: medians of the rounds' ratios, smallest and largest.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parents[1]
FIRST = "4b0cfe3"  # version 0.1
KINDS = ("decode", "bridge", "plain")
ENVIRONMENT = {"MALLOC_TRIM_THRESHOLD_": "-1", "MALLOC_MMAP_THRESHOLD_": str(2**32)}


def work(root: Path) -> None:
    """Carry out calls of the version in `root`, one a line of stdin, until it ends."""
    sys.path[:0] = [str(root / "src"), str(root / "benchmarks")]
    sys.modules["trl"] = None  # type: ignore[assignment] - it is not compared here
    import torch
    import train_step
    import transformers
    from transformers import LlamaConfig, LlamaForCausalLM

    import interlace

    assert Path(interlace.__file__).is_relative_to(root), interlace.__file__
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    replies, sys.stdout = sys.stdout, sys.stderr
    width = {"hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": 3}
    depth = {"num_hidden_layers": 4, "intermediate_size": 1536, "vocab_size": 8192}
    ends: dict[str, Any] = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}

    def small() -> Any:
        torch.manual_seed(0)
        return LlamaForCausalLM(LlamaConfig(**width, **depth, **ends, tie_word_embeddings=True))

    train_step.smollm2_shape = small
    sizes = argparse.Namespace(prompts=2, generations=4, prompt_tokens=24, tokens=24)
    trainers = train_step.contenders(sizes, torch.float32)
    model = small().to(torch.bfloat16)
    interlace.attach(model, interlace.BridgeConfig(parameter_share=0.05), seed=0)
    engine = interlace.Engine(model)
    params = interlace.SamplingParams(width=8, max_new_tokens=32, ignore_eos=True, seed=1)
    prompt = [3 + 7919 * i % 8000 for i in range(100)]

    def decode() -> dict[str, float]:
        began = time.process_time()
        engine.generate([prompt], params)
        return {"total": time.process_time() - began}

    calls = {"decode": decode, **{name: trainer.step for name, trainer in trainers.items()}}
    for line in sys.stdin:
        print(json.dumps(calls[line.strip()]()), file=replies, flush=True)


def version(root: Path) -> Callable[[str], dict[str, float]]:
    """A version that waits for its turn; a call gives seconds by phase."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    child = subprocess.Popen(
        [sys.executable, __file__, "--worker", str(root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment | ENVIRONMENT | {"OMP_NUM_THREADS": "1"},
    )

    def call(kind: str) -> dict[str, float]:
        assert child.stdin is not None
        assert child.stdout is not None
        print(kind, file=child.stdin, flush=True)
        seconds: dict[str, float] = json.loads(child.stdout.readline())
        return seconds

    return call


def measure(commit: str, rounds: int) -> dict[str, Any]:
    """This checkout over the commit."""
    with tempfile.TemporaryDirectory() as folder:
        archive = ["git", "-C", str(HERE), "archive", commit, "src", "benchmarks"]
        files = subprocess.run(archive, stdout=subprocess.PIPE, check=True).stdout
        subprocess.run(["tar", "-x", "-C", folder], input=files, check=True)
        old, new = version(Path(folder)), version(HERE)
        result = {}
        for kind in KINDS:
            old(kind), new(kind)
            ratios: dict[str, list[float]] = {}
            for _ in range(rounds):
                before, after, more, end = old(kind), new(kind), new(kind), old(kind)
                for phase, seconds in before.items():
                    if seconds > 1e-3:
                        ratio = (after[phase] + more[phase]) / (seconds + end[phase])
                        ratios.setdefault(phase, []).append(ratio)
            result[kind] = {
                phase: [round(f(found), 3) for f in (statistics.median, min, max)]
                for phase, found in ratios.items()
            }
            print(kind, result[kind], file=sys.stderr, flush=True)
    return result


def main() -> None:
    """Measure, or work for one that measures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("commit", nargs="?", default=FIRST)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="HEAD, and one round")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args.worker)
        return
    if args.quick:
        args.commit, args.rounds = "HEAD", 1
    result: dict[str, Any] = {"benchmark": "against", "commit": args.commit}
    result |= {"new_over_old": measure(args.commit, args.rounds), "load": os.getloadavg()}
    print(json.dumps(result | {"machine": platform.processor() or platform.machine()}))


if __name__ == "__main__":
    main()
