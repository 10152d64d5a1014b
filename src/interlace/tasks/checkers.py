r"""How an answer is compared with a reference: as a number, a formula, a letter, or a text.

- number: exact equality of the values, in any form that has one by the rules of
  `interlace.answers.normalise` and `.equal`: `1,000`, `\frac12`, "144/2", "72 clips", `x + y = 72`.
- math: equal as votes see it (`interlace.answers.symbolically_equal`): by value, by normal form, or
  as formulas.
- choice: a letter, alone or dressed ("(C)", "C.", "\textbf{(C)}\ 12", "Option C", "C because"), or
  a choice's whole text.
- exact: equal normal forms, so case, blanks and LaTeX dressing do not matter.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Hashable, Sequence
from fractions import Fraction
from typing import Literal, get_args

from interlace.answers import normalise_answer
from interlace.answers.equal import compare, number_in
from interlace.answers.extract import final_part, marked_answers
from interlace.answers.normalise import undress
from interlace.errors import TaskError, require
from interlace.tasks.base import Example, Prompt, Task, Verdict, in_last_message, tagged
from interlace.verifier_pool import Refusal

CheckerName = Literal["number", "math", "choice", "exact"]
Checker = Callable[[str, str], Verdict]

_LONE_LETTER = re.compile(r"^[ \t*_]*\(?([A-Z])[).]?[*_. \t]*$|(?<!not )\(([A-Z])\)", re.MULTILINE)
_SAID_LETTER = re.compile(
    r"\b(?i:(?:option|choice)(?:\s+is|\s*:)|(?:choose|pick|select|go\s+with)(?:\s+(?:option|choice))?)"
    r"[\s*_(\[]*([A-Z])\b(?!'|\s+(?!because|since)[a-z])"
    r"|(?:^|\b(?i:option|choice|so|therefore|thus|hence)[\s,*_(\[]+)([A-Z])[)\]*_]*\s+(?i:is\s+"
    r"(?:the\s+)?(?:only\s+)?(?:correct|right|best|answer))",
    re.MULTILINE,
)
_LETTER = re.compile(
    r"(?:(?i:option|choice|answer|letter|definitely|clearly|(?:most\s+)?likely|probably|therefore|thus)"
    r"\s+)*[*_]*"
    r"(?:\(([A-Z])\).*|([A-Z])(?:[).:,](?:\s.*)?|\s+(?:because|since|as|is|rather|[-\u2013\u2014])\s.*|\s\(.*)?)",
    re.DOTALL,
)
_OPENING = re.compile(r"^[ \t*_]*\(?([A-Z])[).][*_ \t]", re.MULTILINE)
_SEVERAL = re.compile(r"\(?[A-Z]\)?\s*(?:[,/&]|and|or)\s*\(?[A-Z](?:[),]|$)")


def check_number(reference: str, answer: str) -> Verdict:
    """By value, exactly."""
    expected, given = number_in(reference), number_in(answer)
    if given is None:
        return verdict_on(False, answer, "is no number")
    return verdict_on(given == expected, _shown(given, answer), f"expected {reference:.40}")


def check_math(reference: str, answer: str) -> Verdict:
    """As votes compare; see this module's head."""
    value = number_in(answer)
    shown = answer if value is None else _shown(value, answer)
    outcome = compare(reference, answer)
    if isinstance(outcome, Refusal):
        return verdict_on(False, shown, outcome.reason)
    return verdict_on(outcome, shown, f"expected {reference:.40}")


def check_exact(reference: str, answer: str) -> Verdict:
    """By normal form."""
    same = normalise_answer(reference) == normalise_answer(answer)
    return verdict_on(same, answer, f"expected {reference:.40}")


def get_checker(name: str, references: Sequence[str]) -> Checker:
    """The checker of a name ("number", "math" or "exact"), fit for these references. Where all are
    numbers, "math" needs no extra package; without it, an answer that only math-verify can evaluate
    is a wrong one.
    """
    if name not in get_args(CheckerName):
        raise TaskError(f"A checker is one of {', '.join(get_args(CheckerName))}; got {name!r}.")
    if name == "exact":
        return check_exact
    formula = next((text for text in references if number_in(text) is None), None)
    if formula is None:
        return check_number if name == "number" else check_math
    if name == "number":
        raise TaskError(
            f"The checker 'number' needs numbers as references; {formula[:60]!r} is none."
        )
    require(
        "math_verify", "math", f"The reference {formula[:60]!r} is a formula, not a number, so it"
    )
    return check_math


def verdict_on(correct: bool, answer: str, reason: str) -> Verdict:
    """The verdict; the reason is for a wrong answer."""
    return Verdict(correct, float(correct), answer, "correct" if correct else reason)


def _shown(value: Fraction, answer: str) -> str:
    """The number as text; as it was written beyond the digits that Python converts at once."""
    huge = max(value.numerator.bit_length(), value.denominator.bit_length()) > 10_000
    return answer if huge else str(value)


class ChoiceTask(Task):
    """A task whose examples hold their choices in `data["choices"]`, in the order A, B, C, ...

    Which letter of a text counts: that of the last marked answer (see `Task.extract`) which names
    one, by letter; else the last letter that is said to be right ("Option B is correct"); else the
    marked answer, which may be a choice's whole text; else the last letter in brackets or alone on
    its line; else the one that the text, and no other line of it, begins with ("B) 12 m").
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
    """The last capital letter in brackets or alone on its line, else the one that the text, and no
    other line of it, begins with; None without one."""
    text = final_part(text).lstrip()
    found = list(_LONE_LETTER.finditer(text))
    if found:
        return found[-1][1] or found[-1][2]
    opening = list(_OPENING.finditer(text))  # several lines so are the choices, repeated
    return opening[0][1] if len(opening) == 1 and opening[0].start() == 0 else None


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
