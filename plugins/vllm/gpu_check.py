"""The first thing to run on a GPU: does vLLM's Model Runner V2, with graphs, give what Interlace
gives, and what do the blocks cost?

    python plugins/vllm/gpu_check.py                 # a random model of 0.5 B parameters' shape
    python plugins/vllm/gpu_check.py --model out/    # one of yours
    python plugins/vllm/gpu_check.py --small         # what a CPU can: Runner V1, without graphs

Ends in one line of JSON, and with status 1 if a check failed.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # one process, to see the runner

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

import interlace
from interlace.attached import is_attached
from interlace.saving.vllm import export_for_vllm

sys.path.insert(0, str(Path(__file__).parent / "tests"))
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from common.models import attach_random

from compare import apart, gaps

WIDTH = 8
V2 = "vllm.v1.worker.gpu.model_runner"
# Mean and largest difference of a log-probability; bfloat16 rounds every layer's output.
BOUNDS = {"float32": (1e-5, 1e-3), "bfloat16": (2e-2, 3e-1)}


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Of the random model, and of what is asked of it."""

    hidden: int
    layers: int
    vocabulary: int
    prompt: int
    tokens: int
    groups: int


LARGE = Sizes(hidden=896, layers=24, vocabulary=32_000, prompt=200, tokens=256, groups=16)
SMALL = Sizes(hidden=256, layers=3, vocabulary=1_000, prompt=40, tokens=34, groups=2)


def random_model(sizes: Sizes, dtype: torch.dtype) -> Any:
    """A model with random blocks: zero would hide every fault."""
    torch.manual_seed(0)
    heads = {"num_attention_heads": sizes.hidden // 64, "num_key_value_heads": 2, "head_dim": 64}
    config = Qwen2Config(
        vocab_size=sizes.vocabulary,
        hidden_size=sizes.hidden,
        intermediate_size=4 * sizes.hidden,
        num_hidden_layers=sizes.layers,
        max_position_embeddings=4096,
        bos_token_id=None,
        eos_token_id=None,
        **heads,
    )
    model = Qwen2ForCausalLM(config).to(dtype).eval()
    return attach_random(model, std=0.06)


def asked(sizes: Sizes, vocabulary: int, count: int) -> list[dict[str, list[int]]]:
    """Prompts of different lengths."""
    generator = torch.Generator().manual_seed(2)
    lengths = [sizes.prompt + 7 * number for number in range(count)]
    return [
        {"prompt_token_ids": torch.randint(8, vocabulary, (n,), generator=generator).tolist()}
        for n in lengths
    ]


def engine(folder: Path, dtype: str, **options: Any) -> Any:
    """vLLM's engine on a folder."""
    from vllm import LLM

    # Several engines, one after another, beside Interlace's own model.
    on_gpu = torch.cuda.is_available()
    memory = {"gpu_memory_utilization": 0.25} if on_gpu else {"kv_cache_memory_bytes": 2**28}
    settings = {"max_model_len": 1024, "max_num_seqs": 256, "skip_tokenizer_init": True}
    return LLM(str(folder), dtype=dtype, **(settings | memory | options))


def tokens_per_second(llm: Any, prompts: list[Any], sizes: Sizes, width: int) -> float:
    """Sampled tokens a second of all groups together, prompts not counted."""
    from vllm import SamplingParams

    seconds = []
    for tokens in (2, sizes.tokens):
        params = SamplingParams(n=width, max_tokens=tokens, detokenize=False)
        start = time.perf_counter()
        llm.generate(prompts, params, use_tqdm=False)
        seconds.append(time.perf_counter() - start)
    return len(prompts) * width * (sizes.tokens - 2) / (seconds[1] - seconds[0])


def check(model: Any, folder: Path, sizes: Sizes, dtype: str, **options: Any) -> dict[str, Any]:
    """Log-probabilities against Interlace's, and tokens a second."""
    from vllm import SamplingParams

    llm = engine(folder, dtype, **options)
    runner = llm.llm_engine.model_executor.driver_worker.worker.model_runner
    vocabulary = model.config.get_text_config().vocab_size
    few = asked(sizes, vocabulary, 4)
    ends = list(range(8, 8 + vocabulary // 40))  # rows end early
    params = [
        SamplingParams(n=n, max_tokens=48, logprobs=0, detokenize=False, stop_token_ids=ends)
        for n in (1, 2, 4, WIDTH)
    ]
    outputs = llm.generate(few, params, use_tqdm=False)
    found = gaps(model, outputs)
    alone = gaps(model, apart(outputs[-1]))
    mean, largest, mean_alone = sum(found) / len(found), max(found), sum(alone) / len(alone)
    bounds = BOUNDS[dtype]
    speed = tokens_per_second(llm, asked(sizes, vocabulary, sizes.groups), sizes, WIDTH)
    result = {
        "runner": f"{type(runner).__module__}.{type(runner).__name__}",
        "mean gap": mean,
        "largest gap": largest,
        "mean gap if rows were alone": mean_alone,
        "equal": mean < bounds[0] and largest < bounds[1],
        "would see rows alone": mean_alone > 2 * bounds[0],
        "is V2": type(runner).__module__ == V2 or not torch.cuda.is_available(),
        "tokens/s": round(speed, 1),
    }
    del llm, runner
    gc.collect()
    return result


def main() -> int:
    """Run the checks and print what they found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="Model with blocks, as interlace.load takes it.")
    parser.add_argument("--dtype", default="bfloat16", choices=tuple(BOUNDS))
    parser.add_argument("--small", action="store_true", help="A tiny model, to see that it runs.")
    options = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    if not on_gpu and not options.small:
        parser.error("there is no CUDA device here; --small runs what a CPU can")
    sizes = LARGE if on_gpu and not options.small else SMALL
    warnings.filterwarnings("ignore", message="The blocks add")
    if options.model:
        try:
            model, _ = interlace.load(options.model, dtype=options.dtype)
        except interlace.InterlaceError as error:
            parser.error(str(error))
        if not is_attached(model):
            parser.error(f"{options.model} has no blocks")
    else:
        model = random_model(sizes, getattr(torch, options.dtype))
    results: dict[str, Any] = {"device": torch.cuda.get_device_name() if on_gpu else "cpu"}
    with tempfile.TemporaryDirectory() as name:
        folder, plain = Path(name, "served"), Path(name, "plain")
        export_for_vllm(model, folder)
        interlace.save(model, Path(name, "saved"), full=True)
        Path(name, "saved", "base").rename(plain)
        model = model.to("cuda" if on_gpu else "cpu")
        for label, eager in (("graphs", False), ("eager", True)) if on_gpu else (("eager", True),):
            results[label] = check(model, folder, sizes, options.dtype, enforce_eager=eager)
        vocabulary = model.config.get_text_config().vocab_size
        prompts = asked(sizes, vocabulary, sizes.groups)
        base = engine(plain, options.dtype, enforce_eager=not on_gpu, model_impl="transformers")
        results["base tokens/s"] = round(tokens_per_second(base, prompts, sizes, WIDTH), 1)
    checks = ("equal", "would see rows alone", "is V2")
    failed = [
        f"{label}: {check}"
        for label in ("graphs", "eager")
        for check in checks
        if not results.get(label, {check: True})[check]
    ]
    print(json.dumps(results | {"failed": failed}))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
