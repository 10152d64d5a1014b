"""math-verify in a child process of `verifier_pool`: whether two formulas are equal."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

from interlace.verifier_child import GUARD, Answer

# What SymPy's parser evaluates for a single number or name, which is how math-verify makes numbers.
_LITERAL = re.compile(
    r"from sympy import \*|(?:Integer|Float|Symbol) ?\(\s*'?[\w.]*'?\s*\)|[A-Za-z]\w*"
)


def may_evaluate(caller: str, source: str) -> bool:
    """Whether a module may compile a source while text is judged: SymPy's parser a literal only."""
    return caller != "sympy.parsing.sympy_parser" or bool(_LITERAL.fullmatch(source.strip()))


GUARD.rules.append(may_evaluate)


def equal(left: str, right: str) -> Answer:
    """Whether two LaTeX formulas are equal, in both orders; what cannot be read equals nothing.

    math-verify's own verdict depends on the order: one way, {1, 2} passes for 1 < x < 2.
    """
    parse, verify = _math_verify()

    def answer() -> bool:
        try:
            first, second = parse(left), parse(right)
            if not first or not second:
                return False
            return verify(first, second) and verify(second, first)
        except MemoryError:
            raise
        except Exception:  # a parser on model text fails in countless ways
            return False

    return answer


@functools.cache
def _math_verify() -> tuple[Callable[[str], list[Any]], Callable[[Any, Any], bool]]:
    import logging

    from math_verify import LatexExtractionConfig
    from math_verify import parse as parse_math
    from math_verify import verify as verify_math

    logging.disable(logging.CRITICAL)  # it warns that its own timer is off

    def parse(formula: str) -> list[Any]:
        # Only the LaTeX parser: the one for plain expressions evaluates them as Python.
        return parse_math(
            f"${formula}$",
            extraction_config=[LatexExtractionConfig()],
            fallback_mode="no_fallback",
            parsing_timeout=None,
        )

    def verify(gold: Any, given: Any) -> bool:
        return bool(verify_math(gold, given, timeout_seconds=None))

    verify(parse(r"\sqrt{8}"), parse(r"2\sqrt{2}"))  # imports what a first verdict would
    return parse, verify
