"""Tiny random models that vLLM's CPU build can run, their exports, and vLLM's engine on them."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

# Before vLLM is imported: one process, so that tests see the scheduler.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # else a rank wants a NUMA node
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

import torch
from transformers import PreTrainedModel

from interlace.saving.vllm import export_for_vllm
from support.architectures import attach_random, build, tiny_config
from support.text import tiny_tokenizer

SIZES = {
    "hidden_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
}
SLIDING = ("qwen3", "gemma3")
ENDS = list(range(1, 9))  # tokens that end rows in tests: one in twelve
THINKS, THOUGHT = 50, 51  # tokens between which a row would be thinking
TOLERANCE = 1e-4

_kept: list[Any] = []  # the end of one engine takes the process groups of all others along


def exported(
    folder: Path, name: str = "llama", sizes: dict[str, Any] | None = None, **blocks: Any
) -> PreTrainedModel:
    """A tiny attached model, written to `folder` as vLLM serves it."""
    model = unsure(name, sizes, **blocks)
    export_for_vllm(model, folder, tiny_tokenizer())
    return model


def unsure(name: str = "llama", sizes: dict[str, Any] | None = None, **blocks: Any) -> Any:
    """A tiny attached model that samples many tokens."""
    # vLLM goes by the number alone, whether or not a model has windows.
    sizes = (sizes or {}) | ({"sliding_window": 40} if name in SLIDING else {})
    if name == "gpt_neox":  # whose heads make up the hidden size
        sizes |= {"num_attention_heads": 3, "num_key_value_heads": 3}
    model = attached(name, sizes, **blocks)
    with torch.no_grad():  # a random model is sure of itself, and would repeat a token for ever
        model.get_output_embeddings().weight.mul_(0.4)
    return model


def attached(name: str, sizes: dict[str, Any], **blocks: Any) -> PreTrainedModel:
    """A tiny random model with random blocks."""
    sizes = SIZES | sizes
    from vllm.config import CompilationConfig, CompilationMode, VllmConfig, set_current_vllm_config

    # vLLM decorates the classes of decoders in place: after its first engine, every model of the
    # class that is made in this process asks for its configuration.
    uncompiled = VllmConfig(compilation_config=CompilationConfig(mode=CompilationMode.NONE))
    uncompiled.model_config = SimpleNamespace(hf_config=tiny_config(name, **sizes))
    with set_current_vllm_config(uncompiled):
        return attach_random(build(name, **sizes), **blocks)


def prompts(count: int, shortest: int = 3, longest: int = 60, seed: int = 0) -> list[list[int]]:
    """Prompts of different lengths, without a token that ends rows."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        length = int(torch.randint(shortest, longest + 1, (1,), generator=generator))
        ids = torch.randint(9, 97, (length,), generator=generator)
        found.append(ids.tolist())
    return found


def served(folder: Path, **options: Any) -> Any:
    """vLLM's engine on an export, in this process."""
    from vllm import LLM

    settings: dict[str, Any] = {
        "skip_tokenizer_init": True,
        "enforce_eager": True,
        "dtype": "float32",
        "max_model_len": 256,
        "max_num_seqs": 16,
        "max_num_batched_tokens": 64,  # so that prompts come in chunks
        "kv_cache_memory_bytes": 32 * 2**20,
        "block_size": 32,
        "seed": 1,
        "disable_log_stats": True,
    }
    llm = LLM(str(folder), **(settings | options))
    _kept.append(llm)
    return llm


def params(n: int, **options: Any) -> Any:
    """Sampling of one group, with log-probabilities, and rows that end early."""
    from vllm import SamplingParams

    settings: dict[str, Any] = {
        "n": n,
        "max_tokens": 24,
        "temperature": 2.0,  # log-probabilities are those before it
        "logprobs": 0,
        "detokenize": False,
        "stop_token_ids": ENDS,
        "ignore_eos": True,  # one engine has a tokenizer, others have none
    }
    return SamplingParams(**(settings | options))


def sampled(llm: Any, asked: list[list[int]], widths: list[int], **options: Any) -> list[Any]:
    """Outputs of all prompts together, each at its width."""
    tokens = [{"prompt_token_ids": ids} for ids in asked]
    return llm.generate(tokens, [params(n, **options) for n in widths], use_tqdm=False)


def scheduler_of(llm: Any) -> Any:
    return llm.llm_engine.engine_core.engine_core.scheduler


def runner_of(llm: Any) -> Any:
    return llm.llm_engine.model_executor.driver_worker.worker.model_runner
