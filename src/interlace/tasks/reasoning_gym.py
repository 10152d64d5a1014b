"""Any task of reasoning-gym (arXiv 2505.24760), as `rg:NAME`, for instance "rg:sudoku".

`score` is what the package gives, 0 to 1; only full marks are `correct`. The package runs in a
process of its own (see `verifier_pool`): with a fixed hash seed there, since some of its data sets
iterate over sets of strings and would differ from run to run; and bounded, since its scorers were
not written for hostile text. Problems are distinct by question and split by its hash. They follow
from the seed, the options and, for a few data sets, the size.

The answer is what stands in the last `<answer>...</answer>`, which the prompt asks for, else any
marked answer (see `Task.extract`), else the whole of a text of one line.

The functions `names`, `examples` and `score` run in the child. Some scorers call `eval` or SymPy's
`parse_expr` (which ends in `eval`) on the answer; there those names lead to `ast.literal_eval` and
to Interlace's own parser, and the child's audit hook refuses any such call that is left or comes
with a later version.
"""

from __future__ import annotations

import ast
import functools
import importlib
import json
import re
import sys
import warnings
from typing import Any, ClassVar, Unpack

from interlace.answers.arithmetic import Name, Node, Number, Power, Product, Sum, parse
from interlace.answers.extract import final_part
from interlace.errors import TaskError, WorkerError, nearest, require
from interlace.tasks.base import Example, Split, Task, TaskOptions, Verdict
from interlace.tasks.drawn import check_count, example_id, split_of
from interlace.verifier_child import GUARD, Answer, is_own_source
from interlace.verifier_pool import Refusal, verifier_pool

SIZE = 100
CHUNK = 25  # examples asked of the process at a time
SPARE = 12  # indices looked at for each problem wanted: a fifth are held out, and some come twice

FULL_MARKS = 1.0
_HERE = "interlace.tasks.reasoning_gym"

FUNCTION = re.compile("a?(?:sin|cos|tan)h?|exp|log|ln|sqrt")
CONSTANTS = frozenset(("pi", "E"))

FLAWED = {"game_of_life_halting": "gives full marks to any text (seen in version 0.1.25)"}


class ReasoningGym(Task):
    """The task; see this module's head.

    Args:
        name: "rg:" and a data set's name in reasoning-gym.
        split: "train", "test" (held out) or "all".
        size: Number of problems.
        seed: Seed of the data set.
        options: Further options of the data set, as reasoning-gym names them.
        **shared: Those of `Task`.
    """

    instruction: str = (
        "Think step by step, and give your final answer between <answer> and </answer>."
    )
    max_answer: ClassVar[int] = 10_000
    judges_in_children = True

    def __init__(
        self,
        name: str,
        *,
        split: Split = "test",
        size: int = SIZE,
        seed: int = 0,
        options: dict[str, Any] | None = None,
        **shared: Unpack[TaskOptions],
    ) -> None:
        check_count("size", size)
        self.dataset = name.removeprefix("rg:")
        self._config = {**(options or {}), "seed": seed, "size": SPARE * size}
        require("reasoning_gym", "tasks", f"{name!r}")
        known = verifier_pool().ask(f"{_HERE}:names")
        if self.dataset not in known:
            hint = nearest(self.dataset, known) or f" It has {', '.join(known)}."
            raise TaskError(f"reasoning-gym has no task {self.dataset!r}.{hint}")
        if self.dataset in FLAWED:
            warnings.warn(
                f"reasoning-gym's scorer of {self.dataset!r} {FLAWED[self.dataset]}: its verdicts "
                "say nothing.",
                UserWarning,
                stacklevel=2,
            )
        examples = self._draw(name, split, size)
        super().__init__(name, examples, split=split, **shared)

    def reference_text(self, example: Example) -> str | None:
        """The reference between its marks; None for data sets that give none."""
        return f"<answer>{example.answer}</answer>" if example.answer else None

    def extract(self, text: str) -> str | None:
        """The answer by the rule in the module's head."""
        marked = self.marked(text)
        if marked is not None:
            return marked
        whole = final_part(text).strip()
        return whole if "\n" not in whole and 0 < len(whole) <= self.max_answer else None

    def check(self, example: Example, answer: str) -> Verdict:
        """The package's score; correct at full marks."""
        outcome = verifier_pool().ask(
            f"{_HERE}:score",
            name=self.dataset,
            config=self._config,
            index=example.data["index"],
            answer=answer,
        )
        if isinstance(outcome, Refusal):
            return Verdict(False, 0.0, answer, outcome.reason)
        score = min(max(float(outcome), 0.0), 1.0)
        return Verdict(score >= FULL_MARKS, score, answer, f"reasoning-gym's score is {score:g}")

    def _draw(self, name: str, split: Split, size: int) -> list[Example]:
        found: dict[str, Example] = {}
        for start in range(0, SPARE * size, CHUNK):
            where = {"start": start, "stop": start + CHUNK}
            try:
                rows = verifier_pool().ask(
                    f"{_HERE}:examples", name=self.dataset, config=self._config, **where
                )
            except WorkerError as error:
                raise TaskError(f"reasoning-gym could not make {name!r}: {error}") from error
            if isinstance(rows, Refusal):
                raise TaskError(f"reasoning-gym could not make {name!r}: {rows.reason}")
            for index, (question, answer) in enumerate(rows, start):
                canonical = " ".join(question.split())
                if canonical in found or split not in ("all", split_of(canonical)):
                    continue
                identity = example_id(name, canonical)
                data = {"index": index}
                found[canonical] = Example(identity, question, answer or "", data)
                if len(found) == size:
                    return list(found.values())
        raise TaskError(
            f"{name!r} gave {len(found)} distinct problems in the split {split!r} out of "
            f"{SPARE * size}; {size} were asked for. Ask for fewer, or widen its options."
        )


