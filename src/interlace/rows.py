"""Who sees whom: the rows of a batch, in two layouts. The one place that knows the layout.

Axes: P groups, W width (rows of a group), R rows of a call, S positions of this call.

One rule: a row sees, at each position, itself and the rows of its group that are alive there.
`Groups` says it of a rectangle of P groups of W rows each (training, `generate`), group-major: row
= p*W + w. `Owners` says it of any rows in any order (decode steps: only live rows are there).
What a coupling with a longer reach reads beside that, `Groups.earlier` says.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from interlace.errors import GroupError

NOBODY = -1  # the owner of a slot without a row
Reads = Literal["position", "finished", "history"]  # what a row reads of its siblings

_RowsT = TypeVar("_RowsT", bound="Rows")


class Kept(ABC):
    """Keys and values that couplings keep of earlier steps, which whoever decodes owns.

    Axes: R rows of the step, B rows of a group, H query heads, G key-value heads, C head dim.
    """

    @abstractmethod
    def read(
        self,
        place: int,
        query: Float[Tensor, "R H C"] | Float[Tensor, "R B H C"],
        key: Float[Tensor, "R G C"],
        value: Float[Tensor, "R G C"],
        scale: float | None = None,
        softcap: float | None = None,
    ) -> tuple[Float[Tensor, "R H C"], Float[Tensor, "R H"]] | None:
        """Keep the keys and values of this step, and attend to the earlier ones that each row
        reads: the result with its log-sum-exp; None where no row reads any.

        Args:
            place: Layer that the coupling stands at.
            query: Queries of this step, without positions; `[R, B, H, C]` as they meet the entries
                of each row of the group.
            key: Keys, likewise.
            value: Values.
            scale: Factor of the scores; by default C^-1/2.
            softcap: Bound that the scores are softly held to; None for none.
        """

    @abstractmethod
    def sizes(self, like: Tensor) -> Int[Tensor, "R B"] | None:
        """How much each row of a row's group has written, the step in hand included, on the device
        of `like`; None where nobody has siblings."""

    def shares(
        self,
        place: int,
        query: Float[Tensor, "R H C"] | Float[Tensor, "R B H C"],
        scale: float | None = None,
        softcap: float | None = None,
    ) -> tuple[Float[Tensor, "R H W"], Float[Tensor, "R H"]] | None:
        """How much of what each row reads at earlier positions comes from each row of its group, by
        number, with the log-sum-exp; None where no row reads any, or it cannot be told. Arguments
        are those of `read`."""
        return None


class Rows:
    """What a forward pass takes as `groups`: who sees whom among its rows, in either layout.

    A coupling views its R rows as P problems of R / P rows, and asks for the visible ones of each.
    """

    # Not dataclasses: FSDP and DDP take those apart and rebuild them when they cast inputs, and
    # with each copy the record of the pass would be lost.

    def __init__(self) -> None:
        # Layers note here that a pass came by, so that a skipped block is an error, never silence.
        self._reached: list[int] = []

    def alone(self) -> bool | Bool[Tensor, " R"]:
        """Which rows are groups of width 1: all, none, or those for which the tensor is True."""
        raise NotImplementedError

    def check(self, rows: int, positions: int) -> int:
        """P, after checking that this object describes a call with `rows` rows of `positions`
        tokens."""
        raise NotImplementedError

    def visible(self) -> Bool[Tensor, "P S W W"] | None:
        """Who sees whom at each position: True where row w (third axis) may attend to row w' (last
        axis). None when all rows of a group see all."""
        raise NotImplementedError

    def numbers(self, device: torch.device) -> Int[Tensor, " W"]:
        """The number in its group of each row of a problem, for couplings that tell rows apart."""
        raise NotImplementedError

    def columns(self, start: int | None, stop: int | None) -> Rows:
        """The rows at the positions `start:stop` of S."""
        raise NotImplementedError

    def to(self, device: torch.device | str | int | None, non_blocking: bool = False) -> Rows:
        """The same rows with their masks on `device`; None leaves them where they are, as
        accelerate's hooks ask that call this between layers."""
        raise NotImplementedError

    def watched(self: _RowsT) -> _RowsT:
        """The same rows with a record of their own of the blocks that one pass reaches."""
        watched = copy.copy(self)
        watched._reached = []
        return watched


