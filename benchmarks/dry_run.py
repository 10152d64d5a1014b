"""How far is the memory that `interlace train --dry-run` estimates from that of a real pass?

Method: random models with a Bridge of 5 %, in fp32 on the CPU; one group of 8 rows. The largest sum
of bytes that tensors hold during the score and the backward pass, beside weights and gradients
(counted as benchmarks/score_memory.py does), against the estimate's part "while training".

Usage: python benchmarks/dry_run.py [--quick]
The last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import warnings
from typing import Any

import torch
from score_memory import LivingStorages
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

import interlace
from interlace.training.batch import collate_ids
from interlace.training.estimate import Setting, memory, probe

CLASSES: dict[str, tuple[Any, Any]] = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "gemma3": (Gemma3TextConfig, Gemma3ForCausalLM),
}
WIDTH, PROMPT = 8, 32
# Architecture, layers, hidden size, vocabulary, tokens, what trains, checkpointing.
CASES = [
    ("llama", 4, 256, 8_000, 224, "all", False),
    ("llama", 4, 256, 8_000, 224, "new", False),
    ("llama", 4, 256, 8_000, 224, "all", True),
    ("qwen3", 4, 256, 8_000, 224, "all", False),
    ("gemma3", 4, 256, 8_000, 224, "all", False),
    ("llama", 8, 192, 32_000, 112, "all", False),
    ("llama", 2, 128, 100_000, 240, "all", False),
    ("llama", 1, 512, 100_000, 32, "all", False),
]


def build(name: str, layers: int, hidden: int, vocabulary: int, train: str) -> PreTrainedModel:
    """A random model with a Bridge."""
    config, cls = CLASSES[name]
    sizes = {"num_hidden_layers": layers, "num_attention_heads": 8, "num_key_value_heads": 4}
    sizes |= {"hidden_size": hidden, "intermediate_size": 4 * hidden, "head_dim": hidden // 8}
    model = cls(config(vocab_size=vocabulary, tie_word_embeddings=True, **sizes))
    interlace.attach(model, interlace.BridgeConfig(parameter_share=0.05), seed=0)
    for key, parameter in model.named_parameters():
        parameter.requires_grad_(train == "all" or "bridge" in key)
    return model.train()


def measure(case: tuple[Any, ...]) -> dict[str, Any]:
    """Measured and estimated bytes of one case."""
    name, layers, hidden, vocabulary, tokens, train, checkpointing = case
    with torch.device("meta"):
        skeleton = build(name, layers, hidden, vocabulary, train)
    skeleton.set_attn_implementation("eager")
    at = Setting(
        micro_rows=WIDTH,
        live_rows=WIDTH,
        group_rows=WIDTH,
        prompt=PROMPT,
        completion=tokens,
        mixed=False,
        checkpointing=checkpointing,
        optimizer="adamw",
        reference=False,
    )
    estimated = sum(memory(probe(skeleton, WIDTH), at).training.values())
    torch.manual_seed(0)
    model = build(name, layers, hidden, vocabulary, train)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})  # the name in every version
    rows = torch.randint(3, vocabulary, (WIDTH, tokens)).tolist()
    batch = collate_ids([list(range(3, 3 + PROMPT))], [rows], pad_token_id=0)
    with LivingStorages([*model.parameters(), *model.buffers()]) as living:
        interlace.score(model, batch).logprobs.sum().backward()
    gradients = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    measured = living.peak - gradients
    return {
        "case": case,
        "measured MiB": round(measured / 2**20, 1),
        "estimated MiB": round(estimated / 2**20, 1),
        "error": round(estimated / measured - 1, 3),
    }


def main() -> None:
    """Measure every case."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="the first case alone")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="The blocks add")
    results = []
    for case in CASES[:1] if quick else CASES:
        results.append(measure(case))
        print(*results[-1].values(), flush=True)
    print(json.dumps({"benchmark": "dry_run", "results": results}))


if __name__ == "__main__":
    main()
