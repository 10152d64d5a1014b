"""Countdown as the packaged tiny models read and write it, tokens set apart by spaces.

    prompt      3 5 7 -> 56 :
    response    ( 3 + 5 ) + 7 = 15 ; 7 * ( 5 + 3 ) = 56

A response holds up to four tries; the last expression counts, as in any countdown text.
"""

from __future__ import annotations

import re
from typing import ClassVar

from interlace.tasks.base import Example, Split
from interlace.tasks.countdown import Countdown

TEMPLATE = "{numbers[0]} {numbers[1]} {numbers[2]} -> {target} :"


class TinyCountdown(Countdown):
    """`Countdown` with three numbers from 1 to 9 and a target from 1 to 100, as plain text.

    The packaged tiny models were trained on its split "train" and know no other prompt. There are
    2,145 problems, of which nearly all (394 of 395 in the split "test") are drawn by default.

    Args:
        max_number: As in `Countdown`.
        min_target: As in `Countdown`.
        max_target: As in `Countdown`.
        size: How many problems; None for all that are found.
        seed: Chooses which.
        split: "train", "test" (held out) or "all".
        chat: As in `Task`.
        template: As in `Task`.

    Raises:
        TaskError: for options out of range, or if there are not that many problems.

    >>> task = TinyCountdown(size=2)
    >>> task.prompt(task[0]), task.reference_text(task[0])
    ('3 7 8 -> 45 :', '( 7 + 8 ) * 3 = 45')
    """

    default_size: ClassVar[int] = 2145

    def __init__(
        self,
        *,
        max_number: int = 9,
        min_target: int = 1,
        max_target: int = 100,
        size: int | None = None,
        seed: int = 0,
        split: Split = "test",
        chat: bool = False,
        template: str = TEMPLATE,
    ) -> None:
        super().__init__(
            max_number=max_number,
            min_target=min_target,
            max_target=max_target,
            size=size,
            seed=seed,
            split=split,
            chat=chat,
            template=template,
        )
        self.name = "tiny-countdown"

    def reference_text(self, example: Example) -> str:
        """A response of a single try, which hits."""
        tokens = re.findall(r"\d+|\S", example.answer)
        return f"{' '.join(tokens)} = {example.data['target']}"
