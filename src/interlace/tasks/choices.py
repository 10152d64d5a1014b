"""What tasks with lettered choices share: the question's layout, and which letter counts."""

from __future__ import annotations

import itertools
import re
from collections.abc import Hashable, Sequence

from interlace.answers import normalise_answer
from interlace.answers.extract import marked_answers
from interlace.tasks.base import Example, Task, Verdict, final_part, tagged
from interlace.tasks.checkers import check_choice, choice_letter

_LONE_LETTER = re.compile(r"^[ \t*_]*\(?([A-Z])[).]?[*_. \t]*$|\(([A-Z])\)", re.MULTILINE)


class ChoiceTask(Task):
    """A task whose examples hold their choices in `data["choices"]`, in the order A, B, C, ...

    Which letter of a text counts: that of the last marked answer (see `Task.extract`) which names
    one, by letter; else the marked answer, which may be a choice's whole text; else the last letter
    in brackets or alone on its line.
    """

    instruction: str = "Reason step by step, and end with one line of the form\nAnswer: A"

    def extract(self, text: str) -> str | None:
        """The answer that counts; None without one."""
        return chosen(text) or self.marked(text) or lone_letter(text)

    def normalise(self, answer: str) -> Hashable | None:
        """The letter, where the answer names one."""
        return choice_letter(answer) or normalise_answer(answer)

    def check(self, example: Example, answer: str) -> Verdict:
        """Whether the answer names the right choice."""
        return check_choice(example.answer, answer, example.data.get("choices", ()))


def chosen(text: str) -> str | None:
    """The last marked answer that names a choice by its letter; None without one."""
    text = final_part(text)
    marked = itertools.chain(filter(None, [tagged(text)]), marked_answers(text))
    return next((answer for answer in marked if choice_letter(answer)), None)


def lone_letter(text: str) -> str | None:
    """The last capital letter in brackets or alone on its line; None without one."""
    found = list(_LONE_LETTER.finditer(final_part(text)))
    return (found[-1][1] or found[-1][2]) if found else None


def with_choices(question: str, choices: Sequence[str]) -> str:
    """The question with its choices below, one a line.

    >>> print(with_choices("Which is even?", ["1", "2"]))
    Which is even?
    <BLANKLINE>
    A) 1
    B) 2
    """
    lines = [f"{letter_of(index)}) {choice}" for index, choice in enumerate(choices)]
    return "\n".join([question, "", *lines])


def letter_of(index: int) -> str:
    """A for 0, B for 1, ..."""
    return chr(ord("A") + index)
