r"""The final answer in a response, for votes outside a task (tasks bring their own verifiers).

The rule, the first that finds something wins, and within each the *last* one in the text:

1. what stands in `\boxed{...}` or `\fbox{...}`, with balanced braces;
2. what follows `####` on its line, as in GSM8K;
3. what follows "answer is" or "answer:", up to the end of its sentence or line;
4. a number.

In rules 2 and 3 an answer has at most `MAX_ANSWER` characters.
"""

from __future__ import annotations

import re

MAX_ANSWER = 1000

_BOX_OR_BRACE = re.compile(r"(?P<box>\\(?:boxed|fbox)\s*\{)|\\.|(?P<brace>[{}])", re.DOTALL)
_HASHES = re.compile(r"(?<!#)####(?!#)[ \t]*")
_SAID = re.compile(r"\banswer\b[*_]*(?:\s+is\b\s*:?|\s*:)[\s*_]*", re.IGNORECASE)
_LINE_END = re.compile(r"\n")
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)|\n")
_NUMBER = re.compile(
    r"(?<![\w.])(?:(?<![)\]])[-\u2212])?[$€£¥]?(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)"
    r"(?:\.[0-9]+)?(?:\s?/\s?[0-9]+)?%?"
)
_EMPTY = frozenset(" \t\r\n*_$.:#")


def extract_answer(text: str) -> str | None:
    r"""The final answer in a response, by the rule in this module's head.

    Args:
        text: A response.

    Returns:
        The answer as written, without surrounding blanks; None if there is none.

    >>> extract_answer(r"First \boxed{4}, but no: $\boxed{\frac{1}{2}}$.")
    '\\frac{1}{2}'
    >>> extract_answer("So the answer is **1,000**. Checked 2 times.")
    '1,000'
    >>> extract_answer("about 3, or rather 3.5 miles"), extract_answer("I do not know")
    ('3.5', None)
    """
    text = text.rstrip()
    boxed = _last_box(text)
    if boxed is not None:
        return boxed
    for sign, end in ((_HASHES, _LINE_END), (_SAID, _SENTENCE_END)):
        for found in reversed(list(sign.finditer(text))):
            answer = end.split(text[found.end() : found.end() + MAX_ANSWER], maxsplit=1)[0]
            if set(answer) - _EMPTY:
                return answer.strip().strip("*_").strip()
    numbers = _NUMBER.findall(text)
    return numbers[-1] if numbers else None


def _last_box(text: str) -> str | None:
    """The content of the box that opens last among those that close and are not blank."""
    opened: list[int | None] = []
    start, answer = -1, None
    # One pass with a stack: looking for each box's end in turn takes quadratic time.
    for found in _BOX_OR_BRACE.finditer(text):
        if found["box"]:
            opened.append(found.end())
        elif found["brace"] == "{":
            opened.append(None)
        elif found["brace"] and opened:
            begin = opened.pop()
            if begin is not None and begin > start:
                content = text[begin : found.start()].strip()
                if content:
                    start, answer = begin, content
    return answer
