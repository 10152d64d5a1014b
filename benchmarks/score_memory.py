"""How much memory do scores and their backward pass take, from hidden states and from logits?

Method: a Llama of one tiny layer with hidden size D, vocabulary V and tied embeddings, in fp32 on
the CPU; one group of R rows with one prompt token and T tokens each. Each way runs in a process of
its own, which counts the bytes of all living tensors' storages at every operator of the score and
the backward pass (a torch dispatch mode sees each one made, and each one's storage go). Reported is
the largest sum above what was there before, less the bytes of the gradients that stay: what a step
needs beside weights and gradients. "hidden" is `interlace.score`; "logits" is the plain pass, all
logits at once in fp32 (it may not fit: --ways hidden leaves it out). Seconds are CPU time, one
thread.

Usage: python benchmarks/score_memory.py [--rows 8] [--tokens 1024] [--vocabulary 151936]
    [--hidden 1024] [--ways hidden logits] [--quick]
The last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

from interlace import score
from interlace.training.batch import GroupBatch, collate_ids


class LivingStorages(TorchDispatchMode):
    """Counts the bytes of storages that operators make, while they live.

    Args:
        there: Tensors that were there before.
    """

    def __init__(self, there: Iterable[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: dict[int, Any] = {t.untyped_storage()._cdata: None for t in there}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                self._note(tensor.untyped_storage())
        return out

    def _note(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self._seen[key] = weakref.finalize(storage, self._gone, key, size)
        self.now += size
        self.peak = max(self.peak, self.now)

    def _gone(self, key: int, size: int) -> None:
        del self._seen[key]
        self.now -= size


def plain_score(model: nn.Module, batch: GroupBatch) -> Tensor:
    """The sum of log-probabilities from all logits at once."""
    length = batch.completion_mask.shape[2]
    logits = model(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask.long(),
        logits_to_keep=length + 1,
        use_cache=False,
    ).logits[:, -length - 1 : -1]
    ids = batch.completion_ids.flatten(0, 1)
    logprobs = logits.gather(-1, ids[..., None])[..., 0] - logits.logsumexp(dim=-1)
    return logprobs.sum()


HOW: dict[str, Callable[[nn.Module, GroupBatch], Tensor]] = {
    "hidden": lambda model, batch: score(model, batch).logprobs.sum(),
    "logits": plain_score,
}


def measure(args: argparse.Namespace, way: str) -> dict[str, float]:
    """Bytes and seconds of one way, in this process."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=args.vocabulary,
            hidden_size=args.hidden,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=8,
            num_key_value_heads=1,
            head_dim=8,
            max_position_embeddings=args.tokens + 1,
            tie_word_embeddings=True,
        )
    )
    rows = torch.randint(0, args.vocabulary, (args.rows, args.tokens)).tolist()
    batch = collate_ids([[1]], [rows], pad_token_id=0)
    began = time.process_time()
    with LivingStorages(model.parameters()) as living:
        value = HOW[way](model, batch)
        value.backward()
    seconds = time.process_time() - began
    gradients = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    return {
        "value": float(value.detach()),
        "GB above weights and gradients": round((living.peak - gradients) / 1e9, 3),
        "seconds": round(seconds, 1),
    }


def main() -> None:
    """Measure both ways, each in a child."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--ways", nargs="+", default=["hidden", "logits"])
    parser.add_argument("--quick", action="store_true", help="2 rows of 64 tokens, 5,000 words")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.quick:
        args.rows, args.tokens, args.vocabulary, args.hidden = 2, 64, 5_000, 64
    torch.set_num_threads(1)
    if args.child:
        print(json.dumps(measure(args, args.child)))
        return
    results = {}
    for way in args.ways:
        command = [sys.executable, *sys.argv, "--child", way]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        results[way] = json.loads(done.stdout.splitlines()[-1])
        print(way, results[way], file=sys.stderr, flush=True)
    sizes = {name: getattr(args, name) for name in ("rows", "tokens", "vocabulary", "hidden")}
    print(json.dumps({"benchmark": "score_memory", **sizes, "results": results}))


if __name__ == "__main__":
    main()
