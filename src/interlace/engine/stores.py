"""The memory of keys and values: places (rows or prompts) by positions, of all layers at once.

Axes: L layers, G key-value heads, C head dim, U positions.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

_ROOM = 64  # stores grow in steps of this many positions


class Store:
    """Keys and values of all layers of one shape, `[2L, places, G, room, C]`, keys of a layer
    before its values. One tensor, so that a step gets every layer's views in one call."""

    def __init__(self, layers: list[int], like: Float[Tensor, "1 G U C"]) -> None:
        self.layers = layers
        self.data = like.new_empty(2 * len(layers), 0, like.shape[1], 0, like.shape[3])

    @property
    def places(self) -> int:
        """How many rows or prompts there is memory for."""
        return self.data.shape[1]

    @property
    def room(self) -> int:
        """How many positions of each there is memory for."""
        return self.data.shape[3]

    def resize(self, places: int, room: int) -> None:
        """Make it so large, keeping what fits."""
        old = self.data
        if old.shape[1] == places and old.shape[3] == room:
            return
        # Zeros, because masked places take part in products with weight zero, and 0 * NaN is NaN.
        new = old.new_zeros(old.shape[0], places, old.shape[2], room, old.shape[4])
        kept = (
            slice(None),
            slice(min(places, old.shape[1])),
            slice(None),
            slice(min(room, old.shape[3])),
        )
        new[kept] = old[kept]
        self.data = new  # last, so that an interrupt before it leaves all as it was

    def views(self, places: int, start: int, stop: int) -> dict[int, tuple[Tensor, Tensor]]:
        """Each layer's keys and values `[places, G, stop - start, C]` of some positions."""
        parts = self.data[:, :places, :, start:stop].unbind(0)
        return {n: (parts[2 * i], parts[2 * i + 1]) for i, n in enumerate(self.layers)}

    def move(self, source: int, target: int, used: int) -> None:
        """Copy one place's first `used` positions to another place."""
        if source != target and used:
            self.data[:, target, :, :used] = self.data[:, source, :, :used]

    @property
    def bytes_per_position(self) -> int:
        """What one position of one place takes in all layers."""
        layers, _, heads, _, dim = self.data.shape
        return layers * heads * dim * self.data.element_size()


def grown(room: int, needed: int) -> int:
    """Positions to hold: as they are, or in steps that keep the number of copies logarithmic."""
    return room if needed <= room else -(-max(needed, room + room // 2) // _ROOM) * _ROOM
