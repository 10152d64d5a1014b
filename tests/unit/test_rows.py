"""Groups: rows <-> [P, W], the alive mask, and what is refused."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from interlace import Groups
from interlace.errors import GroupError, InterlaceError
from support.unchecked import unchecked

P, W, S = 3, 5, 7
ALIVE = torch.arange(P * W * S).view(P, W, S) % 4 != 0


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
