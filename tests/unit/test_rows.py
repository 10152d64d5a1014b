"""Rows in two layouts: groups [P, W] with the alive mask, and owners; and what is refused.

Axes: P groups, W width, S positions, R rows.
"""

from __future__ import annotations

import copy
import itertools
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from interlace import Groups
from interlace.coupling.bridge import BridgeBlock
from interlace.errors import GroupError, InterlaceError
from interlace.rows import Owners, Prompts, Reads
from support.architectures import BRIDGE, HIDDEN, randomise
from support.typecheck import unchecked

P, W, S = 3, 5, 7
ALIVE = torch.arange(P * W * S).view(P, W, S) % 4 != 0
START = torch.tensor([2, 0, 6])


@given(count=st.integers(1, 7), width=st.integers(1, 9), rest=st.integers(1, 3))
def test_rows_and_groups_are_views_of_each_other_group_major(
    count: int, width: int, rest: int
) -> None:
    groups = Groups(width)
    rows = torch.arange(count * width * rest).view(count * width, rest)
    grouped = groups.to_groups(rows)
    for p in range(count):
        for w in range(width):
            assert torch.equal(grouped[p, w], rows[p * width + w])
    assert torch.equal(groups.to_rows(grouped), rows)
    assert groups.count(count * width) == count


@pytest.mark.parametrize("width", [0, -1, 2.0, True, "4", None])
def test_width_is_a_whole_number_from_1(width: object) -> None:
    with unchecked(), pytest.raises(GroupError, match=r"at least 1; got .*width=1"):
        Groups(width)  # type: ignore[arg-type]


def test_errors_are_value_errors_of_interlace() -> None:
    with pytest.raises(ValueError, match="width"):
        Groups(0)
    with pytest.raises(InterlaceError):
        Groups(0)


@pytest.mark.parametrize(
    ("alive", "message"),
    [
        (ALIVE.int(), r"torch\.bool.*got torch\.int32.*mask\.bool\(\)"),
        ([[[True]]], r"torch\.bool.*got list"),
        (ALIVE.flatten(0, 1), r"W = 5; got \[15, 7\].*mask\.view\(-1, 5, mask\.shape\[-1\]\)"),
        (ALIVE[:, :4], r"W = 5; got \[3, 4, 7\]"),
        (ALIVE[None], r"W = 5; got \[1, 3, 5, 7\]"),
    ],
)
def test_alive_mask_of_another_type_or_shape_is_refused(alive: object, message: str) -> None:
    with unchecked(), pytest.raises(GroupError, match=message):
        Groups(W, alive)  # type: ignore[arg-type]


@pytest.mark.parametrize("rows", [0, 1, 4, 6, 14])
def test_rows_that_the_width_does_not_divide_are_refused(rows: int) -> None:
    with pytest.raises(GroupError, match=f"got {rows} rows at width 5.*Repeat each prompt 5 times"):
        Groups(W).count(rows)
    with pytest.raises(GroupError, match="multiple of the width"):
        Groups(W).to_groups(torch.zeros(rows, 2))


def test_mask_of_another_number_of_groups_is_refused() -> None:
    with pytest.raises(GroupError, match=r"20 rows at width 5 are 4 groups.*\[3, 5, 7\] has 3"):
        Groups(W, ALIVE).count(20)


def test_mask_of_another_number_of_positions_is_refused() -> None:
    groups = Groups(W, ALIVE)
    assert groups.check(P * W, S) == P
    with pytest.raises(GroupError, match=r"S = 1, got 7.*alive\[\.\.\., -1:\]"):
        groups.check(P * W, 1)


def test_groups_of_another_width_do_not_become_rows() -> None:
    with pytest.raises(GroupError, match=r"Expected \[P, 5, ...\], got \[2, 3, 4\]"):
        Groups(W).to_rows(torch.zeros(2, 3, 4))


def test_select_takes_groups_and_columns_takes_positions() -> None:
    groups = Groups(W, ALIVE)
    selected, columns = groups.select(1, 3), groups.columns(2, 6)
    assert (selected.width, columns.width) == (W, W)
    assert selected.alive is not None
    assert torch.equal(selected.alive, ALIVE[1:3])
    assert columns.alive is not None
    assert torch.equal(columns.alive, ALIVE[..., 2:6])
    last = groups.columns(-1, None).alive
    assert last is not None
    assert torch.equal(last, ALIVE[..., -1:])
    assert Groups(W).select(0, 1).alive is None
    assert Groups(W).columns(0, 1).alive is None


