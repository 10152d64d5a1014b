"""What clients ask of logits: penalties and biases, as logits processors of the engine; and the
log-probabilities of a prompt's own tokens, for `echo` (lm-eval's loglikelihood).

Axes: R rows of one length, S positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache

from interlace.engine.request import Request
from interlace.server.protocol import ApiError, SamplingRequest

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
    """Each token with its log-probability given those before it, at width 1, and the `top`
    likeliest at each place."""
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


class Penalties:
    """Takes from the logits of tokens that a completion has already: once for its presence, and
    once for each time that it is there. Tokens of the prompt do not count."""

    def __init__(self, prompt_tokens: int, presence: float, frequency: float) -> None:
        self._prompt_tokens, self._presence, self._frequency = prompt_tokens, presence, frequency

    def __call__(
        self, ids: Int[Tensor, "R S"], logits: Float[Tensor, "R V"]
    ) -> Float[Tensor, "R V"]:
        """The logits with the penalties."""
        sampled = ids[:, self._prompt_tokens :]
        one = torch.ones_like(sampled, dtype=logits.dtype)
        counts = torch.zeros_like(logits).scatter_add_(1, sampled, one)
        return logits - self._presence * (counts > 0) - self._frequency * counts


class Bias:
    """Adds to the logits of some tokens."""

    def __init__(self, bias: dict[int, float]) -> None:
        self._ids, self._values = torch.tensor(list(bias)), torch.tensor(list(bias.values()))

    def __call__(
        self, ids: Int[Tensor, "R S"], logits: Float[Tensor, "R V"]
    ) -> Float[Tensor, "R V"]:
        """The logits with the bias."""
        biased = logits.clone()
        biased[:, self._ids.to(logits.device)] += self._values.to(logits)
        return biased


def with_penalties(one: Request, request: SamplingRequest, vocabulary: int) -> Request:
    """A request of the core with the processors that the client's fields ask for."""
    processors: list[Penalties | Bias] = []
    presence, frequency = request.presence_penalty or 0.0, request.frequency_penalty or 0.0
    if presence or frequency:
        processors.append(Penalties(len(one.token_ids), presence, frequency))
    if request.logit_bias:
        processors.append(Bias(_bias(request.logit_bias, vocabulary)))
    if not processors:
        return one
    return replace(one, params=replace(one.params, logits_processors=processors))


def _bias(given: dict[str, float], vocabulary: int) -> dict[int, float]:
    bias = {}
    for name, value in given.items():
        if not (name.isascii() and name.isdecimal() and len(name) < 10 and int(name) < vocabulary):
            raise ApiError(
                400,
                f"logit_bias has token ids below {vocabulary} as its names; got {name[:40]!r}.",
                param="logit_bias",
            )
        bias[int(name)] = value
    return bias
