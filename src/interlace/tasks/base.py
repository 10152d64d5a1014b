"""What a task is: examples, a prompt for each, and a verdict on any text.

A verdict takes two steps. `extract` finds the answer in a text, `check` judges it; `verify` joins
them and bounds both: only the last `MAX_TEXT` characters of a text are read, and an answer of the
task's `max_answer` characters or more is no answer. Text is hostile by assumption: it is never
executed, and a verdict always comes, within seconds of processor time (tasks that leave the
judging to another package run it in a child process, see `verifier_pool`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypedDict, overload

from interlace.answers import extract_answer, normalise_answer
from interlace.answers.extract import MAX_TEXT, final_part, marked_answers
from interlace.errors import TaskError
from interlace.tasks.equations import find_equations
from interlace.verifier_pool import verifier_pool

if TYPE_CHECKING:
    from interlace.tasks.drawn import Draw

TEMPLATE = "{question}\n\n{instruction}"

Split = Literal["train", "test", "all"]
Messages = list[dict[str, str]]
Prompt = str | Messages


@dataclass(frozen=True)
class Example:
    """One problem.

    Attributes:
        id: Names the problem, the same on every machine: the task's name and a hash of the
            problem's canonical form.
        question: Problem as the prompt states it: a text, or chat messages.
        answer: Reference: the answer, or where many count (countdown) one of them.
        data: Further facts of the task about the problem, as JSON values.
    """

    id: str
    question: Prompt
    answer: str
    data: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The example as JSON values, for a data set's column or a record."""
        return asdict(self)


@dataclass(frozen=True)
class Verdict:
    """The judgement on one text.

    Attributes:
        correct: Whether the text solves the problem.
        score: Score from 0 to 1; 1 for a correct answer, in between only where the task gives
            partial credit.
        answer: Answer that was found, as votes compare it; None if there is none.
        reason: Reason in a few words.
    """

    correct: bool
    score: float
    answer: str | None
    reason: str


@dataclass(frozen=True)
class Step:
    """One intermediate step that can be checked.

    Attributes:
        text: Step as written or, if it is missing, as it should have been.
        holds: Whether it is there and right.
    """

    text: str
    holds: bool


class TaskOptions(TypedDict, total=False):
    """What every task takes besides its split; see `Task`."""

    chat: bool
    template: str


