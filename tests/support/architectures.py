"""Tiny random models of every supported architecture, built in-process: nothing is downloaded.

Sizes differ on every axis, so that a mixed-up pair of axes is an error and not a coincidence:
vocabulary 97, D 24, MLP 37, 3 layers, 6 heads of 4 (or of 10 where an architecture allows heads
that do not make up D), 2 key-value heads; the blocks have 8 heads of 7 and 4 key-value heads. Where
an architecture has sliding windows they are 5 long, shorter than any sequence of the tests;
embeddings are tied wherever they can be.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

from interlace import (
    BridgeConfig,
    GatedConfig,
    HogwildConfig,
    LaneRoPEConfig,
    MixConfig,
    ParScaleConfig,
    PMatchConfig,
    attach,
)
from interlace.attached import new_parameters
from interlace.coupling.config import CouplingConfig
from interlace.rows import Groups

VOCAB, WINDOW, LAYERS = 97, 5, 3
HIDDEN, HEADS, KV_HEADS, MLP = 24, 6, 2, 37
MOE_MLP = 40  # grouped matrix products want strides of 16 bytes, also in bf16
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": MLP,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
WIDE_HEADS = {"head_dim": 10}
SLIDING = {"sliding_window": WINDOW}
MIXED_LAYERS = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
NO_DROPOUT = {"attention_dropout": 0.0}


@dataclass(frozen=True)
class Architecture:
    """How to build one tiny model: its configuration class and what it adds to the common sizes."""

    config: str
    extra: dict[str, Any] = field(default_factory=dict)
    moe: bool = False
    sdpa: bool = True


ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture("LlamaConfig", WIDE_HEADS | {"tie_word_embeddings": True}),
    "qwen2": Architecture(
        "Qwen2Config",
        SLIDING | MIXED_LAYERS | {"use_sliding_window": True, "tie_word_embeddings": True},
    ),
    "qwen3": Architecture(
        "Qwen3Config", WIDE_HEADS | SLIDING | MIXED_LAYERS | {"use_sliding_window": True}
    ),
    "qwen3_moe": Architecture(
        "Qwen3MoeConfig",
        SLIDING
        | {
            "head_dim": 10,
            "use_sliding_window": True,
            "moe_intermediate_size": MOE_MLP,
            "num_experts": 5,
            "num_experts_per_tok": 2,
        },
        moe=True,
    ),
    "mistral": Architecture("MistralConfig", WIDE_HEADS | SLIDING),
    "mixtral": Architecture(
        "MixtralConfig",
        WIDE_HEADS | SLIDING | {"intermediate_size": MOE_MLP, "num_local_experts": 5},
        moe=True,
    ),
    "gemma2": Architecture(
        "Gemma2Config",
        WIDE_HEADS
        | SLIDING
        | MIXED_LAYERS
        | {
            "query_pre_attn_scalar": 10,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 7.0,
            "use_bidirectional_attention": False,
        },
        sdpa=False,  # Hugging Face's Gemma 2 refuses it: it has no soft-capping
    ),
    "gemma3": Architecture(
        "Gemma3TextConfig",
        WIDE_HEADS | SLIDING | MIXED_LAYERS | {"query_pre_attn_scalar": 10},
    ),
    "phi3": Architecture(
        "Phi3Config", SLIDING | {"original_max_position_embeddings": 64, "resid_pdrop": 0.0}
    ),
    "olmo2": Architecture("Olmo2Config", {"tie_word_embeddings": True}),
    "gpt_neox": Architecture("GPTNeoXConfig"),
    "gpt2": Architecture(
        "GPT2Config", {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "n_inner": MLP}
    ),
    "opt": Architecture("OPTConfig", {"ffn_dim": MLP, "dropout": 0.0, "word_embed_proj_dim": 18}),
    "smollm3": Architecture(
        "SmolLM3Config",
        SLIDING | MIXED_LAYERS | {"use_sliding_window": True, "no_rope_layers": [1, 0, 1]},
    ),
    "granite": Architecture(
        "GraniteConfig",
        {
            "tie_word_embeddings": True,
            "embedding_multiplier": 3.0,
            "logits_scaling": 2.0,
            "residual_multiplier": 0.7,
            "attention_multiplier": 0.4,
        },
    ),
    "cohere2": Architecture("Cohere2Config", SLIDING | MIXED_LAYERS | {"logit_scale": 0.25}),
    "glm4": Architecture("Glm4Config", WIDE_HEADS | {"tie_word_embeddings": True}),
    "starcoder2": Architecture(
        "Starcoder2Config",
        SLIDING | {"residual_dropout": 0.0, "embedding_dropout": 0.0},
    ),
}
NAMES = list(ARCHITECTURES)

BRIDGE = BridgeConfig(num_heads=8, num_kv_heads=4, head_dim=7)
PMATCH = PMatchConfig(num_heads=8, num_kv_heads=4, head_dim=7)
GATED = GatedConfig(rank=12, num_heads=2, layers="all", gate_bias=0.5)
# Kinds beside the Bridge with its reaches, and what they can be set to, by the names of tests.
RIVALS: dict[str, CouplingConfig] = {
    "gated": GATED,
    "gated-feature": dataclasses.replace(GATED, gate="feature", row_features=0),
    "gated-history": dataclasses.replace(GATED, reads="history"),
    # The layer that has no window in any architecture.
    "lanerope": LaneRoPEConfig(slot=16, layers=[1]),
    "lanerope-zero": LaneRoPEConfig(omega="zero", learned=False, layers=[1]),
    "lanerope-strict": LaneRoPEConfig(
        omega="slot", slot=5, learned=False, strict=True, prompt="own", layers=[1]
    ),
    "hogwild": HogwildConfig(layers=[1]),
    "mix": MixConfig(share=0.6, temperature=0.3),
    "mix-others": MixConfig(share=0.4, own=False),
    "parscale": ParScaleConfig(streams=3, prefix=5, smoothing=0.2),
}


def every_architecture(names: Iterable[str] = NAMES) -> pytest.MarkDecorator:
    """Parametrise a test over architectures, as the argument `name`."""
    return pytest.mark.parametrize("name", list(names))


def tiny_config(name: str, **overrides: Any) -> transformers.PretrainedConfig:
    """The tiny configuration of an architecture."""
    architecture = ARCHITECTURES[name]
    config_class = getattr(transformers, architecture.config)
    return config_class(**(SIZES | NO_DROPOUT | architecture.extra | overrides))


def build(
    name: str,
    attn: str = "sdpa",
    dtype: torch.dtype = torch.float32,
    seed: int = 1,
    **overrides: Any,
) -> PreTrainedModel:
    """A tiny random model in eval mode.

    Every parameter is random, norms and biases too: a weight of one or zero would hide what it
    multiplies. Where an architecture has no `attn`, its eager attention stands in.
    """
    kind = attn if ARCHITECTURES[name].sdpa else "eager"
    model = transformers.AutoModelForCausalLM.from_config(
        tiny_config(name, **overrides), attn_implementation=kind, dtype=dtype
    )
    model.generation_config.pad_token_id = SIZES["pad_token_id"]
    randomise(model.named_parameters(), seed)
    return model.eval()


def bridge_config(**options: Any) -> BridgeConfig:
    """The tests' Bridge with other options; an even head dim where blocks turn their features."""
    even = {} if options.get("reads", "position") == "position" else {"head_dim": 6}
    return dataclasses.replace(BRIDGE, **(even | options))


