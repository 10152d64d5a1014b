"""A task from a JSONL file of your own: `jsonl:PATH`, a problem a line.

A question is text or a list of chat messages, an answer text or a number; a row with anything else
is refused, and so is a question that comes twice with different answers.

    get_task("jsonl:mine.jsonl", question="q", answer="a", checker="exact")

The checkers are those of `checkers`: "number", "math" (default), "choice" and "exact". For "choice"
the answer column holds a letter, and the choices are in the question, or in a column of their own
(`choices="options"`: a list of texts, put below the question in that order).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any, Unpack

from interlace.errors import TaskError
from interlace.tasks.base import Example, Prompt, Task, Verdict
from interlace.tasks.checkers import (
    CheckerName,
    ChoiceTask,
    choice_letter,
    get_checker,
    with_choices,
)
from interlace.tasks.sources import (
    HubSource,
    Row,
    SourcedTask,
    SourceOptions,
    answer_in,
    column,
    question_in,
)

_NO_HUB = HubSource("", {})

INSTRUCTIONS: Mapping[str, str] = {
    "number": "Reason step by step, and put your final answer within \\boxed{}.",
    "math": "Reason step by step, and put your final answer within \\boxed{}.",
    "choice": ChoiceTask.instruction,
    "exact": "End with one line of the form\nAnswer: <answer>",
}


class JsonlTask(ChoiceTask, SourcedTask):
    """The task; see this module's head.

    Args:
        name: "jsonl:" and the file's path.
        question: Column of the question.
        answer: Column of the reference answer.
        checker: Name of the way in which answers are compared.
        choices: Column with the list of choices, if they are not in the question.
        instruction: Text that follows the question; None for the checker's own.
        **options: Those of `SourcedTask`. A split divides the file by the hash of each question.

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
        instruction: str | None = None,
        **options: Unpack[SourceOptions],
    ) -> None:
        path = name.removeprefix("jsonl:")
        if not Path(path).is_file():
            raise TaskError(
                f"jsonl:PATH names a file with one problem a line; there is no {path!r:.200}."
            )
        if checker not in INSTRUCTIONS:
            raise TaskError(f"A checker is one of {', '.join(INSTRUCTIONS)}; got {checker!r:.40}.")
        self.checker = checker
        self.instruction = INSTRUCTIONS[checker] if instruction is None else instruction
        self._columns = question, answer, choices
        options.setdefault("data", path)
        super().__init__(name, _NO_HUB, **options)
        if checker != "choice":
            self._check = get_checker(checker, [example.answer for example in self])

    def to_example(self, row: Row) -> tuple[Prompt, str, Mapping[str, Any]]:
        question, answer, choices = self._columns
        asked, reference = question_in(row, [question]), answer_in(row, [answer])
        listed = [] if choices is None else _listed(column(row, [choices]))
        if self.checker == "choice":
            reference = _letter(reference, listed)
        if not listed:
            return asked, reference, {}
        return with_choices(asked, listed), reference, {"choices": listed}

    def extract(self, text: str) -> str | None:
        """As in `Task`; for choices as in `ChoiceTask`."""
        return super().extract(text) if self.checker == "choice" else Task.extract(self, text)

    def normalise(self, answer: str) -> Hashable | None:
        """As in `Task`; for choices as in `ChoiceTask`."""
        is_choice = self.checker == "choice"
        return super().normalise(answer) if is_choice else Task.normalise(self, answer)

    def check(self, example: Example, answer: str) -> Verdict:
        """As the checker decides."""
        if self.checker == "choice":
            return super().check(example, answer)
        return self._check(example.answer, answer)


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
