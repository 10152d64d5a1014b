"""Sets from the Hugging Face hub, or from a local JSONL file with the same columns.

    name           hub id                      splits         columns
    gsm8k          openai/gsm8k (main)         train, test    question, answer ("... #### 72")
    math500        HuggingFaceH4/MATH-500      test           problem, answer
    aime24         HuggingFaceH4/aime_2024     test (train)   problem, answer
    aime25         math-ai/aime25              test           problem, answer
    amc23          math-ai/amc23               test           question, answer
    brumo25        MathArena/brumo_2025        test (train)   problem, answer
    cmimc25        MathArena/cmimc_2025        test (train)   problem, answer
    hmmt-feb25     MathArena/hmmt_feb_2025     test (train)   problem, answer
    gpqa           Idavidrein/gpqa (diamond)   test (train)   Question, Correct Answer, ...
    xsum           EdinburghNLP/xsum           train, test    document, summary
    cnn-dailymail  abisee/cnn_dailymail        train, test    article, highlights

"test (train)": evaluation sets whose only split is called "train" on the hub. Where a row's
question or answer has another of the usual names ("problem", "question"), it is found too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar, Unpack

from interlace.answers.extract import final_part
from interlace.errors import TaskError, require
from interlace.tasks.base import Example, Prompt, Verdict
from interlace.tasks.checkers import ChoiceTask, get_checker, letter_of, with_choices
from interlace.tasks.drawn import Draw
from interlace.tasks.sources import (
    HubSource,
    Row,
    SourcedTask,
    SourceOptions,
    answer_in,
    column,
    question_in,
)

_BOTH = {"train": "train", "test": "test"}
_TEST = {"test": "test"}
_CALCULATOR = re.compile(r"<<[^>]*>>")  # "48/2 = <<48/2=24>>24"
_CALLED_TRAIN = {"test": "train"}

MATH_SETS = {
    "gsm8k": HubSource("openai/gsm8k", _BOTH, config="main"),
    "math500": HubSource("HuggingFaceH4/MATH-500", _TEST),
    "aime24": HubSource("HuggingFaceH4/aime_2024", _CALLED_TRAIN),
    "aime25": HubSource("math-ai/aime25", _TEST),
    "amc23": HubSource("math-ai/amc23", _TEST),
    "brumo25": HubSource("MathArena/brumo_2025", _CALLED_TRAIN),
    "cmimc25": HubSource("MathArena/cmimc_2025", _CALLED_TRAIN),
    "hmmt-feb25": HubSource("MathArena/hmmt_feb_2025", _CALLED_TRAIN),
}
GPQA = HubSource(
    "Idavidrein/gpqa",
    _CALLED_TRAIN,
    config="gpqa_diamond",
    note="It is gated: accept its terms on its hub page and log in with `hf auth login`.",
)
SUMMARY_SETS = {
    "xsum": HubSource("EdinburghNLP/xsum", _BOTH),
    "cnn-dailymail": HubSource("abisee/cnn_dailymail", _BOTH, config="3.0.0"),
}
THRESHOLD = 0.25

_SENTENCES = {"xsum": "one sentence", "cnn-dailymail": "three or four sentences"}


class MathSet(SourcedTask):
    """One of `MATH_SETS`. Answers are compared by value where both are numbers, else as formulas.

    Args:
        name: Its name there.
        **options: Those of `SourcedTask`.

    Raises:
        TaskError: for data that does not fit.
        MissingDependencyError: if a reference is a formula and math-verify is not installed.
    """

    judges_in_children = True
    instruction: str = "Reason step by step, and put your final answer within \\boxed{}."

    def __init__(self, name: str, **options: Unpack[SourceOptions]) -> None:
        self._workings: dict[str, str] = {}  # of questions; no part of a problem's data
        super().__init__(name, MATH_SETS[name], **options)
        self._check = get_checker("math", [example.answer for example in self])

    def to_example(self, row: Row) -> tuple[Prompt, str, Mapping[str, Any]]:
        """As in `SourcedTask`; GSM8K's answers are solutions that end in "#### result"."""
        question = question_in(row, ["problem", "question"])
        working, _, answer = answer_in(row, ["answer"]).rpartition("####")
        if not (answer := answer.strip()):
            raise TaskError(f"The problem {question[:60]!r} has no reference answer.")
        if isinstance(question, str):
            question = question.strip()
            self._workings[question] = working.strip()
        return question, answer, {}

    def reference_text(self, example: Example) -> str:
        """The boxed reference."""
        return f"\\boxed{{{example.answer}}}"

    def trace(self, example: Example, draw: Draw) -> str:
        """The set's own solution, for an SFT; of GSM8K without the marks of its calculator. It is
        the same for every draw.

        Raises:
            TaskError: if the set gives results alone.
        """
        asked = example.question
        working = self._workings.get(asked) if isinstance(asked, str) else None
        if not working:
            raise TaskError(f"{self.name!r} has no solutions, only results: no SFT on its traces.")
        return f"{_CALCULATOR.sub('', working)}\n{self.reference_text(example)}"

    def check(self, example: Example, answer: str) -> Verdict:
        """Whether the answer has the reference's value."""
        return self._check(example.answer, answer)


