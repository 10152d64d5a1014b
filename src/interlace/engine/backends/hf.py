"""The model's own Hugging Face forward, as the engine calls it: a prefill, and a step of one token
a row.

Axes: R live rows, S positions, V vocabulary, L layers with blocks, U prompt positions, C head dim.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface, DynamicCache, PreTrainedModel

from interlace.attaching import get_attachment, is_attached
from interlace.coupling.base import Coupling, Seat, check_carried
from interlace.engine.architecture import (
    check_model,
    check_step,
    context_of,
    keys_and_values,
    windows_of,
)
from interlace.engine.backends.packed import PackedWeights, can_pack
from interlace.engine.kv import ATTENTION, SharedCache, active_cache, shared_attention
from interlace.layers import base_model_of
from interlace.rows import Owners

AttentionInterface.register(ATTENTION, shared_attention)


class Forward:
    """A model made ready for sampling, and put back as it was.

    Args:
        model: a Hugging Face causal language model, attached or not, or PEFT's wrapper of one.
        prefill_chunk: prompt positions computed in one pass.
        packed: use packed weights; None where they help (on the CPU).
    """

    name = "hf"
    # Where a coupling may work: the seats that a decode step of this backend carries.
    seats: tuple[Seat, ...] = ("input", "attention", "layer", "head")

    def __init__(self, model: nn.Module, prefill_chunk: int, packed: bool | None) -> None:
        self.model = model
        self.base: PreTrainedModel = base_model_of(model)
        self._chunk = prefill_chunk
        self._configs = _configs(self.base)
        self._modules: list[nn.Module] = []
        self._training: list[nn.Module] = []  # modules that were in training mode before a step
        self._attention: list[tuple[Any, str]] = []  # configurations and what they named before
        self._recorded: list[nn.Module] = []  # blocks that note their attention in a step
        self._seen: list[Tensor] = []  # what they noted
        self._takes_groups = is_attached(model)
        parameters = inspect.signature(self.base.forward).parameters
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in parameters else {}
        check_model(model, self.base)
        use_packed = can_pack(self.base) if packed is None else packed
        self._packed = PackedWeights(self.base) if use_packed else None
        self._depth = 0
        self._windows: list[int] = []  # of each layer, in the cache of the last prefill

    @property
    def device(self) -> torch.device:
        """Where token ids go in and logits come out."""
        device: torch.device = self.base.device
        return device

    @property
    def context(self) -> tuple[int | None, str]:
        """The most positions that the model gets, if that has an end, and why it ends there."""
        return context_of(self.base)

    def refresh(self) -> None:
        """Follow weights and blocks that have changed since the last call."""
        self.restore()
        self._takes_groups = is_attached(self.model)
        if self._takes_groups:
            coupling = get_attachment(self.model).coupling
            check_carried(coupling, self.seats, self.name, "Use model.generate instead.")
        self._modules = list(self.base.modules())
        if self._packed is not None:
            self._packed.refresh()

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Evaluation mode, no gradients, packed weights; nests, and restores what it found."""
        if self._depth:
            yield
            return
        own = torch.is_autocast_enabled(self.device.type)  # packed products know no autocast
        packed = self._packed.active() if self._packed and not own else contextlib.nullcontext()
        try:
            self._depth += 1
            self._training = [m for m in self._modules if m.training]
            for module in self._training:
                module.training = False
            with torch.inference_mode(), packed:
                yield
        finally:
            self.restore()

    def restore(self) -> None:
        """Put the model back as it was; again if need be, when an interrupt came in the middle."""
        self._depth = 0
        for module in self._training:
            module.training = True
        for config, name in self._attention:
            config._attn_implementation_internal = name
        if self._packed is not None:
            self._packed.restore()
        self._stop_recording()
        self._training, self._attention = [], []

    def prefill(
        self, token_ids: list[int]
    ) -> tuple[list[tuple[Float[Tensor, "1 G U C"], Float[Tensor, "1 G U C"]]], Tensor]:
        """A prompt's keys and values, and the logits `[1, V]` after its last token.

        At width 1, which is exact for every width: all rows of a group hold the same prompt
        (METHOD.md). With the attention implementation that the model was loaded with.
        """
        cache = DynamicCache(config=self.base.config)
        ids = torch.tensor([token_ids], device=self.device)
        positions = torch.arange(len(token_ids), device=self.device)[None]
        with self.ready():
            for start in range(0, len(token_ids), self._chunk):
                stop = start + self._chunk
                out = self.model(
                    input_ids=ids[:, start:stop],
                    position_ids=positions[:, start:stop],
                    past_key_values=cache,
                    use_cache=True,
                    **self._last_only,
                )
        self._windows = windows_of(cache)
        return keys_and_values(self.base, cache), out.logits[:, -1].to(self.device)

    def decode(
        self, tokens: list[int], cache: SharedCache, rows: Owners, recording: bool
    ) -> tuple[Float[Tensor, "R V"], Float[Tensor, "L R R"] | None]:
        """The logits after one more token of every live row; on request, who attended to whom."""
        ids = torch.tensor(tokens, device=self.device)[:, None]
        positions = torch.tensor(cache.positions, device=self.device)[:, None]
        groups = {"groups": rows} if self._takes_groups else {}
        token = active_cache.set(cache)
        try:
            with self.ready(), self._shared_attention(), self._recorder(recording):
                out = self.model(
                    input_ids=ids,
                    position_ids=positions,
                    past_key_values=cache,
                    use_cache=True,
                    **groups,
                )
        finally:
            active_cache.reset(token)
        if not cache.is_checked:
            check_step(self.base, self._windows, cache.asked)
            cache.is_checked = True
        return out.logits[:, -1].to(self.device), torch.stack(self._seen) if self._seen else None

    @contextmanager
    def _shared_attention(self) -> Iterator[None]:
        """Hugging Face's layers look up their attention by the name in their configuration."""
        before = [(config, config._attn_implementation_internal) for config in self._configs]
        self._attention = before
        try:
            for config in self._configs:
                config._attn_implementation_internal = ATTENTION
            yield
        finally:
            for config, name in before:
                config._attn_implementation_internal = name
            self._attention = []

    @contextmanager
    def _recorder(self, recording: bool) -> Iterator[None]:
        """Have every block that can tell note who listens to whom, averaged over heads."""
        self._seen = []
        if not recording or not self._takes_groups:
            yield
            return
        blocks = [self.base.get_submodule(n) for n in get_attachment(self.base).block_names]
        try:
            self._recorded = blocks
            for block in self._recorded:
                block.register_forward_pre_hook(self._note)
            yield
        finally:
            self._stop_recording()

    def _note(self, block: nn.Module, inputs: tuple[Any, ...]) -> None:
        assert isinstance(block, Coupling)
        weights = block.attention_weights(*inputs)
        if weights is not None:
            self._seen.append(weights[0, 0].mean(dim=0).float().to(self.device))

    def _stop_recording(self) -> None:
        for block in self._recorded:
            hooks = block._forward_pre_hooks
            for key in [key for key, hook in hooks.items() if hook == self._note]:
                del hooks[key]
        self._recorded = []


def _configs(model: PreTrainedModel) -> list[Any]:
    """Every configuration object that the model's modules read."""
    found = {id(c): c for m in model.modules() if (c := getattr(m, "config", None)) is not None}
    return [c for c in found.values() if hasattr(c, "_attn_implementation_internal")]