class Groups(Rows):
    """The rows of a batch as groups of `width` rows that see each other.

    Args:
        width: W, the rows of each group; at least 1. The number of groups follows from the rows.
        alive: `[P, W, S]`, True where a token was *fed* while its row was unfinished; None means
            all alive. S is the length of this call's `input_ids` (1 in a cached decode step).
            A group with fewer rows than the width (ragged) has False throughout in the rows it
            lacks.
        completion_start: `[P]`, the first column of this call that belongs to a completion, for
            couplings that read what siblings wrote; None is 0 for all groups. A column at or
            beyond the call's end means that none does.
        hidden: `[P, W, W]`, True where row w (second axis) never sees row w' (last axis); None
            hides nobody. Only for couplings that read siblings at the same position.
        mixing: `[P, S, W, W]`, how much of row w' (last axis) is in what row w (third axis) is fed,
            for couplings that mix embeddings while they sample (`GroupOutput.mixing`); None where
            nobody has said.

    Raises:
        GroupError: for a width below 1, or a mask or start of another type or shape.

    >>> groups = Groups(width=4)
    >>> groups.count(rows=8)
    2
    """

    continues = False  # where earlier calls ended, whose keys and values it has

    def __init__(
        self,
        width: int,
        alive: Bool[Tensor, "P W S"] | None = None,
        completion_start: Int[Tensor, " P"] | None = None,
        hidden: Bool[Tensor, "P W W"] | None = None,
        mixing: Float[Tensor, "P S W W"] | None = None,
    ) -> None:
        super().__init__()
        if isinstance(width, bool) or not isinstance(width, int) or width < 1:
            raise GroupError(
                f"The width of a group is a whole number of rows, at least 1; got {width!r}. "
                "Use width=1 for rows that see no siblings."
            )
        if alive is not None:
            _check_mask(width, alive)
        if completion_start is not None:
            _check_start(completion_start, None if alive is None else alive.shape[0])
        self._width = width
        self._alive = alive
        self._completion_start = completion_start
        self._hidden = hidden
        self.mixing = mixing
        self._seen_by: Bool[Tensor, "P S W W"] | None = None
        self._earlier: dict[tuple[Reads, int], Earlier | None] = {}

    @property
    def width(self) -> int:
        """W, the rows of each group."""
        return self._width

    @property
    def alive(self) -> Bool[Tensor, "P W S"] | None:
        """True where a token was fed while its row was unfinished; None means all alive."""
        return self._alive

    @property
    def completion_start(self) -> Int[Tensor, " P"] | None:
        """The first column of this call that belongs to a completion; None means 0."""
        return self._completion_start

    @property
    def hidden(self) -> Bool[Tensor, "P W W"] | None:
        """True where a row never sees a sibling; None hides nobody."""
        return self._hidden

    def alone(self) -> bool | Bool[Tensor, " R"]:
        """Whether every row is a group of its own."""
        return self.width == 1

    def __repr__(self) -> str:
        found = {"alive": self.alive, "completion_start": self.completion_start}
        shapes = [f", {name}={list(t.shape)}" for name, t in found.items() if t is not None]
        return f"{type(self).__name__}(width={self.width}{''.join(shapes)})"

    def count(self, rows: int) -> int:
        """P, the number of groups in `rows` rows.

        Raises:
            GroupError: if the width does not divide `rows`, or the alive mask has another number of
                groups.
        """
        if rows % self.width or rows == 0:
            raise GroupError(
                f"A batch holds whole groups: its rows must be a multiple of the width; got {rows} "
                f"rows at width {self.width}. Repeat each prompt {self.width} times in a row, or "
                "pass another width."
            )
        count = rows // self.width
        if self.alive is not None and self.alive.shape[0] != count:
            raise GroupError(
                f"{rows} rows at width {self.width} are {count} groups, but the alive mask "
                f"{list(self.alive.shape)} has {self.alive.shape[0]}."
            )
        start = self.completion_start
        if start is not None and start.shape[0] != count:
            raise GroupError(
                f"{rows} rows at width {self.width} are {count} groups, but completion_start "
                f"{list(start.shape)} has {start.shape[0]}."
            )
        return count

    def check(self, rows: int, positions: int) -> int:
        """P, after checking that this object describes a call with `rows` rows of `positions`
        tokens."""
        count = self.count(rows)
        if self.alive is not None and self.alive.shape[2] != positions:
            raise GroupError(
                "The alive mask covers the positions of this call's input_ids: expected S = "
                f"{positions}, got {self.alive.shape[2]}. In a cached decode step pass only that "
                "step's column, `alive[..., -1:]`."
            )
        wanted = [count, positions, self.width, self.width]
        if self.mixing is not None and list(self.mixing.shape) != wanted:
            raise GroupError(
                f"mixing covers the groups and positions of this call, [P, S, W, W] = {wanted}; "
                f"got {list(self.mixing.shape)}. Of a part of them, select(...) or columns(...)."
            )
        return count

    def to_groups(self, rows: Shaped[Tensor, "R *rest"]) -> Shaped[Tensor, "P W *rest"]:
        """View a tensor of rows `[R, ...]` as groups `[P, W, ...]`. Equation (6)."""
        return rows.unflatten(0, (self.count(rows.shape[0]), self.width))

    def to_rows(self, groups: Shaped[Tensor, "P W *rest"]) -> Shaped[Tensor, "R *rest"]:
        """View a tensor of groups `[P, W, ...]` as rows `[R, ...]`. Equation (6)."""
        if groups.shape[1] != self.width:
            raise GroupError(f"Expected [P, {self.width}, ...], got {list(groups.shape)}.")
        return groups.flatten(0, 1)

    def select(self, start: int, stop: int) -> Groups:
        """The groups `start:stop` of P, as a micro-batch takes them."""
        kept = (self.alive, self.completion_start, self.hidden, self.mixing)
        return Groups(self.width, *(None if t is None else t[start:stop] for t in kept))

    def columns(self, start: int | None, stop: int | None) -> Groups:
        """The positions `start:stop` of S, as a chunk of a prefill or a decode step takes them.

        Raises:
            GroupError: if completions begin somewhere, `start` counts from the end, and there is no
                alive mask to tell where that is.
        """
        alive, starts = self.alive, self.completion_start
        first = start or 0
        if starts is not None and first < 0:
            if alive is None:
                raise GroupError(
                    "Columns counted from the end need an alive mask, since only its length tells "
                    f"where they are; got start={start} without one. Count from the first column."
                )
            first = max(0, first + alive.shape[2])
        return Groups(
            self.width,
            None if alive is None else alive[..., start:stop],
            None if starts is None else (starts - first).clamp(min=0),
            self.hidden,
            None if self.mixing is None else self.mixing[:, start:stop],
        )

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
                f"{self.width}. Use a multiple of {self.width}, for instance {fits}."
            )
        count, step = self.count(rows), size // self.width
        for start in range(0, count, step):
            stop = min(start + step, count)
            yield slice(start * self.width, stop * self.width), self.select(start, stop)

    def to(self, device: torch.device | str | int | None, non_blocking: bool = False) -> Groups:
        """The same groups with the mask and the starts on `device`; None leaves them in place."""
        if device is None:
            return self
        before = (self.alive, self.completion_start, self.hidden, self.mixing)
        alive, starts, hidden, mixing = (
            None if tensor is None else tensor.to(device, non_blocking=non_blocking)
            for tensor in before
        )
        if all(a is b for a, b in zip(before, (alive, starts, hidden, mixing), strict=True)):
            return self
        moved = copy.copy(self)  # the record of the pass that is being watched is the same one
        moved._alive, moved._completion_start, moved._hidden = alive, starts, hidden
        moved.mixing = mixing
        moved._seen_by, moved._earlier = None, {}
        return moved

    def visible(self) -> Bool[Tensor, "P S W W"] | None:
        """Who sees whom at each position: True where row w (third axis) may attend to row w' (last
        axis).

        A row sees the rows of its group that are alive at the position and not hidden from it, and
        itself. None when all see all.
        """
        if self.alive is None:
            return None if self.hidden is None else ~self.hidden[:, None]
        if torch.compiler.is_compiling():
            return _alive_or_self(self.alive, self.hidden)
        if self._seen_by is None:
            self._seen_by = _alive_or_self(self.alive, self.hidden)
        return self._seen_by

    def numbers(self, device: torch.device) -> Int[Tensor, " W"]:
        """The number of each row of a group, in order."""
        return torch.arange(self.width, device=device)

    def earlier(
        self, reads: Reads, count: int, positions: int, device: torch.device
    ) -> Earlier | None:
        """What the rows read of their siblings at earlier positions, beside `visible`; None when
        nothing.

        Args:
            reads: Reach of a row: "finished", all that siblings wrote that are finished, or
                "history", all that siblings wrote. Either is of completions only, while alive.
            count: P.
            positions: Number of positions of this call.
            device: Device of the masks.
        """
        if reads == "position" or self.width == 1 or (reads == "finished" and self.alive is None):
            return None
        if self.hidden is not None:
            raise GroupError(
                "Rows are hidden from siblings that read them at the same position only; these "
                f"blocks read {reads!r}. Leave hidden out, or attach blocks with reads='position'."
            )
        if torch.compiler.is_compiling():
            return self._find_earlier(reads, count, positions, device)
        if (reads, count) not in self._earlier:
            self._earlier[reads, count] = self._find_earlier(reads, count, positions, device)
        return self._earlier[reads, count]

    def written(
        self, count: int, columns: int, device: torch.device
    ) -> tuple[Bool[Tensor, "P W L"], Int[Tensor, " P"]]:
        """The alive mask of all columns so far, and the first column of each group's completions.

        Args:
            count: P.
            columns: Number of columns so far.
            device: Device of both.
        """
        alive, start = self.alive, self.completion_start
        if alive is None:
            alive = torch.ones(count, self.width, columns, dtype=torch.bool)
        start = torch.zeros(count, dtype=torch.long) if start is None else start
        return alive.to(device), start.to(device)

    def joined(
        self,
        place: int,
        keys: Float[Tensor, "P W S G C"],
        values: Float[Tensor, "P W S G V"],
    ) -> tuple[Float[Tensor, "P W L G C"], Float[Tensor, "P W L G V"]]:
        """Keys and values of all positions that `earlier` speaks of, from those of this call.

        Args:
            place: Layer that the coupling stands at.
            keys: Keys of this call's positions.
            values: Values of this call's positions.
        """
        return keys, values

    def _find_earlier(
        self, reads: Reads, count: int, positions: int, device: torch.device
    ) -> Earlier | None:
        alive, start = self.alive, self.completion_start
        if alive is None:
            alive = torch.ones(count, self.width, positions, dtype=torch.bool, device=device)
        if start is None:
            start = torch.zeros(count, dtype=torch.long, device=device)
        return find_earlier(reads, alive, start)


