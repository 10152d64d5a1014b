"""What becomes of each field of TRL's `GRPOConfig`: accepted, mapped, or refused with a reason.

One table. `GRPOConfig` takes TRL's names through it, recipes take their hints from it, and the
guide's table is checked against it. A field of Hugging Face's `TrainingArguments` that is not in
the table is accepted as it is.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from interlace.errors import ConfigError

T = TypeVar("T")
VERSION = "1.16"  # of TRL, whose fields these are
RENAMED = {"rollouts": "num_generations"}  # what version 0.1 called an option
NO_EFFECT = "no effect: "
SHOWN = 2  # groups of a rollout that log_completions=True writes


@dataclass(frozen=True)
class Accepted:
    """A field with the same name here, and how it differs from TRL's."""

    note: str = ""


@dataclass(frozen=True)
class Mapped:
    """A field that has another name here, or other values: those here by TRL's."""

    to: str
    values: Mapping[Any, Any] | None = None
    note: str = ""

    def value(self, name: str, given: Any) -> Any:
        """TRL's value as the option here takes it."""
        if self.values is None:
            return given
        for theirs, ours in self.values.items():
            if given == theirs and type(given) is type(theirs):
                return ours
        raise ConfigError(
            f"TRL's {name}={given!r} has no counterpart here; {name} is one of "
            f"{', '.join(map(repr, self.values))}. See the option {self.to}."
        )


@dataclass(frozen=True)
class Refused:
    """A field that these trainers cannot honour: why, and what to do instead; values that ask for
    nothing are passed over."""

    reason: str
    neutral: tuple[Any, ...] = (None,)


Entry = Accepted | Mapped | Refused


def _each(names: str, entry: Entry) -> dict[str, Entry]:
    """The same entry for several fields."""
    return dict.fromkeys(names.split(), entry)


_SAMPLES = (
    "rows are sampled from the whole distribution at temperature, or sampled and trained "
    "log-probabilities would differ (invariant I7)"
)
_VLLM = "vLLM samples in the process that trains, with rollout_options, as vllm.LLM has them"
_BATCHES = Refused("the engine batches rows by itself", (False, None))
_ADAPTIVE = "of use_adaptive_entropy; the entropy bonus has a fixed weight, entropy_coef"
_REFERENCE = "of sync_ref_model; the reference stays the model as it was at the start"
_CLIPPED = "of vLLM's importance sampling; old_logprobs says which log-probabilities count"
_LOAD = "load the model yourself, interlace.load(name, ...), and pass it"
_BATCH = Mapped(
    "prompts_per_rollout",
    note="per_device_train_batch_size x gradient_accumulation_steps x processes rows are an "
    "optimizer step; divided by num_generations, its prompts",
)

