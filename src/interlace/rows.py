"""Groups: which rows of a batch see each other, and where. The one place that knows the layout.

Axes: P groups, W width (rows of a group), R = P*W rows, S positions of this call.
Rows are group-major: row = p*W + w.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor

from interlace.errors import GroupError


class Groups:
    """The rows of a batch as groups of `width` rows that see each other.

    Args:
        width: W, the rows of each group; at least 1. The number of groups follows from the rows.
        alive: `[P, W, S]`, True where a token was *fed* while its row was unfinished; None means
            all alive. S is the length of this call's `input_ids` (1 in a cached decode step).
            A group with fewer rows than the width (ragged) has False throughout in the rows it
            lacks.

    Raises:
        GroupError: for a width below 1 or a mask of another type or shape.

    >>> groups = Groups(width=4)
    >>> groups.count(rows=8)
    2
    """

    # Not a dataclass: FSDP and DDP take those apart and rebuild them when they cast inputs, and
    # with each copy the record of the pass would be lost.

    def __init__(self, width: int, alive: Bool[Tensor, "P W S"] | None = None) -> None:
        if isinstance(width, bool) or not isinstance(width, int) or width < 1:
            raise GroupError(
                f"The width of a group is a whole number of rows, at least 1; got {width!r}. "
                "Use width=1 for rows that see no siblings."
            )
        if alive is not None:
            _check_mask(width, alive)
        self._width = width
        self._alive = alive
        self._seen_by: Bool[Tensor, "P S W W"] | None = None
        # Layers note here that a pass came by, so that a skipped block is an error, never silence.
        self._reached: list[int] = []

    @property
    def width(self) -> int:
        """W, the rows of each group."""
        return self._width

    @property
    def alive(self) -> Bool[Tensor, "P W S"] | None:
        """True where a token was fed while its row was unfinished; None means all alive."""
        return self._alive

    def __repr__(self) -> str:
        mask = "" if self.alive is None else f", alive=[{', '.join(map(str, self.alive.shape))}]"
        return f"{type(self).__name__}(width={self.width}{mask})"

    def count(self, rows: int) -> int:
        """P, the number of groups in `rows` rows.

        Raises:
            GroupError: if the width does not divide `rows`, or the alive mask has another number of
                groups.
        """
        if rows % self.width or rows == 0:
            raise GroupError(
                f"A batch holds whole groups: its rows must be a multiple of the width; got {rows} "
                f"rows at width "
                f"{self.width}. Repeat each prompt {self.width} times in a row, or pass another "
                f"width."
            )
        count = rows // self.width
        if self.alive is not None and self.alive.shape[0] != count:
            raise GroupError(
                f"{rows} rows at width {self.width} are {count} groups, but the alive mask "
                f"{list(self.alive.shape)} has {self.alive.shape[0]}."
            )
        return count

    def check(self, rows: int, positions: int) -> int:
        """P, after checking that this object describes a call with `rows` rows of `positions`
        tokens."""
        count = self.count(rows)
        if self.alive is not None and self.alive.shape[2] != positions:
            raise GroupError(
                f"The alive mask covers the positions of this call's input_ids: expected S = "
                f"{positions}, got "
                f"{self.alive.shape[2]}. In a cached decode step pass only that step's column, "
                f"`alive[..., -1:]`."
            )
        return count

    def to_groups(self, rows: Shaped[Tensor, "R *rest"]) -> Shaped[Tensor, "P W *rest"]:
        """View a tensor of rows `[R, ...]` as groups `[P, W, ...]`."""
        return rows.unflatten(0, (self.count(rows.shape[0]), self.width))

    def to_rows(self, groups: Shaped[Tensor, "P W *rest"]) -> Shaped[Tensor, "R *rest"]:
        """View a tensor of groups `[P, W, ...]` as rows `[R, ...]`."""
        if groups.shape[1] != self.width:
            raise GroupError(f"Expected [P, {self.width}, ...], got {list(groups.shape)}.")
        return groups.flatten(0, 1)

    def select(self, start: int, stop: int) -> Groups:
        """The groups `start:stop` of P, as a micro-batch takes them."""
        return Groups(self.width, None if self.alive is None else self.alive[start:stop])

    def columns(self, start: int | None, stop: int | None) -> Groups:
        """The positions `start:stop` of S, as a chunk of a prefill or a decode step takes them."""
        return Groups(self.width, None if self.alive is None else self.alive[..., start:stop])

    def micro_batches(self, rows: int, size: int) -> Iterator[tuple[slice, Groups]]:
        """Cut a batch of `rows` rows into micro-batches of at most `size` rows, of whole groups
        only.

        Yields:
            The slice of rows and the `Groups` that go with it.

        Raises:
            GroupError: if `size` would split a group.
        """
        if size < 1 or size % self.width:
            fits = max(self.width, size - size % self.width)
            raise GroupError(
                f"A group is never split: a micro-batch of {size} rows would cut a group of width "
                f"{self.width}. "
                f"Use a multiple of {self.width}, for instance {fits}."
            )
        count, step = self.count(rows), size // self.width
        for start in range(0, count, step):
            stop = min(start + step, count)
            yield slice(start * self.width, stop * self.width), self.select(start, stop)

    def watched(self) -> Groups:
        """The same groups with a record of their own of the blocks that one pass reaches."""
        watched = copy.copy(self)
        watched._reached = []
        return watched

    def to(self, device: torch.device | str | int | None, non_blocking: bool = False) -> Groups:
        """The same groups with the mask on `device`; None leaves it where it is, as accelerate's
        hooks ask that call this between layers."""
        if self.alive is None or device is None:
            return self
        alive = self.alive.to(device, non_blocking=non_blocking)
        if alive is self.alive:
            return self
        moved = Groups(self.width, alive)
        # Shared, not copied: the pass that is being watched is the same one.
        moved._reached = self._reached
        return moved

    def visible(self) -> Bool[Tensor, "P S W W"] | None:
        """Who sees whom at each position: True where row w (third axis) may attend to row w' (last
        axis).

        A row sees the rows of its group that are alive at the position, and itself. None when all
        see all.
        """
        if self.alive is None:
            return None
        if torch.compiler.is_compiling():
            return _visible(self.alive)
        if self._seen_by is None:
            self._seen_by = _visible(self.alive)
        return self._seen_by


def _check_mask(width: int, alive: Tensor) -> None:
    if not isinstance(alive, Tensor) or alive.dtype != torch.bool:
        got = alive.dtype if isinstance(alive, Tensor) else type(alive).__name__
        raise GroupError(
            f"The alive mask is a torch.bool tensor [P, W, S] with True = keep; got {got}. "
            "Convert an integer mask with `mask.bool()`."
        )
    if alive.ndim != 3 or alive.shape[1] != width:
        raise GroupError(
            f"The alive mask has shape [P, W, S] with W = {width}; got {list(alive.shape)}. "
            f"A mask of rows [R, S] becomes one with `mask.view(-1, {width}, mask.shape[-1])`."
        )


def _visible(alive: Bool[Tensor, "P W S"]) -> Bool[Tensor, "P S W W"]:
    itself = torch.eye(alive.shape[1], dtype=torch.bool, device=alive.device)
    return alive.transpose(1, 2).unsqueeze(2) | itself
