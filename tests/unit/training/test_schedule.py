"""What is drawn for a rollout: the same as ever, and not by shuffling everything at each call."""

from __future__ import annotations

import random

import pytest

from interlace.training import schedule
from interlace.training.schedule import draw_indices, draw_width, sampling_seed


def shuffled_each_time(seed: int, count: int, start: int, stop: int) -> list[int]:
    """The stream by its definition: position i is that of a whole shuffle of its epoch."""
    found = []
    for position in range(start, stop):
        order = list(range(count))
        random.Random(f"{seed}:order:{position // count}").shuffle(order)
        found.append(order[position % count])
    return found


@pytest.mark.parametrize("seed", [0, 3, 2**40])
@pytest.mark.parametrize(("count", "step"), [(1, 3), (7, 2), (7, 7), (11, 25), (64, 5)])
def test_indices_are_those_of_whole_shuffles(seed: int, count: int, step: int) -> None:
    for number in [*range(12), 3, 0]:  # also going back, as a resumed run does
        start, stop = number * step, (number + 1) * step
        expected = shuffled_each_time(seed, count, start, stop)
        assert draw_indices(seed, count, start, stop) == expected


def test_streams_do_not_mix() -> None:
    """Fails where what is kept does not know its seed or its size."""
    wanted = [(1, 9), (2, 9), (1, 8), (2, 8), (1, 9)]
    for seed, count in wanted * 2:
        assert draw_indices(seed, count, 2, 13) == shuffled_each_time(seed, count, 2, 13)


def test_a_result_is_the_callers_own() -> None:
    draw_indices(0, 6, 0, 6).clear()
    assert sorted(draw_indices(0, 6, 0, 6)) == list(range(6))


def test_an_epoch_is_shuffled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    shuffles = []

    class Noting(random.Random):
        def shuffle(self, x: object) -> None:
            shuffles.append(x)
            super().shuffle(x)  # type: ignore[arg-type]

    monkeypatch.setattr(schedule.random, "Random", Noting)
    for start in range(0, 40, 4):
        draw_indices(77, 20, start, start + 4)
    assert len(shuffles) == 2


def test_widths_and_seeds_follow_from_the_rollout() -> None:
    assert draw_width(0, 1, 2, [1, 2, 4]) == draw_width(0, 1, 2, [1, 2, 4])
    assert len({draw_width(0, 0, place, [1, 2, 4]) for place in range(40)}) == 3
    assert len({sampling_seed(seed, rollout) for seed in range(5) for rollout in range(7)}) == 35