class Prompts(Groups):
    """One row for each prompt, which stands for all rows of its group: those hold the same, so
    that each reads what a row of width 1 reads.

    Args:
        alone: For each row whether the group is of width 1.
    """

    def __init__(self, alone: Sequence[bool]) -> None:
        super().__init__(1)
        self._alone = list(alone)

    def alone(self) -> bool | Bool[Tensor, " R"]:
        """Which rows stand for groups of width 1."""
        if all(self._alone) or not any(self._alone):
            return self._alone[0]
        return torch.tensor(self._alone)


class Owners(Rows):
    """Rows of any groups in any order: each names its group, as its owner.

    To a coupling they are one problem (P = 1) of R rows in which a row sees the rows that share its
    owner: the same result as `Groups(width, alive)` with the finished rows in their places and
    masked, without computing them. Groups shrink at their own pace, and no row order is assumed.

    Args:
        owners: `[R]`, a number of its group for each row, the same for all of its rows; -1 for a
            slot without a row, which sees itself only and which nobody sees. Must not change
            while this object is in use. A tensor's values are not looked at, so that no device has
            to be waited for.
        device: Device of the masks; by default that of `owners`, the CPU for a sequence.
        alone: For each row whether its group is of width 1; by default none is. A tensor's values
            are not looked at either.
        kept: Keys and values of earlier steps, for couplings that read them.
        hidden: `[R, R]`, True where a row does not see another, whoever owns it.
        numbers: Number in its group of each row, for couplings that tell rows apart.

    Attributes:
        said: `[R, V]`, logits that the tokens of this step were drawn from, for couplings that mix
            embeddings by them; whoever decodes says it before each step.
        mixing: `[R, R]`, how much of each row is in what a row is fed, once a coupling has found
            it.

    Raises:
        GroupError: for no rows, or owners of another type or shape.

    >>> Owners([7, 9, 7]).visible().int().tolist()
    [[[[1, 0, 1], [0, 1, 0], [1, 0, 1]]]]
    """

    def __init__(
        self,
        owners: Int[Tensor, " R"] | Sequence[int],
        device: torch.device | str | None = None,
        *,
        alone: Sequence[bool] | Bool[Tensor, " R"] = (),
        kept: Kept | None = None,
        hidden: Bool[Tensor, "R R"] | None = None,
        numbers: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        given = owners if isinstance(owners, Tensor) else torch.tensor(owners)
        if given.numel() == 0:
            raise GroupError("A decode step has at least one row; got no owners.")
        if given.ndim != 1 or given.is_floating_point() or given.dtype == torch.bool:
            raise GroupError(
                "Owners are whole numbers [R], one for each row: its group's, or -1 for a slot "
                f"without a row; got {list(given.shape)} of {given.dtype}."
            )
        known = () if isinstance(owners, Tensor) else set(owners)
        self._one_group = len(given) == 1 or (len(known) == 1 and NOBODY not in known)
        self._one_group = self._one_group and hidden is None
        self._owners = given if device is None else given.to(device)
        self._hidden = None if hidden is None else hidden.to(self._owners.device)
        # Shared with the copies that passes watch: the rows are the same until a row ends.
        self._masks: dict[torch.dtype, Tensor] = {}
        self._alone: bool | Tensor = False
        if isinstance(alone, Tensor):
            self._alone = alone
        elif any(alone):
            self._alone = all(alone) or torch.tensor(list(alone), device=self._owners.device)
        self.kept = kept
        self.said: Float[Tensor, "R V"] | None = None
        self.mixing: Float[Tensor, "R R"] | None = None
        self._numbers = None if numbers is None else torch.tensor(numbers)

    def alone(self) -> bool | Bool[Tensor, " R"]:
        """Which rows are groups of width 1; not those whose siblings have all finished."""
        return self._alone

    @property
    def owners(self) -> Int[Tensor, " R"]:
        """The number of each row's group; -1 for a slot without a row."""
        return self._owners

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.owners)} rows)"

    def check(self, rows: int, positions: int) -> int:
        if rows != len(self.owners):
            raise GroupError(
                f"Each row of a call has one owner; got {rows} rows and {len(self.owners)} owners. "
                "Make new Owners when rows come or go."
            )
        return 1

    def columns(self, start: int | None, stop: int | None) -> Owners:
        return self

    def to(self, device: torch.device | str | int | None, non_blocking: bool = False) -> Owners:
        if device is None:
            return self
        owners = self.owners.to(device, non_blocking=non_blocking)
        if owners is self.owners:
            return self
        moved = copy.copy(self)  # the record of the pass is the same one
        moved._owners, moved._masks = owners, {}
        moved._hidden = None if self._hidden is None else self._hidden.to(device)
        if isinstance(self._alone, Tensor):
            moved._alone = self._alone.to(device, non_blocking=non_blocking)
        return moved

    def visible(self) -> Bool[Tensor, "1 1 R R"] | None:
        """Who sees whom; None when all rows are known to be of one group."""
        if self._one_group:
            return None
        return self._once(torch.bool, lambda: _same_owner(self.owners, self._hidden))

    def numbers(self, device: torch.device) -> Int[Tensor, " R"]:
        """The number in its group of each row.

        Raises:
            GroupError: if nobody has said.
        """
        if self._numbers is None:
            raise GroupError(
                "This coupling tells the rows of a group apart, and these Owners have no numbers. "
                "Pass Owners(..., numbers=...), each row's number in its group."
            )
        return self._numbers.to(device)

    def additive_mask(self, dtype: torch.dtype) -> Float[Tensor, "1 1 R R"] | None:
        """`visible` as numbers to add to scores: 0 where seen, else minus infinity."""
        seen = self.visible()
        if seen is None:
            return None
        return self._once(
            dtype,
            lambda: torch.zeros_like(seen, dtype=dtype).masked_fill_(~seen, float("-inf")),
        )

    def _once(self, dtype: torch.dtype, make: Callable[[], Tensor]) -> Tensor:
        if torch.compiler.is_compiling():
            return make()
        if dtype not in self._masks:
            self._masks[dtype] = make()
        return self._masks[dtype]


