"""Which models the engine can run: those whose attention is what the shared cache computes.

A model that is none of them would sample wrong tokens in silence, so it is refused: by what its
configuration says, by what its prefill leaves in the cache, and by what its layers ask for in the
first step of a call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from interlace.errors import GenerationError

_LAYER_TYPES = ("full_attention", "sliding_attention")


def check_model(model: nn.Module, base: PreTrainedModel) -> None:
    """Refuse what the configuration shows.

    Args:
        model: what the user calls the model, perhaps PEFT's wrapper.
        base: the Hugging Face model in it.

    Raises:
        GenerationError: if the engine cannot run it.
    """
    if not type(base)._supports_attention_backend:
        raise _refusal(base, "does not go through Hugging Face's attention interface")
    config = base.config.get_text_config(decoder=True)
    for layer, kind in enumerate(getattr(config, "layer_types", None) or ()):
        if kind not in _LAYER_TYPES:
            raise _refusal(base, f"has in layer {layer} a layer of the kind {kind}")
    adapter: Any = getattr(model, "active_peft_config", None)
    if getattr(adapter, "is_prompt_learning", False):
        raise GenerationError(
            f"The active adapter, {type(adapter).__name__}, puts virtual tokens before whatever is "
            "fed, in each step again. Use an adapter that changes weights, such as LoRA, or "
            "model.generate."
        )


def context_of(base: PreTrainedModel) -> tuple[int | None, str]:
    """The most positions that the engine gives a model, if it has an end, and why it ends there.

    LongRoPE changes its factors at its original length, for a whole batch at once: beyond it a row
    would depend on its neighbours, and on keys that were computed with the other factors.
    """
    config = base.config.get_text_config(decoder=True)
    length = getattr(config, "max_position_embeddings", None)
    rope: Any = getattr(config, "rope_parameters", None) or {}
    kinds = [rope, *(part for part in rope.values() if isinstance(part, dict))]
    for kind in kinds:
        if kind.get("rope_type") == "longrope":
            original = kind.get("original_max_position_embeddings") or getattr(
                config, "original_max_position_embeddings", length
            )
            return original, " (LongRoPE computes longer sequences with other factors)"
    return length or None, ""


def keys_and_values(base: PreTrainedModel, cache: Any) -> list[tuple[Tensor, Tensor]]:
    """What a prefill has left in Hugging Face's cache, for each layer.

    Raises:
        GenerationError: if it is something else than keys and values of one size.
    """
    stored = []
    for n, layer in enumerate(cache.layers):
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        if not isinstance(keys, Tensor) or not isinstance(values, Tensor):
            raise _refusal(base, f"keeps in layer {n} something else than keys and values")
        if keys.shape != values.shape:
            raise _refusal(base, f"has in layer {n} values of another size than its keys")
        stored.append((keys, values))
    return stored


def windows_of(cache: Any) -> list[int]:
    """The sliding window that Hugging Face's cache keeps for each layer; 0 where it keeps all."""
    return [int(getattr(layer, "sliding_window", 0) or 0) for layer in cache.layers]


def check_step(base: PreTrainedModel, kept: Sequence[int], asked: dict[int, int]) -> None:
    """Refuse what the first step of a call shows.

    Args:
        base: the model.
        kept: the window that the prefill's cache keeps for each layer.
        asked: the window with which each layer asked the shared cache for its attention.

    Raises:
        GenerationError: if a layer did not ask, or with another window than the cache's.
    """
    for layer, window in enumerate(kept):
        if layer not in asked:
            raise _refusal(base, f"computes the attention of layer {layer} in a way of its own")
        if asked[layer] != window:
            raise _refusal(
                base,
                f"has in layer {layer} a sliding window of {window} in its cache and of "
                f"{asked[layer]} in its attention (0 is none)",
            )


def own_mask_refusal(layer: nn.Module) -> GenerationError:
    """The error for a layer that hands a mask to the attention interface in a decode step."""
    return GenerationError(
        f"{type(layer).__name__} hides positions by a mask of its own, which the shared keys and "
        "values do not know; the engine cannot run such a model. Use model.generate instead."
    )


def _refusal(base: PreTrainedModel, what: str) -> GenerationError:
    return GenerationError(
        f"{type(base).__name__} {what}; the engine, which shares a prompt's keys and values among "
        "rows, cannot run it. Use model.generate instead."
    )
