"""What group.json holds: the group to show, and how finds spread in all groups.

Letters: W = 8 rows of a group, E problems. Rows that were alone, put into sets of W of one problem
afterwards, say how often a hit follows another's without any sharing: both counts are over the same
problems, and what coupled rows have beyond it is what they take over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from interlace.cli.demo.plan import SHOWN_WIDTH
from interlace.cli.demo.spread import Found, choose, following
from interlace.evaluation.intervals import RESAMPLES, resampled_means
from interlace.tasks.base import Task

Counts = dict[str, list[int]]


def outcome_of(
    task: Task, together: Mapping[str, list[str]], alone: Mapping[str, list[str]]
) -> dict[str, Any]:
    """The group that shows spreading best, and the counts over all.

    Args:
        task: that judges the rows.
        together: rows that saw each other, by problem, group after group.
        alone: rows of the same problems and weights that saw nobody.
    """
    by_id = {example.id: example for example in task if example.id in together}

    def sets(texts: Mapping[str, list[str]], coupled: bool) -> dict[tuple[str, int], Found]:
        return {
            (name, first): Found(task, by_id[name], rows[first : first + SHOWN_WIDTH], coupled)
            for name, rows in sorted(texts.items())
            for first in range(0, len(rows), SHOWN_WIDTH)
        }

    groups, apart = sets(together, True), sets(alone, False)
    name, first = choose(groups)
    counts = [_by_problem(found) for found in (groups, apart)]
    return {
        "example": name,
        "prompt": task.prompt(by_id[name]),
        "question": by_id[name].question,
        "together": together[name][first : first + SHOWN_WIDTH],
        "alone": alone[name][:SHOWN_WIDTH],
        "problems": len(by_id),
        "groups": len(groups),
        "following_together": _total(counts[0]),
        "following_alone": _total(counts[1]),
        "beyond_alone": beyond(*(np.array([c["after"] for c in found]) for found in counts)),
    }


def beyond(together: np.ndarray, alone: np.ndarray) -> list[float] | None:
    """The share of hits after a sibling's, coupled minus alone, with its 95 % bootstrap interval
    over problems; None where one has no such try.

    Args:
        together: `[E, 2]` hits and tries of each problem.
        alone: the same of the rows alone.

    >>> beyond(np.array([[6, 10], [5, 10]]), np.array([[1, 10], [0, 10]]))
    [0.5, 0.5, 0.5]
    """
    stacked = np.concatenate([together, alone], axis=1).astype(float)
    drawn = np.concatenate([stacked.mean(0)[None], resampled_means(stacked, RESAMPLES, seed=0)])
    if not stacked.sum(0)[[1, 3]].all():
        return None
    drawn = drawn[(drawn[:, 1] > 0) & (drawn[:, 3] > 0)]
    shares = drawn[:, 0] / drawn[:, 1] - drawn[:, 2] / drawn[:, 3]
    low, high = np.quantile(shares[1:], [0.025, 0.975])
    return [round(float(value), 6) for value in (shares[0], low, high)]


def _by_problem(groups: Mapping[tuple[str, int], Found]) -> list[Counts]:
    """The counts of every problem, in the order of their names."""
    found: dict[str, list[Found]] = {}
    for (name, _), group in groups.items():
        found.setdefault(name, []).append(group)
    return [following(found[name]) for name in sorted(found)]


def _total(counts: Sequence[Counts]) -> Counts:
    return {
        key: [sum(one[key][place] for one in counts) for place in (0, 1)]
        for key in ("after", "before")
    }
