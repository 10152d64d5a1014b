"""Keys and values of blocks that read earlier positions: of every row, as long as its group lives.

Axes: R live rows, N groups, M most live rows of a group, B most rows of one, U entries that
are read, H query heads, G key-value heads, Q = H/G, C head dim.

A group has one list of entries in every layer: a step appends one for each of its live rows. Where
only finished rows are read, a row's entries move to the front of the list when it ends, and only
the front is attended to; until a row has ended, a step costs a copy. What is read merges with what
the rows read at their own position, by the log-sum-exp of both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interlace.coupling.reach import turned, turns
from interlace.engine.kv import Slot, additive, attend_partially, grown
from interlace.rows import Kept, Reads


@dataclass(eq=False)
class _Group:
    """The list of one group.

    Attributes:
        place: Its place in the memory of every layer.
        rows: Its rows, live or not; an entry names its row by the place here.
        writers: For each entry the row that wrote it.
        readable: Number of entries that siblings read, the first ones.
    """

    place: int
    rows: list[Slot]
    live: int
    writers: list[int] = field(default_factory=list)
    readable: int = 0


class KeptKeys(Kept):
    """What the blocks of a model keep; one for all of its layers.

    Args:
        reads: Reach of the blocks, "finished" or "history".
        bytes_per_entry: Number of bytes that one position of one row takes, in all layers.
        features: Number of features of a head that positions turn; None for all.
    """

    def __init__(self, reads: Reads, bytes_per_entry: int, features: int | None) -> None:
        self._features, self._bytes = features, bytes_per_entry
        self._ended_only = reads == "finished"
        self._groups: dict[int, _Group] = {}  # by owner, in the order of their places
        self._layers: dict[int, Tensor] = {}  # [places, room, 2 G, C], keys before values
        self._rows: list[Slot] = []  # of the step in hand
        self._steps: dict[torch.device, _Step] = {}

    # What the backend calls -----------------------------------------------------------------------

    def open(self, rows: Sequence[Slot]) -> None:
        """Keep what the rows of a new group write, unless it is one row, which nobody reads."""
        if len(rows) > 1:
            self._groups[rows[0].owner] = _Group(len(self._groups), list(rows), len(rows))

    def finish(self, row: Slot) -> None:
        """A row has ended, before another takes its place; with its last row a group goes."""
        group = self._groups.get(row.owner)
        if group is None:
            return
        group.live -= 1
        if group.live == 0:
            self._remove(row.owner)
        elif self._ended_only:
            self._to_front(group, group.rows.index(row))

    def begin_step(self, rows: Sequence[Slot]) -> None:
        """Make room for one more entry of every live row."""
        self._rows, self._steps = list(rows), {}
        for layer in self._layers:
            self._layers[layer] = self._with_room(self._layers[layer])

    def end_step(self) -> None:
        """Count the entries of the step."""
        for group in self._groups.values():
            group.writers += self._live(group)
            if not self._ended_only:
                group.readable = len(group.writers)
        self._steps = {}

    def _live(self, group: _Group) -> list[int]:
        rows = self._rows
        places = ((n, row) for n, row in enumerate(group.rows) if row.place < len(rows))
        return [n for n, row in places if rows[row.place] is row]

    def trim(self) -> None:
        """Give back the room of groups that are gone."""
        if not self._groups:
            self._layers = {}

    def bytes_with(self, maxima: Sequence[int]) -> int:
        """What the lists take at most until all is generated, with further rows of these maxima."""
        longest = [row.maximum for group in self._groups.values() for row in group.rows]
        longest += maxima
        return len(longest) * grown(0, max(longest, default=0)) * self._bytes

    @property
    def nbytes(self) -> int:
        """What the lists take, in bytes."""
        return sum(t.numel() * t.element_size() for t in self._layers.values())

    # What the blocks call -------------------------------------------------------------------------

    def read(
        self,
        place: int,
        query: Float[Tensor, "R H C"] | Float[Tensor, "R B H C"],
        key: Float[Tensor, "R G C"],
        value: Float[Tensor, "R G C"],
        scale: float | None = None,
        softcap: float | None = None,
    ) -> tuple[Float[Tensor, "R H C"], Float[Tensor, "R H"]] | None:
        """Keep a layer's keys and values of this step, and attend to those that siblings read."""
        if not self._groups:
            return None
        step = self._step(query)
        if not self._ended_only and self._features != 0:
            key = turned(key, *step.turns)
        data, both = self._layer(place, key), torch.cat([key, value], dim=1)
        data[step.places, step.entries] = both if step.coupled is None else both[step.coupled]
        if step.longest == 0:
            return None
        keys, values = data[: len(self._groups), : step.longest].split(key.shape[1], dim=2)
        return self._attended(step, query, keys, values, scale, softcap)

    def shares(
        self,
        place: int,
        query: Float[Tensor, "R H C"] | Float[Tensor, "R B H C"],
        scale: float | None = None,
        softcap: float | None = None,
    ) -> tuple[Float[Tensor, "R H W"], Float[Tensor, "R H"]] | None:
        """What the rows would read if each entry's value were the unit vector of its writer."""
        step = self._step(query) if self._groups else None
        if step is None or step.longest == 0:
            return None
        entries = self._layers[place][: len(self._groups), : step.longest]
        keys, _ = entries.chunk(2, dim=2)
        width = max(len(group.rows) for group in self._groups.values())
        units = torch.eye(width, dtype=query.dtype)[self._writers(step.longest, gap=0)]
        units = units.to(query.device)
        values = units.unsqueeze(2).expand(-1, -1, keys.shape[2], -1)
        return self._attended(step, query, keys, values, scale, softcap)

    def sizes(self, like: Tensor) -> Int[Tensor, "R B"] | None:
        """How much each row of a row's group has written, the step in hand included; None where
        nobody has siblings."""
        if not self._groups:
            return None
        step = self._step(like)
        if "sizes" not in step.once:
            most = max(len(group.rows) for group in self._groups.values())
            found = torch.zeros(len(self._rows), most, dtype=torch.long)
            for group in self._groups.values():
                live = self._live(group)
                for n in live:
                    for m, row in enumerate(group.rows):
                        found[group.rows[n].place, m] = row.length + (m in live)
            step.once["sizes"] = found.to(like.device)
        return step.once["sizes"]

    def _attended(
        self,
        step: _Step,
        query: Float[Tensor, "R H C"] | Float[Tensor, "R B H C"],
        keys: Float[Tensor, "N U G C"],
        values: Float[Tensor, "N U G V"],
        scale: float | None = None,
        softcap: float | None = None,
    ) -> tuple[Float[Tensor, "R H V"], Float[Tensor, "R H"]]:
        kv_heads, mask, by_block = keys.shape[2], step.mask, query.dim() == 4
        if self._features != 0:
            query = turned(query, *step.turns)
        spread = query.unflatten(-2, (kv_heads, -1))[step.members]
        if by_block:  # as if every row were as many, each of which reads one block
            mask = (mask.unsqueeze(2) + self._blocks(step, spread)).flatten(1, 2)
            spread = spread.flatten(1, 2)
        per_kv = spread.shape[3]
        out, lse = attend_partially(
            spread.transpose(1, 2).flatten(2, 3),  # N G MQ C
            keys.transpose(1, 2),
            values.transpose(1, 2),
            mask.repeat_interleave(per_kv, dim=1).unsqueeze(1),
            query.shape[-1] ** -0.5 if scale is None else scale,
            softcap,
        )
        out, lse = (_to_rows(t, per_kv) for t in (out, lse))
        if by_block:
            out, lse = _together(*(t.unflatten(0, (-1, query.shape[1])) for t in (out, lse)))
        out, lse = (t[step.back].flatten(1, 2) for t in (out, lse))
        return out, lse if step.nothing is None else lse.masked_fill(step.nothing, float("-inf"))

    def _blocks(
        self, step: _Step, spread: Float[Tensor, "N M B G Q C"]
    ) -> Float[Tensor, "N 1 B U"]:
        """0 where an entry is of a row's block; elsewhere as in `_mask`."""
        if "blocks" not in step.once:
            writers = self._writers(step.longest)
            same = writers[:, None] == torch.arange(spread.shape[2])[:, None]
            step.once["blocks"] = additive(same, spread.dtype).unsqueeze(1).to(spread.device)
        return step.once["blocks"]

    def _writers(self, longest: int, gap: int = -1) -> Int[Tensor, "N U"]:
        """The row of each entry that is read, by its number; `gap` behind a group's last."""
        groups = self._groups.values()
        found = [(group.writers + [gap] * longest)[:longest] for group in groups]
        return torch.tensor(found, dtype=torch.long)  # also where nothing is read yet

    def _step(self, like: Tensor) -> _Step:
        if like.device not in self._steps:
            self._steps[like.device] = self._new_step(like)
        return self._steps[like.device]

    def _new_step(self, like: Float[Tensor, "R H C"]) -> _Step:
        """Where this step's entries go, and which entries each row reads."""
        groups, device = list(self._groups.values()), like.device
        numbers = [self._live(group) for group in groups]
        members = [[g.rows[n].place for n in own] for g, own in zip(groups, numbers, strict=True)]
        order = [row for own in members for row in own]
        places = [g.place for g, own in zip(groups, members, strict=True) for _ in own]
        entries = [
            len(g.writers) + n
            for g, own in zip(groups, members, strict=True)
            for n in range(len(own))
        ]
        longest = max(group.readable for group in groups)
        where = torch.tensor([places, entries], device=device)
        in_order = order == list(range(len(self._rows)))
        coupled = None if in_order else torch.tensor(order, device=device)
        if longest == 0 and self._ended_only:  # nobody reads yet, and keys are turned later
            return _Step(where[0], where[1], coupled, longest)
        positions = torch.tensor([row.length for row in self._rows], device=device)[:, None]
        most = max(map(len, members))
        back = [-1] * len(self._rows)
        for group, own in zip(groups, members, strict=True):
            for n, row in enumerate(own):
                back[row] = group.place * most + n
        alone = [at < 0 for at in back]
        return _Step(
            where[0],
            where[1],
            coupled,
            longest,
            turns=turns(positions, like.shape[-1], like.dtype, self._features),
            members=torch.tensor([own + own[:1] * (most - len(own)) for own in members]).to(device),
            back=torch.tensor([max(at, 0) for at in back], device=device),
            nothing=torch.tensor(alone, device=device)[:, None] if any(alone) else None,
            mask=self._mask(groups, numbers, most, longest, like),
        )

    def _mask(
        self,
        groups: list[_Group],
        numbers: list[list[int]],
        most: int,
        longest: int,
        like: Tensor,
    ) -> Float[Tensor, "N M U"]:
        """0 where a row reads an entry; elsewhere finite, see `additive`."""
        column = torch.arange(longest)
        seen = (column < torch.tensor([g.readable for g in groups])[:, None])[:, None]
        if not self._ended_only:
            writers = self._writers(longest)
            readers = torch.tensor([own + [-1] * (most - len(own)) for own in numbers])
            seen = seen & (writers[:, None] != readers[..., None])
        return additive(seen.expand(-1, most, -1), like.dtype).to(like.device)

    # The memory -----------------------------------------------------------------------------------

    def _layer(self, place: int, like: Float[Tensor, "R G C"]) -> Tensor:
        if place not in self._layers:
            empty = like.new_zeros(0, 0, 2 * like.shape[1], like.shape[2])
            self._layers[place] = self._with_room(empty)
        return self._layers[place]

    def _with_room(self, data: Tensor) -> Tensor:
        groups = self._groups.values()
        places = len(groups)
        needed = max((len(g.writers) + g.live for g in groups), default=0)
        if places <= data.shape[0] and needed <= data.shape[1]:
            return data
        most = grown(0, max(sum(row.maximum for row in g.rows) for g in groups))
        room = min(grown(data.shape[1], needed), max(most, data.shape[1]))
        # Zeros, because masked entries take part in products with weight zero, and 0 * NaN is NaN.
        larger = data.new_zeros(max(places, data.shape[0]), room, *data.shape[2:])
        larger[: data.shape[0], : data.shape[1]] = data
        return larger

    def _remove(self, owner: int) -> None:
        """Drop a group; the last one takes its place."""
        group = self._groups.pop(owner)
        last = next(reversed(self._groups.values()), None)
        if last is None or last.place < group.place:
            return
        used = len(last.writers)
        for data in self._layers.values():
            data[group.place, :used] = data[last.place, :used]
        last.place = group.place
        by_place = sorted(self._groups.items(), key=lambda item: item[1].place)
        self._groups = dict(by_place)

    def _to_front(self, group: _Group, number: int) -> None:
        """Have siblings read what a row has written, turned to its positions."""
        first, writers = group.readable, group.writers
        own = [n for n in range(first, len(writers)) if writers[n] == number]
        rest = [n for n in range(first, len(writers)) if writers[n] != number]
        last = first + len(own)
        for data in self._layers.values():
            entries = data[group.place]
            entries[first : len(writers)] = entries[torch.tensor([*own, *rest], device=data.device)]
            keys = entries[first:last, : data.shape[2] // 2]
            positions = torch.arange(len(own), device=data.device)[:, None]
            angles = turns(positions, keys.shape[-1], keys.dtype, self._features)
            keys.copy_(turned(keys, *angles))
        group.writers = writers[:first] + [writers[n] for n in (*own, *rest)]
        group.readable = last


@dataclass(frozen=True)
class _Step:
    """What all layers of one step share, on one device.

    Attributes:
        places: For each row that has siblings the place of its group's list, and
        entries: where in it its entry goes.
        coupled: Those rows, if they are not all rows in order.
        longest: Number of entries that are read, in the group that reads most.
        turns: Cosine and sine for the position of each row.
        members: Rows of each group side by side, in a rectangle whose gaps repeat the first.
        back: For each row its place in that rectangle.
        nothing: Rows without siblings, if there are any.
        mask: Numbers to add to scores.
        once: What is made once, when a layer first asks for it.
    """

    places: Int[Tensor, " K"]
    entries: Int[Tensor, " K"]
    coupled: Int[Tensor, " K"] | None
    longest: int
    turns: Any = None
    members: Any = None
    back: Any = None
    nothing: Any = None
    mask: Any = None
    once: dict[str, Tensor] = field(default_factory=dict)


def _together(
    out: Float[Tensor, "NM B *rest"], lse: Float[Tensor, "NM B G Q"]
) -> tuple[Float[Tensor, "NM *rest"], Float[Tensor, "NM G Q"]]:
    """The attention over all blocks, from those over each; exact."""
    whole = lse.logsumexp(dim=1)
    shares = (lse - whole.unsqueeze(1)).exp().unsqueeze(-1)
    return (out * shares.to(out.dtype)).sum(dim=1), whole


def _to_rows(spread: Float[Tensor, "N G MQ *rest"], per_kv: int) -> Float[Tensor, "NM G Q *rest"]:
    return spread.unflatten(2, (-1, per_kv)).transpose(1, 2).flatten(0, 1)
