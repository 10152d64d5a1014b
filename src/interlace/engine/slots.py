"""Keys and values of a static step: each row has a slot for its life, and all that a step asks of
the rows lies in tensors on the device, so that a step can be captured and played again.

Axes: R slots, N stored prompts, H query heads, G key-value heads, Q = H/G, C head dim, U prompt
positions, T completion positions, LL keys and values of all layers, F forbidden tokens, K stop
tokens; of the memory, or of the part that a step looks at.

Nothing moves when a row ends: its owner becomes -1, and nobody sees it. All sizes are powers of
two, so that steps have few shapes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interlace.engine.backends.flat import FlatLayer
from interlace.engine.kv import Slot, StoredPrompt
from interlace.rows import NOBODY

_FEWEST = 64  # positions that there is memory for


@dataclass(frozen=True)
class Shape:
    """Sizes of the memory, or of the part that a step looks at: R, T, N, U."""

    rows: int = 0
    positions: int = 0
    prompts: int = 0
    prompt_positions: int = 0

    def grown_to(self, other: Shape) -> Shape:
        """The least shape that holds both."""
        sizes = (max(getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return Shape(*sizes)


def power_of_two(number: int, least: int = 1) -> int:
    """The least power of two that is no less than both."""
    return max(least, 1 << max(0, number - 1).bit_length())


def shape_for(rows: int, positions: int, prompts: int, prompt_positions: int) -> Shape:
    """The shape that holds so much."""
    return Shape(
        power_of_two(rows),
        power_of_two(positions, _FEWEST),
        power_of_two(prompts),
        power_of_two(prompt_positions, _FEWEST),
    )


@dataclass
class Fields:
    """What a step asks of each slot, and of each prompt.

    Attributes:
        ids: Token that a row is fed next.
        lengths: Number of tokens that it was fed.
        owners: Number of its group; -1 for a slot without a row.
        prompt: Place of the prompt that it answers.
        alone: Whether its group is of width 1.
        hidden: True where a row does not see another.
        keys: Key of its uniforms, the bits of an unsigned number.
        maxima: Number of tokens that it gets at most.
        temperature: Divisor of its logits; 0 is greedy.
        forbidden: Tokens that it never gets.
        stops: Tokens that end it; -1 in gaps.
        prompt_lengths: Number of positions of each stored prompt.
    """

    ids: Int[Tensor, " R"]
    lengths: Int[Tensor, " R"]
    owners: Int[Tensor, " R"]
    prompt: Int[Tensor, " R"]
    alone: Bool[Tensor, " R"]
    hidden: Bool[Tensor, "R R"]
    keys: Int[Tensor, " R"]
    maxima: Int[Tensor, " R"]
    temperature: Float[Tensor, " R"]
    forbidden: Int[Tensor, "R F"]
    stops: Int[Tensor, "R K"]
    prompt_lengths: Int[Tensor, " N"]

    @classmethod
    def empty(cls, shape: Shape, forbidden: int, stops: int, device: torch.device) -> Fields:
        """Fields of slots without rows."""
        rows = shape.rows

        def whole(*sizes: int, fill: int = 0) -> Tensor:
            return torch.full(sizes, fill, dtype=torch.long, device=device)

        return cls(
            ids=whole(rows),
            lengths=whole(rows),
            owners=whole(rows, fill=NOBODY),
            prompt=whole(rows),
            alone=whole(rows).bool(),
            hidden=whole(rows, rows).bool(),
            keys=whole(rows),
            maxima=whole(rows),
            temperature=torch.ones(rows, dtype=torch.float32, device=device),
            forbidden=whole(rows, forbidden, fill=NOBODY),
            stops=whole(rows, stops, fill=NOBODY),
            prompt_lengths=whole(shape.prompts, fill=1),
        )

    def part(self, shape: Shape) -> Fields:
        """The first slots and prompts, in the same memory."""
        parts = {f.name: getattr(self, f.name)[: shape.rows] for f in fields(self)}
        parts["hidden"] = self.hidden[: shape.rows, : shape.rows]
        parts["prompt_lengths"] = self.prompt_lengths[: shape.prompts]
        return Fields(**parts)

    def copy_from(self, old: Fields) -> None:
        """Take over what a smaller memory held."""
        for field in fields(self):
            source, target = getattr(old, field.name), getattr(self, field.name)
            target[tuple(map(slice, source.shape))] = source


class SlotCache:
    """Stored prompts and live rows in slots, with the methods of `SharedCache` that backends call.

    Attributes:
        prompts: Stored prompts; a place without one is None.
        slots: Live rows, likewise.
        shape: Sizes of the memory.
        version: Number of times that the memory has been made: addresses before are gone.
    """

    def __init__(self) -> None:
        self.prompts: list[StoredPrompt | None] = []
        self.slots: list[Slot | None] = []
        self.shape = Shape()
        self.version = 0
        # Made with the first prompt; keys of a layer before its values.
        self.fields: Fields
        self.own: Float[Tensor, "LL R G T C"]
        self.shared: Float[Tensor, "LL N G U C"]

    @property
    def rows(self) -> list[Slot]:
        """Live rows in the order of their places."""
        return [slot for slot in self.slots if slot is not None]

    def of_step(self) -> Shape:
        """The part of the memory that the next step looks at."""
        lengths = [min(row.length, row.maximum) + 1 for row in self.rows]
        prompts = [p for p in self.prompts if p is not None]
        longest = max(prompt.length for prompt in prompts)
        return shape_for(len(self.slots), max(lengths), len(self.prompts), longest)

    def add_prompt(
        self,
        keys_values: Sequence[tuple[Tensor, Tensor]],
        length: int,
        logits: Float[Tensor, " V"],
    ) -> StoredPrompt:
        """Store a prompt's keys and values `[1, G, U, C]` of every layer."""
        prompt = StoredPrompt(_free(self.prompts), length, logits)
        needed = shape_for(1, 1, max(prompt.place + 1, len(self.prompts)), length)
        self._make_room(needed, keys_values[0][0], 2 * len(keys_values))
        for n, both in enumerate(keys_values):
            for half, part in enumerate(both):
                self.shared[2 * n + half, prompt.place, :, :length] = part[0]
        self.fields.prompt_lengths[prompt.place] = length
        _put(self.prompts, prompt)
        return prompt

    def add_rows(self, prompt: StoredPrompt, owner: int, maxima: Sequence[int]) -> list[Slot]:
        """Give slots to rows that answer a stored prompt: one for each maximum of tokens."""
        alone = len(maxima) == 1
        added = [Slot(-1, prompt, owner, n, most, alone) for n, most in enumerate(maxima)]
        for slot in added:
            slot.place = _free(self.slots)
            _put(self.slots, slot)
        needed = shape_for(len(self.slots), max(maxima), 1, 1)
        self._make_room(needed, self.own[0], len(self.own))
        prompt.users += len(added)
        places = self._places(added)
        self.fields.lengths[places] = 0
        self.fields.owners[places] = owner
        self.fields.prompt[places] = prompt.place
        self.fields.alone[places] = alone
        return added

    def hide(self, added: Sequence[Slot]) -> None:
        """Note which siblings the rows of a new group do not see."""
        self.fields.hidden[self._places(added)] = False
        for slot in added:
            for sibling in slot.unseen:
                self.fields.hidden[slot.place, sibling.place] = True

    def remove_row(self, row: Slot) -> None:
        """Let go of a live row; its slot stays where it is."""
        self.fields.owners[row.place] = NOBODY
        self.fields.lengths[row.place] = 0
        self.fields.prompt[row.place] = 0  # which there is in every step
        _drop(self.slots, row.place)
        row.prompt.users -= 1

    def remove_prompt(self, prompt: StoredPrompt) -> None:
        """Let go of a stored prompt that no row answers."""
        _drop(self.prompts, prompt.place)

    def clear(self) -> None:
        """Let go of all rows and prompts; the memory stays, since captured steps know it."""
        self.prompts, self.slots = [], []
        if self.version:
            self.fields.owners.fill_(NOBODY)
            self.fields.lengths.zero_()
            self.fields.prompt.zero_()

    def bytes_with(self, maxima: Sequence[int], prompts: Sequence[int]) -> tuple[int, int]:
        """What keys and values take with further rows of these maxima and prompts of these lengths;
        twice, since memory does not shrink."""
        longest = [row.maximum for row in self.rows] + [*maxima]
        lengths = [p.length for p in self.prompts if p is not None] + [*prompts]
        shape = shape_for(
            len(longest), max(longest, default=0), len(lengths), max(lengths, default=0)
        )
        needed = self._bytes_of(shape)
        return (0 if needed <= self.nbytes else needed), max(needed, self.nbytes)

    def trim(self) -> None:
        """Nothing: captured steps know the memory."""

    @property
    def nbytes(self) -> int:
        """What the memory takes, in bytes."""
        return self._bytes_of(self.shape)

    def _bytes_of(self, shape: Shape) -> int:
        if not self.version:
            return 0
        layers, _, heads, _, dim = self.own.shape
        positions = shape.rows * shape.positions + shape.prompts * shape.prompt_positions
        return positions * layers * heads * dim * self.own.element_size()

    def stage(self, name: str, slots: Sequence[Slot], values: Sequence[int | float]) -> None:
        """Write a field of some rows."""
        field: Tensor = getattr(self.fields, name)
        field[self._places(slots)] = torch.tensor(values, dtype=field.dtype).to(field.device)

    def stage_lists(self, name: str, slots: Sequence[Slot], values: Sequence[list[int]]) -> None:
        """Write a field that has a list for each row, of one size or less."""
        field: Tensor = getattr(self.fields, name)
        if (most := max(map(len, values))) > field.shape[1]:
            wider = field.new_full((len(field), power_of_two(most)), NOBODY)
            wider[:, : field.shape[1]] = field
            setattr(self.fields, name, wider)
            field, self.version = wider, self.version + 1
        filled = [one + [NOBODY] * (field.shape[1] - len(one)) for one in values]
        field[self._places(slots)] = torch.tensor(filled).to(field.device)

    def _places(self, slots: Sequence[Slot]) -> Tensor:
        return torch.tensor([slot.place for slot in slots]).to(self.fields.ids.device)

    def _make_room(self, needed: Shape, like: Tensor, both: int) -> None:
        """Have the memory of `both` keys and values of all layers hold this much, and what it
        holds."""
        shape = self.shape.grown_to(needed)
        if shape == self.shape:
            return
        heads, dim = like.shape[1], like.shape[3]
        widths = (1, 1)
        if self.version:
            widths = self.fields.forbidden.shape[1], self.fields.stops.shape[1]
        # Zeros, because masked places take part in products with weight zero, and 0 * NaN is NaN.
        own = like.new_zeros(both, shape.rows, heads, shape.positions, dim)
        shared = like.new_zeros(both, shape.prompts, heads, shape.prompt_positions, dim)
        made = Fields.empty(shape, *widths, device=like.device)
        if self.version:
            own[tuple(map(slice, self.own.shape))] = self.own
            shared[tuple(map(slice, self.shared.shape))] = self.shared
            made.copy_from(self.fields)
        self.own, self.shared, self.fields = own, shared, made
        self.shape, self.version = shape, self.version + 1


