"""Responses that were made elsewhere: an engine that samples nothing, so that `evaluate` judges,
counts and reports them as it does its own.

A line of the file holds a problem and its responses; several lines may be of one problem. What the
rows are cannot be seen from their texts, so it is declared: in "groups" the responses of a line
read each other, and a line is a group of its width; "independent" ones are exchangeable, and those
of all lines of a problem count together.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from interlace.errors import ConfigError, DataFileError, nearest
from interlace.evaluation.results import set_sizes
from interlace.jsonl import read

if TYPE_CHECKING:
    from interlace.engine.types import Completion, EngineStats, GroupOutput, Prompt, SamplingParams
    from interlace.tasks import Example, Task

Rows = Literal["groups", "independent"]
_FIELDS = ("id", "prompt", "responses", "completions")
_UNKNOWN = -1  # token id, as of a server that tells none


class RecordedResponses:
    """Stands in for an engine in `evaluate`, with groups that a file holds.

    Args:
        path: Path of a file of JSON lines. A line has `id`, the problem's id, or `prompt`, what was
            asked; and `responses`, a list of texts, or of objects with `text` and perhaps
            `token_ids`, `tokens` (a number) and `logprobs`. `completions`, as
            `interlace generate` writes it, is the same as `responses`.
        task: Task whose problems were asked.
        rows: What the rows of a line are: "groups" or "independent".
        limit: Number of the task's problems, from the first on; None for all.

    Attributes:
        coupled: Whether rows are in groups.
        widths: Widths to measure.
        groups: Number of groups of each problem at every width.

    Raises:
        DataFileError: for a line that is none, a problem without responses, and problems that have
            not equally many.
    """

    chats = True
    place = "elsewhere"  # where it ran

    def __init__(
        self, path: str | Path, task: Task, rows: Rows, *, limit: int | None = None
    ) -> None:
        from interlace.engine.types import EngineStats

        self.stats: EngineStats = EngineStats()
        self._path, self.coupled = Path(path), rows == "groups"
        examples = list(task)[:limit]
        found = self._read(task, {example.id for example in list(task)[len(examples) :]})
        self._refuse_missing(examples, found)
        if not self.coupled:
            found = {name: [list(chain(*lines))] for name, lines in found.items()}
        self._found = found
        self.widths, self.groups = self._shape(examples)
        content = hashlib.sha256(self._path.read_bytes()).hexdigest()[:16]
        self.sampling = {"responses": str(path), "rows": rows, "content": content}
        rows_of_all = (row for lines in found.values() for line in lines for row in line)
        if any(row.text and not row.token_ids for row in rows_of_all):
            self.stats.notes.append(f"{path} has no numbers of tokens: they count as 0.")

    @property
    def description(self) -> dict[str, Any]:
        """Facts that stand in place of a model's."""
        unknown = dict.fromkeys(
            ("revision", "parameters", "dtype", "dequantised_from", "weights", "blocks")
        )
        return {"id": str(self._path), "architecture": "responses made elsewhere", **unknown}

    def encode(self, prompt: Prompt, index: int = 0) -> Prompt:
        """The prompt as it is."""
        return prompt

    def as_completed(
        self,
        prompts: Iterable[Prompt],
        params: SamplingParams,
        *,
        sample_ids: Sequence[int | str],
        progress: Callable[[EngineStats], None],
    ) -> Iterator[tuple[int, GroupOutput]]:
        """The groups that the file holds; a sample id is a problem's id and the group's number."""
        from interlace.engine.types import GroupOutput

        for index, (prompt, sample_id) in enumerate(zip(prompts, sample_ids, strict=True)):
            name, _, number = str(sample_id).rpartition("/")
            lines = [line for line in self._found[name] if len(line) == params.width]
            yield (
                index,
                GroupOutput(
                    prompt=prompt,
                    prompt_token_ids=[],
                    completions=lines[int(number)],
                    params=params,
                    seconds=0.0,
                ),
            )

    def generate(self, *_: Any, **__: Any) -> NoReturn:
        """Nothing can be sampled.

        Raises:
            ConfigError: always.
        """
        raise ConfigError("Responses made elsewhere cannot be timed: evaluate with timed=0.")

    # The file -------------------------------------------------------------------------------------

    def _read(self, task: Task, beyond: set[str]) -> dict[str, list[list[Completion]]]:
        """Lines of each problem, without those beyond the limit."""
        by_prompt = {_key(task.prompt(example)): example for example in task}
        by_prompt |= {_key(example.question): example for example in task}
        by_id = {example.id: example for example in task}
        found: dict[str, list[list[Completion]]] = {}
        for number, line in read(self._path):
            where = f"{self._path}, line {number}"
            example = _problem(line, by_id, by_prompt, where, task.name)
            responses = _responses(line, where)
            if example.id not in beyond:
                found.setdefault(example.id, []).append(responses)
        return found

    def _refuse_missing(
        self, examples: Sequence[Example], found: Mapping[str, list[list[Completion]]]
    ) -> None:
        missing = [example.id for example in examples if example.id not in found]
        if missing:
            raise DataFileError(
                f"Every problem has responses; {self._path} has none for {len(missing)} of "
                f"{len(examples)}, the first {missing[0]!r}. Leave problems out with --limit, or "
                "with --data for a set's own file."
            )

    def _shape(self, examples: Sequence[Example]) -> tuple[list[int], int]:
        """Widths and groups at each, the same for every problem."""
        each = {e.id: Counter(map(len, self._found[e.id])) for e in examples}
        first = examples[0].id
        for name, widths in each.items():
            if widths != each[first]:
                raise DataFileError(
                    f"Every problem has equally many responses, so that its chances are equal; "
                    f"in {self._path} {first!r} has {_told(each[first])}, and {name!r} "
                    f"{_told(widths)}."
                )
        counts = set(each[first].values())
        if len(counts) > 1:
            raise DataFileError(
                f"Every width has equally many groups of a problem; in {self._path} each has "
                f"{_told(each[first])}. Keep them in files of their own."
            )
        found = sorted(each[first])
        if not self.coupled:  # smaller sets follow from the largest
            found = set_sizes(found[0])
        return found, counts.pop()


