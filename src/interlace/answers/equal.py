r"""Equality of formulas through math-verify, bounded in time, where it is installed.

math-verify (the `math` extra) parses LaTeX into SymPy and compares there: `\sqrt{8}` is
`2\sqrt{2}`, `(x+1)^2` is `x^2+2x+1`. SymPy's time is unbounded in its input, so three fences stand
before it: only short formulas without towers of powers, factorials or long numbers go in; a timer
interrupts what takes longer than `SECONDS`; and each pair is asked once. The timer is a Unix
signal, which only the main thread may set: in other threads, as without math-verify, two different
normal forms are two different answers.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import math
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from types import FrameType

from interlace.answers.normalise import normalise_answer

SECONDS = 1.0
MAX_FORMULA = 200
MAX_DEPTH = 8
MAX_POWER = 1000

_FORMULA = re.compile(
    r"\\[A-Za-z{]|[\^+*/=<>]|\d\(|[0-9][A-Za-z]\b|[\[(][^()]*,|[A-Za-z)]-|-[A-Za-z(]"
)
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}")
_FUNCTION = re.compile(r"\b(?:sin|cos|tan|cot|sec|csc|log|ln|exp|sqrt|arcsin|arccos|arctan)\b")
_COSTLY = re.compile(r"!|[0-9]{13}|\*\*|\\(?:i*int|oint|sum|prod|lim|d?t?binom|choose|uparrow)")
_EXPONENT = re.compile(r"([)\]}])?\^\s*(?:([A-Za-z]|[0-9]++)|\{([^{}^]*)\})(?!\s*\^)")
_SYMBOL_COMMAND = re.compile(r"\\(?:pi|theta|alpha|beta|lambda|omega)\b ?")


class _TimeIsUp(BaseException):
    """Not an Exception: SymPy swallows those in places."""


def symbolically_equal(left: str, right: str) -> bool:
    r"""Whether two short answers with different normal forms are equal as formulas.

    Args:
        left: An answer as a row wrote it.
        right: Another.

    Returns:
        True only if math-verify is installed, this is the main thread, at least one of the two is
        a formula, and math-verify finds them equal, in both orders, within `SECONDS`.

    >>> symbolically_equal("yes", "no")
    False
    """
    forms = normalise_answer(left), normalise_answer(right)
    if None in forms or all(isinstance(form, Fraction) for form in forms):
        return False  # numbers are exact: 0.333 is not 1/3
    first, second = (_latex(form) for form in forms)
    if first is None or second is None or not _can_run():
        return False
    return _ask(*sorted((first, second)))


def _latex(form: Fraction | str | None) -> str | None:
    """The form as LaTeX that is safe to hand over; None for words and for what may take long."""
    if isinstance(form, Fraction):
        text = str(form.numerator)
        if form.denominator != 1:
            text = rf"\frac{{{form.numerator}}}{{{form.denominator}}}"
        return text if len(text) <= MAX_FORMULA and not _COSTLY.search(text) else None
    if form is None or len(form) > MAX_FORMULA or not form.isascii():
        return None
    if not _FORMULA.search(form) or _WORD.search(_FUNCTION.sub("", form)):
        return None
    if _COSTLY.search(form) or _depth(form) > MAX_DEPTH or _power(form) > MAX_POWER:
        return None
    return form


def _depth(text: str) -> int:
    deepest = level = 0
    for character in text:
        level += (character in "({[") - (character in ")}]")
        deepest = max(deepest, level)
    return deepest


def _power(text: str) -> float:
    """A bound on the highest power that the numbers in exponents can multiply up to.

    A timer cannot interrupt one multiplication of huge whole numbers, so they must not arise.
    """
    if text.count("^") != len(exponents := _EXPONENT.findall(text)):
        return math.inf  # a tower of powers, or an exponent that is no simple text
    largest, on_brackets = 1, 1
    for bracket, character, inside in exponents:
        written = _SYMBOL_COMMAND.sub("x", character or inside)
        if "\\" in written or "." in written:
            return math.inf
        # Each number plus one: then the product also bounds sums of them.
        value = math.prod(int(digits) + 1 for digits in re.findall("[0-9]+", written))
        if bracket:
            on_brackets *= value
        else:
            largest = max(largest, value)
    return float(largest * on_brackets)


def _can_run() -> bool:
    return (
        threading.current_thread() is threading.main_thread()
        and hasattr(signal, "setitimer")
        and _installed()
    )


@functools.cache
def _installed() -> bool:
    return importlib.util.find_spec("math_verify") is not None


@functools.lru_cache(maxsize=4096)
def _ask(first: str, second: str) -> bool:
    from math_verify import LatexExtractionConfig, parse, verify  # a second: only when needed

    def equal() -> bool:
        # Only the LaTeX parser: math-verify's other one, for plain expressions, ends in an eval.
        left, right = (
            parse(
                f"${formula}$",
                extraction_config=[LatexExtractionConfig()],
                fallback_mode="no_fallback",
                parsing_timeout=None,
            )
            for formula in (first, second)
        )
        if not left or not right:
            return False
        # Its verdict depends on the order: one way, {1, 2} passes for 1 < x < 2.
        return bool(
            verify(left, right, timeout_seconds=None) and verify(right, left, timeout_seconds=None)
        )

    with _quiet():
        try:
            return _bounded(equal, SECONDS)
        except Exception:  # a parser on model text fails in countless ways
            return False


@contextmanager
def _quiet() -> Iterator[None]:
    """math-verify warns that its own timer is off, and of whatever it cannot parse; Python reports
    where the timer struck in a callback that cannot raise."""

    def report(unraisable: sys.UnraisableHookArgs) -> None:
        if not issubclass(unraisable.exc_type, _TimeIsUp):
            hook(unraisable)

    hook, sys.unraisablehook = sys.unraisablehook, report
    loggers = [logging.getLogger(f"math_verify.{name}") for name in ("parser", "grader")]
    before = [logger.disabled for logger in loggers]
    for logger in loggers:
        logger.disabled = True
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for logger, disabled in zip(loggers, before, strict=True):
            logger.disabled = disabled


def _bounded(question: Callable[[], bool], seconds: float) -> bool:
    """The answer, or False after `seconds`; a caller's own timer and handler stay as they were."""
    armed = True

    def stop(signum: int, frame: FrameType | None) -> None:
        if armed:
            raise _TimeIsUp

    started = time.monotonic()
    handler = signal.signal(signal.SIGALRM, stop)
    remaining, interval = signal.getitimer(signal.ITIMER_REAL)
    try:
        # Again and again: an exception can get lost in a callback that cannot raise.
        signal.setitimer(signal.ITIMER_REAL, seconds, 0.05)
        return question()
    except _TimeIsUp:
        return False
    finally:
        # Nothing is called before this line, so no alarm can get between.
        armed = False
        left = max(remaining - (time.monotonic() - started), 0.001) if remaining else 0.0
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, left, interval)
