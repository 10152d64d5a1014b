"""The model's own Hugging Face forward: the portable backend.

Axes: B prompts, R live rows, S positions, V vocabulary, L layers with blocks, U prompt positions,
C head dim.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface, DynamicCache

from interlace.attaching import get_attachment, is_attached
from interlace.coupling.base import Coupling
from interlace.engine.architecture import check_step, keys_and_values, windows_of
from interlace.engine.backends.base import Backend
from interlace.engine.backends.host import Borrowed, Patch, Twin, host_of
from interlace.engine.kept import KeptKeys
from interlace.engine.kv import (
    ATTENTION,
    SharedCache,
    Slot,
    StoredPrompt,
    active_cache,
    shared_attention,
)
from interlace.layers import base_model_of
from interlace.rows import Owners, Prompts, Rows

AttentionInterface.register(ATTENTION, shared_attention)

_MOST_PADDING = 2  # a prompt goes with others of at most so many times the shortest one's length


class HFBackend(Backend):
    """Hugging Face's modules with our attention; keys and values in a `SharedCache`."""

    name = "hf"
    seats = ("input", "attention", "layer", "head")
    reads = ("finished", "history")

    def __init__(self, model: nn.Module, prefill_chunk: int) -> None:
        super().__init__(model, prefill_chunk)
        self._host: Twin | Borrowed | None = None
        self._is_fresh = False
        self._takes_groups = False
        self._cache = SharedCache()
        self._kept = KeptKeys()
        self._owners: Owners | None = None  # of the live rows, until one comes or goes
        self._group_numbers = count()
        self._windows: list[int] = []  # of each layer, in the cache of the last prefill
        self._recording: Twin | Borrowed | None = None  # whose blocks note their attention
        self._seen: list[Tensor] | None = None  # what they note in a step that is recorded
        parameters = inspect.signature(self.base.forward).parameters
        self._picks_logits = "logits_to_keep" in parameters

    def refresh(self) -> None:
        self._check_coupling()
        self._takes_groups = is_attached(self.base)
        if not self._cache.rows:
            self._kept = self._new_kept()
        self._host = None  # made by the first pass that needs it
        self._is_fresh = True

    def _new_kept(self) -> KeptKeys:
        if not self._takes_groups or get_attachment(self.base).config.reads == "position":
            return KeptKeys()
        attachment = get_attachment(self.base)
        blocks: list[Any] = [self.base.get_submodule(name) for name in attachment.block_names]
        sizes = (2 * b.kv_size * b.qkv_weight.element_size() for b in blocks)
        return KeptKeys(attachment.config.reads, sum(sizes))

    def _fresh_host(self) -> Twin | Borrowed:
        if not self._is_fresh:  # by whoever calls the core without the engine
            self.refresh()
        return self._host_of_pass()

    def _host_of_pass(self) -> Twin | Borrowed:
        if self._host is None:
            self._host = host_of(self.model)
        return self._host

    # Prompts --------------------------------------------------------------------------------------

    def passes(self, lengths: Sequence[int]) -> list[list[int]]:
        """Short prompts of like length together, as many as make one chunk."""
        if self._has_windows():
            return super().passes(lengths)
        passes: list[list[int]] = []
        for place in sorted(range(len(lengths)), key=lambda place: lengths[place]):
            length = lengths[place]
            if passes:
                fits = (len(passes[-1]) + 1) * length <= self._chunk
                if fits and length <= _MOST_PADDING * lengths[passes[-1][0]]:
                    passes[-1].append(place)
                    continue
            passes.append([place])
        return passes

    def _has_windows(self) -> bool:
        """Whether a layer's cache keeps the last positions only: then of padded ones."""
        cache = DynamicCache(config=self.base.config)
        return any(windows_of(cache))

    @torch.inference_mode()
    def prefill(
        self, prompts: Sequence[Sequence[int]], alone: Sequence[bool] = ()
    ) -> tuple[list[StoredPrompt], Float[Tensor, "B V"]]:
        flags = list(alone) or [False] * len(prompts)
        if len(prompts) > 1 and not self._has_windows():
            computed = self._prefill_together(prompts, flags)
        else:
            computed = [self._prefill(*each) for each in zip(prompts, flags, strict=True)]
        stored = [
            self._cache.add_prompt(keys_values, len(prompt))
            for prompt, (keys_values, _) in zip(prompts, computed, strict=True)
        ]
        return stored, torch.cat([logits for _, logits in computed])

    def _rows_of_prompts(self, alone: Sequence[bool]) -> dict[str, Rows]:
        return {"groups": Prompts(alone)} if self.skips_alone else {}

    def _prefill(
        self, token_ids: Sequence[int], alone: bool
    ) -> tuple[list[tuple[Float[Tensor, "1 G U C"], Float[Tensor, "1 G U C"]]], Tensor]:
        """With the attention implementation that the model was loaded with. Equation (12)."""
        cache = DynamicCache(config=self.base.config)
        ids = torch.tensor([list(token_ids)], device=self.device)
        positions = torch.arange(len(token_ids), device=self.device)[None]
        last_only = {"logits_to_keep": 1} if self._picks_logits else {}
        host = self._fresh_host()
        with host.ready(None):
            for start in range(0, len(token_ids), self._chunk):
                stop = start + self._chunk
                out = host.model(
                    input_ids=ids[:, start:stop],
                    position_ids=positions[:, start:stop],
                    past_key_values=cache,
                    use_cache=True,
                    **self._rows_of_prompts([alone]),
                    **last_only,
                )
        self._windows = windows_of(cache)
        return keys_and_values(self.base, cache), out.logits[:, -1].to(self.device)

    def _prefill_together(
        self, prompts: Sequence[Sequence[int]], alone: Sequence[bool]
    ) -> list[tuple[list[tuple[Float[Tensor, "1 G U C"], Float[Tensor, "1 G U C"]]], Tensor]]:
        """Padded at their ends: no token sees those after it, so no mask is needed."""
        lengths = [len(prompt) for prompt in prompts]
        longest = max(lengths)
        padded = [[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts]
        cache = DynamicCache(config=self.base.config)
        positions = torch.arange(longest, device=self.device).expand(len(prompts), -1)
        ends = sorted({length - 1 for length in lengths})
        if not self._picks_logits:
            ends = list(range(longest))
        wanted = {"logits_to_keep": torch.tensor(ends, device=self.device)}
        host = self._fresh_host()
        with host.ready(None):
            out = host.model(
                input_ids=torch.tensor(padded, device=self.device),
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                **self._rows_of_prompts(alone),
                **(wanted if self._picks_logits else {}),
            )
        self._windows = windows_of(cache)
        stored = keys_and_values(self.base, cache)
        return [
            (
                [(k[b : b + 1, :, :length], v[b : b + 1, :, :length]) for k, v in stored],
                out.logits[b : b + 1, ends.index(length - 1)].to(self.device),
            )
            for b, length in enumerate(lengths)
        ]

    # Rows -----------------------------------------------------------------------------------------

    def open(self, prompt: StoredPrompt, maxima: Sequence[int]) -> list[Slot]:
        self._owners = None
        slots = self._cache.add_rows(prompt, next(self._group_numbers), maxima)
        self._kept.open(slots)
        return slots

    @torch.inference_mode()
    def decode(
        self, tokens: Sequence[int], slots: Sequence[Slot], recording: bool = False
    ) -> tuple[Float[Tensor, "R V"], Float[Tensor, "L R R"] | None]:
        cache = self._cache
        if self._owners is None:
            owners, alone = [r.owner for r in cache.rows], [r.alone for r in cache.rows]
            self._owners = Owners(owners, self.device, alone=alone, kept=self._kept)
        cache.begin_step()
        self._kept.begin_step(cache.rows)
        places = [slot.place for slot in slots]
        ids = torch.tensor(tokens, device=self.device)[:, None]
        positions = torch.tensor(cache.positions, device=self.device)[:, None]
        in_order = places == list(range(len(places)))
        if not in_order:
            ids = torch.empty_like(ids).index_copy_(0, torch.tensor(places, device=ids.device), ids)
        host = self._fresh_host()
        if recording and self._recording is not host:
            host.patch(self._recorders(host.model))
            self._recording = host
        self._seen = [] if recording else None
        token = active_cache.set(cache)
        try:
            with host.ready(ATTENTION):
                out = host.model(
                    input_ids=ids,
                    position_ids=positions,
                    past_key_values=cache,
                    use_cache=True,
                    **({"groups": self._owners} if self._takes_groups else {}),
                )
        finally:
            active_cache.reset(token)
            seen, self._seen = self._seen, None
        if not cache.is_checked:
            check_step(self.base, self._windows, cache.asked)
            cache.is_checked = True
        logits, weights = out.logits[:, -1].to(self.device), torch.stack(seen) if seen else None
        if in_order:
            return logits, weights
        return logits[places], None if weights is None else weights[:, places][:, :, places]

    def advance(self) -> None:
        self._kept.end_step()
        self._cache.end_step()

    @torch.inference_mode()
    def release(self, gone: Slot | StoredPrompt) -> None:
        if isinstance(gone, StoredPrompt):
            self._cache.remove_prompt(gone)
        else:
            self._kept.finish(gone)
            self._cache.remove_row(gone)
            self._owners = None

    def clear(self) -> None:
        self._cache, self._kept = SharedCache(), self._new_kept()
        self._owners = None

    @torch.inference_mode()
    def room(self, maxima: Sequence[int], prompts: Sequence[int], memory: int) -> bool:
        needed, at_most = self._cache.bytes_with(maxima, prompts)
        of_blocks = self._kept.bytes_with(maxima)
        needed, at_most = needed + of_blocks, at_most + max(of_blocks, self._kept.nbytes)
        if at_most > memory and (needed <= memory or not self._cache.rows):
            self._cache.trim()
            self._kept.trim()
        return needed <= memory

    @property
    def nbytes(self) -> int:
        return self._cache.nbytes + self._kept.nbytes

    # Who attends to whom --------------------------------------------------------------------------

    def _recorders(self, model: nn.Module) -> list[Patch]:
        """Blocks that note their attention, averaged over heads, in a step that is recorded."""
        if not self._takes_groups:
            return []
        base = base_model_of(model)
        blocks = [base.get_submodule(name) for name in get_attachment(base).block_names]
        return [
            (block, "step", functools.partial(self._noted, block, block.step))
            for block in blocks
            if isinstance(block, Coupling) and "layer" in block.seats
        ]

    def _noted(
        self, block: Coupling, step: Callable[[Tensor, Rows], Tensor], x: Any, rows: Rows
    ) -> Tensor:
        if self._seen is not None:
            weights = block.attention_weights(x, rows)
            if weights is not None:
                self._seen.append(weights[0, 0].mean(dim=0).float().to(self.device))
        return step(x, rows)
