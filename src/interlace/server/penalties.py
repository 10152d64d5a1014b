"""OpenAI's penalties and biases on logits, as logits processors of the engine.

Axes: R rows of one length, S positions, V vocabulary.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interlace.engine.request import Request
from interlace.server.protocol import ApiError, SamplingRequest


class Penalties:
    """Takes from the logits of tokens that a completion has already.

    Args:
        prompt_tokens: Number of tokens of the prompt, which do not count.
        presence: Number taken from each token that is there.
        frequency: Number taken once for each time that a token is there.
    """

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
    """Adds to the logits of some tokens.

    Args:
        bias: Numbers to add to logits, by token id.
    """

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
    """A request of the core with the processors that the client's fields ask for.

    Raises:
        ApiError: for a bias on what is no token.
    """
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
