"""ParScale (arXiv 2505.10475): a row is computed as several streams, which differ by learned
prefixes, and drawn from one aggregate of them. The baseline that spends a group's computation on
one response.

Axes: R rows, P streams of a row (not groups here), S positions of this call, U positions so far,
D hidden size, H query heads, G key-value heads, C head dim, N prefix length. Stream p of row r is
row r * P + p of the layers. In every layer its attention also reads the N prefix keys and values of
its stream; behind the last norm

    a = softmax(MLP(concat_p h_p)),   a <- (1 - eps) a + eps / P,   h = sum_p a_p h_p
    MLP = W_2 SiLU(W_1 x + b_1) + b_2,   W_1 [D, P D], W_2 [P, D]

and the head makes one row of logits of h. OPEN, what its code leaves to training from scratch:

- initial values (`std`): small random prefixes, as its layers have; W_2 zero, so that streams weigh
  the same at first. A fresh one is not the base model: prefixes take a part of every softmax.
- whether tokens' positions begin after the prefix: they do not; a prefix has no positions.
- which parameters train on a model that exists: the new ones in a warm-up, all with GRPO.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from interlace.coupling.attention import explicit
from interlace.coupling.base import INVARIANTS, Coupling
from interlace.coupling.config import CouplingConfig, Layers, check_number, check_whole, heads_of
from interlace.rows import Groups, Rows

PARSCALE = "https://arxiv.org/abs/2505.10475"


@dataclass(frozen=True)
class ParScaleConfig(CouplingConfig):
    """Several streams of computation for one response (arXiv 2505.10475).

    Rows of a group do not see each other. A row costs `streams` rows of the base model, in time and
    in keys and values: a response of it is compute-matched to a group of so many rows.

    Args:
        streams: Number of streams of a row, P.
        prefix: Number of keys and values that each stream has of its own in every layer.
        smoothing: Share of the aggregate that all streams have alike, epsilon.
        std: Standard deviation of fresh prefixes.
        layers: Layers whose attention reads a prefix: "all", every k-th layer as the integer k, or
            a list of layer indices.

    Raises:
        ConfigError: for fewer than two streams, a prefix below 1, or another number out of range.
    """

    kind: ClassVar[str] = "parscale"

    streams: int = 8
    prefix: int = 48
    smoothing: float = 0.01
    std: float = 0.02
    layers: Layers = "all"

    def __post_init__(self) -> None:
        check_whole(self, "streams", least=2)
        check_whole(self, "prefix")
        check_number(self, "smoothing", 0, 1)
        check_number(self, "std", 0, float("inf"))

    def facts(self) -> dict[str, str]:
        """Streams and prefix."""
        return {"streams": str(self.streams), "prefix": f"{self.prefix} positions"}


class ParScale(Coupling):
    """One layer's prefixes; `Aggregate` is that of the model as a whole."""

    kind = ParScaleConfig.kind
    Config = ParScaleConfig
    title = "ParScale"
    about = (
        "ParScale: each response is computed as several streams with learned prefixes, and drawn "
        f"from their aggregate ([paper]({PARSCALE})). Rows do not see each other."
    )
    seats = ("attention", "streams")
    couples = False

    def __init__(self, config: ParScaleConfig, shape: tuple[int, int] = (1, 8)) -> None:
        super().__init__()
        self.streams = config.streams
        heads, dim = shape
        size = config.streams, heads, config.prefix, dim
        keys, values = (torch.empty(size) for _ in range(2))
        self.prefix_keys = nn.Parameter(keys.normal_(std=config.std))
        self.prefix_values = nn.Parameter(values.normal_(std=config.std))

    @classmethod
    def sizes(cls, base: Any, layer: int) -> tuple[Any, ...]:
        """Key-value heads, and their dimension."""
        return (heads_of(base)[1:],)

    @classmethod
    def build(
        cls, config: Any, base: Any, layer: int | None, *where: Any, **named: Any
    ) -> Coupling:
        """The prefixes of a layer, or the aggregate of the model."""
        kind = cls if layer is not None else Aggregate
        return super(ParScale, kind).build(config, base, layer, *where, **named)

    @classmethod
    def claims(cls, config: Any) -> frozenset[str]:
        """Not that a fresh one changes nothing; and there are no siblings that gradients reach."""
        return INVARIANTS - {"I1", "I8"}

    def attention(
        self,
        query: Float[Tensor, "R H S C"],
        key: Float[Tensor, "R G U C"],
        value: Float[Tensor, "R G U C"],
        mask: Tensor | None,
        rows: Groups,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """The prefix before each stream's keys and values, seen from everywhere."""
        mask, copies = explicit(mask, query, key), query.shape[0] // self.streams
        length = self.prefix_keys.shape[2]
        mask = F.pad(mask, (length, 0), value=1 if mask.dtype == torch.bool else 0)
        keys, values = (
            torch.cat([prefix.repeat(copies, 1, 1, 1).to(own.dtype), own], dim=2)
            for prefix, own in ((self.prefix_keys, key), (self.prefix_values, value))
        )
        return query, keys, values, mask

    def attention_step(
        self,
        query: Float[Tensor, "R H 1 C"],
        key: Float[Tensor, "R G 1 C"],
        value: Float[Tensor, "R G 1 C"],
        rows: Rows,
        scale: float,
        softcap: float | None,
    ) -> tuple[Float[Tensor, "R H C"], Float[Tensor, "R H"]]:
        """What each stream reads of its prefix, with the log-sum-exp."""
        per_kv = query[:, :, 0].unflatten(1, (key.shape[1], -1))
        per_stream = per_kv.unflatten(0, (-1, self.streams))  # R/P P G Q C
        scores = per_stream @ self.prefix_keys.transpose(-1, -2) * scale
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        out = scores.softmax(dim=-1).to(value.dtype) @ self.prefix_values
        return out.flatten(2, 3).flatten(0, 1), scores.logsumexp(dim=-1).flatten(2, 3).flatten(0, 1)

    def spread(self, given: Shaped[Tensor, "R *rest"]) -> Shaped[Tensor, "RP *rest"]:
        """A row's inputs for each of its streams."""
        return given.repeat_interleave(self.streams, dim=0)

    def extra_repr(self) -> str:
        return f"streams={self.streams}"


class Aggregate(ParScale):
    """What weighs the streams of a row behind the last norm."""

    def __init__(self, config: ParScaleConfig, hidden_size: int) -> None:
        Coupling.__init__(self)
        self.streams, self.smoothing = config.streams, config.smoothing
        count, size = config.streams, hidden_size

        def empty(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(*shape))

        self.in_weight, self.in_bias = empty(size, count * size), empty(size)
        self.out_weight, self.out_bias = empty(count, size), empty(count)
        nn.init.normal_(self.in_weight, std=(count * size) ** -0.5)
        for weight in (self.in_bias, self.out_weight, self.out_bias):
            nn.init.zeros_(weight)

    @classmethod
    def sizes(cls, base: Any, layer: int) -> tuple[Any, ...]:
        """The size of the last hidden states; OPT's are projected."""
        return (getattr(base, "word_embed_proj_dim", None) or base.hidden_size,)

    def together(self, hidden: Float[Tensor, "RP S D"]) -> Float[Tensor, "R S D"]:
        """sum_p a_p h_p."""
        streams = hidden.unflatten(0, (-1, self.streams)).transpose(1, 2)  # R S P D
        inner = F.silu(F.linear(streams.flatten(2), self.in_weight, self.in_bias))
        scores = F.linear(inner, self.out_weight, self.out_bias)
        shares = scores.to(torch.promote_types(scores.dtype, torch.float32)).softmax(dim=-1)
        shares = (1 - self.smoothing) * shares + self.smoothing / self.streams
        return (shares.to(hidden.dtype).unsqueeze(2) @ streams).squeeze(2)
