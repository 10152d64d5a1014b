"""llama.cpp or vLLM for `decode.py`, in an environment of its own: a process that takes turns.

It reads lines `[prompt length, width, tokens]` and answers each with the CPU seconds of one call;
its first line says that it is ready. llama.cpp computes the prompt once and shares its cells with
the other sequences, as its own parallel example does; its weights are read, not mapped, so that
they lie on huge pages if the allocator asks for them. vLLM runs in this process, without compiling.

Usage: python benchmarks/common/peers.py llama FILE.gguf | vllm FOLDER    (started by decode.py)
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

Contender = Callable[[list[int], int, int], Any]  # prompt, width, tokens
CELLS, WIDEST, CHUNK = 8192, 64, 512


def prompt_of(length: int) -> list[int]:
    """The same token ids for every contender."""
    return [100 + 7919 * i % 40_000 for i in range(length)]


def llama(path: str) -> Contender:
    """llama.cpp by its low-level interface."""
    import llama_cpp as cpp

    cpp.llama_backend_init()
    quiet = cpp.llama_log_callback(lambda level, text, data: None)
    cpp.llama_log_set(quiet, None)
    model_params = cpp.llama_model_default_params()
    model_params.n_gpu_layers, model_params.use_mmap = 0, False
    model = cpp.llama_model_load_from_file(path.encode(), model_params)
    params = cpp.llama_context_default_params()
    params.n_ctx, params.n_seq_max = CELLS, WIDEST
    params.n_batch = params.n_ubatch = CHUNK
    params.n_threads = params.n_threads_batch = 1
    params.kv_unified = True
    context = cpp.llama_init_from_model(model, params)
    batch = cpp.llama_batch_init(CHUNK, 0, 1)
    memory = cpp.llama_get_memory(context)

    def put(entries: list[tuple[int, int, int, bool]]) -> None:
        batch.n_tokens = len(entries)
        for i, (token, position, sequence, wanted) in enumerate(entries):
            batch.token[i], batch.pos[i] = token, position
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
            batch.logits[i] = wanted
        if cpp.llama_decode(context, batch) != 0:
            raise RuntimeError("llama_decode failed")

    # The C library calls and reads these as long as it runs.
    def run(prompt: list[int], width: int, tokens: int, _alive: Any = (quiet, model)) -> None:
        sampler = cpp.llama_sampler_chain_init(cpp.llama_sampler_chain_default_params())
        cpp.llama_sampler_chain_add(sampler, cpp.llama_sampler_init_dist(1))
        cpp.llama_memory_clear(memory, True)
        last = len(prompt) - 1
        fed = [(t, i, 0, i == last) for i, t in enumerate(prompt)]
        for start in range(0, len(fed), CHUNK):
            put(fed[start : start + CHUNK])
        for sequence in range(1, width):
            cpp.llama_memory_seq_cp(memory, 0, sequence, -1, -1)
        rows = [cpp.llama_sampler_sample(sampler, context, -1) for _ in range(width)]
        for step in range(tokens - 1):
            put([(t, len(prompt) + step, w, True) for w, t in enumerate(rows)])
            rows = [cpp.llama_sampler_sample(sampler, context, w) for w in range(width)]
        cpp.llama_sampler_free(sampler)

    return run


def vllm(folder: str) -> Contender:
    """vLLM's CPU build."""
    os.environ |= {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "HF_HUB_OFFLINE": "1",
    }
    from vllm import LLM, SamplingParams

    engine = LLM(
        folder,
        dtype="bfloat16",
        skip_tokenizer_init=True,
        enforce_eager=True,
        max_model_len=2048,
        enable_prefix_caching=True,
    )

    def run(prompt: list[int], width: int, tokens: int) -> None:
        engine.reset_prefix_cache()
        params = SamplingParams(n=width, max_tokens=tokens, ignore_eos=True, detokenize=False)
        engine.generate([{"prompt_token_ids": prompt}], params, use_tqdm=False)

    return run


def main() -> None:
    """Take turns until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print
    run = {"llama": llama, "vllm": vllm}[sys.argv[1]](sys.argv[2])
    print("ready", file=answers)
    for line in sys.stdin:
        length, width, tokens = json.loads(line)
        began = time.process_time()
        run(prompt_of(length), width, tokens)
        print(time.process_time() - began, file=answers)


if __name__ == "__main__":
    main()