def _free(places: Sequence[object]) -> int:
    return next((n for n, one in enumerate(places) if one is None), len(places))


def _put(places: list[Any], one: Any) -> None:
    if one.place == len(places):
        places.append(one)
    else:
        places[one.place] = one


def _drop(places: list[Any], place: int) -> None:
    places[place] = None
    while places and places[-1] is None:  # so that steps look at no more than they have to
        places.pop()


class SlotAttention:
    """Attention of every slot's new token to its prompt (`shared`) and its own completion, in one
    softmax."""

    def __init__(
        self,
        fields: Fields,
        own: Float[Tensor, "LL R G T C"],
        shared: Float[Tensor, "LL N G U C"],
    ) -> None:
        self._fields, self._own, self._shared = fields, own, shared
        self._rows = torch.arange(len(fields.ids), device=own.device)
        self.positions = fields.prompt_lengths[fields.prompt] + fields.lengths
        self._masks: dict[int, Tensor] = {}

    def __call__(
        self,
        layer: FlatLayer,
        q: Float[Tensor, "R H C"],
        k: Float[Tensor, "R G C"],
        v: Float[Tensor, "R G C"],
    ) -> Float[Tensor, "R HC"]:
        """Store the new keys and values of a layer, and attend."""
        keys, values = self._own[2 * layer.index : 2 * layer.index + 2].unbind(0)
        keys[self._rows, :, self._fields.lengths] = k
        values[self._rows, :, self._fields.lengths] = v
        prompt_keys, prompt_values = self._shared[2 * layer.index : 2 * layer.index + 2].unbind(0)
        rows, kv_heads, room, _ = keys.shape
        prompts, prompt_room = prompt_keys.shape[0], prompt_keys.shape[2]
        per_kv = q.unflatten(1, (kv_heads, -1))  # R G Q C
        spread = per_kv.transpose(0, 1).flatten(1, 2).expand(prompts, -1, -1, -1)  # N G RQ C
        own = _scores(per_kv.flatten(0, 1), keys.flatten(0, 1)).unflatten(0, (rows, kv_heads))
        shared = _scores(spread.flatten(0, 1), prompt_keys.flatten(0, 1))
        shared = shared.unflatten(1, (rows, -1)).unflatten(0, (prompts, kv_heads))
        shared = shared.permute(2, 1, 3, 0, 4).flatten(3)  # R G Q NU
        scores = torch.cat([own, shared], dim=-1) * layer.scale + self._mask(layer.window)
        weights = scores.softmax(dim=-1).to(v.dtype)
        own, shared = weights.split([room, prompts * prompt_room], dim=-1)
        out = torch.bmm(own.flatten(0, 1), values.flatten(0, 1)).unflatten(0, (rows, kv_heads))
        shared = shared.unflatten(3, (prompts, -1)).permute(3, 1, 0, 2, 4)  # N G R Q U
        mixed = torch.bmm(shared.flatten(2, 3).flatten(0, 1), prompt_values.flatten(0, 1))
        mixed = mixed.unflatten(0, (prompts, kv_heads)).sum(0).unflatten(1, (rows, -1))
        return (out + mixed.transpose(0, 1)).flatten(1)

    def _mask(self, window: int) -> Float[Tensor, "R 1 1 TNU"]:
        """0 where a slot sees a position of its own, then of the prompts; else minus infinity. Its
        new token it always sees."""
        if window not in self._masks:
            fields = self._fields
            column = torch.arange(self._own.shape[3], device=self._own.device)
            own = column <= fields.lengths[:, None]
            place = torch.arange(len(fields.prompt_lengths), device=column.device)
            column_of_prompt = torch.arange(self._shared.shape[3], device=column.device)
            shared = (column_of_prompt < fields.prompt_lengths[:, None])[None]  # 1 N U
            shared = shared & (place == fields.prompt[:, None])[..., None]
            if window:
                own = own & (column > (fields.lengths - window)[:, None])
                first = (self.positions - window)[:, None, None]
                shared = shared & (column_of_prompt > first)
            seen = torch.cat([own, shared.flatten(1)], dim=1)
            mask = torch.zeros(seen.shape, dtype=torch.float32, device=seen.device)
            self._masks[window] = mask.masked_fill_(~seen, float("-inf"))[:, None, None]
        return self._masks[window]


def _scores(query: Float[Tensor, "B M C"], keys: Float[Tensor, "B U C"]) -> Float[Tensor, "B M U"]:
    """Q K^T in float32 at least: rounded to bf16, scores would be further from exact ones than
    Hugging Face's."""
    if query.dtype in (torch.float32, torch.float64):
        return torch.bmm(query, keys.transpose(1, 2))
    if query.is_cuda:
        return torch.bmm(query, keys.transpose(1, 2), out_dtype=torch.float32)
    return torch.bmm(query.float(), keys.float().transpose(1, 2))