@given(count=st.integers(1, 7), width=st.integers(1, 5), per_batch=st.integers(1, 4))
def test_micro_batches_are_whole_groups_and_cover_all(
    count: int, width: int, per_batch: int
) -> None:
    alive = torch.rand(count, width, S, generator=torch.Generator().manual_seed(0)) < 0.5
    rows = torch.arange(count * width)
    parts = list(Groups(width, alive).micro_batches(count * width, size=per_batch * width))
    assert torch.equal(torch.cat([rows[part] for part, _ in parts]), rows)
    masks = [groups.alive for _, groups in parts]
    assert all(mask is not None and mask.shape[0] <= per_batch for mask in masks)
    assert torch.equal(torch.cat([mask for mask in masks if mask is not None]), alive)
    for part, groups in parts:
        assert groups.check(len(rows[part]), S) * width == len(rows[part])


@pytest.mark.parametrize(("size", "fits"), [(4, 5), (6, 5), (14, 10), (0, 5), (-5, 5)])
def test_micro_batch_that_splits_a_group_is_refused(size: int, fits: int) -> None:
    with pytest.raises(GroupError, match=f"never split.*{size} rows.*for instance {fits}"):
        list(Groups(W).micro_batches(P * W, size))


def test_visible_is_the_living_and_oneself() -> None:
    visible = Groups(W, ALIVE).visible()
    assert visible is not None
    assert visible.shape == (P, S, W, W)
    for p in range(P):
        for s in range(S):
            for me in range(W):
                for other in range(W):
                    expected = me == other or bool(ALIVE[p, other, s])
                    assert bool(visible[p, s, me, other]) == expected
    assert Groups(W).visible() is None


def test_mask_moves_with_to_and_the_watched_pass_stays_the_same_one() -> None:
    groups = Groups(W, ALIVE)
    moved = groups.to("meta", non_blocking=True)
    assert moved.alive is not None
    assert moved.alive.device.type == "meta"
    assert moved._reached is groups._reached
    assert Groups(W).to("meta").alive is None
    assert groups.to(None) is groups
    assert groups.to("cpu") is groups


def test_watched_groups_have_a_record_of_their_own() -> None:
    groups = Groups(W, ALIVE)
    watched = groups.watched()
    watched._reached.append(1)
    assert groups._reached == []
    assert watched.alive is ALIVE
    assert watched.width == W


def test_groups_copy_and_pickle() -> None:
    for other in (
        copy.deepcopy(Groups(W, ALIVE)),
        pickle.loads(pickle.dumps(Groups(W, ALIVE))),
    ):
        assert other.width == W
        assert other.alive is not None
        assert torch.equal(other.alive, ALIVE)


def test_groups_are_frozen() -> None:
    with pytest.raises(AttributeError):
        Groups(W).width = 3  # type: ignore[misc]
    with pytest.raises(AttributeError):
        Groups(W).alive = ALIVE  # type: ignore[misc]


def test_groups_print_their_sizes() -> None:
    assert repr(Groups(W)) == "Groups(width=5)"
    assert repr(Groups(W, ALIVE)) == "Groups(width=5, alive=[3, 5, 7])"


def test_completion_start_is_carried_wherever_groups_go() -> None:
    groups = Groups(W, ALIVE, START)
    assert torch.equal(unwrap(groups.select(1, 3)), START[1:])
    assert torch.equal(unwrap(groups.columns(3, 6)), torch.tensor([0, 0, 3]))
    assert torch.equal(unwrap(groups.columns(None, 4)), START)
    assert torch.equal(unwrap(groups.columns(-3, None)), torch.tensor([0, 0, 2]))  # from column 4
    assert torch.equal(unwrap(Groups(W, None, START).columns(1, None)), torch.tensor([1, 0, 5]))
    parts = [unwrap(part) for _, part in groups.micro_batches(P * W, 2 * W)]
    assert torch.equal(torch.cat(parts), START)
    assert torch.equal(unwrap(groups.watched()), START)
    assert unwrap(groups.to("meta")).device.type == "meta"
    assert unwrap(Groups(W, None, START).to("meta")).device.type == "meta"
    assert Groups(W, ALIVE).columns(3, 6).completion_start is None
    assert groups.check(P * W, S) == P


