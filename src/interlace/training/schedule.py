"""What is drawn for a rollout: prompts, widths and seeds, from the run's seed and the rollout's
number alone, so that a resumed run draws what an uninterrupted one does, on any number of
processes.
"""

from __future__ import annotations

import functools
import hashlib
import random
from array import array
from collections.abc import Sequence


def draw_indices(seed: int, count: int, start: int, stop: int) -> list[int]:
    """Positions `start:stop` of an endless stream: one shuffle of `range(count)` after the other.

    >>> first = draw_indices(0, 5, 0, 5)
    >>> sorted(first), draw_indices(0, 5, 3, 5) == first[3:]
    ([0, 1, 2, 3, 4], True)
    """
    found: list[int] = []
    for epoch in range(start // count, -(-stop // count)):
        offset = epoch * count
        first, last = max(start - offset, 0), max(min(stop - offset, count), 0)
        found += _shuffled(seed, count, epoch)[first:last]
    return found


@functools.lru_cache(maxsize=4)  # a run asks for one stream, epoch after epoch
def _shuffled(seed: int, count: int, epoch: int) -> array[int]:
    order = list(range(count))
    random.Random(f"{seed}:order:{epoch}").shuffle(order)
    return array("q", order)


def draw_width(seed: int, rollout: int, position: int, widths: Sequence[int]) -> int:
    """The width of a rollout's prompt."""
    return random.Random(f"{seed}:width:{rollout}:{position}").choice(list(widths))


def sampling_seed(seed: int, rollout: int) -> int:
    """The engine's seed for a rollout: the run's, with the rollout mixed in (invariant I11)."""
    digest = hashlib.sha256(f"{seed}:sampling:{rollout}".encode()).digest()
    return int.from_bytes(digest[:6], "big")
