"""Who sees whom in one step of vLLM, which feeds the tokens of many requests in one flat batch.

Axes: T tokens of the step, R of them fed to rows past their prompt, D hidden size.

A prompt's tokens see no sibling: all rows of a group hold the same ones, so that width 1 gives the
same (I6). Each row past its prompt is fed one token a step, at the position of its siblings.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from interlace.rows import NOBODY, Groups, Owners, Prompts, Rows
from interlace_vllm.requests import Membership


class GroupSplitError(RuntimeError):
    """Rows of a group came apart: the step would give wrong numbers that look right."""


@dataclass(frozen=True)
class Fed:
    """What a step feeds to one request.

    Args:
        member: Membership of the request.
        first: Place of its first token among the T of the step.
        count: Number of its tokens.
        computed: Number of its tokens before them.
        prompt: Number of tokens of its prompt.
    """

    member: Membership
    first: int
    count: int
    computed: int
    prompt: int


class StepRows:
    """Who sees whom now, for all blocks of a model; nobody, while vLLM profiles and warms up.

    Args:
        tells_alone: Whether blocks go by rows that are groups of width 1.

    Attributes:
        index: Places of the R tokens that belong to rows past their prompt; None: all T tokens do.
        coupled: Their rows; None where there are none.
        alone: Rows of all T tokens, each without siblings.
    """

    def __init__(self, tells_alone: bool = False) -> None:
        self.tells_alone = tells_alone
        self.clear()

    def clear(self) -> None:
        """Forget the step."""
        self.index: Tensor | None = None
        self.coupled: Owners | None = None
        self.alone: Rows = Groups(width=1)

    def set(self, step: Iterable[Fed], tokens: int, device: torch.device) -> None:
        """Take what a step feeds.

        Args:
            step: Requests of the step.
            tokens: T, padding included.
            device: Device of the model.

        Raises:
            GroupSplitError: if rows of a group are at different positions.
        """
        self.clear()
        step = list(step)
        rows = rows_past_their_prompt(step)
        if self.tells_alone:
            flags = [True] * tokens
            for fed in step:
                flags[fed.first : fed.first + fed.count] = [fed.member.width == 1] * fed.count
            self.alone = Prompts(flags)
        if not rows:
            return
        numbers: dict[str, int] = {}
        owners = [numbers.setdefault(fed.member.group, len(numbers)) for fed in rows]
        places = [fed.first for fed in rows]
        if places != list(range(tokens)):
            self.index = torch.tensor(places, device=device)
        self.coupled = Owners(owners, device=device, alone=[fed.member.width == 1 for fed in rows])

    def apply(self, block: Any, hidden: Tensor) -> Tensor:
        """What a block makes of `[T, D]`; never `hidden` itself, as torch asks of operators."""
        flat = hidden.unsqueeze(1)
        if self.coupled is None:
            out = block(flat, self.alone)
        elif self.index is None:
            out = block(flat, self.coupled)
        else:
            out = block(flat, self.alone)
            out = out.clone() if out is flat else out
            out[self.index] = block(flat[self.index], self.coupled)
        return (out.clone() if out is flat else out).squeeze(1)


def rows_past_their_prompt(step: Iterable[Fed]) -> list[Fed]:
    """The requests of a step that may see siblings.

    Raises:
        GroupSplitError: if rows of a group are at different positions, or one is fed several
            tokens.
    """
    rows, positions = [], dict[str, int]()
    for fed in step:
        if fed.computed + fed.count <= fed.prompt:
            continue
        if fed.count > 1 and fed.member.width == 1:  # computed again after a preemption
            continue
        if fed.member.width > 1:
            position = positions.setdefault(fed.member.group, fed.computed)
            if fed.count > 1 or fed.computed < fed.prompt or position != fed.computed:
                raise GroupSplitError(
                    f"Rows of a group take each step together, but row {fed.member.row} of "
                    f"{fed.member.group} is fed {fed.count} tokens at position {fed.computed}, and "
                    f"a sibling one at {position}. Another scheduler than {__package__}'s runs."
                )
        rows.append(fed)
    return rows


def padded(rows: list[Fed], slots: int) -> tuple[list[int], list[int]]:
    """Places and owners of a fixed number of slots, for graphs that are captured once.

    The first slots are the rows', the others stand for tokens without siblings. Any number of
    slots from the first on, up to T, are different places among the first T, whatever T is.

    >>> alone = [Fed(Membership(g, 2, w), at, 1, 9, 9) for g, w, at in [("a", 0, 3), ("a", 1, 1)]]
    >>> padded(alone, 4)
    ([3, 1, 0, 2], [0, 0, -1, -1])
    """
    numbers: dict[str, int] = {}
    owners = [numbers.setdefault(fed.member.group, len(numbers)) for fed in rows]
    places = [fed.first for fed in rows]
    taken = set(places)
    left = slots - len(places)
    others = [place for place in range(slots + len(places)) if place not in taken][:left]
    return places + others, owners + [NOBODY] * left
