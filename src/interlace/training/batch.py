"""Groups as tensors: what a trainer feeds a model.

Axes: P groups, W width, R = P*W rows, L prompt columns, T completion columns, S = L + T.
Prompts are padded on the left, completions on the right, so that completion token t of every row
lies in column L + t.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interlace.engine.types import GroupOutput
from interlace.errors import GroupError
from interlace.rows import Groups


@dataclass(frozen=True)
class GroupBatch:
    """Whole groups of one width, W."""

    width: int
    input_ids: Int[Tensor, "R S"]
    attention_mask: Bool[Tensor, "R S"]  # True for tokens, False for padding
    # True where siblings see the row: every token that was fed while its row was unfinished. Not
    # the completion mask, which also counts the finishing token.
    alive: Bool[Tensor, "P W S"]
    completion_mask: Bool[Tensor, "P W T"]  # True where a token counts in the loss
    # From the engine, 0 elsewhere; None for data sampled elsewhere.
    sampled_logprobs: Float[Tensor, "P W T"] | None = None
    # Under the model that sampled; None takes those of the pass itself.
    old_logprobs: Float[Tensor, "P W T"] | None = None
    reference_logprobs: Float[Tensor, "P W T"] | None = None  # if the loss has a KL
    advantages: Float[Tensor, "P W"] | None = None
    hidden: Bool[Tensor, "P W W"] | None = None  # True where a row never sees a sibling
    # Weights with which embeddings were mixed while sampling; None where none were.
    mixing: Float[Tensor, "P T W W"] | None = None
    outputs: Sequence[GroupOutput] = ()  # that the batch was collated from, for the guard
    counts: bool = True  # False for one that is fed only because other processes feed one

    @property
    def groups(self) -> Groups:
        """The `groups` argument of the forward pass."""
        first = self.input_ids.shape[1] - self.completion_mask.shape[2]  # L
        start = torch.full((self.count,), first, device=self.alive.device)
        mixing = self.mixing
        if mixing is not None:  # prompts are not mixed
            mixing = F.pad(mixing, (0, 0, 0, 0, first, 0))
        return Groups(self.width, self.alive, start, self.hidden, mixing)

    @property
    def count(self) -> int:
        """P."""
        return self.alive.shape[0]

    @property
    def completion_ids(self) -> Int[Tensor, "P W T"]:
        """The sampled tokens; padding where the mask is False."""
        length = self.completion_mask.shape[2]
        return self.input_ids[:, self.input_ids.shape[1] - length :].unflatten(
            0, (self.count, self.width)
        )

    def select(self, start: int, stop: int) -> GroupBatch:
        """The groups `start:stop`."""
        rows = slice(start * self.width, stop * self.width)
        own = self._tensors(lambda tensor: tensor[start:stop])
        own |= {name: getattr(self, name)[rows] for name in ("input_ids", "attention_mask")}
        return replace(self, outputs=self.outputs[start:stop], **own)

    def micro_batches(self, rows: int) -> Iterator[tuple[slice, GroupBatch]]:
        """Parts of at most `rows` rows, of whole groups, with the slice of P that each is.

        Raises:
            GroupError: if `rows` is no multiple of the width, so that a group would be split.
        """
        for part, _ in self.groups.micro_batches(self.input_ids.shape[0], rows):
            groups = slice(part.start // self.width, part.stop // self.width)
            yield groups, self.select(groups.start, groups.stop)

    def to(self, device: torch.device | str) -> GroupBatch:
        """The same batch on `device`."""
        return replace(self, **self._tensors(lambda tensor: tensor.to(device)))

    def _tensors(self, change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        """The tensors there are by name, each changed."""
        found = {own.name: getattr(self, own.name) for own in fields(self)}
        return {name: change(v) for name, v in found.items() if isinstance(v, Tensor)}


def collate(groups: Sequence[GroupOutput], pad_token_id: int) -> GroupBatch:
    """A batch of the engine's groups, all of one width.

    Args:
        groups: Groups that the engine returned.
        pad_token_id: Token id that fills the gaps; its value does not matter, nothing attends to
            it.

    Raises:
        GroupError: for no groups, or groups of different widths.
    """
    rows = [[c.token_ids for c in group.completions] for group in groups]
    logprobs = [[c.sampled_logprobs for c in group.completions] for group in groups]
    prompts = [group.prompt_token_ids for group in groups]
    batch = collate_ids(prompts, rows, pad_token_id, logprobs)
    hidden, mixing = _hidden(groups, batch.width), _mixing(groups, batch.completion_mask)
    return replace(batch, outputs=tuple(groups), hidden=hidden, mixing=mixing)


def _hidden(groups: Sequence[GroupOutput], width: int) -> Bool[Tensor, "P W W"] | None:
    """Who was hidden from whom while the groups were sampled."""
    if not any(group.params.hidden for group in groups):
        return None
    found = torch.zeros(len(groups), width, width, dtype=torch.bool)
    for p, group in enumerate(groups):
        for row, sibling in group.params.hidden:
            found[p, row, sibling] = True
    return found


def _mixing(
    groups: Sequence[GroupOutput], like: Bool[Tensor, "P W T"]
) -> Float[Tensor, "P T W W"] | None:
    """How the rows' embeddings were mixed while the groups were sampled."""
    if all(group.mixing is None for group in groups):
        return None
    count, width, length = like.shape
    found = torch.zeros(count, length, width, width)
    for p, group in enumerate(groups):
        for t, weights in enumerate(group.mixing or ()):
            found[p, t] = torch.from_numpy(weights)
    return found


def collate_ids(
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[Sequence[int]]],
    pad_token_id: int,
    logprobs: Sequence[Sequence[Sequence[float]]] | None = None,
    width: int | None = None,
) -> GroupBatch:
    """A batch of one prompt and several completions a group, as token ids, finishing ones included.
    A group with fewer than the width, by default that of the largest, is filled with rows that are
    neither alive nor counted.

    Raises:
        GroupError: for no groups, or more completions than the width.
    """
    most = max((len(rows) for rows in completions), default=0)
    width = most if width is None else width
    if not completions or width < max(most, 1):
        raise GroupError(
            f"A batch holds at least one group, and a group at most {width} rows (the width); got "
            f"{len(completions)} groups with up to {most} rows."
        )
    left = max(map(len, prompts))
    right = max(max((len(row) for rows in completions for row in rows), default=1), 1)
    count = len(prompts)
    ids = torch.full((count, width, left + right), pad_token_id)
    attention = torch.zeros_like(ids, dtype=torch.bool)
    alive = torch.zeros_like(attention)
    mask = torch.zeros(count, width, right, dtype=torch.bool)
    sampled = torch.zeros(count, width, right)
    for p, (prompt, rows) in enumerate(zip(prompts, completions, strict=True)):
        start = left - len(prompt)
        ids[p, :, start:left] = torch.tensor(prompt)
        attention[p, :, start:left] = True
        for w, row in enumerate(rows):
            end = left + len(row)
            ids[p, w, left:end] = torch.tensor(row, dtype=torch.long)
            attention[p, w, left:end] = True
            alive[p, w, start : max(end - 1, left)] = True
            mask[p, w, : len(row)] = True
            if logprobs is not None:
                sampled[p, w, : len(row)] = torch.tensor(logprobs[p][w])
    return GroupBatch(
        width,
        ids.flatten(0, 1),
        attention.flatten(0, 1),
        alive,
        mask,
        sampled if logprobs is not None else None,
    )
