"""What cannot be served is refused: options and versions at start, requests as requests."""

from __future__ import annotations

import inspect
import json
import operator
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import vllm
from vllm.config import KVTransferConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.exceptions import VLLMValidationError

import served
from compare import largest_gap
from interlace_vllm import supported
from interlace_vllm.model import InterlaceForCausalLM
from interlace_vllm.scheduler import GroupScheduler
from interlace_vllm.state import GroupState
from served import TOLERANCE, exported, prompts, sampled, scheduler_of


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"async_scheduling": True}, "feeds a row once more after its end"),
        ({"pipeline_parallel_size": 2}, "several batches in flight"),
        ({"watermark": 0.1}, "a watermark of free KV blocks"),
        ({"kv_sharing_fast_prefill": True}, "share keys and values"),
        ({"kv_offloading_size": 0.1}, "KV connectors have not"),
        ({"max_num_scheduled_tokens": 7, "max_num_seqs": 8}, "leaves rows of a group out"),
        ({"scheduling_policy": "priority"}, "scheduling by priority would preempt"),
        ({"enable_lora": True}, "LoRA has not been tested"),
        ({"scheduler_cls": "vllm.v1.core.sched.scheduler.Scheduler"}, "splits groups"),
        ({"worker_cls": "vllm.v1.worker.cpu_worker.CPUWorker"}, "does not tell blocks"),
        (
            {"speculative_config": {"method": "ngram", "num_speculative_tokens": 2}},
            "speculative decoding",
        ),
    ],
)
def test_options_are_refused_by_name(tmp_path: Path, options: dict[str, Any], why: str) -> None:
    exported(tmp_path)
    engine = EngineArgs(str(tmp_path), enforce_eager=True, max_model_len=64, **options)
    with pytest.raises(ValueError, match=f"{why}.*interlace serve"):
        engine.create_engine_config()


@pytest.mark.parametrize("impl", ["transformers", "vllm"])
def test_no_other_class_takes_the_models_place(tmp_path: Path, impl: str) -> None:
    """Without its blocks the base would look like the model."""
    exported(tmp_path)
    engine = EngineArgs(str(tmp_path), model_impl=impl, max_model_len=64)
    try:
        config = engine.create_engine_config()
    except ValueError:
        return
    assert config.model_config.architecture == supported.ARCHITECTURE
    assert config.scheduler_config.scheduler_cls == supported.SCHEDULER


def test_the_plugs_own_choices_need_no_flags(tmp_path: Path) -> None:
    exported(tmp_path)
    config = EngineArgs(str(tmp_path), max_model_len=64).create_engine_config()
    assert config.scheduler_config.scheduler_cls == supported.SCHEDULER
    assert not config.scheduler_config.async_scheduling
    assert config.parallel_config.worker_cls.startswith("interlace_vllm.")


@pytest.mark.parametrize(
    ("part", "option", "value", "why"),
    [
        ("", "kv_transfer_config", KVTransferConfig(), "KV connectors have not"),
        ("", "ec_transfer_config", KVTransferConfig(), "KV connectors have not"),
        ("", "watermark_config", object(), "text watermarks have not"),
        ("model_config", "quantization", "fp8", "quantization has not"),
        ("model_config", "runner_type", "pooling", "only generation is served, not pooling"),
        ("model_config", "enable_prompt_embeds", True, "prompts of embeddings have not"),
        ("model_config.model_arch_config", "num_experts", 4, "mixtures of experts have not"),
        ("parallel_config", "enable_dbo", True, "micro-batches"),
        ("parallel_config", "enable_fault_tolerance", True, "begin requests anew"),
        ("parallel_config", "enable_elastic_ep", True, "begin requests anew"),
        ("parallel_config", "ubatch_size", 2, "micro-batches"),
        ("parallel_config", "prefill_context_parallel_size", 2, "context parallelism has not"),
        ("parallel_config", "decode_context_parallel_size", 2, "context parallelism has not"),
        ("device_config", "device_type", "cuda", "Model Runner V1 replays graphs"),
    ],
)
def test_what_a_cpu_cannot_start_is_refused_too(
    tmp_path: Path, part: str, option: str, value: Any, why: str
) -> None:
    exported(tmp_path)
    config = EngineArgs(str(tmp_path), max_model_len=64).create_engine_config()
    assert supported.why_not_options(config) == []
    owner = operator.attrgetter(part)(config) if part else config
    object.__setattr__(owner, option, value)
    (found,) = supported.why_not_options(config)
    assert why in found


def test_a_front_end_that_knows_no_groups_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no Python, so that nothing marks the rows of a group there."""
    exported(tmp_path)
    # Not in the environment, which vLLM reads once: an engine may have started in this process.
    monkeypatch.setattr(vllm.envs, "VLLM_USE_RUST_FRONTEND", True, raising=False)
    with pytest.raises(ValueError, match="front end in Rust does not say"):
        EngineArgs(str(tmp_path), max_model_len=64).create_engine_config()


def test_what_vllm_changes_after_the_check_is_seen_before_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if vLLM chose the worker after its hook had let one of its own pass."""
    exported(tmp_path)
    monkeypatch.setattr(supported.Config, "verify_and_update_config", lambda config: None)
    with pytest.raises(ValueError, match="CPUWorker does not tell blocks"):
        served.served(tmp_path)


