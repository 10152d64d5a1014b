"""What computes a model for the engine, by name."""

from __future__ import annotations

import os

from torch import nn

from interlace.attached import base_model_of
from interlace.engine.backends.cpu import CPUBackend, why_not_packed
from interlace.engine.backends.graph import GraphBackend
from interlace.engine.backends.hf import HFBackend
from interlace.engine.backends.native import SWITCH, NativeBackend
from interlace.errors import GenerationError

BACKENDS: dict[str, type[HFBackend]] = {
    backend.name: backend for backend in (HFBackend, CPUBackend, GraphBackend, NativeBackend)
}


def choose_backend(name: str, model: nn.Module, prefill_chunk: int) -> HFBackend:
    """The backend of this name for a model; "auto" is the fastest that can run the model here.

    Raises:
        GenerationError: for a name that is none, or a model that the backend cannot run.
    """
    if name == "auto":
        own = "native" if os.environ.get(SWITCH) == "1" else "cpu"
        name = "hf" if why_not_packed(base_model_of(model)) else own
    if name not in BACKENDS:
        raise GenerationError(
            f"backend is 'auto' or one of {', '.join(map(repr, BACKENDS))}; got {name!r}."
        )
    return BACKENDS[name](model, prefill_chunk)
