"""Records as arrays: all rows of one task at one width.

Letters: E problems, M groups of a problem, W width, n = M W rows of a problem.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from interlace.answers.vote import Equal, answer_classes
from interlace.errors import RecordError
from interlace.evaluation.records import GroupRecord
from interlace.evaluation.votes import NO_ANSWER

LIKELIHOOD = "likelihood"


@dataclass(frozen=True, eq=False)
class Rows:
    """All rows of one task at one width, problems by rows, groups one after the other."""

    width: int
    coupled: bool
    classes: Int[np.ndarray, "E n"]
    correct: Bool[np.ndarray, "E n"]
    scores: Float[np.ndarray, "E n"]
    tokens: Float[np.ndarray, "E n"]
    weights: dict[str, Float[np.ndarray, "E n"]]
    truncated: Bool[np.ndarray, "E n"] | None
    texts: list[list[str]] | None

    @property
    def count(self) -> int:
        """n, rows of a problem."""
        return self.classes.shape[1]


def row_arrays(
    records: list[GroupRecord], ids: tuple[str, ...], width: int, equal: Equal | None
) -> Rows:
    """The records of one width as arrays, after checking that all problems are there."""
    by_example: dict[str, list[GroupRecord]] = {example: [] for example in ids}
    for record in records:
        if record.width == width:
            by_example[record.example_id].append(record)
    most = max(len(groups) for groups in by_example.values())
    missing = [example for example, groups in by_example.items() if len(groups) < most]
    if missing:
        raise RecordError(
            f"At each width every problem has the same number of groups; at width {width} of task "
            f"{records[0].task!r} these have fewer than {most}: {', '.join(missing[:5])}"
            f"{f' and {len(missing) - 5} more' if len(missing) > 5 else ''}. Resume the run."
        )
    flat = [group for groups in by_example.values() for group in groups]

    def rows_of(name: str, dtype: type) -> np.ndarray:
        values = [getattr(group, name) for group in flat]
        return np.array(values, dtype=dtype).reshape(len(ids), -1)

    def kept(name: str) -> bool:
        return all(getattr(group, name) is not None for group in flat)

    texts = [
        [text for group in groups for text in group.texts or ()] for groups in by_example.values()
    ]
    return Rows(
        width=width,
        coupled=records[0].coupled,
        classes=np.stack([_classes(groups, equal) for groups in by_example.values()]),
        correct=rows_of("correct", bool),
        scores=rows_of("scores", float),
        tokens=rows_of("tokens", float),
        weights=_weights(flat, len(ids)),
        truncated=rows_of("finish_reasons", str) == "length" if kept("finish_reasons") else None,
        texts=texts if kept("texts") else None,
    )


def _classes(groups: list[GroupRecord], equal: Equal | None) -> Int[np.ndarray, "n"]:
    """Equal numbers for equal answers among all rows of a problem."""
    answers = [answer for group in groups for answer in group.answers]
    classes = answer_classes(answers, equal=equal)
    return np.array([NO_ANSWER if first is None else first for first in classes], dtype=np.int64)


def _weights(flat: list[GroupRecord], problems: int) -> dict[str, Float[np.ndarray, "E n"]]:
    """Weights of rows by likelihood, and by every scorer that all groups have."""
    weights = {}
    if all(group.logprob_sums is not None for group in flat):
        sums = np.array([group.logprob_sums for group in flat]).reshape(problems, -1)
        tokens = np.array([group.tokens for group in flat]).reshape(problems, -1)
        means = np.where(tokens > 0, sums / np.maximum(tokens, 1), -np.inf)
        # The length-normalised weight of self-consistency; over the problem's largest, so that
        # long rows do not underflow.
        best = np.where(tokens > 0, means, -1e300).max(axis=1, keepdims=True)
        weights[LIKELIHOOD] = np.exp(means - best)
    for name in flat[0].scorers:
        if all(name in group.scorers for group in flat):
            scores = np.array([group.scorers[name] for group in flat], dtype=float)
            weights[name] = scores.reshape(problems, -1)
    return weights
