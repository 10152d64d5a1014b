"""Is one product with W_Q, W_K and W_V side by side cheaper than three products?

Method: R rows of D features, projected to q + k + v columns, by one product and by three; forward
alone, and forward with the gradients of the features and of all weights. The two ways alternate in
one process (one, three, three, one), on the CPU, one thread; time is CPU time of the process. The
ratio of a repeat is the time of three products over that of one: above 1, the single product wins;
reported are the median of the ratios and their quartiles. Sizes: SmolLM2-135M's blocks at a share
of 5 %, and the default block on Distill-Qwen-1.5B; rows: one decode step at width 1 and at width 8,
and a training batch of 512.

Usage: python benchmarks/fused_projections.py [--repeats 25] [--quick]
The last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from itertools import product

import torch
import torch.nn.functional as F

SIZES = {"SmolLM2-135M": (576, 128, 64), "Distill-Qwen-1.5B": (1536, 704, 352)}
ROWS = (1, 8, 512)


def one_and_three(
    rows: int, hidden: int, q_size: int, kv_size: int, backward: bool
) -> tuple[Callable[[], None], Callable[[], None]]:
    """The two ways, with the same numbers."""
    parts = [q_size, kv_size, kv_size]
    x = torch.randn(rows, hidden, requires_grad=backward)
    fused = torch.randn(sum(parts), hidden, requires_grad=backward)
    separate = [w.detach().clone().requires_grad_(backward) for w in fused.split(parts)]
    gradients = torch.randn(rows, sum(parts)).split(parts, dim=1)

    def finish(outputs: tuple[torch.Tensor, ...]) -> None:
        if backward:
            torch.autograd.backward(outputs, gradients)
            for tensor in (x, fused, *separate):
                tensor.grad = None

    def one() -> None:
        finish(F.linear(x, fused).split(parts, dim=1))

    def three() -> None:
        finish(tuple(F.linear(x, weight) for weight in separate))

    return one, three


def seconds(run: Callable[[], None], calls: int) -> float:
    """CPU seconds of `calls` calls."""
    start = time.process_time()
    for _ in range(calls):
        run()
    return time.process_time() - start


def main() -> None:
    """Measure all sizes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--quick", action="store_true", help="2 repeats")
    args = parser.parse_args()
    repeats = 2 if args.quick else args.repeats
    torch.set_num_threads(1)
    torch.manual_seed(0)
    results = {}
    for (model, size), rows, backward in product(SIZES.items(), ROWS, (False, True)):
        one, three = one_and_three(rows, *size, backward)
        seconds(one, 1), seconds(three, 1)
        # Enough calls for the clock, whatever the size.
        calls = max(1, int(0.01 / max(seconds(one, 2) / 2, 1e-6)))
        ratios = []
        for _ in range(repeats):
            a1, b1, b2, a2 = (seconds(run, calls) for run in (one, three, three, one))
            ratios.append((b1 + b2) / (a1 + a2))
        low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
        name = f"{model} rows={rows} {'forward+backward' if backward else 'forward'}"
        results[name] = [round(x, 3) for x in (median, low, high)]
        print(f"{name:<46} {median:.2f} [{low:.2f}, {high:.2f}]", file=sys.stderr, flush=True)
    print(json.dumps({"benchmark": "fused_projections", "three_over_one": results}))


if __name__ == "__main__":
    main()