def unwrap(groups: Groups) -> torch.Tensor:
    assert groups.completion_start is not None
    return groups.completion_start


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (START[:2], r"with P = 3, as the alive mask has it.*got \[2\] of torch\.int64"),
        (START.float(), r"whole numbers.*got \[3\] of torch\.float32"),
        (START[None], r"got \[1, 3\]"),
        (START.bool(), r"of torch\.bool"),
        (2, r"got 2\. .*torch\.full\(\(P,\), column\)"),
    ],
)
def test_completion_start_of_another_type_or_shape_is_refused(start: object, message: str) -> None:
    with unchecked(), pytest.raises(GroupError, match=message):
        Groups(W, ALIVE, start)  # type: ignore[arg-type]


def test_completion_start_of_another_number_of_groups_is_refused() -> None:
    with pytest.raises(GroupError, match=r"20 rows at width 5 are 4 groups.*\[3\] has 3"):
        Groups(W, None, START).count(20)
    with pytest.raises(GroupError, match=r"got start=-1 without one\. Count from the first"):
        Groups(W, None, START).columns(-1, None)


def pairs_read(groups: Groups, reads: Reads, count: int, positions: int) -> set[tuple[int, ...]]:
    """(group, reader, position, sibling, earlier position) of all that is read."""
    earlier = groups.earlier(reads, count, positions, torch.device("cpu"))
    if earlier is None:
        return set()
    found = set()
    for start in range(earlier.first, positions):
        seen = earlier.seen(start, start + 1)
        for p, reader, _, n in seen.nonzero().tolist():
            column, row = divmod(int(earlier.pairs[p, n]), groups.width)
            found.add((p, reader, start, row, column))
    return found


@pytest.mark.parametrize("reads", ["finished", "history"])
@pytest.mark.parametrize("masked", [True, False])
def test_earlier_positions_are_those_of_the_rule(reads: Reads, masked: bool) -> None:
    """Word for word from the definition, with rows that end, gaps and starts of their own."""
    alive = ALIVE if masked else torch.ones_like(ALIVE)
    groups = Groups(W, alive if masked else None, START)
    expected = {
        (p, me, s, w, at)
        for p, me, s, w, at in itertools.product(range(P), range(W), range(S), range(W), range(S))
        if w != me and int(START[p]) <= at < s and alive[p, w, at]
        if reads == "history" or not alive[p, w, s]
    }
    assert pairs_read(groups, reads, P, S) == expected
    assert bool(expected) == (masked or reads == "history")
    earlier = groups.earlier(reads, P, S, torch.device("cpu"))
    if earlier is not None:
        whole = earlier.seen(earlier.first, S)
        for s in range(earlier.first, S):  # blocks of queries of any size say the same
            one = earlier.seen(s, s + 1)
            assert torch.equal(whole[:, :, s - earlier.first, : one.shape[-1]], one[:, :, 0])
            assert not whole[:, :, s - earlier.first, one.shape[-1] :].any()
        assert earlier.first == min(s for _, _, s, _, _ in expected)
        assert groups.earlier(reads, P, S, torch.device("cpu")) is earlier  # found once a pass
        assert groups.to("meta")._earlier == {}


def test_nobody_reads_earlier_positions_of_no_siblings() -> None:
    device = torch.device("cpu")
    assert Groups(W, ALIVE).earlier("position", P, S, device) is None
    assert Groups(1).earlier("history", P, S, device) is None
    assert Groups(W).earlier("finished", P, S, device) is None  # all live
    beyond = torch.full((P,), S)
    assert Groups(W, ALIVE, beyond).earlier("history", P, S, device) is None  # all prompt


def test_which_rows_are_alone() -> None:
    assert Groups(1).alone() is True
    assert Groups(2).alone() is False
    assert Prompts([True, True]).alone() is True
    assert Prompts([False]).alone() is False
    assert Prompts([True, False]).alone().tolist() == [True, False]
    assert Owners([3, 4]).alone() is False
    assert Owners([3, 4], alone=[True, True]).alone() is True
    mixed = Owners([3, 4, 4], alone=[True, False, False])
    assert mixed.alone().tolist() == [True, False, False]
    assert mixed.to("meta").alone().device.type == "meta"
    assert mixed.watched().alone() is mixed.alone()


