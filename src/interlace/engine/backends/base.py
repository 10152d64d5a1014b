"""What computes a model for the engine: the interface, and the names by which a user chooses.

Axes: B prompts, R live rows, V vocabulary, L layers with blocks.

The core decides which groups run and what their rows get; a backend computes logits and owns keys
and values. The core knows a stored prompt and a live row by what the backend gave it for them, and
asks nothing else of those.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from interlace.coupling.base import Seat
from interlace.engine.kv import Slot, StoredPrompt
from interlace.rows import Reads


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


class Backend(ABC):
    """One way to compute a model.

    Args:
        model: Hugging Face causal language model, attached or not, or PEFT's wrapper of one.
        prefill_chunk: Number of prompt positions computed in one pass.

    Attributes:
        name: Name by which a user chooses it.
        seats: Seats of couplings that it carries; a coupling at another seat is refused.
        reads: Reaches of blocks that it carries beside the paper's; another is refused.
        draws: Whether it can draw tokens itself, by `draw`.
        base: Hugging Face model itself.
        context: Number of positions that the model gets at most, if there is such a number, and its
            reason.

    Raises:
        GenerationError: for a model or a coupling that it cannot run.
    """

    name: ClassVar[str]
    seats: ClassVar[tuple[Seat, ...]]
    reads: ClassVar[tuple[Reads, ...]] = ()
    draws: ClassVar[bool] = False

    base: PreTrainedModel
    context: tuple[int | None, str]

    @abstractmethod
    def __init__(self, model: nn.Module, prefill_chunk: int) -> None: ...

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where token ids go in and logits come out."""

    @property
    @abstractmethod
    def skips_alone(self) -> bool:
        """Whether rows that are groups of width 1 are the base model's, and their prompts, too."""

    @property
    def mixes(self) -> bool:
        """Whether rows are fed mixtures of their siblings' embeddings. Then `decode` returns the
        weights in any case, since training needs them."""
        return False

    @abstractmethod
    def refresh(self) -> None:
        """Follow weights, blocks and modules that have changed; a call begins with it."""

    @abstractmethod
    def passes(self, lengths: Sequence[int]) -> list[list[int]]:
        """Which prompts of these lengths go into one pass, by their places."""

    @abstractmethod
    def prefill(
        self, prompts: Sequence[Sequence[int]], alone: Sequence[bool] = ()
    ) -> Generator[None, None, list[StoredPrompt]]:
        """Compute and store prompts, of one pass, at width 1.

        Width 1 is exact for every width: all rows of a group hold the same prompt (METHOD.md).
        Nothing is stored if any of them fails. Between chunks of long ones it yields, and rows may
        be decoded meanwhile.

        Args:
            prompts: Token ids of each.
            alone: For each whether groups of width 1 answer it, where those skip blocks; by
                default none does.
        """

    @abstractmethod
    def open(
        self,
        prompt: StoredPrompt,
        maxima: Sequence[int],
        hidden: Sequence[tuple[int, int]] = (),
    ) -> list[Slot]:
        """The rows of a new group, which see each other: one for each maximum of tokens.

        Args:
            prompt: Prompt that they answer.
            maxima: Number of tokens that each may get at most.
            hidden: Pairs (row, sibling) of which the row does not see the sibling.
        """

    @abstractmethod
    def decode(
        self, tokens: Sequence[int], slots: Sequence[Slot], recording: bool = False
    ) -> tuple[Float[Tensor, "R V"], Float[Tensor, "L R N"] | None]:
        """Feed each live row its next token; the logits after it, and on request who attended to
        whom. It counts only once `advance` says so, so that a step can be done again.

        Args:
            tokens: Tokens, one for each slot.
            slots: All rows that are open; in the order of their places nothing is gathered.
            recording: Whether to return the couplings' attention, averaged over heads: to the rows
                of the step in the order of the slots, then, where earlier positions are read, to
                the rows of the reader's group there, by number.
        """

    @abstractmethod
    def advance(self) -> None:
        """Count the tokens that `decode` has just fed."""

    @property
    def is_ahead(self) -> bool:
        """Whether it has begun a step by itself, of which `draw` gives the tokens next."""
        return False

    def draw(
        self, slots: Sequence[Slot], tell: Callable[[Slot], Ahead], go_on: bool
    ) -> tuple[list[Slot], list[list[float]]]:
        """`decode`, `advance` and the choice of tokens in one. A backend that `draws` may be one
        step ahead; it then ends rows by itself.

        Args:
            slots: All rows that are open.
            tell: Function that tells what the backend needs to know of a row.
            go_on: Whether to begin another step.

        Returns:
            Rows that have a token, and of each the token and its log-probabilities, at temperature
            1 and under the distribution that was drawn from.
        """
        raise NotImplementedError

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


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and (
        "can't allocate memory" in text or "out of memory" in text
    )