class Gpqa(ChoiceTask, SourcedTask):
    """GPQA (arXiv 2311.12022): graduate-level questions with four choices, the diamond set.

    The order of the choices follows from the question by hash, so that it is the same in every run
    and on every machine. The data set is gated, and its authors ask not to publish examples of it
    in plain text.

    Args:
        **options: Those of `SourcedTask`.
    """

    def __init__(self, **options: Unpack[SourceOptions]) -> None:
        super().__init__("gpqa", GPQA, **options)

    def to_example(self, row: Row) -> tuple[Prompt, str, Mapping[str, Any]]:
        question = str(column(row, ["Question"])).strip()
        names = ["Correct Answer", *(f"Incorrect Answer {i}" for i in (1, 2, 3))]
        listed = [str(column(row, [name])).strip() for name in names]
        order = Draw("choices", question).shuffled(range(4))
        choices = [listed[index] for index in order]
        return with_choices(question, choices), letter_of(order.index(0)), {"choices": choices}


class Summarisation(SourcedTask):
    """XSum (arXiv 1808.08745) or CNN/DailyMail (arXiv 1602.06023), judged by ROUGE.

    `score` is the F-measure of ROUGE-L against the reference summary, without stemming (package
    rouge-score, the `eval` extra). `correct` means a score of at least `threshold`: a convention
    that lets set metrics be computed (pass@k: did any of k summaries come that close?), not a claim
    that a summary is right. Report `score`. The whole text counts as the summary, after any
    thinking.

    Args:
        name: Its name in `SUMMARY_SETS`.
        threshold: ROUGE-L, 0 to 1, from which a summary counts as correct.
        **options: Those of `SourcedTask`.

    Raises:
        TaskError: for data that does not fit, or a threshold out of range.
        MissingDependencyError: if rouge-score is not installed.
    """

    max_answer: ClassVar[int] = 4000

    def __init__(
        self, name: str, *, threshold: float = THRESHOLD, **options: Unpack[SourceOptions]
    ) -> None:
        require("rouge_score", "eval", f"{name!r} is judged by ROUGE and")
        from rouge_score.rouge_scorer import RougeScorer

        if not 0 < threshold <= 1:
            raise TaskError(f"threshold is a ROUGE-L above 0 and at most 1; got {threshold!r}.")
        self.threshold = threshold
        self.instruction = (
            f"Summarise the text above in {_SENTENCES[name]}. Write the summary only."
        )
        self._scorer = RougeScorer(["rougeL"], use_stemmer=False)
        super().__init__(name, SUMMARY_SETS[name], **options)

    def to_example(self, row: Row) -> tuple[Prompt, str, Mapping[str, Any]]:
        document = str(column(row, ["document", "article"])).strip()
        return document, str(column(row, ["summary", "highlights"])).strip(), {}

    def reference_text(self, example: Example) -> str:
        """The reference summary."""
        return example.answer

    def extract(self, text: str) -> str | None:
        """The text without blanks at its ends; what is beyond `max_answer` characters is cut."""
        return final_part(text).strip()[: self.max_answer] or None

    def check(self, example: Example, answer: str) -> Verdict:
        """ROUGE-L against the reference summary."""
        score = float(self._scorer.score(example.answer, answer)["rougeL"].fmeasure)
        reason = f"ROUGE-L {score:.3f}, correct from {self.threshold:g}"
        return Verdict(score >= self.threshold, score, answer, reason)