FIELDS: dict[str, Entry] = {
    # The model.
    "model_init_kwargs": Refused(_LOAD),
    "trust_remote_code": Refused(_LOAD, (False,)),
    "router_aux_loss_coef": Refused("the loss has no term for experts' balance", (None, 0.0)),
    "disable_dropout": Accepted("dropout is always off: it would train another model than sampled"),
    "cast_lm_head_to_fp32": Refused("load the model with dtype='float32' for that", (False,)),
    # Batches and data.
    "num_generations": Accepted("a multiple of every width"),
    "num_generations_eval": Accepted("a multiple of every width; by default one group"),
    "per_device_train_batch_size": _BATCH,
    "gradient_accumulation_steps": _BATCH,
    "generation_batch_size": Mapped(
        "prompts_per_rollout", note="rows sampled at once; divided by num_generations, its prompts"
    ),
    "steps_per_generation": Mapped(
        "mini_batches", note="divided by gradient_accumulation_steps: optimizer steps a rollout"
    ),
    "num_iterations": Mapped("passes"),
    "max_completion_length": Mapped("max_new_tokens"),
    "shuffle_dataset": Refused("problems are drawn in an order that follows from seed", (True,)),
    "pad_to_multiple_of": Accepted("no effect: rows are padded to the longest"),
    "auto_find_batch_size": Refused("micro_rows bounds the rows of a forward pass", (False,)),
    "train_sampling_strategy": Refused("groups are drawn in an order of the seed", ("random",)),
    "data_seed": Refused("seed orders the problems, too"),
    **_each(
        "dataloader_drop_last dataloader_num_workers dataloader_pin_memory "
        "dataloader_persistent_workers dataloader_prefetch_factor "
        "dataloader_multiprocessing_context dataloader_in_order "
        "label_names length_column_name ignore_data_skip",
        Accepted("no effect: no data loader is used"),
    ),
    "remove_unused_columns": Accepted("no effect: every column reaches the rewards"),
    # Sampling.
    "temperature": Accepted(),
    "top_p": Refused(_SAMPLES, (1.0,)),
    "top_k": Refused(_SAMPLES, (0, None)),
    "min_p": Refused(_SAMPLES, (None, 0.0)),
    "repetition_penalty": Refused(_SAMPLES, (1.0,)),
    "generation_kwargs": Refused(_SAMPLES, (None, {})),
    "chat_template_kwargs": Refused("set tokenizer.chat_template instead", (None, {})),
    "cache_implementation": Refused("the engine keeps its own keys and values"),
    "use_cache": Accepted("no effect: the engine keeps its own keys and values"),
    "ds3_gather_for_generation": Refused("a rollout gathers the weights", (True,)),
    "use_transformers_continuous_batching": _BATCHES,
    "transformers_continuous_batching_config": _BATCHES,
    "use_transformers_paged": _BATCHES,
    "max_tool_calling_iterations": Refused("rows call no tools"),
    "use_vllm": Mapped(
        "rollout_backend", {False: "engine", True: "vllm"}, "see [Serve with vLLM](vllm.md)"
    ),
    "vllm_mode": Refused(_VLLM, (None, "colocate")),
    **_each(
        "vllm_model_impl vllm_enable_sleep_mode vllm_structured_outputs_regex "
        "vllm_server_base_url vllm_server_host vllm_server_port vllm_server_timeout "
        "vllm_group_port vllm_gpu_memory_utilization vllm_max_model_length "
        "vllm_tensor_parallel_size",
        Refused(_VLLM),
    ),
    "vllm_importance_sampling_correction": Refused(_CLIPPED, (True, False)),
    **_each(
        "vllm_importance_sampling_mode vllm_importance_sampling_clip_max "
        "vllm_importance_sampling_clip_min vllm_importance_sampling_cap",
        Refused(_CLIPPED),
    ),
    # The loss.
    "loss_type": Mapped(
        "loss", {"dapo": "token", "grpo": "sequence", "dr_grpo": "dr_grpo"}, "others are refused"
    ),
    "beta": Mapped("kl_weight"),
    "epsilon": Mapped("clip_low", note="and clip_high, unless epsilon_high is given"),
    "epsilon_high": Mapped("clip_high", note="None is epsilon"),
    "delta": Refused("ratios are clipped on the side of their advantage only"),
    "importance_sampling_level": Mapped("ratio_level"),
    "reward_weights": Accepted(),
    "multi_objective_aggregation": Refused(
        "rewards are added up before they are normalised", ("sum_then_normalize",)
    ),
    "scale_rewards": Mapped(
        "scale", {"group": "std", True: "std", "none": "none", False: "none"}, "'batch' is refused"
    ),
    "mask_truncated_completions": Refused(
        "a row that was cut stays in its group, whose rows read it; reward it as you like", (False,)
    ),
    "use_bias_correction_kl": Mapped("kl_corrected"),
    "entropy_coef": Mapped("entropy_weight", note="normalised as the loss is"),
    "use_adaptive_entropy": Refused(_ADAPTIVE, (False,)),
    **_each(
        "entropy_coef_min entropy_coef_max entropy_coef_delta entropy_target", Refused(_ADAPTIVE)
    ),
    "top_entropy_quantile": Refused("the loss counts every token", (1.0,)),
    "off_policy_mask_threshold": Refused("the loss counts every row; the ratio is clipped"),
    "sync_ref_model": Refused(_REFERENCE, (False,)),
    **_each("ref_model_mixup_alpha ref_model_sync_steps", Refused(_REFERENCE)),
    **_each(
        "sapo_temperature_neg sapo_temperature_pos",
        Refused("of loss_type='sapo', which is not implemented"),
    ),
    **_each(
        "vespo_k_pos vespo_lambda_pos vespo_k_neg vespo_lambda_neg",
        Refused("of loss_type='vespo', which is not implemented"),
    ),
    "label_smoothing_factor": Refused("the losses have none", (0, 0.0)),
    "neftune_noise_alpha": Refused("noise would train another model than the one that samples"),
    "use_liger_kernel": Refused("its kernels do not know groups", (False,)),
    "liger_kernel_config": Refused("of use_liger_kernel"),
    "average_tokens_across_devices": Accepted("always: one denominator for all processes"),
    # Logging, evaluation, saving.
    "log_completions": Mapped(
        "log_completions",
        note=f"the number of groups that are written; True is {SHOWN}, False is 0",
    ),
    "log_multimodal": Accepted("no effect: there are no images"),
    "num_completions_to_print": Refused("log_completions is the number of groups written"),
    "log_unique_prompts": Refused("log_completions writes whole groups, a prompt once", (False,)),
    "log_completions_hub_repo": Refused("completions.jsonl stays in output_dir"),
    **_each(
        "prediction_loss_only per_device_eval_batch_size eval_accumulation_steps "
        "eval_do_concat_batches eval_use_gather_object include_for_metrics batch_eval_metrics "
        "bf16_full_eval fp16_full_eval",
        Accepted("no effect: an evaluation samples, it computes no loss"),
    ),
    "save_only_model": Refused(
        "it has no effect: a run goes on from its checkpoints, so they hold the optimizer, too. "
        "save_total_limit bounds how many are kept; save_model writes the model alone",
        (False,),
    ),
    "load_best_model_at_end": Refused(
        "a run ends with the model of its last step; a callback may call save_model on the way",
        (False,),
    ),
    **_each("metric_for_best_model greater_is_better", Refused("of load_best_model_at_end")),
    "push_to_hub": Refused(
        "Nothing is pushed while training. Push the result afterwards: "
        "interlace.save(model, folder, push_to='user/name')",
        (False,),
    ),
    **_each(
        "hub_token hub_private_repo hub_model_id hub_strategy hub_always_push hub_revision",
        Accepted("no effect: nothing is pushed while training"),
    ),
}

