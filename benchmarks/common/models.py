"""Models that are measured: SmolLM2-135M's shape, and blocks that do something."""

from __future__ import annotations

from typing import Any

import torch

SMOLLM2 = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "tie_word_embeddings": True,
}


def attach_random(model: Any, blocks: Any = None, *, seed: int = 1, std: float = 0.02) -> Any:
    """The model with blocks, of 5 % by default, whose W_O is random: zero would be left out."""
    import interlace  # which environments of peers need not have
    from interlace.attached import new_parameters

    interlace.attach(model, blocks or interlace.BridgeConfig(parameter_share=0.05), seed=seed)
    with torch.no_grad():
        for name, parameter in new_parameters(model):
            if name.endswith("o_weight"):
                parameter.normal_(std=std)
    return model
