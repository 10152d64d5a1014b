"""Architectures whose attention the shared cache cannot compute are refused, never answered
wrongly."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from interlace import Engine, SamplingParams
from interlace.engine.types import GroupOutput
from interlace.errors import GenerationError
from support.architectures import SIZES, attach_random, build, randomise
from support.engine import largest_gap

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")

PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [3, 4, 5]]
PARAMS = SamplingParams(width=3, max_new_tokens=9)


def other(config: str, **changes: Any) -> PreTrainedModel:
    sizes = SIZES | {"num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 32}
    model = transformers.AutoModelForCausalLM.from_config(
        getattr(transformers, config)(**(sizes | changes)), attn_implementation="eager"
    )
    randomise(model.named_parameters(), seed=1)
    return model.eval()


LLAMA4 = {
    "attention_chunk_size": 4,
    "head_dim": 8,
    "num_local_experts": 2,
    "intermediate_size_mlp": 32,
    "interleave_moe_layer_step": 2,
}
DEEPSEEK = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 6,
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
}
REFUSED = [
    ("BloomConfig", {"n_layer": 2, "n_head": 4}, "does not go through Hugging Face's attention"),
    ("Llama4TextConfig", LLAMA4, "layer 0 .* chunked_attention"),
    ("Lfm2Config", {"layer_types": ["conv", "full_attention"] * 2}, "layer 0 .* conv"),
    ("DeepseekV3Config", DEEPSEEK, "layer 0 .*values of another size than its keys"),
    ("DiffLlamaConfig", {}, "layer 0.* own"),
    ("DogeConfig", {}, "mask of its own"),
    ("PhimoeConfig", {"num_local_experts": 2, "sliding_window": 5}, "layer 0.*window of 5"),
]


@pytest.mark.parametrize(("config", "changes", "message"), REFUSED, ids=lambda v: str(v)[:16])
def test_refused(config: str, changes: dict[str, Any], message: str) -> None:
    model = other(config, **changes)
    with pytest.raises(GenerationError, match=rf"{config[:4]}.*{message}.*generate"):
        Engine(model).generate(PROMPTS, PARAMS)


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        ("GptOssConfig", {"head_dim": 8, "num_local_experts": 5, "sliding_window": 5}),  # sinks
        (
            "Gemma4TextConfig",
            {"head_dim": 8, "sliding_window": 5, "vocab_size_per_layer_input": 97},
        ),
        ("Olmo3Config", {"sliding_window": 5}),
        ("PhimoeConfig", {"num_local_experts": 2}),
    ],
    ids=lambda v: str(v)[:16],
)
def test_not_refused(config: str, changes: dict[str, Any]) -> None:
    model = attach_random(other(config, **changes))
    assert largest_gap(model, Engine(model).generate(PROMPTS, PARAMS)) < 1e-5


def test_an_attention_of_the_users_own_is_refused() -> None:
    """No decode step would call it; the prompt's did, on modules. Also where it comes between two
    calls."""

    @functools.wraps(sdpa_attention_forward)
    def doubled(*args: Any, **kwargs: Any) -> Any:
        out, weights = sdpa_attention_forward(*args, **kwargs)
        return 2 * out, weights

    model = build("llama")
    engine = Engine(model)
    transformers.AttentionInterface.register("doubled", doubled)
    transformers.AttentionMaskInterface.register("doubled", sdpa_mask)
    try:
        model.set_attn_implementation("doubled")
        for call in (lambda: Engine(model), lambda: engine.generate(PROMPTS, PARAMS)):
            with pytest.raises(
                GenerationError, match=r"'doubled' is a function of your own.*'sdpa'"
            ):
                call()
    finally:
        transformers.AttentionInterface._global_mapping.pop("doubled")
        transformers.AttentionMaskInterface._global_mapping.pop("doubled")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_longrope_ends_where_its_factors_change() -> None:
    """At its original length LongRoPE changes the factors of a whole batch: beyond it a row would
    depend on its neighbours, and on keys that were computed with the other factors."""
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 2, "long_factor": [4.0] * 2}
    model = attach_random(
        build(
            "phi3",
            rope_parameters=rope | {"rope_theta": 10000.0},
            original_max_position_embeddings=12,
        )
    )
    engine = Engine(model)
    groups = engine.generate(PROMPTS, PARAMS.replace(max_new_tokens=30))
    assert [len(c.token_ids) for g in groups for c in g.completions] == [5] * 3 + [9] * 3
    assert largest_gap(model, groups) < 1e-5
    with pytest.raises(GenerationError, match=r"13 tokens.* context is 12: .*LongRoPE"):
        engine.generate([list(range(5, 18))], PARAMS)


# PEFT's wrappers ----------------------------------------------------------------------------------


def completions(groups: list[GroupOutput]) -> list[Any]:
    return [g.completions for g in groups]


def lora(model: PreTrainedModel) -> PeftModel:
    config = LoraConfig(r=3, target_modules=["q_proj", "up_proj"], lora_dropout=0.5)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="PEFT saves its adapters alone")
        wrapped = get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora" in name:
                parameter.normal_(std=0.2, generator=torch.Generator().manual_seed(len(name)))
    return wrapped


@pytest.mark.parametrize("attached", [True, False])
def test_lora(attached: bool) -> None:
    model = attach_random(build("llama")) if attached else build("llama")
    base = Engine(model).generate(PROMPTS, PARAMS)
    wrapped = lora(model).train()  # its dropout must not sample
    groups = Engine(wrapped).generate(PROMPTS, PARAMS)
    assert wrapped.training
    wrapped.eval()
    assert largest_gap(wrapped, groups) < 1e-5
    assert completions(groups) != completions(base)


def test_lora_merged_unmerged_and_switched_off_between_calls() -> None:
    model = attach_random(build("llama"))
    base = Engine(model).generate(PROMPTS, PARAMS)
    wrapped = lora(model).eval()
    engine = Engine(wrapped)
    with_adapter = engine.generate(PROMPTS, PARAMS)
    wrapped.merge_adapter()
    assert largest_gap(wrapped, engine.generate(PROMPTS, PARAMS)) < 1e-5
    wrapped.unmerge_adapter()
    assert largest_gap(wrapped, with_adapter) < 1e-5
    with wrapped.disable_adapter():
        again = engine.generate(PROMPTS, PARAMS)
    for a, b in zip(again, base, strict=True):
        assert [c.token_ids for c in a.completions] == [c.token_ids for c in b.completions]


@pytest.mark.parametrize("config", [PromptTuningConfig, PrefixTuningConfig])
def test_virtual_tokens_are_refused(config: Any) -> None:
    """They would be put before every token that is fed, not only before the prompt."""
    wrapped = get_peft_model(build("llama"), config(task_type="CAUSAL_LM", num_virtual_tokens=3))
    with pytest.raises(GenerationError, match=r"virtual tokens"):
        Engine(wrapped)
