"""A task from a JSONL file of your own: `jsonl:PATH`, a problem a line.

A question is text, an answer text or a number; a row with anything else is refused, and so is a
question that comes twice with different answers.

    get_task("jsonl:mine.jsonl", question="q", answer="a", checker="exact")

The checkers are those of `checkers`: "number", "math" (default), "choice" and "exact". For "choice"
the answer column holds a letter, and the choices are in the question, or in a column of their own
(`choices="options"`: a list of texts, put below the question in that order).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

from interlace.errors import TaskError
from interlace.tasks.base import Example, Split, Task, Verdict
from interlace.tasks.checkers import CheckerName, check_choice, choice_letter, get_checker
from interlace.tasks.choices import ChoiceTask, chosen, lone_letter, with_choices
from interlace.tasks.sources import HubSource, Row, column, load_examples

_NO_HUB = HubSource("", {})

INSTRUCTIONS: Mapping[str, str] = {
    "number": "Reason step by step, and put your final answer within \\boxed{}.",
    "math": "Reason step by step, and put your final answer within \\boxed{}.",
    "choice": ChoiceTask.instruction,
    "exact": "End with one line of the form\nAnswer: <answer>",
}


class JsonlTask(Task):
    """The task; see this module's head.

    Args:
        name: "jsonl:" and the file's path.
        question: Column of the question.
        answer: Column of the reference answer.
        checker: How answers are compared.
        choices: Column with the list of choices, if they are not in the question.
        split: "train" or "test" to divide the file by the hash of each question; None or "all" for
            the whole file.
        size: How many problems, the first ones; None for all.
        instruction: What follows the question; None for the checker's own.
        chat: As in `Task`.
        template: As in `Task`.

    Raises:
        TaskError: for a file, a row, a column or a checker that does not fit.
        MissingDependencyError: if "math" meets a formula and math-verify is not installed.
    """

    judges_in_children = True

    def __init__(
        self,
        name: str,
        *,
        question: str = "question",
        answer: str = "answer",
        checker: CheckerName = "math",
        choices: str | None = None,
        split: Split | None = None,
        size: int | None = None,
        instruction: str | None = None,
        chat: bool = True,
        template: str = "{question}\n\n{instruction}",
    ) -> None:
        path = name.removeprefix("jsonl:")
        if not Path(path).is_file():
            raise TaskError(f"jsonl:PATH names a file, a problem a line; there is no {path!r}.")

        def to_example(row: Row) -> tuple[str, str, Mapping[str, Any]]:
            asked, reference = _question(column(row, [question])), _answer(column(row, [answer]))
            listed = [] if choices is None else _listed(column(row, [choices]))
            if checker == "choice":
                reference = _letter(reference, listed)
            if not listed:
                return asked, reference, {}
            return with_choices(asked, listed), reference, {"choices": listed}

        examples, chosen = load_examples(
            name, _NO_HUB, to_example, data=path, split=split, size=size
        )
        self.checker = checker
        self._check = get_checker(checker, [example.answer for example in examples])
        self.instruction = INSTRUCTIONS[checker] if instruction is None else instruction
        super().__init__(name, examples, split=chosen, chat=chat, template=template)

    def extract(self, text: str) -> str | None:
        """As in `Task`; for choices as in `ChoiceTask`."""
        if self.checker == "choice":
            return chosen(text) or self.marked(text) or lone_letter(text)
        return super().extract(text)

    def normalise(self, answer: str) -> Hashable | None:
        """As in `Task`; for choices the letter, where the answer names one."""
        letter = choice_letter(answer) if self.checker == "choice" else None
        return letter or super().normalise(answer)

    def check(self, example: Example, answer: str) -> Verdict:
        """As the checker decides."""
        if self.checker == "choice":
            return check_choice(example.answer, answer, example.data.get("choices", ()))
        return self._check(example.answer, answer)


def _question(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise TaskError(
            f"A question is text; got {value!r:.60}. Name the column with the text: question=..., "
            "or --option question=... on the command line; messages are no text."
        )
    return value


def _answer(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        kind = "true or false" if isinstance(value, bool) else f"a {type(value).__name__}"
        raise TaskError(
            f"A reference answer is text or a number; got {kind}, {value!r:.60}. Write the answer "
            'itself, "42" rather than ["42"].'
        )
    if isinstance(value, str) and not value.strip():
        raise TaskError("A reference answer is not empty; leave out the rows without one.")
    return str(value)


def _listed(value: Any) -> list[str]:
    if not isinstance(value, list) or not 2 <= len(value) <= 26:
        raise TaskError(f"The column of choices holds a list of 2 to 26; got {value!r:.60}.")
    return [str(choice) for choice in value]


def _letter(reference: str, choices: list[str]) -> str:
    letter = choice_letter(reference, choices)
    if letter is None:
        raise TaskError(
            "The reference of a choice is a letter, or the text of one of the choices; got "
            f"{reference!r:.60}."
        )
    return letter
