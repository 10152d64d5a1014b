"""What a coupling is: how the rows of a group influence each other, whatever the kind.

Axes: P groups, W width, R rows, S positions of this call, D hidden size, V vocabulary, H query
heads, G key-value heads, C head dim of the base model's attention.

A kind takes one or more of six seats. For each it has a teacher-forced form, which sees all
positions of whole groups at once, and a decode form, which sees one new token of every live row; a
form that reads its siblings at the same position only is the same in both.

| seat | when | from | to |
| --- | --- | --- | --- |
| input | before the first layer | embeddings | embeddings of what the rows are fed |
| attention | before a layer's attention | queries, keys, values, mask | those that it runs on |
| attended | behind a layer's attention | what its heads give | what goes into their projection |
| layer | after a decoder layer | hidden states | hidden states |
| streams | around all layers | a row's inputs | those of several streams; their outputs to one |
| head | after the last layer | logits | logits that are sampled from |
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import nullcontext
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from interlace.coupling.config import CouplingConfig
from interlace.errors import GenerationError
from interlace.rows import Owners, Reads, Rows

Seat = Literal["input", "attention", "attended", "layer", "streams", "head"]
WITHIN_ATTENTION: tuple[Seat, ...] = ("attention", "attended")
AT_LAYERS: tuple[Seat, ...] = (
    *WITHIN_ATTENTION,
    "layer",
)  # a module for each layer that carries one
AT_MODEL: tuple[Seat, ...] = ("input", "streams", "head")  # one module for the model

NORM_EPS = 1e-6
PAPER = "https://arxiv.org/abs/2510.01143"
INVARIANTS = frozenset(f"I{n}" for n in range(1, 10))


class Coupling(nn.Module):
    """A kind of coupling: a subclass, and a line in `interlace.coupling.registry.COUPLINGS`.

    What it adds starts at zero, so that the attached model is the base model (I1). Its constructor
    takes `(config, hidden_size)`, or what its `sizes` give in place of the second, and makes its
    weights where, and as, torch's defaults say; `build` says where, and turns them into a dtype.

    Attributes:
        kind: Name in files, and in the names of its parameters.
        Config: Class of its configuration.
        title: Name in tables and figures.
        about: Sentence about it in a model card.
        seats: Places where it works.
        couples: Whether rows of a group see each other; if so, a part of a group is no smaller
            group, and evaluation samples every width.
        shares_prompt: Whether W rows that hold the same prompt get from it what one row of width 1
            gets (I5, I6), so that a prompt is computed once.
        mixes: Whether what it feeds a row is made of its siblings' embeddings while sampling, by
            weights that a teacher-forced pass is told (`Groups.mixing`).
        hides: Whether a sibling can be hidden from a row at the same position (`Groups.hidden`).
        place: Layer that this one stands at; 0 for the one of the model as a whole.
        reads: Reach of its rows among their siblings.
        turned_features: Number of features of a head that positions turn, where it reads earlier
            ones; None for all.
        PROJECTIONS: Names of weights that it applies by `F.linear` and without a bias, for which
            backends may have a faster product.
    """

    kind: ClassVar[str]
    Config: ClassVar[type[CouplingConfig]]
    title: ClassVar[str]
    about: ClassVar[str]
    seats: ClassVar[tuple[Seat, ...]] = ("layer",)
    couples: ClassVar[bool] = True
    shares_prompt: ClassVar[bool] = True
    mixes: ClassVar[bool] = False
    hides: ClassVar[bool] = False
    PROJECTIONS: ClassVar[tuple[str, ...]] = ()
    place: int = 0
    reads: Reads = "position"
    turned_features: int | None = None

    @classmethod
    def claims(cls, config: CouplingConfig) -> frozenset[str]:
        """The invariants of docs/invariants.md that hold for a model with this configuration, of
        those that depend on the kind, I1 to I9."""
        return INVARIANTS

    @classmethod
    def check(cls, base: Any, decoder: nn.Module, layers: list[int]) -> None:
        """Refuse models that it cannot be attached to.

        Raises:
            AttachError: if it cannot.
        """

    @property
    def kept_bytes(self) -> int:
        """Bytes of one row's keys and values of one position, of a kind that reads earlier ones."""
        return 0

    @classmethod
    def sizes(cls, base: Any, layer: int) -> tuple[Any, ...]:
        """What the constructor is given behind its configuration, by that of the base model's
        decoder; layer 0 for the module of the model as a whole."""
        return (base.hidden_size,)

    @classmethod
    def build(
        cls,
        config: CouplingConfig,
        base: Any,
        layer: int | None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> Coupling:
        """The module for one place: a layer, or None for the model as a whole."""
        make: Any = cls
        sizes = cls.sizes(base, layer or 0)
        with nullcontext() if device is None else device:
            made: Coupling = make(config, *sizes)
        # Not by torch's default dtype: it is the whole process's, and other threads compute by it.
        made.to(dtype=dtype)
        made.place = layer or 0
        return made

    def forward(self, x: Float[Tensor, "R S D"], rows: Rows) -> Float[Tensor, "R S D"]:
        """The layer seat, or the attended one, of which a kind has one at most."""
        if "layer" not in self.seats:
            return self.attended(x, rows)
        return (self.step if isinstance(rows, Owners) else self.layer)(x, rows)

    # The layer seat -------------------------------------------------------------------------------

    def layer(self, x: Float[Tensor, "R S D"], rows: Rows) -> Float[Tensor, "R S D"]:
        """Hidden states after a layer to those that go on, the residual included.

        Raises:
            GroupError: if `rows` does not describe the rows and positions of `x`.
        """
        return x + self.added(x, rows)

    def step(self, x: Float[Tensor, "R S D"], rows: Rows) -> Float[Tensor, "R S D"]:
        """`layer` in a decode step."""
        return self.layer(x, rows)

    def added(self, x: Float[Tensor, "R S D"], rows: Rows) -> Float[Tensor, "R S D"]:
        """What `layer`, or `attended`, adds to `x`."""
        raise NotImplementedError

    def attention_weights(
        self, x: Float[Tensor, "R S D"], rows: Rows
    ) -> Float[Tensor, "P S H W N"] | None:
        """Who listens to whom, for views, of what `layer` or `attended` is given: all that a row
        reads of another, at whatever position, is one number. The last axis sums to 1. None: it
        cannot be told.

        N is W; in a decode step that keeps earlier positions the rows of the step at their own
        position come first, then the rows of the reader's group at earlier ones, by number.
        """
        return None

    # The other seats ------------------------------------------------------------------------------

    def input(self, embeddings: Float[Tensor, "R S D"], rows: Rows) -> Float[Tensor, "R S D"]:
        """Embeddings of the tokens to embeddings of what the rows are fed in their place."""
        raise NotImplementedError

    def input_step(self, embeddings: Float[Tensor, "R S D"], rows: Rows) -> Float[Tensor, "R S D"]:
        """`input` in a decode step."""
        return self.input(embeddings, rows)

    def attention(
        self,
        query: Float[Tensor, "R H S C"],
        key: Float[Tensor, "R G U C"],
        value: Float[Tensor, "R G U C"],
        mask: Tensor | None,
        rows: Any,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """What a layer's attention runs on in place of its own queries, keys, values and mask: of
        the same rows, or of each group's rows behind each other as one.

        Args:
            query: Queries of this call's positions, turned as the base model turns them.
            key: Keys of the positions so far.
            value: Values of the positions so far.
            mask: Mask `[R, 1, S, U]` of the base model, as booleans or to add; None if it is
                causal.
            rows: Groups of the call: who sees whom.
        """
        raise NotImplementedError

    def attention_step(
        self,
        query: Float[Tensor, "R H 1 C"],
        key: Float[Tensor, "R G 1 C"],
        value: Float[Tensor, "R G 1 C"],
        rows: Rows,
        scale: float,
        softcap: float | None,
    ) -> tuple[Float[Tensor, "R H C"], Float[Tensor, "R H"]] | None:
        """`attention` in a decode step: a softmax over what is read beside prompt and own past, and
        the log-sum-exp of its scores, by which the parts are merged; None where it is nothing.

        Args:
            query: Queries of the new tokens.
            key: Keys of the new tokens.
            value: Values of the new tokens.
            rows: Owners of the rows.
            scale: Factor of the scores.
            softcap: Bound that the scores are softly held to; None for none.
        """
        raise NotImplementedError

    def step_shares(
        self,
        query: Float[Tensor, "R H 1 C"],
        key: Float[Tensor, "R G 1 C"],
        rows: Rows,
        scale: float,
        softcap: float | None,
    ) -> Float[Tensor, "R H N"] | None:
        """Who listens to whom in what `attention_step` reads, for views; N as in
        `attention_weights`, and prompt and own past are not in it. None: it cannot be told."""
        return None

    def prompt_query(self, query: Float[Tensor, "R H 1 C"], rows: Rows) -> Tensor:
        """Queries of a decode step as they meet the keys of prompts, which are stored once."""
        return query

    def attended(self, out: Float[Tensor, "R S HC"], rows: Rows) -> Float[Tensor, "R S HC"]:
        """What the heads of a layer's attention give to what goes into their projection."""
        return out + self.added(out, rows)

    def spread(self, given: Shaped[Tensor, "R *rest"]) -> Shaped[Tensor, "RP *rest"]:
        """What the layers are given of a row, for each of its streams, one after the other."""
        raise NotImplementedError

    def together(self, hidden: Float[Tensor, "RP S D"]) -> Float[Tensor, "R S D"]:
        """The last hidden states of a row's streams to those that the head is given."""
        raise NotImplementedError

    def head(self, logits: Float[Tensor, "R S V"], rows: Rows) -> Float[Tensor, "R S V"]:
        """Logits of the rows to those that are sampled from."""
        raise NotImplementedError


def places(coupling: type[Coupling], indices: Collection[int]) -> list[int | None]:
    """Where a kind stands in a model: the layers in order, then the model as a whole as None."""
    at_layers = indices if set(coupling.seats) & set(AT_LAYERS) else ()
    at_model = [None] if set(coupling.seats) & set(AT_MODEL) else []
    return [*at_layers, *at_model]


def check_carried(
    coupling: type[Coupling],
    carried: Collection[Seat | Reads],
    backend: str,
    others: str,
    reads: Reads = "position",
) -> None:
    """Refuse what a backend does not carry, by name: a seat, a reach, or a need that no backend
    meets yet. `others` is the way out, as a sentence."""
    if reads != "position" and reads not in carried:
        raise GenerationError(
            f"{coupling.kind} blocks with reads={reads!r} read siblings at earlier positions, "
            f"which the engine's {backend} backend does not carry. {others}"
        )
    for seat in coupling.seats:
        if seat not in carried:
            raise GenerationError(
                f"{coupling.kind} works at the {seat} seat, which the engine's {backend} backend "
                f"does not carry; it carries {', '.join(carried)}. {others}"
            )
    if not coupling.shares_prompt:
        raise GenerationError(
            f"{coupling.kind} needs every row's prompt computed apart, which the engine's "
            f"{backend} backend does not do. {others}"
        )
