"""What computes a model for the engine: the interface, and the names by which a user chooses.

Axes: B prompts, R live rows, V vocabulary, L layers with blocks.

The core decides which groups run and what their rows get; a backend computes logits and owns keys
and values. The core knows a stored prompt and a live row by what the backend gave it for them, and
asks nothing else of those.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from interlace.attaching import get_attachment, is_attached
from interlace.coupling.base import Seat, check_carried
from interlace.engine.architecture import check_model, context_of
from interlace.engine.kv import Slot, StoredPrompt
from interlace.layers import base_model_of
from interlace.rows import Reads


class Backend(ABC):
    """One way to compute a model.

    Args:
        model: Hugging Face causal language model, attached or not, or PEFT's wrapper of one.
        prefill_chunk: Prompt positions computed in one pass.

    Attributes:
        name: Name by which a user chooses it.
        seats: Seats of couplings that it carries; a coupling at another seat is refused.
        reads: Reaches of blocks that it carries beside the paper's; another is refused.

    Raises:
        GenerationError: for a model or a coupling that it cannot run.
    """

    name: ClassVar[str]
    seats: ClassVar[tuple[Seat, ...]]
    reads: ClassVar[tuple[Reads, ...]] = ()

    def __init__(self, model: nn.Module, prefill_chunk: int) -> None:
        self.model = model
        self.base: PreTrainedModel = base_model_of(model)
        self._chunk = prefill_chunk
        check_model(model, self.base)
        self._check_coupling()

    @property
    def device(self) -> torch.device:
        """Where token ids go in and logits come out."""
        device: torch.device = self.base.device
        return device

    @property
    def context(self) -> tuple[int | None, str]:
        """The most positions that the model gets, if that has an end, and why it ends there."""
        return context_of(self.base)

    def _check_coupling(self) -> None:
        if is_attached(self.base):
            attachment = get_attachment(self.base)
            carried, reads = (*self.seats, *self.reads), attachment.config.reads
            way_out = "Use model.generate instead."
            check_carried(attachment.coupling, carried, self.name, way_out, reads)

    @property
    def skips_alone(self) -> bool:
        """Whether rows that are groups of width 1 are the base model's, and their prompts, too."""
        return is_attached(self.base) and get_attachment(self.base).config.skips_alone

    @abstractmethod
    def refresh(self) -> None:
        """Follow weights, blocks and modules that have changed; a call begins with it."""

    def passes(self, lengths: Sequence[int]) -> list[list[int]]:
        """Which prompts of these lengths go into one pass, by their places: here, each alone."""
        return [[place] for place in range(len(lengths))]

    @abstractmethod
    def prefill(
        self, prompts: Sequence[Sequence[int]], alone: Sequence[bool] = ()
    ) -> tuple[list[StoredPrompt], Float[Tensor, "B V"]]:
        """Compute and store prompts at width 1; the logits after the last token of each.

        Width 1 is exact for every width: all rows of a group hold the same prompt (METHOD.md).
        Nothing is stored if any of them fails.

        Args:
            prompts: Token ids of each.
            alone: For each whether groups of width 1 answer it, where those skip blocks; by
                default none does.
        """

    @abstractmethod
    def open(self, prompt: StoredPrompt, maxima: Sequence[int]) -> list[Slot]:
        """The rows of a new group, which see each other: one for each maximum of tokens."""

    @abstractmethod
    def decode(
        self, tokens: Sequence[int], slots: Sequence[Slot], recording: bool = False
    ) -> tuple[Float[Tensor, "R V"], Float[Tensor, "L R R"] | None]:
        """Feed each live row its next token; the logits after it, and on request who attended to
        whom. It counts only once `advance` says so, so that a step can be done again.

        Args:
            tokens: One for each slot.
            slots: All rows that are open; in the order of their places nothing is gathered.
            recording: Whether to return the couplings' attention.
        """

    @abstractmethod
    def advance(self) -> None:
        """Count the tokens that `decode` has just fed."""

    @abstractmethod
    def release(self, gone: Slot | StoredPrompt) -> None:
        """Let go of a row, or of a prompt that no row answers any more."""

    @abstractmethod
    def clear(self) -> None:
        """Let go of everything."""

    @abstractmethod
    def room(self, maxima: Sequence[int], prompts: Sequence[int], memory: int) -> bool:
        """Whether further rows and prompts fit into `memory` beside those that are there; gives
        back what those that are gone have left, where that is needed.

        Args:
            maxima: Most tokens of each further row.
            prompts: Length of each further prompt.
            memory: Bytes that all keys and values may take.
        """

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """What keys and values take, in bytes."""
