"""When a group's unfinished rows cannot change its majority any more, decided without holding up
the others.

Whether two answers are equal may take seconds (symbolic comparison, in the verifier's processes).
Meanwhile the group goes on with all the others, and where the answer is that its majority was
settled, its rows are cut to what they had: the outcome depends on neither load nor time, as if all
had waited. Steps are decided in order, each once those before it are.

Axes: W width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING

from interlace.answers.vote import answer_classes

if TYPE_CHECKING:
    from interlace.engine.state import Row

# Begins to answer a question: `submit` of an executor.
Ask = Callable[..., Future[bool]]

# How long a step waits for an answer: most need no comparison, and then no row goes on in vain.
_PATIENCE = 0.01


class Consensus:
    """One group's question after each step: is the majority settled?

    `read` is the user's function from a finished text to its answer, and `ask` begins to answer a
    question. The rows' tokens say when each has ended.

    Attributes:
        known: Steps after which the answer is known.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        read: Callable[[str], str | None],
        text_of: Callable[[Row], str],
        ask: Ask,
    ) -> None:
        self.known = 0
        self._rows = rows
        self._read = read
        self._text_of = text_of
        self._ask = ask
        self._answers: list[str | None] = [None] * len(rows)
        self._asked: Future[bool] | None = None  # after the first step that is not known

    def settled(self, steps: int, wait: bool) -> int | None:
        """The number of steps after which the majority was settled, once that is known; if told to,
        it waits until then."""
        while self.known < steps:
            patience = 0.0
            if self._asked is None:
                self._asked, patience = self._question(self.known + 1), _PATIENCE
            if self._asked is not None:
                try:
                    is_settled = self._asked.result(None if wait else patience)
                except TimeoutError:
                    if self._asked.done():  # then it is the question's own
                        raise
                    return None
                self._asked = None
                if is_settled:
                    self.known += 1
                    return self.known
            self.known += 1
        return None

    def _question(self, steps: int) -> Future[bool] | None:
        """What is to be asked after so many steps; None where the answer is no in any case."""
        ended = [row for row in self._rows if self._ended(row) and len(row.tokens) == steps]
        for row in ended:
            self._answers[row.index] = self._read(self._text_of(row))
        left = [r.index for r in self._rows if len(r.tokens) > steps or not self._ended(r)]
        if not ended or not left:
            return None
        # Were all answers so far the same: if that settles nothing, no comparison can.
        given = [None if answer is None else 0 for answer in self._answers]
        if not majority_is_settled(given, left):
            return None
        return self._ask(_is_settled, list(self._answers), left)

    @staticmethod
    def _ended(row: Row) -> bool:
        return row.finish_reason is not None


def _is_settled(answers: list[str | None], unfinished: list[int]) -> bool:
    return majority_is_settled(answer_classes(answers), unfinished)


def majority_is_settled(answers: Sequence[Hashable | None], unfinished: Sequence[int]) -> bool:
    """Whether the unfinished rows cannot change the majority, whatever they answer.

    Args:
        answers: Answer of each row, or the class of answers that it belongs to; None for rows
            without one, unfinished rows among them.
        unfinished: Indices of the rows that may still answer.

    The majority is the most frequent answer, ties by first seen (METHOD.md).

    >>> majority_is_settled(["7", "7", "7", None, None], unfinished=[3, 4])
    True
    >>> majority_is_settled(["7", "7", None, None], unfinished=[2, 3])
    True
    >>> majority_is_settled([None, "7", "7", None], unfinished=[0, 3])
    False
    """
    counts = Counter(a for a in answers if a is not None)
    if not unfinished:
        return True
    if not counts:
        return False
    first = {answer: answers.index(answer) for answer in counts}
    leader = min(counts, key=lambda answer: (-counts[answer], first[answer]))
    left = len(unfinished)
    rivals = [(counts[a], first[a]) for a in counts if a != leader] + [(0, len(answers))]
    for votes, seen in rivals:
        if votes + left > counts[leader]:
            return False
        if votes + left == counts[leader] and min(seen, *unfinished) < first[leader]:
            return False
    return True