class Task(ABC, Sequence[Example]):
    """Problems with a prompt and a verifier. Tasks derive from this class.

    Args:
        name: Name it was asked for by.
        examples: Problems, with distinct ids.
        split: Name of the split: "train", "test" or "all".
        chat: Whether `prompt` returns chat messages (for models with a chat template) or plain
            text.
        template: Text of the prompt, with `{question}`, `{instruction}` and the names in an
            example's `data` in braces. Where the question is chat messages, it is the text of their
            last user's message; the others stay as they are.

    Raises:
        TaskError: if there is no example, or two have the same id.
    """

    instruction: str = ""
    max_answer: ClassVar[int] = 1000
    judges_in_children: bool = False  # and may be asked from several threads

    def __init__(
        self,
        name: str,
        examples: Sequence[Example],
        *,
        split: Split,
        chat: bool = True,
        template: str = TEMPLATE,
    ) -> None:
        self.name = name
        self.split = split
        self.chat = chat
        self.template = template
        self._examples = tuple(examples)
        self._by_id = {example.id: example for example in self._examples}
        if not self._examples:
            raise TaskError(f"A task holds at least one problem; {name!r} has none.")
        if len(self._by_id) < len(self._examples):
            raise TaskError(f"The problems of a task differ; {name!r} holds one twice.")

    def __len__(self) -> int:
        return len(self._examples)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | Sequence[Example]:
        return self._examples[index]

    def __iter__(self) -> Iterator[Example]:
        return iter(self._examples)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}: {len(self)} problems, split {self.split!r}>"

    def find(self, example_id: str) -> Example:
        """The example with this id.

        Raises:
            TaskError: if the task has none.
        """
        if example_id not in self._by_id:
            raise TaskError(
                f"No problem of {self.name!r} ({self.split}, {len(self)} problems) has the id "
                f"{example_id!r}. Ids depend on the task's options: build it with the same ones."
            )
        return self._by_id[example_id]

    def prompt(self, example: Example) -> Prompt:
        """What to ask a model: chat messages, or plain text with `chat=False`."""
        if isinstance(example.question, str):
            text = self.framed(example, example.question)
            return [{"role": "user", "content": text}] if self.chat else text
        if not self.chat:
            raise TaskError(
                f"The question of {example.id!r} is chat messages, which chat=False has no form "
                "for. Leave out chat=False, or write the questions as text."
            )
        return in_last_message(example.question, lambda text: self.framed(example, text))

    def framed(self, example: Example, question: str) -> str:
        """The template filled in with a question; with "{question}" it shows what any one gets."""
        try:
            return self.template.format_map(
                {**example.data, "question": question, "instruction": self.instruction}
            ).strip()
        except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
            names = ", ".join(["question", "instruction", *example.data])
            raise TaskError(
                f"A template holds only the names {names} in braces; {self.template!r} fails with "
                f"{error!r}. Write a literal brace twice."
            ) from error

    def reference_text(self, example: Example) -> str | None:
        """A response that the task accepts; None where it knows of none."""
        return f"Answer: {example.answer}" if example.answer else None

    def verify(self, example: Example, text: str) -> Verdict:
        """The judgement on one text, always, within the bounds in this module's head.

        Args:
            example: Problem.
            text: Text that a model wrote.

        Returns:
            The verdict.
        """
        answer = self.extract(text)
        if answer is None:
            return Verdict(False, 0.0, None, "no answer found")
        return self.check(example, answer)

    def verify_many(self, pairs: Iterable[tuple[Example, str]]) -> list[Verdict]:
        """`verify` for many texts: for tasks that judge in child processes, at once.

        Args:
            pairs: Problems, each with a text that a model wrote.

        Returns:
            One verdict a pair, in the order of the pairs; the same as one by one.
        """
        listed = list(pairs)
        if not self.judges_in_children:
            return [self.verify(example, text) for example, text in listed]
        with ThreadPoolExecutor(verifier_pool().size, "interlace-verdict") as threads:
            return list(threads.map(lambda pair: self.verify(*pair), listed))

    def extract(self, text: str) -> str | None:
        """The answer in a text, as written, by the task's rule; None if there is none.

        The default: after the last `</think>`, what stands in the last `<answer>...</answer>`,
        else the last of `\\boxed{...}`, `#### ...`, "answer is" and "answer:", else the last number
        (see `interlace.answers.extract`).
        """
        text = final_part(text)
        return self._short(tagged(text) or extract_answer(text))

    def marked(self, text: str) -> str | None:
        """As `extract`, but without the last resort: an answer that is marked as one."""
        text = final_part(text)
        return self._short(tagged(text) or marked_answer(text))

    def _short(self, answer: str | None) -> str | None:
        return answer if answer and len(answer) < self.max_answer else None

    def normalise(self, answer: str) -> Hashable | None:
        """The form in which two extracted answers are the same vote; None for no answer."""
        return normalise_answer(answer)

    def splice(
        self, example: Example, rows: Sequence[Sequence[str]], probability: float, draw: Draw
    ) -> list[list[str]]:
        """A group's rows, rewritten so that they show reading: from the column after a sibling's
        find on, a row's next try becomes that find with this probability. Only what `verify` takes
        is a find.

        Args:
            example: Problem.
            rows: Token texts of every row, one a column, without the end token.
            probability: Probability of each such try to become the find.
            draw: Stream of draws.

        Returns:
            The rows, token by token. Where a row is rewritten, it begins as it was.

        Raises:
            TaskError: if the task does not know how; the default.
        """
        raise TaskError(
            f"The task {self.name!r} has no splice of its own, so it cannot rewrite sampled rows. "
            "Set warmup.splice_by=lines, which rewrites free text at the ends of its lines, or "
            "leave warmup.splice out."
        )

    @abstractmethod
    def check(self, example: Example, answer: str) -> Verdict:
        """The judgement on an answer that `extract` found."""

    def steps(self, example: Example, text: str) -> list[Step]:
        """The intermediate steps that can be checked: by default every distinct equation between
        numbers, such as "12 + 7 = 19"."""
        found = {equation.text: equation for equation in find_equations(text[-MAX_TEXT:])}
        return [Step(equation.text, equation.holds) for equation in found.values()]


def is_message(value: object) -> bool:
    """Whether a value is a chat message: a role and a content, both text."""
    return isinstance(value, Mapping) and all(
        isinstance(value.get(name), str) for name in ("role", "content")
    )


def in_last_message(messages: Messages, change: Callable[[str], str]) -> Messages:
    """The messages with the text of the last user's message changed."""
    asked = max((i for i, message in enumerate(messages) if message["role"] == "user"), default=-1)
    return [
        {**message, "content": change(message["content"])} if place == asked else message
        for place, message in enumerate(messages)
    ]


def marked_answer(text: str) -> str | None:
    """What `extract_answer` finds before it falls back on the last number of a text."""
    return next(marked_answers(text), None)


def tagged(text: str) -> str | None:
    """What stands in the last `<answer>...</answer>`; None if that is blank or not there."""
    end = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, max(end, 0))
    return None if start < 0 else text[start + len("<answer>") : end].strip() or None