@dataclass(frozen=True)
class Earlier:
    """What the rows of a call read of their siblings at earlier positions.

    Axes: N of a group's (position, row) pairs that any of its rows reads, positions first; with
    gaps where another group has more. L positions, S of them of this call, the last ones.

    Attributes:
        first: First position of this call at which any row reads one.
        pairs: `[P, N]`, position * W + row.
        kept: `[P, N]`, False for gaps.
        upto: For each position of this call, the number of pairs before it.
        alive: `[P, W, L]`.
        ended_only: Whether a row reads only siblings that are not alive at its position.
        positions: `[P, L]`, counted from the first of the completion.
    """

    first: int
    pairs: Int[Tensor, "P N"]
    kept: Bool[Tensor, "P N"]
    upto: list[int]
    alive: Bool[Tensor, "P W L"]
    ended_only: bool
    positions: Int[Tensor, "P L"]

    def seen(self, start: int, stop: int) -> Bool[Tensor, "P W B N"]:
        """Which pairs each row reads at the positions `start:stop` of this call; of N, as many as
        come before `stop`."""
        width, length = self.alive.shape[1:]
        pairs = self.pairs[:, : self.upto[stop - 1]]
        row, column = pairs % width, pairs // width
        offset = length - len(self.upto)
        now = torch.arange(offset + start, offset + stop, device=pairs.device)
        reader = torch.arange(width, device=pairs.device)
        before = column[:, None, :] < now[:, None]  # P B N
        before = before & self.kept[:, None, : pairs.shape[1]]
        if self.ended_only:
            alive = self.alive[:, :, offset + start : offset + stop].transpose(1, 2)  # P B W
            before = before & ~alive.gather(2, row[:, None].expand(-1, len(now), -1))
        return before[:, None] & (row[:, None, None] != reader[:, None, None])


