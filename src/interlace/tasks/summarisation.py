"""Summarisation: XSum (arXiv 1808.08745) and CNN/DailyMail (arXiv 1602.06023), judged by ROUGE.

`score` is the F-measure of ROUGE-L against the reference summary, without stemming (package
rouge-score, the `eval` extra). `correct` means a score of at least `threshold`: a convention that
lets set metrics be computed (pass@k: did any of k summaries come that close?), not a claim that a
summary is right. Report `score`. The whole text counts as the summary, after any `</think>`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from interlace.errors import TaskError, require
from interlace.tasks.base import Example, Split, Task, Verdict, final_part
from interlace.tasks.sources import HubSource, Row, column, load_examples

_SPLITS = {"train": "train", "test": "test"}
SUMMARY_SETS = {
    "xsum": HubSource("EdinburghNLP/xsum", _SPLITS),
    "cnn-dailymail": HubSource("abisee/cnn_dailymail", _SPLITS, config="3.0.0"),
}
THRESHOLD = 0.25

_SENTENCES = {"xsum": "one sentence", "cnn-dailymail": "three or four sentences"}


class Summarisation(Task):
    """One of `SUMMARY_SETS`; see this module's head.

    Args:
        name: Its name there.
        data: A JSONL file with the columns "document" or "article", and "summary" or "highlights",
            or another hub id.
        split: "train", "test" or "all"; None for a file as a whole, or the hub's test split.
        size: How many documents, the first ones; None for all.
        threshold: ROUGE-L, 0 to 1, from which a summary counts as correct.
        chat: As in `Task`.
        template: As in `Task`.

    Raises:
        TaskError: for data that does not fit, or a threshold out of range.
        MissingDependencyError: if rouge-score is not installed.
    """

    max_answer: ClassVar[int] = 4000

    def __init__(
        self,
        name: str,
        *,
        data: str | None = None,
        split: Split | None = None,
        size: int | None = None,
        threshold: float = THRESHOLD,
        chat: bool = True,
        template: str = "{question}\n\n{instruction}",
    ) -> None:
        require("rouge_score", "eval", f"{name!r} is judged by ROUGE and")
        from rouge_score.rouge_scorer import RougeScorer

        if not 0 < threshold <= 1:
            raise TaskError(f"threshold is a ROUGE-L above 0 and at most 1; got {threshold!r}.")
        examples, chosen = load_examples(
            name, SUMMARY_SETS[name], _to_example, data=data, split=split, size=size
        )
        self.threshold = threshold
        self.instruction = (
            f"Summarise the text above in {_SENTENCES[name]}. Write the summary only."
        )
        self._scorer = RougeScorer(["rougeL"], use_stemmer=False)
        super().__init__(name, examples, split=chosen, chat=chat, template=template)

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


def _to_example(row: Row) -> tuple[str, str, Mapping[str, Any]]:
    document = str(column(row, ["document", "article"])).strip()
    return document, str(column(row, ["summary", "highlights"])).strip(), {}
