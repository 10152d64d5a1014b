"""The backend for CPUs: Hugging Face's modules with weights packed for oneDNN.

They take as much memory again as the model's linears.
"""

from __future__ import annotations

import torch
from torch import nn

from interlace.engine.backends.hf import HFBackend
from interlace.engine.backends.host import Borrowed, Twin, can_have_twin
from interlace.engine.backends.packed import PackedWeights, why_not_packed
from interlace.errors import GenerationError


class CPUBackend(HFBackend):
    """The portable backend on a twin whose linears and blocks use packed products."""

    name = "cpu"

    def __init__(self, model: nn.Module, prefill_chunk: int) -> None:
        super().__init__(model, prefill_chunk)
        reason = why_not_packed(self.base)
        if reason is not None:
            raise GenerationError(
                f"The cpu backend packs weights for oneDNN, and {reason}. Use backend='hf', or "
                "'auto', which chooses."
            )
        self.packed = PackedWeights()
        self._packed_host: Twin | None = None

    def refresh(self) -> None:
        super().refresh()
        self._packed_host = None
        if can_have_twin(self.model):
            twin = Twin(self.model)
            twin.patch(self.packed.refresh(twin.model))
            self._packed_host = twin

    def _host_of_pass(self) -> Twin | Borrowed:
        if self._packed_host is None or torch.is_autocast_enabled(self.device.type):
            return super()._host_of_pass()  # packed products know no autocast
        return self._packed_host
