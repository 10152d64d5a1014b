"""Keys and values in which a prompt is stored once and shared by all rows that answer it.

Axes: R live rows, N stored prompts, M most rows of one prompt, H query heads, G key-value heads,
Q = H/G query heads of a key-value head, C head dim, U prompt positions, T completion positions,
V vocabulary, L layers; where attention is computed, B problems of N queries.

A decode step attends to two stores: the prompts `[N, G, U, C]`, one entry whatever the width, and
the rows' own completions `[R, G, T, C]`. Both give a softmax over their part, with its log-sum-exp,
and the parts merge exactly: out = lerp(own, shared, sigmoid(lse_shared - lse_own)).

Live rows always fill the first R places of the row store: a row that finishes leaves its place to
the last one, so no finished row costs anything and nothing is gathered in a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from interlace.coupling.attention import attended, in_step
from interlace.errors import GenerationError

ATTENTION = "interlace"  # the name under which Hugging Face models find `shared_attention`

active_cache: ContextVar[SharedCache] = ContextVar("interlace_cache")


@dataclass(eq=False)
class StoredPrompt:
    """A stored prompt: its place in the store, its positions, the logits after its last token, and
    the live rows that answer it."""

    place: int
    length: int
    logits: Float[Tensor, " V"]
    users: int = 0


@dataclass(eq=False)
class Slot:
    """A live row: its place in the store, the prompt it answers, the number of its group (rows of
    one owner see each other) and its own there, the most tokens that it may get, whether its group
    is of width 1, the tokens it was fed, and siblings that it does not see."""

    place: int
    prompt: StoredPrompt
    owner: int
    number: int
    maximum: int
    alone: bool = False
    length: int = 0
    unseen: frozenset[Slot] = frozenset()


@dataclass(frozen=True)
class Ahead:
    """What a backend needs to know of a row to go on with it by itself: the token that comes next,
    the number of tokens that it was fed, the key of its uniforms (as a signed number), its
    temperature, the tokens that it never gets, and those that end it."""

    token: int
    length: int
    key: int
    temperature: float
    forbidden: list[int]
    stops: list[int]


def hidden_pairs(rows: Sequence[Slot]) -> Bool[Tensor, "R R"] | None:
    """True where a live row does not see another of its group; None where all see all."""
    if not any(row.unseen for row in rows):
        return None
    return torch.tensor([[other in row.unseen for other in rows] for row in rows])


class SharedCache(Cache):
    """What the engine hands to a model as `past_key_values` in a decode step.

    The backend tells it which rows there are (`add_prompt`, `add_rows`, `remove_row`), then
    `begin_step`; the model's layers call `update` and then, through Hugging Face's attention
    interface, `attend`.

    Attributes:
        prompts: Stored prompts in the order of their places, each with its one description.
        rows: Live rows, likewise.
    """

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.prompts: list[StoredPrompt] = []
        self.rows: list[Slot] = []
        self._shared: list[Store] = []  # prompts; a store for each shape and device of a layer
        self._own: list[Store] = []  # the live rows' completions
        self._is_in_step = False
        self._layouts: dict[torch.device, StepLayout] = {}  # of the step in hand, on each device
        self.asked: dict[int, int] = {}  # the window with which each layer asked for attention
        self.is_checked = False  # that they asked rightly
        self.has_further_part = False  # whether a coupling reads beside prompt and completion
        self.is_changed_after = False  # whether one changes what attention gives
        self.streams = 1  # in which a row is computed; they are heads here
        self.notes_further = False  # whether the share of that further part is wanted
        self.further: list[Tensor] = []  # the share, of each layer that has the part
        self._given: tuple[Tensor, Tensor] | None = None  # the last update

    # What the backend calls -----------------------------------------------------------------------

    def add_prompt(
        self,
        keys_values: Sequence[tuple[Tensor, Tensor]],
        length: int,
        logits: Float[Tensor, " V"],
    ) -> StoredPrompt:
        """Store a prompt's keys and values `[1, G, U, C]` of every layer.

        A layer with a sliding window may have kept fewer than `length` positions, the last ones.
        """
        place = len(self.prompts)
        if not self._shared:
            shapes: dict[tuple[int, int, torch.device], list[int]] = {}
            for index, (keys, _) in enumerate(keys_values):
                shapes.setdefault((keys.shape[1], keys.shape[3], keys.device), []).append(index)
            self._own = [Store(layers, keys_values[layers[0]][0]) for layers in shapes.values()]
            self._shared = [
                Store(store.layers, keys_values[store.layers[0]][0]) for store in self._own
            ]
        for store in self._shared:
            store.resize(max(store.places, place + 1), max(store.room, grown(0, length)))
            for n, (keys, values) in store.views(place + 1, 0, length).items():
                # Aligned to the prompt's end: position p lies in column p.
                kept = keys_values[n][0].shape[2]
                keys[place, :, length - kept :] = keys_values[n][0][0]
                values[place, :, length - kept :] = keys_values[n][1][0]
        self.prompts.append(StoredPrompt(place, length, logits))
        return self.prompts[-1]

    def add_rows(self, prompt: StoredPrompt, owner: int, maxima: Sequence[int]) -> list[Slot]:
        """Append live rows, without completion tokens yet, that answer a stored prompt: one for
        each maximum of tokens."""
        first = len(self.rows)
        alone = len(maxima) == 1
        added = [Slot(first + n, prompt, owner, n, most, alone) for n, most in enumerate(maxima)]
        self.rows += added
        prompt.users += len(added)
        return added

    def hide(self, added: Sequence[Slot]) -> None:
        """Nothing: a step asks the rows whom they do not see."""

    def remove_row(self, row: Slot) -> None:
        """Drop a live row; the last row takes its place."""
        last = self.rows[-1]
        for store in self._own:
            store.move(last.place, row.place, last.length)
        last.place = row.place
        self.rows[row.place] = last
        self.rows.pop()
        row.prompt.users -= 1

    def remove_prompt(self, prompt: StoredPrompt) -> None:
        """Drop a stored prompt that no row answers; the last one takes its place."""
        last = self.prompts[-1]
        for store in self._shared:
            store.move(last.place, prompt.place, last.length)
        last.place = prompt.place
        self.prompts[prompt.place] = last
        self.prompts.pop()

    def begin_step(self) -> None:
        """Make room for one more token of every live row."""
        rows, needed = len(self.rows), max(row.length for row in self.rows) + 1
        longest = grown(0, max(row.maximum for row in self.rows))  # no more room is made
        for store in self._own:
            if rows > store.places or needed > store.room:
                store.resize(rows, min(grown(store.room, needed), max(longest, store.room)))
        self._layouts, self._is_in_step = {}, True

    def end_step(self) -> None:
        """Count the token that every live row was fed."""
        for row in self.rows:
            row.length += 1
        self._layouts, self._is_in_step = {}, False

    @property
    def bytes_per_position(self) -> int:
        """What one position of one row (or of one stored prompt) takes in all layers."""
        return sum(store.bytes_per_position for store in self._own)

    def bytes_with(self, maxima: Sequence[int], prompts: Sequence[int]) -> tuple[int, int]:
        """What keys and values take at most until all is generated, with further rows of these
        maxima and prompts of these lengths: if room is made for them alone, and in the stores as
        they are, with the room of what is gone."""
        longest = [row.maximum for row in self.rows] + [*maxima]
        lengths = [prompt.length for prompt in self.prompts] + [*prompts]
        needs = [(len(all_), grown(0, max(all_, default=0))) for all_ in (longest, lengths)]
        needed = sum(places * room for places, room in needs) * self.bytes_per_position
        at_most = sum(
            max(store.places, places) * max(store.room, room) * store.bytes_per_position
            for stores, (places, room) in zip((self._own, self._shared), needs, strict=True)
            for store in stores
        )
        return needed, at_most

    def stores(self) -> tuple[Store, Store] | None:
        """The stores of completions and of prompts, if the layers are all of one shape."""
        return (self._own[0], self._shared[0]) if len(self._own) == 1 else None

    def trim(self) -> None:
        """Give back the room of rows and prompts that are gone."""
        for stores, kept in ((self._own, self.rows), (self._shared, self.prompts)):
            for store in stores:
                room = grown(0, max((one.length for one in kept), default=0))
                store.resize(min(store.places, len(kept)), min(store.room, room))

    @property
    def nbytes(self) -> int:
        """What the stores take, in bytes."""
        data = (store.data for store in (*self._own, *self._shared))
        return sum(t.numel() * t.element_size() for t in data)

    @property
    def positions(self) -> list[int]:
        """The position of the token that each live row is fed next."""
        return [row.prompt.length + row.length for row in self.rows]

    # What the model calls -------------------------------------------------------------------------

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store the new token's keys and values `[R, G, 1, C]` of one layer."""
        step = self._layout(key_states.device)
        if not self.is_checked:
            self._given = key_states, value_states
        given = key_states, value_states
        key_states, value_states = (as_heads(t, self.streams) for t in given)
        if step.own_length is not None:  # all rows are equally long: one slice
            keys, values = step.new[layer_idx]
            keys.copy_(key_states)
            values.copy_(value_states)
        else:
            keys, values = step.own[layer_idx]
            keys[step.rows, :, step.own_lengths] = key_states[:, :, 0]
            values[step.rows, :, step.own_lengths] = value_states[:, :, 0]
        return given

    def attend(
        self,
        layer_idx: int,
        query: Float[Tensor, "R H 1 C"],
        scale: float,
        window: int,
        softcap: float | None,
        sinks: Float[Tensor, " H"] | None,
        further: tuple[Tensor, Tensor] | None = None,
        prompt_query: Float[Tensor, "R H 1 C"] | None = None,
    ) -> Float[Tensor, "R 1 H C"]:
        """One layer's attention of every live row's new token to its prompt (by `prompt_query`, if
        a coupling says so), its own completion and, by `further` with its log-sum-exp, what a
        coupling reads beside them."""
        step = self._layout(query.device)
        rows, heads, _, dim = query.shape
        own_keys, own_values = step.own[layer_idx]
        kv_heads = own_keys.shape[1]
        per_kv = query.reshape(rows, kv_heads, heads // kv_heads, dim)  # R G Q C
        mask = step.own_mask(window, query.dtype)
        own, own_lse = attend_partially(per_kv, own_keys, own_values, mask, scale, softcap)
        if prompt_query is not None:
            per_kv = prompt_query.reshape(per_kv.shape)
        if step.prompt_rows is None:  # one prompt: its rows lie in order already
            spread = per_kv.transpose(0, 1).reshape(1, kv_heads, -1, dim)
        else:
            spread = per_kv[step.prompt_rows].transpose(1, 2).flatten(2, 3)  # N G MQ C
        mask = step.shared_mask(window, query.dtype, heads // kv_heads)
        shared, shared_lse = attend_partially(spread, *step.shared[layer_idx], mask, scale, softcap)
        shared, shared_lse = step.to_rows(shared, rows), step.to_rows(shared_lse, rows)
        out = merge(own, own_lse, shared, shared_lse)
        lse = own_lse
        if sinks is not None or further is not None:
            lse = torch.logaddexp(own_lse, shared_lse)
        if further is not None:
            part, part_lse = further[0].view_as(out), further[1].view_as(lse)
            if self.notes_further:
                self.further.append(torch.sigmoid(part_lse - lse).view(rows, heads))
            out, lse = merge(out, lse, part, part_lse), torch.logaddexp(lse, part_lse)
        if sinks is not None:  # a sink takes its share of the softmax and gives nothing
            out = out * torch.sigmoid(lse - sinks.view(kv_heads, -1)).unsqueeze(-1).to(out.dtype)
        return out.view(rows, 1, heads, dim)

    def note_asking(self, layer_idx: int, key: Tensor, value: Tensor, window: int) -> None:
        """Remember that a layer asked for its attention to what it had just stored, and to nothing
        made of it."""
        if self._given is not None and self._given[0] is key and self._given[1] is value:
            self.asked[layer_idx] = window
        self._given = None

    def check_asked(self, base: PreTrainedModel, kept: Sequence[int]) -> None:
        """Refuse what the first step shows: a layer that did not ask, or with another window than
        the prefill's cache has kept for it."""
        for layer, window in enumerate(kept):
            if layer not in self.asked:
                raise not_shareable(
                    base, f"computes the attention of layer {layer} in a way of its own"
                )
            if self.asked[layer] != window:
                raise not_shareable(
                    base,
                    f"has in layer {layer} a sliding window of {window} in its cache and of "
                    f"{self.asked[layer]} in its attention (0 is none)",
                )
        self.is_checked = True

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Longest sequence stored so far; models that are given position ids need no more."""
        return max(self.positions, default=0)

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Models that build a mask nevertheless get one of this size; it is not used."""
        return self.get_seq_length() + query_length, 0

    def _layout(self, device: torch.device) -> StepLayout:
        """What all layers on a device share, made when the first of them asks for it."""
        if device not in self._layouts:
            if not self._is_in_step:
                raise RuntimeError("No step was begun; begin_step comes before the forward.")
            self._layouts[device] = self._laid_out(device)
        return self._layouts[device]

    def _laid_out(self, device: torch.device) -> StepLayout:
        step = StepLayout(
            [row.prompt.place for row in self.rows],
            [row.length for row in self.rows],
            [prompt.length for prompt in self.prompts],
            device,
        )
        rows = len(self.rows)
        for own, shared in zip(self._own, self._shared, strict=True):
            if own.data.device == device:
                step.own |= own.views(rows, 0, step.longest)
                step.shared |= shared.views(step.prompts, 0, step.longest_prompt)
                if step.own_length is not None:
                    step.new |= own.views(rows, step.own_length, step.longest)
        return step


def shared_attention(
    module: nn.Module,
    query: Float[Tensor, "R H 1 C"],
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Float[Tensor, " H"] | None = None,
    **kwargs: Any,
) -> tuple[Float[Tensor, "R 1 H C"], None]:
    """Hugging Face's attention interface, answered by the active `SharedCache`."""
    if attention_mask is not None:
        raise GenerationError(
            f"{type(module).__name__} hides positions by a mask of its own, which the shared keys "
            "and values do not know; the engine cannot run such a model. Use model.generate "
            "instead."
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    cache = active_cache.get()
    layer_idx: Any = module.layer_idx
    if not cache.is_checked:
        cache.note_asking(layer_idx, key, value, sliding_window or 0)
    asked, further = query, None
    if cache.has_further_part:
        asked, further = in_step(query, key, value, scale, softcap)
    window, streams = sliding_window or 0, cache.streams
    sinks = s_aux if s_aux is None or streams == 1 else s_aux.repeat(streams)
    query, asked = as_heads(query, streams), as_heads(asked, streams)
    out = cache.attend(layer_idx, query, scale, window, softcap, sinks, further, asked)
    if streams > 1:
        out = out.unflatten(2, (streams, -1)).transpose(1, 2).flatten(0, 1)
    return (attended(out) if cache.is_changed_after else out), None


def as_heads(of_streams: Float[Tensor, "RP H U C"], streams: int) -> Float[Tensor, "R PH U C"]:
    """The streams of a row as further heads of it."""
    return of_streams if streams == 1 else of_streams.unflatten(0, (-1, streams)).flatten(1, 2)


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


class StepLayout:
    """What every layer of one decode step shares: which rows answer which prompt, and the masks."""

    def __init__(
        self,
        row_prompts: list[int],
        row_lengths: list[int],
        prompt_lengths: list[int],
        device: torch.device,
    ) -> None:
        self.device = device
        # Of each layer: the rows' completions, the place of their new tokens, and the prompts.
        self.own: dict[int, tuple[Tensor, Tensor]] = {}
        self.new: dict[int, tuple[Tensor, Tensor]] = {}
        self.shared: dict[int, tuple[Tensor, Tensor]] = {}
        self.longest = max(row_lengths) + 1
        self.own_length = row_lengths[0] if len(set(row_lengths)) == 1 else None
        self.own_lengths: Int[Tensor, " R"] = torch.tensor(row_lengths, device=device)
        self.rows: Int[Tensor, " R"] = torch.arange(len(row_lengths), device=device)
        self.prompts = len(prompt_lengths)
        self.longest_prompt = max(prompt_lengths)
        self.prompt_lengths = torch.tensor(prompt_lengths, device=device)
        self.row_prompts: Int[Tensor, " R"] = torch.tensor(row_prompts, device=device)
        self._even_prompts = len(set(prompt_lengths)) == 1
        self.prompt_rows: Int[Tensor, "N M"] | None = None
        self._row_places: Int[Tensor, " R"] | None = None
        if self.prompts > 1:
            self._lay_out(row_prompts)
        self._masks: dict[tuple[str, int], Tensor | None] = {}

    def _lay_out(self, row_prompts: list[int]) -> None:
        """Rows side by side under their prompt, in a rectangle whose gaps repeat row 0."""
        members: list[list[int]] = [[] for _ in range(self.prompts)]
        for row, prompt in enumerate(row_prompts):
            members[prompt].append(row)
        most = max(len(m) for m in members)
        self.prompt_rows = torch.tensor(
            [m + [0] * (most - len(m)) for m in members], device=self.device
        )
        places = [0] * len(row_prompts)
        for prompt, rows in enumerate(members):
            for place, row in enumerate(rows):
                places[row] = prompt * most + place
        self._row_places = torch.tensor(places, device=self.device)

    def to_rows(self, spread: Tensor, rows: int) -> Tensor:
        """`[N, G, MQ, ...]` back to `[R, G, Q, ...]`."""
        if self._row_places is None:
            return spread[0].unflatten(1, (rows, -1)).transpose(0, 1)
        assert self.prompt_rows is not None
        per_row = spread.unflatten(2, (self.prompt_rows.shape[1], -1)).transpose(1, 2).flatten(0, 1)
        return per_row[self._row_places]

    def own_mask(self, window: int, dtype: torch.dtype) -> Float[Tensor, "R 1 1 T"] | None:
        """Which of its completion's positions a row sees; None when all."""
        if ("own", window) in self._masks:
            return self._masks["own", window]
        self._masks["own", window] = None
        if self.own_length is not None and not 0 < window < self.longest:
            return None
        column = torch.arange(self.longest, device=self.device)
        now = self.own_lengths[:, None]
        seen = column <= now
        if window:
            seen &= column > now - window
        self._masks["own", window] = mask = additive(seen, dtype)[:, None, None]
        return mask

    def shared_mask(
        self, window: int, dtype: torch.dtype, per_kv: int
    ) -> Float[Tensor, "N 1 MQ U"] | None:
        """Which of their prompt's positions the rows see; None when all."""
        if ("shared", window) in self._masks:
            return self._masks["shared", window]
        self._masks["shared", window] = None
        windowed = 0 < window < self.longest_prompt + self.longest
        if self._even_prompts and not windowed:
            return None
        column = torch.arange(self.longest_prompt, device=self.device)
        seen: Bool[Tensor, "N M U"] = (column < self.prompt_lengths[:, None])[:, None]
        if windowed:
            now = self.prompt_lengths[self.row_prompts] + self.own_lengths
            rows = self.rows[None] if self.prompt_rows is None else self.prompt_rows
            seen = seen & (column > (now[rows] - window)[..., None])
        mask = additive(seen, dtype)[:, None]
        mask = mask.repeat_interleave(per_kv, dim=2) if windowed else mask
        self._masks["shared", window] = mask
        return mask


def additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where seen; elsewhere finite, so that a part of which nothing is seen keeps a finite
    weight, which the merge then makes exactly zero."""
    return torch.zeros_like(seen, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min / 4)


# Torch's fused CPU attention also returns the log-sum-exp, but only through this private operator.
fused_cpu: Any = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
_FUSED_DTYPES = (torch.float32, torch.bfloat16)


def attend_partially(
    query: Float[Tensor, "B G N C"],
    keys: Float[Tensor, "B G U C"],
    values: Float[Tensor, "B G U V"],
    mask: Float[Tensor, "B 1 #N U"] | None,
    scale: float,
    softcap: float | None = None,
) -> tuple[Float[Tensor, "B G N V"], Float[Tensor, "B G N"]]:
    """softmax(softcap(Q K^T scale) + mask) V over these keys alone, and the scores' log-sum-exp."""
    fused = fused_cpu is not None and query.device.type == "cpu" and softcap is None
    fused = fused and keys.shape[-1] == values.shape[-1]
    if fused and query.dtype in _FUSED_DTYPES:
        out, lse = fused_cpu(query, keys, values, 0.0, False, attn_mask=mask, scale=scale)
        return out, lse
    return _portable(query, keys, values, mask, scale, softcap)


def _portable(
    query: Float[Tensor, "B G N C"],
    keys: Float[Tensor, "B G U C"],
    values: Float[Tensor, "B G U V"],
    mask: Float[Tensor, "B 1 #N U"] | None,
    scale: float,
    softcap: float | None,
) -> tuple[Float[Tensor, "B G N V"], Float[Tensor, "B G N"]]:
    scores = query @ keys.transpose(-1, -2)
    scores = (scores if scores.dtype == torch.float64 else scores.float()) * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:
        scores = scores + mask
    lse = scores.logsumexp(dim=-1)
    return (scores - lse.unsqueeze(-1)).exp().to(values.dtype) @ values, lse


def merge(
    a: Float[Tensor, "B G N C"],
    a_lse: Float[Tensor, "B G N"],
    b: Float[Tensor, "B G N C"],
    b_lse: Float[Tensor, "B G N"],
) -> Float[Tensor, "B G N C"]:
    """The attention over both parts' keys, from the attention over each; exact. Equation (13)."""
    share = torch.sigmoid(b_lse - a_lse).unsqueeze(-1).to(a.dtype)
    return torch.lerp(a, b, share)


def not_shareable(base: PreTrainedModel, what: str) -> GenerationError:
    """The error for a model that cannot share a prompt's keys and values: it would sample wrong
    tokens in silence."""
    return GenerationError(
        f"{type(base).__name__} {what}; the engine, which shares a prompt's keys and values among "
        "rows, cannot run it. Use model.generate instead."
    )