def test_owners_see_their_own_group() -> None:
    rows = Owners([7, 9, 7, 3])
    seen = rows.visible()
    assert seen is not None
    assert seen[0, 0].int().tolist() == [[1, 0, 1, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]]
    mask = rows.additive_mask(torch.float32)
    assert mask is not None
    assert torch.equal(mask == 0, seen)
    assert (mask[~seen] == -torch.inf).all()
    assert rows.check(4, 1) == 1


def test_owners_of_one_group_need_no_mask() -> None:
    for rows in (Owners([4, 4, 4]), Owners([4]), Owners(torch.tensor([4]))):
        assert rows.visible() is None
        assert rows.additive_mask(torch.float32) is None


@pytest.mark.parametrize("owners", [[5, -1, 5, -1, 2], [-1, -1, -1]])
def test_a_slot_without_a_row_sees_itself_only_and_nobody_sees_it(owners: list[int]) -> None:
    """Slots of a captured step that no row fills; two of them do not see each other either."""
    seen = Owners(owners).visible()
    assert seen is not None
    for me, mine in enumerate(owners):
        for other, theirs in enumerate(owners):
            expected = me == other or (mine == theirs and mine != -1)
            assert bool(seen[0, 0, me, other]) == expected


def test_owners_of_a_tensor_are_those_of_the_list() -> None:
    listed, given = Owners([3, 1, 3, -1]), Owners(torch.tensor([3, 1, 3, -1]))
    assert torch.equal(listed.visible(), given.visible())
    assert Owners(torch.tensor([3, 3])).visible().all()


@pytest.mark.parametrize("owners", [[0.5, 1.0], [[1, 2]], [True, False], torch.zeros(2, 3)])
def test_owners_of_another_type_or_shape_are_refused(owners: object) -> None:
    with unchecked(), pytest.raises(GroupError, match=r"whole numbers \[R\].*got \["):
        Owners(owners)  # type: ignore[arg-type]


def test_owners_of_other_rows_are_refused() -> None:
    with pytest.raises(GroupError, match=r"got 5 rows and 4 owners"):
        Owners([1, 1, 2, 2]).check(5, 1)
    with pytest.raises(GroupError, match="at least one row"):
        Owners([])


def test_copies_of_owners_keep_masks_and_moves_keep_the_pass() -> None:
    """The attached model watches a copy of what it is given, and accelerate moves it."""
    rows = Owners([1, 2])
    for copied in (rows.watched(), copy.copy(rows), rows.to("cpu"), rows.to(None)):
        assert torch.equal(copied.visible(), rows.visible())
    assert rows.watched().visible() is rows.visible()  # made once for all passes
    assert rows.watched()._reached is not rows._reached
    assert rows.columns(0, 1) is rows
    moved = rows.to("meta")
    assert moved.visible().device.type == "meta"
    assert rows.visible().device.type == "cpu"
    assert moved._reached is rows._reached
    assert repr(rows) == "Owners(2 rows)"


@pytest.mark.parametrize("order", ["in order", "shuffled"])
@torch.no_grad()
def test_the_two_layouts_agree(order: str) -> None:
    """Three groups of five, some rows of which are finished, and one of which is finished whole:
    the alive ones see the same rows and get the same from a block, whatever their order."""
    block = BridgeBlock(BRIDGE, HIDDEN)
    randomise(block.named_parameters(), seed=1)
    x = torch.randn(P * W, 1, HIDDEN)
    alive = torch.ones(P, W, 1, dtype=torch.bool)
    alive[0, [1, 4]] = alive[1] = False
    live = torch.tensor([r for r in range(P * W) if alive.flatten()[r]])
    if order == "shuffled":
        live = live[torch.randperm(len(live))]
    rows, groups = Owners((live // W).tolist()), Groups(W, alive)

    def seen_in_groups(me: int, other: int) -> bool:
        visible = groups.visible()
        assert visible is not None
        return me // W == other // W and bool(visible[me // W, 0, me % W, other % W])

    expected = [[seen_in_groups(me, other) for other in live.tolist()] for me in live.tolist()]
    assert rows.visible()[0, 0].tolist() == expected
    got = block(x[live], rows)
    torch.testing.assert_close(got, block(x, groups)[live], atol=1e-5, rtol=1e-5)
    slots = torch.cat([x[live], 9 * torch.ones(2, 1, HIDDEN)])
    padded = block(slots, Owners([*(live // W).tolist(), -1, -1]))
    torch.testing.assert_close(padded[:-2], got, atol=1e-5, rtol=1e-5)
