"""A step whose shapes and addresses do not change, captured on a GPU and played again.

Axes: R live rows, L layers with blocks, V vocabulary.

Rows have slots (slots.py), lengths, owners and masks lie on the device, and so does the choice of
tokens where a request's parameters allow it. Then the device goes from step to step on its own:
tokens are read while the next step is computed, so the host sees them one step late. It is the
device that ends a row there, by stop tokens and maxima, so that no sibling sees it any longer than
it should.

On a CPU the same step runs without being captured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interlace.engine.backends.flat import FlatBackend, OwnProduct, flatten, why_not_flat
from interlace.engine.backends.hf import Twin, can_have_twin
from interlace.engine.kv import Ahead, Slot, StoredPrompt
from interlace.engine.sampling import Workspace, draw_on_device, uniforms_on_device
from interlace.engine.slots import Fields, Shape, SlotAttention, SlotCache
from interlace.errors import GenerationError
from interlace.rows import NOBODY, Owners

_MOVING_ROTARY = ("dynamic", "longrope")  # their frequencies depend on the longest row


@dataclass
class _Captured:
    """A step that plays again, and the tensors that it leaves its results in."""

    graph: Any
    results: tuple[Tensor, ...]


@dataclass
class _Flight:
    """A step whose tokens the host has not read."""

    slots: list[Slot]
    results: tuple[Tensor, ...]
    arrival: Any  # the event of a GPU; None where results are there


class GraphBackend(FlatBackend):
    """The decoder as one function over slots; captured as CUDA graphs, one for each shape."""

    name = "graph"
    seats = ("layer",)
    reads = ()
    draws = True

    _cache: SlotCache  # type: ignore[assignment]

    def __init__(self, model: nn.Module, prefill_chunk: int) -> None:
        super().__init__(model, prefill_chunk)
        self._cache = SlotCache()
        self._check_flat(self.base)
        self._staged: set[Slot] = set()  # rows that go from step to step on the device
        self._flight: _Flight | None = None
        self._captured: dict[Any, _Captured | None] = {}  # None: computed once, captured next
        self._known: Any = None  # addresses that captured steps hold
        self._pool: Any = None  # the memory in which they compute, one after the other

    def _check_flat(self, base: Any) -> None:
        rope = getattr(base.config.get_text_config(decoder=True), "rope_parameters", None) or {}
        reason = why_not_flat(base)
        if reason is None and rope.get("rope_type") in _MOVING_ROTARY:
            reason = f"its rotary positions are {rope['rope_type']}"
        if reason is None and not can_have_twin(self.model):
            reason = "something outside holds on to its modules"
        if reason is not None:
            raise GenerationError(
                f"The graph backend computes a model as one static function, and {reason}. Use "
                "backend='auto'."
            )

    def refresh(self) -> None:
        super().refresh()
        twin = Twin(self.model)
        base: Any = twin.model.get_submodule(self._base_path)
        self._check_flat(base)
        self._host = twin
        self._flat = flatten(base, lambda name, linears, norm: OwnProduct(linears, norm))

    def clear(self) -> None:
        self._cache.clear()
        self._workspace = Workspace()
        self._staged, self._flight = set(), None

    def release(self, gone: Slot | StoredPrompt) -> None:
        super().release(gone)
        if isinstance(gone, Slot):
            self._staged.discard(gone)

    # Steps that the host draws for ----------------------------------------------------------------

    @torch.inference_mode()
    def decode(
        self, tokens: Sequence[int], slots: Sequence[Slot], recording: bool = False
    ) -> tuple[Float[Tensor, "R V"], Float[Tensor, "L R R"] | None]:
        self._staged.clear()
        self._cache.stage("ids", slots, tokens)
        self._cache.stage("lengths", slots, [slot.length for slot in slots])
        self._record(recording, self._fresh_host())
        try:
            (logits,) = self._play(draws=False)
        finally:
            seen, self._seen = self._seen, None
        places = torch.tensor([slot.place for slot in slots]).to(self.device)
        weights = torch.stack(seen)[:, places][:, :, places] if seen else None
        return logits[places], weights

    def advance(self) -> None:
        for row in self._cache.rows:
            row.length += 1

    # Steps that the device draws for --------------------------------------------------------------

    @property
    def is_ahead(self) -> bool:
        return self._flight is not None

    @torch.inference_mode()
    def draw(
        self, slots: Sequence[Slot], tell: Callable[[Slot], Ahead], go_on: bool
    ) -> tuple[list[Slot], list[list[float]]]:
        try:
            flight = self._flight or self._launch(slots, tell)
            self._flight = self._launch(slots, tell) if go_on else None
            if flight.arrival is not None:
                flight.arrival.synchronize()
        except BaseException:  # from where the host is, later
            self._staged, self._flight = set(), None
            for slot in slots:
                slot.length = tell(slot).length
            raise
        columns = [result.tolist() for result in flight.results]
        still = [slot for slot in flight.slots if self._is_live(slot)]
        return still, [[column[slot.place] for column in columns] for slot in still]

    def _is_live(self, slot: Slot) -> bool:
        slots = self._cache.slots
        return slot.place < len(slots) and slots[slot.place] is slot

    def _launch(self, slots: Sequence[Slot], tell: Callable[[Slot], Ahead]) -> _Flight:
        """Begin a step, and have its results come to the host."""
        self._stage([slot for slot in slots if slot not in self._staged], tell)
        results = self._play(draws=True)
        for slot in slots:
            slot.length += 1
        if self.device.type != "cuda":
            return _Flight(list(slots), tuple(result.clone() for result in results), None)
        here = tuple(torch.empty_like(r, device="cpu", pin_memory=True) for r in results)
        for target, source in zip(here, results, strict=True):
            target.copy_(source, non_blocking=True)
        arrival = torch.cuda.Event()
        arrival.record()
        return _Flight(list(slots), here, arrival)

    def _stage(self, slots: Sequence[Slot], tell: Callable[[Slot], Ahead]) -> None:
        """Give the device what it needs of rows that the host has drawn for until now."""
        if not slots:
            return
        cache, told = self._cache, [tell(slot) for slot in slots]
        cache.stage("ids", slots, [one.token for one in told])
        cache.stage("lengths", slots, [one.length for one in told])
        cache.stage("owners", slots, [slot.owner for slot in slots])
        cache.stage("keys", slots, [one.key for one in told])
        cache.stage("maxima", slots, [slot.maximum for slot in slots])
        cache.stage("temperature", slots, [one.temperature for one in told])
        cache.stage_lists("forbidden", slots, [one.forbidden for one in told])
        cache.stage_lists("stops", slots, [one.stops for one in told])
        self._staged |= set(slots)

    # One step -------------------------------------------------------------------------------------

    def _play(self, draws: bool) -> tuple[Tensor, ...]:
        """The step over the slots as they are now, played again where it was captured. The first
        step of a shape is computed outright, the second is captured: a capture computes nothing,
        and what it calls has to have run before."""
        shape, device = self._cache.of_step(), self.device
        if device.type != "cuda" or self._seen is not None:
            return self._step(shape, draws)
        self._forget_what_moved()
        key = shape, draws
        captured = self._captured.get(key)
        if captured is None and key not in self._captured:
            self._captured[key] = None
            return self._step(shape, draws)
        if captured is None:
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool):
                results = self._step(shape, draws)
            captured = self._captured[key] = _Captured(graph, results)
        captured.graph.replay()
        return captured.results

    def _forget_what_moved(self) -> None:
        """Captured steps hold addresses, of weights, too, and which blocks are switched off."""
        attachment = self._attachment
        off = attachment is not None and attachment.handle.disabled > 0
        weights = tuple(p.data_ptr() for p in self.base.parameters())
        known = self._cache.version, id(attachment), off, weights
        if known != self._known:
            self._captured.clear()
            self._known = known

    def _step(self, shape: Shape, draws: bool) -> tuple[Tensor, ...]:
        """Feed every slot's token. The logits after it; or, where the device draws, each slot's
        token and its two log-probabilities, and all is ready for the next step."""
        cache = self._cache
        assert self._flat is not None
        part = cache.fields.part(shape)
        attend = SlotAttention(
            part,
            cache.own[:, : shape.rows, :, : shape.positions],
            cache.shared[:, : shape.prompts, :, : shape.prompt_positions],
        )
        alone = part.alone if self.skips_alone else ()
        rows = Owners(part.owners, alone=alone, hidden=part.hidden)
        ids, positions = part.ids[:, None], attend.positions[:, None]
        x = self._flat(ids, positions, attend, self._couple(rows, shape.rows))
        logits = self._flat.head(x)
        if not draws:
            return (logits,)
        return _drawn(part, logits)


def _drawn(part: Fields, logits: Float[Tensor, "R V"]) -> tuple[Tensor, Tensor, Tensor]:
    """Each slot's next token, put where the next step finds it; rows that end with it have no owner
    any more."""
    lives = part.owners != NOBODY
    steps = part.lengths + 1  # the first token came from the prompt
    uniform = uniforms_on_device(part.keys, steps)
    # Memory of its own: what captured steps share must not be replaced by a larger one.
    workspace = Workspace()
    drawn = draw_on_device(logits, uniform, part.temperature, part.forbidden, workspace)
    part.lengths += lives
    part.ids.copy_(torch.where(lives, drawn[0], part.ids))
    ends = (drawn[0][:, None] == part.stops).any(dim=-1) | (steps + 1 >= part.maxima)
    part.owners.masked_fill_(ends, NOBODY)
    return drawn
