"""Log-probabilities of a prompt's own tokens, which `echo` asks for (lm-eval's loglikelihood)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache

_CHUNK = 256  # positions whose logits are there at once


@dataclass(frozen=True)
class Token:
    """A token and how likely it was.

    Attributes:
        id: Token id.
        logprob: Its log-probability in nats; None of the first token of all.
        top: The likeliest tokens there, with their log-probabilities.
    """

    id: int
    logprob: float | None
    top: Sequence[tuple[int, float]] = ()


@dataclass(frozen=True)
class Scored:
    """A prompt as it is echoed."""

    text: str
    tokens: list[Token]


@torch.inference_mode()
def scored_tokens(model: nn.Module, token_ids: Sequence[int], top: int) -> list[Token]:
    """Each token with its log-probability given those before it, at width 1.

    Args:
        model: Causal language model, attached or not.
        token_ids: Token ids of the prompt.
        top: Number of likely tokens to report at each place.
    """
    device = next(model.parameters()).device
    ids = torch.tensor([list(token_ids)], device=device)
    tokens, cache = [Token(int(token_ids[0]), None)], DynamicCache(config=model.config)
    was_training = model.training
    model.eval()
    try:
        for start in range(0, len(token_ids) - 1, _CHUNK):
            stop = min(start + _CHUNK, len(token_ids) - 1)
            output: Any = model(ids[:, start:stop], past_key_values=cache, use_cache=True)
            logprobs = output.logits[0].float().log_softmax(-1)
            following = ids[0, start + 1 : stop + 1, None]
            taken = logprobs.gather(1, following)[:, 0].tolist()
            likely = logprobs.topk(min(top, logprobs.shape[1]))
            each = zip(likely.indices.tolist(), likely.values.tolist(), strict=True)
            pairs = [list(zip(numbers, values, strict=True)) for numbers, values in each]
            numbers = following[:, 0].tolist()
            tokens += [Token(*one) for one in zip(numbers, taken, pairs, strict=True)]
    finally:
        model.train(was_training)
    return tokens