def find_earlier(
    reads: Reads,
    alive: Bool[Tensor, "P W L"],
    start: Int[Tensor, " P"],
    positions: int | None = None,
) -> Earlier | None:
    """What the rows at the last positions read of their siblings at earlier ones; None when
    nothing. Equation (31).

    Args:
        reads: Reach of a row: "finished" or "history".
        alive: Mask of all positions so far.
        start: First position of each group's completions.
        positions: Number of positions of this call; by default all.
    """
    width, length = alive.shape[1:]
    offset = 0 if positions is None else length - positions
    column = torch.arange(length, device=alive.device)
    wrote = alive & (column >= start[:, None, None])
    relative = column - start[:, None]
    if torch.compiler.is_compiling():  # where shapes must not depend on values: all pairs
        pairs = torch.arange(width * length, device=alive.device).expand(len(start), -1)
        upto = [width * s for s in range(offset, length)]
        kept = wrote.transpose(1, 2).flatten(1)
        return Earlier(0, pairs, kept, upto, alive, reads == "finished", relative)
    ended = ~alive if reads == "finished" else torch.ones_like(alive)
    read = (((wrote.cumsum(-1) - wrote.int()) > 0) & ended)[..., offset:]
    if not bool(read.any()):
        return None
    used = (wrote & read.any(dim=-1, keepdim=True)).transpose(1, 2).flatten(1)  # P LW
    pairs = used.int().argsort(dim=1, descending=True, stable=True)
    until = used.unflatten(1, (length, width)).sum(-1).cumsum(-1).amax(0)
    before = [0, *until.tolist()]
    pairs = pairs[:, : before[-1]]
    first = int(read.flatten(0, 1).any(0).int().argmax())
    upto = before[offset:length]
    kept = used.gather(1, pairs)
    return Earlier(first, pairs, kept, upto, alive, reads == "finished", relative)


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


