r"""What tasks with lettered choices share: the question's layout, and which letter counts.

A letter may stand alone or dressed: "(C)", "C.", "\textbf{(C)}\ 12", "Option C", "C because". A
choice's whole text names it, too.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Hashable, Sequence

from interlace.answers import normalise_answer
from interlace.answers.extract import final_part, marked_answers
from interlace.answers.normalise import undress
from interlace.tasks.base import Example, Prompt, Task, Verdict, in_last_message, tagged
from interlace.tasks.checkers import verdict_on

_LONE_LETTER = re.compile(r"^[ \t*_]*\(?([A-Z])[).]?[*_. \t]*$|(?<!not )\(([A-Z])\)", re.MULTILINE)
_SAID_LETTER = re.compile(
    r"\b(?i:(?:option|choice)(?:\s+is|\s*:)|choose|pick)[\s*_(\[]*([A-Z])\b(?!'|\s+(?!because|since)[a-z])"
    r"|(?:^|\b(?i:option|choice|so|therefore|thus|hence)[\s,*_(\[]+)([A-Z])[)\]*_]*\s+(?i:is\s+"
    r"(?:the\s+)?(?:only\s+)?(?:correct|right|best|answer))",
    re.MULTILINE,
)
_LETTER = re.compile(
    r"(?:(?i:option|choice|answer)\s+)?"
    r"(?:\(([A-Z])\).*|([A-Z])(?:[).:,](?:\s.*)?|\s+(?:because|since|as|is|rather|[-\u2013\u2014])\s.*|\s\(.*)?)",
    re.DOTALL,
)
_SEVERAL = re.compile(r"\(?[A-Z]\)?\s*(?:[,/&]|and|or)\s*\(?[A-Z](?:[),]|$)")


class ChoiceTask(Task):
    """A task whose examples hold their choices in `data["choices"]`, in the order A, B, C, ...

    Which letter of a text counts: that of the last marked answer (see `Task.extract`) which names
    one, by letter; else the last letter that is said to be right ("Option B is correct"); else the
    marked answer, which may be a choice's whole text; else the last letter in brackets or alone on
    its line.
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


def check_choice(reference: str, answer: str, choices: Sequence[str] = ()) -> Verdict:
    """By letter, or by the text of one of the `choices` (of A, B, ... in order)."""
    letter = choice_letter(answer, choices)
    if letter is None:
        return verdict_on(False, answer, "is none of the choices")
    return verdict_on(letter == reference.strip().upper(), letter, f"expected {reference:.40}")


def choice_letter(answer: str, choices: Sequence[str] = ()) -> str | None:
    r"""The letter that an answer names; None if it names none, or one beyond the choices.

    >>> choice_letter(r"\text{(c)}"), choice_letter("B) 12 m"), choice_letter("a dog")
    ('C', 'B', None)
    """
    form = normalise_answer(answer)
    texts = [normalise_answer(choice) for choice in choices]
    if form is not None and texts.count(form) == 1:
        return chr(ord("A") + texts.index(form))
    # Letters of either case where nothing else is there: "a dog" is no choice.
    if _SEVERAL.match(undress(answer)):
        return None
    alone = isinstance(form, str) and len(form) == 1
    found = _LETTER.fullmatch(str(form).upper() if alone else undress(answer)) or (
        _LETTER.fullmatch(answer.strip(" *_$`\n[]<>{}"))
    )
    letter = found and (found[1] or found[2])
    if not letter or (choices and ord(letter) - ord("A") >= len(choices)):
        return None
    return letter


def chosen(text: str) -> str | None:
    """The last marked answer that names a choice by its letter, else the last letter that is said
    to be right; None without one."""
    text = final_part(text)
    marked = itertools.chain(filter(None, [tagged(text)]), marked_answers(text))
    said = [found[1] or found[2] for found in _SAID_LETTER.finditer(text)]
    return next((answer for answer in marked if choice_letter(answer)), said[-1] if said else None)


def lone_letter(text: str) -> str | None:
    """The last capital letter in brackets or alone on its line; None without one."""
    found = list(_LONE_LETTER.finditer(final_part(text)))
    return (found[-1][1] or found[-1][2]) if found else None


def with_choices(question: Prompt, choices: Sequence[str]) -> Prompt:
    """The question with its choices below, one a line.

    >>> print(with_choices("Which is even?", ["1", "2"]))
    Which is even?
    <BLANKLINE>
    A) 1
    B) 2
    """
    lines = [f"{letter_of(index)}) {choice}" for index, choice in enumerate(choices)]
    below = "\n".join(["\n", *lines])
    if isinstance(question, str):
        return question + below
    return in_last_message(question, lambda text: text + below)


def letter_of(index: int) -> str:
    """A for 0, B for 1, ..."""
    return chr(ord("A") + index)