def config_of(kind: str, **options: Any) -> CouplingConfig:
    """The tests' configuration of a kind, or of a rival by its name in `RIVALS`."""
    if kind == "bridge":
        return bridge_config(**options)
    return PMATCH if kind == "pmatch" else dataclasses.replace(RIVALS[kind], **options)


def attach_fresh(
    model: PreTrainedModel, kind: str = "bridge", seed: int = 2, **options: Any
) -> PreTrainedModel:
    """Attach fresh blocks without the warning that they are many for so small a model."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The blocks add")
        attach(model, config_of(kind, **options), seed=seed)
    return model


def attach_random(
    model: PreTrainedModel, kind: str = "bridge", seed: int = 2, **options: Any
) -> PreTrainedModel:
    """Attach blocks whose every weight is random, W_O above all."""
    attach_fresh(model, kind, seed, **options)
    randomise(new_parameters(model), seed)
    return model


@torch.no_grad()
def randomise(parameters: Iterable[tuple[str, nn.Parameter]], seed: int) -> None:
    """Draw matrices with unit gain, and move vectors (norms, biases) away from where they start."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in parameters:
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 1:
            parameter.add_(0.3 * noise)
        elif "embed" in name or "wte" in name or "wpe" in name:
            parameter.copy_(0.5 * noise)
        else:
            parameter.copy_(noise * parameter.shape[-1] ** -0.5)


def random_ids(rows: int, positions: int, seed: int = 3) -> torch.Tensor:
    """Token ids `[R, S]` without the pad token."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, VOCAB, (rows, positions), generator=generator)


def random_alive(count: int, width: int, positions: int, seed: int = 4) -> torch.Tensor:
    """An alive mask `[P, W, S]` of rows that finish at random positions, some of them never."""
    generator = torch.Generator().manual_seed(seed)
    ends = torch.randint(1, positions + 3, (count, width, 1), generator=generator)
    return torch.arange(positions) < ends


def random_mixing(
    count: int, width: int, positions: int, alive: torch.Tensor | None, start: torch.Tensor | None
) -> torch.Tensor:
    """Weights `[P, S, W, W]` as a coupling finds them that mixes what rows are fed: over the living
    rows of a group and itself, none in prompts, and other ones for each pair and position."""
    generator = torch.Generator().manual_seed(15)
    seen = Groups(width, alive).visible()
    scores = torch.randn(count, positions, width, width, generator=generator)
    weights = (scores if seen is None else scores.masked_fill(~seen, float("-inf"))).softmax(-1)
    if seen is not None:
        weights = weights * (seen.sum(-1, keepdim=True) > 1)
    start = torch.zeros(count, dtype=torch.long) if start is None else start
    return weights * (torch.arange(positions) >= start[:, None])[..., None, None]


def checkpointed(model: PreTrainedModel, **options: Any) -> PreTrainedModel:
    """Switch gradient checkpointing on, under the name that this version of transformers has."""
    found: Any = model
    if hasattr(found, "activation_checkpointing_enable"):
        found.activation_checkpointing_enable(options or None)
    else:  # before 5.23
        found.gradient_checkpointing_enable(options or None)
    return model
