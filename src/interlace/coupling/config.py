"""What to attach: what every kind's configuration has, and the sizes that Bridge and P-Match share.

Letters: D hidden size, H query heads, q, k, v, o the projection widths (k = v <= q = o).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from interlace.errors import ConfigError
from interlace.rows import Reads

Layers = Literal["all"] | str | int | list[int]

HEAD_DIM_STEP = 8  # head dims stay multiples of this, as vectorised kernels want them


@dataclass(frozen=True)
class CouplingConfig:
    """What every kind's configuration has; a kind's own is a frozen dataclass of plain values, each
    with a default."""

    kind: ClassVar[str]

    @property
    def layers(self) -> Layers:
        """Which layers carry a block: "all", every k-th as the integer k, or a list of indices. A
        field of kinds that stand at layers."""
        return "all"

    @property
    def parameter_share(self) -> float | None:
        """The share of new parameters that was asked for; a field of kinds whose sizes follow."""
        return None

    @property
    def reads(self) -> Reads:
        """What a row reads of its siblings; a field of kinds that have a choice."""
        return "position"

    @property
    def skips_alone(self) -> bool:
        """Whether rows that are groups of width 1 go by the blocks, as the base model's."""
        return False

    def layer_indices(self, num_layers: int) -> list[int]:
        """The indices of the layers that carry a block, ascending.

        Raises:
            ConfigError: if the layers do not exist in a model of `num_layers` layers.
        """
        if self.layers == "all":
            return list(range(num_layers))
        if isinstance(self.layers, int) and not isinstance(self.layers, bool):
            if not 1 <= self.layers <= num_layers:
                raise ConfigError(
                    f"layers=k attaches to every k-th layer, 1 <= k <= {num_layers} in this model; "
                    f"got {self.layers}. For this single layer write layers=[{self.layers}]."
                )
            return list(range(num_layers - 1, -1, -self.layers))[::-1]
        if isinstance(self.layers, str) or not isinstance(self.layers, list):
            raise ConfigError(
                f"layers is 'all', a whole number k for every k-th layer, or a list; "
                f"got {self.layers!r}."
            )
        bad = [
            i
            for i in self.layers
            if isinstance(i, bool) or not isinstance(i, int) or not -num_layers <= i < num_layers
        ]
        if bad or not self.layers:
            raise ConfigError(
                f"layers lists indices from {-num_layers} to {num_layers - 1} in this model of "
                f"{num_layers} layers, "
                f"at least one; got {self.layers!r}."
            )
        indices = sorted({i % num_layers for i in self.layers})
        if len(indices) != len(self.layers):
            raise ConfigError(
                f"layers names a layer twice: {self.layers!r} in a model of {num_layers} layers."
            )
        return indices

    def resolve(self, hidden_size: int, num_layers: int, base_parameters: int) -> CouplingConfig:
        """The same configuration with explicit sizes and layers for one model."""
        if "layers" not in {field.name for field in dataclasses.fields(self)}:
            return self
        values: dict[str, Any] = {"layers": self.layer_indices(num_layers)}
        return dataclasses.replace(self, **values)

    def facts(self) -> dict[str, str]:
        """What a reader of a table wants to know of the sizes, by what it is."""
        return {}

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `kind` says which block it is."""
        return {"kind": self.kind} | dataclasses.asdict(self)


def check_whole(config: CouplingConfig, *names: str, least: int = 1) -> None:
    """Refuse fields that are no whole numbers from `least` on."""
    for name in names:
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ConfigError(f"{name} is a whole number, at least {least}; got {value!r}.")


def heads_of(base: Any) -> tuple[int, int, int]:
    """Query heads, key-value heads and head dim of a base model's attention, by its decoder's
    configuration."""
    heads = int(base.num_attention_heads)
    kv_heads = getattr(base, "num_key_value_heads", None) or heads
    head_dim = getattr(base, "head_dim", None) or base.hidden_size // heads
    return heads, int(kv_heads), int(head_dim)


def check_number(config: CouplingConfig, name: str, above: float, below: float) -> None:
    """Refuse a field that is no number between two others."""
    value = getattr(config, name)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (is_number and above < value < below):
        raise ConfigError(f"{name} is a number above {above:g} and below {below:g}; got {value!r}.")


def check_word(config: CouplingConfig, name: str, words: Sequence[Any]) -> None:
    """Refuse a field that is none of some words."""
    if getattr(config, name) not in words:
        known = ", ".join(map(repr, words))
        raise ConfigError(f"{name} is one of {known}; got {getattr(config, name)!r}.")


@dataclass(frozen=True)
class BlockConfig(CouplingConfig):
    """What Bridge and P-Match share: their size, and the layers they go to.

    Args:
        num_heads: Number of query heads of the Bridge, H.
        num_kv_heads: Number of key-value heads; divides `num_heads`.
        head_dim: Dimension of one head.
        layers: Layers that carry a block: "all", every k-th layer as the integer k (the last layer
            included), or a list of layer indices (negative ones count from the end).
        parameter_share: Share of new over base parameters, between 0 and 1. When given, heads and
            head dim follow from it: `num_heads` becomes an upper bound and the nearest legal shape
            is taken.

    Raises:
        ConfigError: for sizes below 1, heads that do not divide, or a share outside (0, 1).
    """

    num_heads: int = 8
    num_kv_heads: int = 4
    head_dim: int = 88
    layers: Layers = "all"
    parameter_share: float | None = None

    def __post_init__(self) -> None:
        check_whole(self, "num_heads", "num_kv_heads", "head_dim")
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                "Query heads share key-value heads evenly: num_heads must be a multiple of "
                f"num_kv_heads; got {self.num_heads} and {self.num_kv_heads}."
            )
        share = self.parameter_share
        is_number = isinstance(share, (int, float)) and not isinstance(share, bool)
        if share is not None and not (is_number and 0 < share < 1):
            raise ConfigError(
                f"parameter_share is new over base parameters, between 0 and 1; got {share!r}. "
                "For five percent write 0.05."
            )
        if isinstance(self.layers, list):  # a frozen config must not change under its owner
            object.__setattr__(self, "layers", list(self.layers))

    @property
    def projection_width(self) -> int:
        """q + k + v + o: the columns that one block adds to a layer, each of D parameters.

        Equation (9).
        """
        return 2 * self.head_dim * (self.num_heads + self.num_kv_heads)

    def parameters_per_layer(self, hidden_size: int) -> int:
        """New parameters in one layer of hidden size D: D (q + k + v + o) and the norm's D.

        Equation (9).
        """
        return hidden_size * (self.projection_width + 1)

    def resolve(self, hidden_size: int, num_layers: int, base_parameters: int) -> BlockConfig:
        """The same configuration with the dimensions that `parameter_share` asks for, and explicit
        layers."""
        indices = self.layer_indices(num_layers)
        fixed = dataclasses.replace(self, layers=indices, parameter_share=None)
        if self.parameter_share is None:
            return fixed
        target = self.parameter_share * base_parameters / len(indices)
        return dataclasses.replace(fixed, **self._nearest_shape(target, hidden_size))

    def _nearest_shape(self, target: float, hidden_size: int) -> dict[str, int]:
        """Heads and head dim whose parameters per layer come nearest to `target`; more heads win a
        tie."""
        ratio = self.num_heads // self.num_kv_heads
        candidates = []
        heads, kv_heads = self.num_heads, self.num_kv_heads
        while True:
            per_step = HEAD_DIM_STEP * 2 * (heads + kv_heads) * hidden_size
            steps = max(1, round((target - hidden_size) / per_step))
            error = abs(steps * per_step + hidden_size - target)
            candidates.append((error, -heads, kv_heads, steps * HEAD_DIM_STEP))
            if heads == 1:
                break
            # The ratio of heads holds until one key-value head is left, so every shape is legal.
            kv_heads, heads = (
                (kv_heads // 2, kv_heads // 2 * ratio) if kv_heads > 1 else (1, heads // 2)
            )
        _, negative_heads, kv_heads, head_dim = min(candidates)
        return {"num_heads": -negative_heads, "num_kv_heads": kv_heads, "head_dim": head_dim}
