"""What the blocks cost in vLLM on a CPU: a step of one group of eight rows, beside vLLM without
blocks and beside Interlace's own engine, all in one run, in turns.

    python plugins/vllm/speed.py --repeats 5

Prints ratios of processor seconds a step, and ends in one line of JSON. The random model has the
shape of SmolLM2-135M (30 layers by default, which take minutes; --layers 6 is enough for ratios).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import interlace
from interlace.saving.vllm import export_for_vllm

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from common.models import SMOLLM2, attach_random

WIDTH, PROMPT, FEW, MANY = 8, 100, 2, 34


def model_of(layers: int, dtype: torch.dtype) -> Any:
    """A random model with random blocks of 5 %."""
    torch.manual_seed(0)
    sizes = SMOLLM2 | {"num_hidden_layers": layers, "max_position_embeddings": 512}
    config = LlamaConfig(bos_token_id=None, eos_token_id=None, **sizes)
    return attach_random(LlamaForCausalLM(config).to(dtype).eval())


def vllm_call(folder: Path, dtype: str, **options: Any) -> Callable[[int], None]:
    """Sampling of one group by vLLM, of so many tokens a row."""
    from vllm import LLM, SamplingParams

    llm = LLM(
        str(folder),
        dtype=dtype,
        max_model_len=256,
        max_num_seqs=WIDTH,
        kv_cache_memory_bytes=2**27,
        enforce_eager=True,
        skip_tokenizer_init=True,
        **options,
    )
    prompt = {"prompt_token_ids": list(range(100, 100 + PROMPT))}

    def call(tokens: int) -> None:
        params = SamplingParams(n=WIDTH, max_tokens=tokens, detokenize=False)
        llm.generate([prompt], params, use_tqdm=False)

    return call


def engine_call(model: Any) -> Callable[[int], None]:
    """The same by Interlace's engine."""
    engine = interlace.Engine(model)
    prompt = list(range(100, 100 + PROMPT))

    def call(tokens: int) -> None:
        engine.generate([prompt], interlace.SamplingParams(width=WIDTH, max_new_tokens=tokens))

    return call


def seconds_a_step(call: Callable[[int], None]) -> float:
    """Processor seconds of a step: prompts and the call itself cancel out."""
    marks = []
    for tokens in (FEW, MANY):
        start = time.process_time()
        call(tokens)
        marks.append(time.process_time() - start)
    return (marks[1] - marks[0]) / (MANY - FEW)


def main() -> None:
    """Measure, and print ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    model = model_of(options.layers, getattr(torch, options.dtype))
    with tempfile.TemporaryDirectory() as name:
        export_for_vllm(model, Path(name, "served"))
        interlace.save(model, Path(name, "saved"), full=True)
        calls = {
            "vllm with blocks": vllm_call(Path(name, "served"), options.dtype),
            "vllm without": vllm_call(
                Path(name, "saved", "base"), options.dtype, model_impl="transformers"
            ),
        }
        calls["interlace engine"] = engine_call(model)
        found: dict[str, list[float]] = {label: [] for label in calls}
        for round_ in range(options.repeats + 1):
            for label, call in calls.items():
                seconds = seconds_a_step(call)
                if round_:  # the first one warms up
                    found[label].append(seconds)
    middle = {label: statistics.median(values) for label, values in found.items()}
    base = middle["vllm without"]
    for label, value in middle.items():
        spread = f"{min(found[label]) / base:.2f} to {max(found[label]) / base:.2f}"
        print(f"{label:18} {value / base:.2f} of vLLM without blocks ({spread})")
    print(json.dumps({"layers": options.layers, "width": WIDTH, "seconds a step": middle}))


if __name__ == "__main__":
    main()
