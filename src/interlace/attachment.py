"""What is attached to a model, and what a user does with it: switch it off for a while, count."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedModel

from interlace.coupling.base import AT_MODEL, Coupling
from interlace.coupling.config import CouplingConfig
from interlace.coupling.registry import coupling_class
from interlace.errors import AttachError


class Handle:
    """What an attachment shares with its model and with every layer that carries a block.

    A copied model gets one of its own, on which nothing is switched off.

    Attributes:
        disabled: how many `disabled()` contexts are open.
    """

    def __init__(self, model: PreTrainedModel | None = None) -> None:
        self.disabled = 0
        self._lock = threading.Lock()
        # Weak: the model holds its attachment, and large models must go when they are let go.
        self._model = None if model is None else weakref.ref(model)

    def switch(self, by: int) -> None:
        """Open or close a context, from any thread."""
        with self._lock:
            self.disabled += by

    def follow(self, model: PreTrainedModel) -> None:
        """Belong to `model`, unless the one it belonged to is still there."""
        if self._model is None or self._model() is None:
            self._model = weakref.ref(model)

    @property
    def model(self) -> PreTrainedModel | None:
        """The model; None when it is gone."""
        return None if self._model is None else self._model()

    def __reduce__(self) -> tuple[Any, ...]:
        return Handle, ()  # for copies and pickles


@dataclass(frozen=True)
class Attachment:
    """What is attached to a model: the resolved configuration, and the paths of the layers that
    carry blocks."""

    config: CouplingConfig
    layer_names: tuple[str, ...]
    handle: Handle = field(default_factory=Handle, repr=False, compare=False)

    @property
    def coupling(self) -> type[Coupling]:
        """The class of the kind: what it does, and what it needs."""
        return coupling_class(self.config.kind)

    @property
    def block_names(self) -> list[str]:
        """Paths of the blocks in the model, the prefixes of every new parameter's name: those of
        layers in order, then that of the model as a whole."""
        kind = self.config.kind
        at_model = [kind] if set(self.coupling.seats) & set(AT_MODEL) else []
        return [*(f"{name}.{kind}" for name in self.layer_names), *at_model]

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Within this context the model is its base model, bit for bit: blocks are skipped.

        Forward passes, `generate` and engines go by it, in every thread that uses the model;
        `groups` are checked and have no effect. Contexts nest. A backward pass through gradient
        checkpoints computes layers again, so it belongs into the context, too.

        >>> import torch, interlace
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 32}
        >>> heads = {"num_hidden_layers": 2, "num_attention_heads": 2}
        >>> model = LlamaForCausalLM(LlamaConfig(**sizes, **heads))
        >>> attachment = interlace.attach(model, interlace.BridgeConfig(parameter_share=0.05))
        >>> with attachment.disabled():
        ...     logits = model(torch.tensor([[7, 5, 3]])).logits  # the base model's
        """
        self.handle.switch(1)
        try:
            yield
        finally:
            self.handle.switch(-1)

    def print_trainable_parameters(self) -> None:
        """Print how many parameters train and how many there are, as PEFT prints it.

        Raises:
            AttachError: if the model is gone.
        """
        model = self.handle.model
        if model is None:
            raise AttachError(
                "The model of this attachment is gone, so its parameters cannot be counted. Keep "
                "it for as long as the attachment is used."
            )
        trained, all_of_them = model.num_parameters(only_trainable=True), model.num_parameters()
        print(
            f"trainable params: {trained:,d} || all params: {all_of_them:,d} || "
            f"trainable%: {100 * trained / all_of_them:.4f}"
        )
