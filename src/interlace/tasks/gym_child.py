"""reasoning-gym in a child process of `verifier_pool`: its data sets and its scorers.

Some scorers call `eval` or SymPy's `parse_expr` (which ends in `eval`) on the answer; here those
names lead to `ast.literal_eval` and to Interlace's own parser, and the child's audit hook refuses
any such call that is left or comes with a later version.
"""

from __future__ import annotations

import ast
import functools
import importlib
import json
import re
import sys
from typing import Any

from interlace.answers.arithmetic import parse
from interlace.answers.expressions import Name, Node, Number, Power, Product, Sum
from interlace.answers.math_child import may_evaluate
from interlace.verifier_child import GUARD, Answer

FUNCTION = re.compile("a?(?:sin|cos|tan)h?|exp|log|ln|sqrt")
CONSTANTS = frozenset(("pi", "E"))


def may_execute(caller: str, source: str) -> bool:
    """Whether a module may compile a source while text is judged."""
    # The bitwise scorer evaluates the problem, which the package itself wrote.
    return not caller.startswith("reasoning_gym") or caller.endswith("bitwise_arithmetic")


GUARD.rules[:] = [may_evaluate, may_execute]  # SymPy's parser runs here, too


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
    if not may_execute(module.__name__, ""):
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