def names() -> Answer:
    """The names of reasoning-gym's tasks."""
    from reasoning_gym.factory import DATASETS

    return lambda: sorted(DATASETS)


def examples(name: str, config: dict[str, Any], start: int, stop: int) -> Answer:
    """Questions and reference answers of a data set; made before the bounds."""
    dataset = _dataset(name, json.dumps(config))
    entries = [dataset[index] for index in range(start, min(stop, len(dataset)))]
    rows = [[entry["question"], entry["answer"]] for entry in entries]
    return lambda: rows


def score(name: str, config: dict[str, Any], index: int, answer: str) -> Answer:
    """The score that reasoning-gym gives an answer, 0 to 1."""
    dataset = _dataset(name, json.dumps(config))
    entry = _entry(name, json.dumps(config), index)
    return lambda: float(dataset.score_answer(answer=answer, entry=entry))


@functools.lru_cache(maxsize=8)
def _dataset(name: str, config: str) -> Any:
    import reasoning_gym

    dataset = reasoning_gym.create_dataset(name, **json.loads(config))
    _disarm(importlib.import_module(type(dataset).__module__))
    return dataset


@functools.lru_cache(maxsize=256)
def _entry(name: str, config: str, index: int) -> Any:
    return _dataset(name, config)[index]


def _disarm(module: Any) -> None:
    """Points a scorer's `eval` and SymPy's `parse_expr` at parsers that execute nothing.

    `eval` keeps its meaning while problems are made: some data sets evaluate what they drew.
    """
    names = vars(module)
    if not is_own_source(module.__name__):
        names["eval"] = lambda text: (ast.literal_eval if GUARD.armed else eval)(text)
    sympy: Any = sys.modules.get("sympy")
    if sympy is not None:
        original = sympy.parsing.sympy_parser.parse_expr
        sympy.parse_expr = _to_sympy
        if names.get("parse_expr") is original:
            names["parse_expr"] = _to_sympy


def _to_sympy(text: str, local_dict: dict[str, Any] | None = None, **_: Any) -> Any:
    """What SymPy's `parse_expr` returns for arithmetic with names, without executing anything.

    Here "^" is a power, as most models mean it.
    """
    import sympy

    def build(node: Node) -> Any:
        match node:
            case Number(value, written):
                fraction = sympy.Rational(value.numerator, value.denominator)
                return sympy.Float(written) if "." in written else fraction
            case Sum(terms):
                return sympy.Add(*(sign * build(term) for sign, term in terms))
            case Product(factors):
                return sympy.Mul(*(build(factor) ** sign for sign, factor in factors))
            case Power(base, exponent):
                return build(base) ** build(exponent)
            case Name(name, argument):
                known = (local_dict or {}).get(name)
                if argument is not None:
                    if not FUNCTION.fullmatch(name):
                        raise ValueError(f"no function {name!r}")
                    return getattr(sympy, name)(build(argument))
                if known is not None:
                    return known
                return getattr(sympy, name) if name in CONSTANTS else sympy.Symbol(name)
        raise ValueError(f"no expression: {node!r}")

    return build(parse(text, names=True))