def test_an_export_of_a_later_format_is_refused(tmp_path: Path) -> None:
    exported(tmp_path)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    values["interlace"]["format"] += 1
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"format 2, and the plug-in reads up to 1"):
        served.served(tmp_path)


@pytest.mark.parametrize("cls", [GroupScheduler, GroupState, InterlaceForCausalLM])
def test_overrides_take_what_vllm_passes(cls: type[Any]) -> None:
    """For the next minor version: a method that vLLM calls in another way than before."""
    checked = 0
    for name, own in vars(cls).items():
        theirs = getattr(super(cls, cls), name, None)
        if not (inspect.isfunction(own) and inspect.isfunction(theirs)):
            continue
        wanted = list(inspect.signature(theirs).parameters)
        taken = list(inspect.signature(own).parameters)
        named = [name for name in taken if name not in ("args", "kwargs")]
        assert named == wanted[: len(named)], name
        assert "kwargs" in taken or len(named) == len(wanted), name
        checked += 1
    assert checked >= 3


def test_another_version_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert supported.why_not_version(vllm.__version__) is None
    monkeypatch.setattr(vllm, "__version__", "0.33.0")
    with pytest.raises(ImportError, match=r"runs with vLLM 0\.32 .*this is vLLM 0\.33\.0"):
        getattr(supported, supported.ARCHITECTURE)


def test_another_version_runs_other_models(tmp_path: Path) -> None:
    """Nothing of vLLM's is touched then, and the model's class says why it is not there."""
    script = """
import vllm
vllm.__version__ = "0.33.0"
from vllm.v1.engine.input_processor import InputProcessor
import interlace_vllm
interlace_vllm.register()
assert not hasattr(InputProcessor.process_inputs, "_interlace")
from vllm import ModelRegistry
try:
    ModelRegistry.models["InterlaceForCausalLM"].load_model_cls()
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "this is vLLM 0.33.0" in done.stdout, done.stderr


def test_streams_of_prompts_are_refused(llama: tuple[Any, Any]) -> None:
    _, llm = llama
    process = llm.llm_engine.input_processor.process_inputs
    prompt = {"type": "token", "prompt_token_ids": [9, 10]}
    with pytest.raises(VLLMValidationError, match="takes no streams of prompts"):
        process("r", prompt, served.params(1), ("generate",), resumable=True)


@pytest.mark.parametrize(
    ("n", "prompt", "options", "why"),
    [
        (17, 5, {}, r"at most 16 rows here \(max_num_seqs.*got n = 17"),
        (4, 5, {"stop": ["x"], "detokenize": True}, "Stop strings are found some steps after"),
        (2, 5, {"extra_args": {"interlace": {"group": "mine"}}}, "the server's own"),
        (1, 5, {"extra_args": {"interlace": {"group": "mine"}}}, "the server's own"),
    ],
)
def test_requests_are_refused_and_the_engine_goes_on(
    llama: tuple[Any, Any], n: int, prompt: int, options: dict[str, Any], why: str
) -> None:
    model, llm = llama
    with pytest.raises(VLLMValidationError, match=why):
        sampled(llm, prompts(1, prompt, prompt), [n], **options)
    assert not scheduler_of(llm).requests
    assert largest_gap(model, sampled(llm, prompts(1), [2])) < TOLERANCE


def test_groups_fit_among_the_active_ones(
    llama: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, llm = llama
    monkeypatch.setattr(llm.llm_engine.vllm_config.scheduler_config, "max_num_active_seqs", 5)
    with pytest.raises(VLLMValidationError, match=r"at most 5 rows here .*max_num_active_seqs"):
        sampled(llm, prompts(1), [6])


def test_requests_of_another_front_end_end_with_an_error(
    llama: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rows would carry no tie, and be sampled alone without a word."""
    _, llm = llama
    monkeypatch.setattr("interlace_vllm.requests._check", lambda config, request: None)
    outputs = sampled(llm, prompts(2), [3, 1])
    assert {row.finish_reason for output in outputs for row in output.outputs} == {"error"}
    assert not scheduler_of(llm).requests
    assert not scheduler_of(llm).groups


def test_a_group_longer_than_the_cache_is_refused(
    llama: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, llm = llama
    cache = llm.llm_engine.vllm_config.cache_config
    monkeypatch.setattr(cache, "kv_cache_size_tokens", 1000)
    with pytest.raises(VLLMValidationError, match=r"8 x 150 \(prompt 50, max_tokens 100\).*968"):
        sampled(llm, prompts(1, 50, 50), [8], max_tokens=100)
    sampled(llm, prompts(1, 50, 50), [6], max_tokens=100)


def test_a_part_of_a_refused_batch_is_taken_back(llama: tuple[Any, Any]) -> None:
    _, llm = llama
    with pytest.raises(VLLMValidationError, match="max_num_seqs"):
        sampled(llm, prompts(3), [2, 99, 4])
    assert not scheduler_of(llm).requests
    assert not scheduler_of(llm).groups