def _key(prompt: Any) -> str:
    """The text by which a prompt is found; of messages, the content of the last."""
    return str(prompt if isinstance(prompt, str) else prompt[-1].get("content")).strip()


def _problem(
    line: dict[str, Any],
    by_id: Mapping[str, Example],
    by_prompt: Mapping[str, Example],
    where: str,
    task: str,
) -> Example:
    name = line.get("id")
    if isinstance(name, str) and name in by_id:
        return by_id[name]
    prompt = line.get("prompt")
    is_chat = isinstance(prompt, list) and prompt and isinstance(prompt[-1], dict)
    if (isinstance(prompt, str) or is_chat) and _key(prompt) in by_prompt:
        return by_prompt[_key(prompt)]
    if "id" not in line and "prompt" not in line:
        raise DataFileError(
            f"{where}: a line names its problem by `id`, or by `prompt`; it has "
            f"{', '.join(line) or 'nothing'}."
        )
    raise DataFileError(
        f"{where}: it is of no problem of {task}: neither its id {name!r:.80} nor its "
        "prompt is one of them. Ids depend on the task's options and split: give the same ones."
    )


def _responses(line: dict[str, Any], where: str) -> list[Completion]:
    given = line.get("responses", line.get("completions"))
    if not isinstance(given, list) or not given:
        near = "".join(nearest(name, _FIELDS) for name in line if name not in _FIELDS)
        raise DataFileError(
            f"{where}: `responses` is a list of at least one text; got {given!r:.80}.{near}"
        )
    return [_response(one, f"{where}, response {row}") for row, one in enumerate(given)]


def _response(given: Any, where: str) -> Completion:
    from interlace.engine.types import Completion

    values = {"text": given} if isinstance(given, str) else given
    if not isinstance(values, dict) or not isinstance(values.get("text"), str):
        raise DataFileError(f"{where} is a text, or an object with `text`; got {given!r:.80}.")
    ids, logprobs = values.get("token_ids", []), values.get("logprobs") or []
    count = values.get("tokens", len(ids) if isinstance(ids, list) else None)
    if type(count) is not int or not 0 <= count < 2**24:
        raise DataFileError(f"{where}: `tokens` is a number of at least 0; got {count!r:.80}.")
    numbers = isinstance(logprobs, list) and all(type(v) in (int, float) for v in logprobs)
    if not numbers or not all(-1e6 < value <= 1e-6 for value in logprobs):
        raise DataFileError(f"{where}: `logprobs` are numbers of at most 0; got {logprobs!r:.80}.")
    return Completion(
        text=values["text"],
        token_ids=[_UNKNOWN] * (count or len(logprobs)),
        logprobs=[float(value) for value in logprobs],
        sampled_logprobs=[],
        finish_reason="length" if values.get("finish_reason") == "length" else "stop",
    )


def _told(widths: Counter[int]) -> str:
    groups = (f"{count} of {width}" for width, count in sorted(widths.items()))
    return f"lines of responses: {', '.join(groups)}"