_DEVICE, _ACCUMULATE = "per_device_train_batch_size", "gradient_accumulation_steps"
_GENERATION, _STEPS = "generation_batch_size", "steps_per_generation"
_PARTS = (_DEVICE, _ACCUMULATE, _GENERATION, _STEPS)


def synonyms() -> dict[str, str]:
    """TRL's names -> the options here, for hints."""
    mapped = {name: own.to for name, own in FIELDS.items() if isinstance(own, Mapped)}
    return {name: to for name, to in mapped.items() if name != to}


def refusal(name: str, value: Any) -> str | None:
    """Why a field may not have this value; None if it may."""
    entry = FIELDS.get(name)
    if not isinstance(entry, Refused) or any(value == own for own in entry.neutral):
        return None
    return entry.reason


def without_effect(name: str) -> str | None:
    """Why a field changes nothing here; None if it does, or is none of the table's."""
    entry = FIELDS.get(name)
    note = entry.note if isinstance(entry, Accepted) else ""
    return note.removeprefix(NO_EFFECT) if note.startswith(NO_EFFECT) else None


def translated(given: Mapping[str, Any], own: Collection[str]) -> dict[str, Any]:
    """Keywords under TRL's names as those of the config here."""
    found: dict[str, Any] = {}
    for name, value in given.items():
        if name in RENAMED and name not in own:
            raise ConfigError(f"{name} is called {RENAMED[name]} now: {RENAMED[name]}={value!r}.")
        if (why := refusal(name, value)) is not None:
            raise ConfigError(f"{name}={value!r} is refused: {why}.")
        entry = FIELDS.get(name)
        if isinstance(entry, Mapped) and entry.to in own and name not in _PARTS:
            _refuse_both(name, entry.to, given)
            if not (name == "epsilon_high" and value is None):
                found[entry.to] = _shown(value) if name == entry.to else entry.value(name, value)
        elif name in own or name in _PARTS or not isinstance(entry, Accepted | Refused):
            found[name] = value
    if {"epsilon", "epsilon_high"} & set(given):  # TRL clips both sides alike, ours do not
        found.setdefault("clip_high", found.get("clip_low", 0.2))
    return _with_batch(found) if "prompts_per_rollout" in own else found


def _shown(value: Any) -> Any:
    return SHOWN * value if isinstance(value, bool) else value


def _refuse_both(name: str, to: str, given: Mapping[str, Any]) -> None:
    if name != to and to in given:
        raise ConfigError(f"{name} is TRL's name of {to}; pass one of them.")


def _with_batch(given: dict[str, Any]) -> dict[str, Any]:
    """TRL's four numbers as a rollout's prompts, its mini-batches, and rows of a forward pass."""
    asked = {name: given[name] for name in _PARTS if given.get(name) is not None}
    found = {name: value for name, value in given.items() if name not in _PARTS}
    if not asked:
        return found
    for name in asked:
        for to in ("prompts_per_rollout", "mini_batches"):
            _refuse_both(name, to, found)
    if _GENERATION in asked and _STEPS in asked:
        raise ConfigError(f"{_GENERATION} and {_STEPS} say the same; pass one of them.")
    device, accumulate = int(asked.get(_DEVICE, 8)), int(asked.get(_ACCUMULATE, 1))
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    step = device * accumulate * processes
    batch = int(asked.get(_GENERATION, device * processes * int(asked.get(_STEPS, accumulate))))
    samples = int(found.get("num_generations", 8))
    if step < 1 or step % samples or batch < step or batch % step:
        raise ConfigError(
            f"An optimizer step takes whole prompts of num_generations={samples} rows, and a "
            f"rollout whole optimizer steps; {_DEVICE}={device} x {_ACCUMULATE}={accumulate} x "
            f"{processes} processes are {step} rows, and {batch} are sampled at once. Make the "
            f"first a multiple of {samples} and the second one of the first, or set "
            "prompts_per_rollout and mini_batches."
        )
    widths = found.get("width", 8)
    widest = max(widths) if isinstance(widths, list | tuple) and widths else widths
    if isinstance(widest, int):
        found.setdefault("micro_rows", max(device, widest))
    return found | {"prompts_per_rollout": batch // samples, "mini_batches": batch // step}


def takes_trl_names(config: type[T]) -> type[T]:
    """Class decorator: let a dataclass take TRL's names as keywords, too."""
    own: Callable[..., None] = config.__init__
    names = {f.name for f in dataclasses.fields(cast("Any", config))}

    @functools.wraps(own)
    def construct(self: Any, *args: Any, **given: Any) -> None:
        own(self, *args, **translated(given, names))

    cast("Any", config).__init__ = construct
    return config
