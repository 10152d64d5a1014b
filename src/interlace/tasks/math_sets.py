"""Sets of mathematical problems, from the hub or a local JSONL file, checked by value.

    name        hub id                      splits         columns
    gsm8k       openai/gsm8k (main)         train, test    question, answer ("... #### 72")
    math500     HuggingFaceH4/MATH-500      test           problem, answer
    aime24      HuggingFaceH4/aime_2024     test (train)   problem, answer
    aime25      math-ai/aime25              test           problem, answer
    amc23       math-ai/amc23               test           question, answer
    brumo25     MathArena/brumo_2025        test (train)   problem, answer
    cmimc25     MathArena/cmimc_2025        test (train)   problem, answer
    hmmt-feb25  MathArena/hmmt_feb_2025     test (train)   problem, answer

"test (train)": evaluation sets whose only split is called "train" on the hub. Answers are compared
by value where both are numbers, else as formulas by math-verify (the `math` extra), which is needed
only if a reference is no number. Where a row's question or answer has another of the usual names
("problem", "question"), it is found too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from interlace.errors import TaskError
from interlace.tasks.base import Example, Split, Task, Verdict
from interlace.tasks.checkers import get_checker
from interlace.tasks.sources import HubSource, Row, column, load_examples

_TEST = {"test": "test"}
_CALLED_TRAIN = {"test": "train"}

MATH_SETS = {
    "gsm8k": HubSource("openai/gsm8k", {"train": "train", "test": "test"}, config="main"),
    "math500": HubSource("HuggingFaceH4/MATH-500", _TEST),
    "aime24": HubSource("HuggingFaceH4/aime_2024", _CALLED_TRAIN),
    "aime25": HubSource("math-ai/aime25", _TEST),
    "amc23": HubSource("math-ai/amc23", _TEST),
    "brumo25": HubSource("MathArena/brumo_2025", _CALLED_TRAIN),
    "cmimc25": HubSource("MathArena/cmimc_2025", _CALLED_TRAIN),
    "hmmt-feb25": HubSource("MathArena/hmmt_feb_2025", _CALLED_TRAIN),
}


class MathSet(Task):
    """One of `MATH_SETS`; see this module's head.

    Args:
        name: Its name there.
        data: A JSONL file with the same columns, or another hub id.
        split: "train", "test" or "all"; None for a file as a whole, or the hub's test split.
        size: How many problems, the first ones; None for all.
        chat: As in `Task`.
        template: As in `Task`.

    Raises:
        TaskError: for data that does not fit.
        MissingDependencyError: if a reference is a formula and math-verify is not installed.
    """

    judges_in_children = True
    instruction: str = "Reason step by step, and put your final answer within \\boxed{}."

    def __init__(
        self,
        name: str,
        *,
        data: str | None = None,
        split: Split | None = None,
        size: int | None = None,
        chat: bool = True,
        template: str = "{question}\n\n{instruction}",
    ) -> None:
        examples, chosen = load_examples(
            name, MATH_SETS[name], _to_example, data=data, split=split, size=size
        )
        self._check = get_checker("math", [example.answer for example in examples])
        super().__init__(name, examples, split=chosen, chat=chat, template=template)

    def reference_text(self, example: Example) -> str:
        """The boxed reference."""
        return f"\\boxed{{{example.answer}}}"

    def check(self, example: Example, answer: str) -> Verdict:
        """Whether the answer has the reference's value."""
        return self._check(example.answer, answer)


def _to_example(row: Row) -> tuple[str, str, Mapping[str, Any]]:
    question = str(column(row, ["problem", "question"])).strip()
    answer = str(column(row, ["answer"]))
    # GSM8K's answers are solutions that end in "#### result".
    answer = answer.rpartition("####")[2].strip()
    if not answer:
        raise TaskError(f"The problem {question[:60]!r} has no reference answer.")
    return question, answer, {}