def _check_start(start: Tensor, count: int | None) -> None:
    whole = isinstance(start, Tensor) and start.dtype in (torch.int32, torch.int64)
    if not whole or start.ndim != 1 or count not in (None, start.shape[0]):
        got = f"{list(start.shape)} of {start.dtype}" if isinstance(start, Tensor) else repr(start)
        wanted = "" if count is None else f" with P = {count}, as the alive mask has it"
        raise GroupError(
            f"completion_start is a tensor [P] of whole numbers{wanted}: the first column of each "
            f"group's completions; got {got}. Where all begin in one column, "
            "torch.full((P,), column)."
        )


def _alive_or_self(
    alive: Bool[Tensor, "P W S"], hidden: Bool[Tensor, "P W W"] | None
) -> Bool[Tensor, "P S W W"]:
    """Which rows a row sees: the alive ones of its group, and itself. Equation (4)."""
    itself = torch.eye(alive.shape[1], dtype=torch.bool, device=alive.device)
    seen = alive.transpose(1, 2).unsqueeze(2)
    return (seen if hidden is None else seen & ~hidden[:, None]) | itself


def _same_owner(
    owner: Int[Tensor, " R"], hidden: Bool[Tensor, "R R"] | None
) -> Bool[Tensor, "1 1 R R"]:
    itself = torch.eye(len(owner), dtype=torch.bool, device=owner.device)
    seen = (owner[:, None] == owner) & (owner != NOBODY)
    return ((seen if hidden is None else seen & ~hidden) | itself)[None, None]
