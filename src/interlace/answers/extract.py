r"""The final answer in a response, for votes outside a task (tasks bring their own verifiers).

The rule: the *last* explicit mark wins, and without any the last number. Marks are

- what stands in `\boxed{...}` or `\fbox{...}`, with balanced braces, or follows `\boxed`, up to a
  blank; boxes that a comma, "and" or "or" joins are one list;
- what follows `####` on its line, as in GSM8K, unless it is a heading: words, "Step 2:", "1. Add";
- the value of "answer" in JSON;
- what follows "answer is", "answer:", a heading "Answer", or a cell "| Answer |", up to the end of
  its sentence, line, or block. What opens a block is looked through: `\[`, `$$`, fences; and where
  the answer stands on the next line, a quote's ">", a bullet ("- 72" is 72 there), "1.", a table.

A sentence does not end after an abbreviation: "St. Louis". The reason for a number is no part of
it ("72 because ...", "72, not 73"), nor is what follows one in bold. A last number in LaTeX counts
with all of its formula. What is said in many words without a number
counts only where nothing else is marked. An answer has at most `MAX_ANSWER` characters.

Nothing counts inside of `<think>...</think>`, nor after a `<think>` that never closes; so with
`<thinking>` and `[THINK]`.
"""

from __future__ import annotations

import heapq
import itertools
import json
import re
from collections.abc import Iterator

from interlace.answers.normalise import REPEATING, ROUND

MAX_TEXT = 200_000
MAX_ANSWER = 1000
MAX_MARKS = 200  # looked at in one text, from its end
MAX_WORDS = 6

_BOX_OR_BRACE = re.compile(
    r"(?P<box>\\(?:boxed|fbox)\s*\{)|\\boxed\s*(?P<bare>(?![A-Za-z]{2})"
    r"(?:[^\s$\\{}]|\\(?!boxed)[A-Za-z]++|\{[^{}]*\}){1,100}(?<![.,;:!?]))|\\.|(?P<brace>[{}])",
    re.DOTALL,
)
_HASHES = re.compile(r"(?<!#)####(?!#)[ \t]*+(?P<line>[^\n]{0,1000})")
_SAID = re.compile(
    r"\banswers?\b(?:\s++to\s++(?:the|this)\s++(?:question|problem)\b)?+[*_]*+"
    r"(?:\s++(?:is|are|(?:would|should|must)\ be)\b[ \t]*+:?|\s*+:"
    r"|[ *_]*+(?P<cell>\|))[ \t*_]*+|\"(?:final_?)?answer\"\s*+(?P<json>:)\s*+"
    r"|^[ \t]{0,3}(?:\#{1,6}[ \t]*|\*\*)(?:the[ ])?(?:final[ ])?answer[:*_ \t]*$"
    r"|(?:答案[*_】]*[是为选:\uff1a]+|答案】|[故应]选[:\uff1a]?)[ \t*_]*",
    re.IGNORECASE | re.MULTILINE,
)
_END = re.compile(
    r"[.!?](?=\s|$|[*_]+(?:\s|$))|[\u3002\uff01\uff1f]|\n"
    r"|(?P<why>,?\s(?:because|since)\s|,\s(?:as|not|which)\s|\s\((?=[a-z]{3,}\s))"
    r"|(?P<bold>(?<=\S)\*\*(?=\s))"
)
_NOT_BUT = re.compile(r"not\b[^.\n]{1,60}?\bbut\s+")
_AND = re.compile(r"[\s$]*(?:,?\s*(?:and|or)|,|\\text\s*\{,?\s*(?:and|or)\s*\})[\s$]*")
_BLOCK = re.compile(
    r"\\\[(.*?)(?:\\\]|$)|\$\$(.*?)(?:\$\$|$)"
    r"|\\begin\{((?:equation|align|gather|multline)\*?)\}(.*?)(?:\\end\{\3\}|$)",
    re.DOTALL,
)
_QUOTED = re.compile(r"^>[ \t]?", re.MULTILINE)
_FENCE = re.compile(r"`{3,}\w*[ \t]*\n(.*?)(?:\n[ \t]*`{3,}|$)", re.DOTALL)
_LINE_MARKER = re.compile(r"(?:>[ \t]*|[-*+\u2022][ \t]+|[0-9]{1,3}[.)][ \t]+)+")
_RULE = re.compile(r"[|:\- \t]+")
_ABBREVIATION = re.compile(
    r"(?:^|[^A-Za-z])"
    r"(?:St|Mt|Ft|Dr|Mr|Mrs|Ms|Prof|Jr|Sr|No|Fig|Eq|vs|approx|ca|[ei]\.[eg]|[A-Z]\. ?[A-Z])$"
)
_INITIALS = re.compile(r" ?[A-Z]\.")
_HEADING = re.compile(
    r"[0-9]{1,3}[.)]\s|.*:|\W*(?:steps?|solution|conclusion|summary|note|explanation|verification)\b",
    re.IGNORECASE,
)
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}")
_COMMENT = re.compile(
    r"(?:not |in)?(?:correct|right|wrong|clear|helpful|valid|reasonable|as follows|below)\b", re.I
)
# Letters of an alphabet make a name of what follows; those of Chinese or Japanese do not.
_NUMBER = re.compile(
    r"(?<![A-Za-z\d_.^\u00c0-\u024f\u0370-\u04ff])(?:(?<![)\]])[-\u2212])?[$€£¥₹]?"
    rf"(?:{REPEATING}|"
    r"(?:\\[dt]?frac\{\d+\}\{\d+\}|\d{1,3}(?:[ \u00a0\u2009\u202f]\d{3})+(?!\d)"
    r"|(?:\d{1,3} (?=\d+/\d))?\d+(?:,\d+)*|(?=\.\d))(?:\.\d+)?[¼-¾⅐-⅞]?"
    r"(?:\s?/\s?\d+|[eE][-+]?\d+|(?:\s?(?:\\times|\\cdot|[x\u00d7·*])\s?10)?"
    rf"(?:\^\{{?[-\u2212+]?\d+\}}?|[⁰¹²³⁴-⁹⁺⁻]+))?)(?:%| (?i:{'|'.join(ROUND)})(?![A-Za-z]))?"
)
_REPEATED = re.compile(rf"{REPEATING}\Z")
_FORMULA = re.compile(
    r"\$\$(.{1,500}?)\$\$|\$([^$\n]{1,500})\$|\\\((.{1,500}?)\\\)|\\\[(.{1,500}?)\\\]", re.DOTALL
)
_SPECIAL = re.compile(r"(?:<\|\w+\|>|</s>|<eos>|<end_of_turn>)\s*\Z")
_THINKING = re.compile(r"<think(?:ing)?>|\[THINK\]", re.IGNORECASE)
_THOUGHT = re.compile(r"</think(?:ing)?>|\[/THINK\]", re.IGNORECASE)
_EMPTY = frozenset(" \t\r\n*_$.:#|")


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
    text = final_part(text)
    marked = next(marked_answers(text), None)
    if marked is not None:
        return marked
    numbers = list(_NUMBER.finditer(text))
    if not numbers:
        return None
    last = numbers[-1]
    for found in _FORMULA.finditer(text, max(last.start() - 1000, 0), last.end() + 500):
        formula = found[found.lastindex or 0].strip()
        if found.start() < last.end() < found.end() and not _WORD.search(formula):
            return formula
    return last[0]


def final_part(text: str) -> str:
    """What follows the last thinking, at most the last `MAX_TEXT` characters of it.

    Thinking that never closes has nothing after it; only what stands before it is left.

    >>> final_part("<think>3?</think>It is 4."), final_part("So 4. <think>Or 5? It is 5.")
    ('It is 4.', 'So 4. ')
    """
    *_, after = _THOUGHT.split(text)
    return _SPECIAL.sub("", _THINKING.split(after, maxsplit=1)[0][-MAX_TEXT:])


def marked_answers(text: str) -> Iterator[str]:
    """The answers that are marked as such, the last first; wordy ones after all others."""
    text = text.rstrip()
    wordy = []
    boxes = list(itertools.islice(_boxes(text), MAX_MARKS))
    # Each kind from its end on, so that a text of marks alone costs no more than `MAX_MARKS`.
    for _, found in itertools.islice(
        heapq.merge(
            ((begin, answer) for begin, _, answer in boxes),
            _hashes(text),
            _said(text, [range(begin, end) for begin, end, _ in boxes]),
            reverse=True,
        ),
        MAX_MARKS,
    ):
        answer = found.strip().strip("*_").strip()
        if not set(answer) - _EMPTY or _COMMENT.match(answer):
            continue
        if len(answer.split()) > MAX_WORDS and not re.search(r"[0-9\\]", answer):
            wordy.append(answer)
        else:
            yield answer
    yield from wordy


def _hashes(text: str) -> Iterator[tuple[int, str]]:
    for found in reversed(list(_HASHES.finditer(text))):
        line = found["line"].strip()
        last = found.end() == len(text)
        words = len(_WORD.findall(line))
        is_value = words == 0 or (words == 1 and line[:1] in "-$0123456789\\")
        if not _HEADING.match(line) and (is_value or (last and words <= MAX_WORDS)):
            yield found.start(), line


def _said(text: str, boxes: list[range]) -> Iterator[tuple[int, str]]:
    for found in reversed(list(_SAID.finditer(text))):
        if any(found.start() in box for box in boxes):
            continue  # it is a part of that
        after = text[found.end() : found.end() + 2 * MAX_ANSWER]
        if found["json"]:
            yield found.start(), _in_json(after)
            continue
        if found["cell"]:
            cell = after.partition("|")[0]
            if re.search(r"[0-9\\]", cell):
                yield found.start(), cell
            continue
        yield found.start(), _answer_in(after)[:MAX_ANSWER]


def _answer_in(after: str) -> str:
    """The answer at the beginning of what follows a mark."""
    content = after.lstrip(" \t\r\n*_")
    if "\n" in after[: len(after) - len(content)]:
        content = after.lstrip(" \t\r\n")  # a star may be a bullet here
        if content.startswith(">"):
            content = _QUOTED.sub("", content).lstrip()
        content = content[getattr(_LINE_MARKER.match(content), "end", int)() :]
        if content.startswith("|"):
            return _in_table(content)
    fence = _FENCE.match(content)
    if fence:
        return fence[1]
    block = _BLOCK.match(content)
    if block:
        return block[block.lastindex or 0]
    return _sentence(_NOT_BUT.sub("", content.lstrip("*_"), count=1))


def _in_json(after: str) -> str:
    try:
        value, end = json.JSONDecoder().raw_decode(after)
    except (ValueError, RecursionError):
        return ""
    return value if isinstance(value, str) else after[:end]


def _in_table(content: str) -> str:
    """The last cell of the first row below a table's head."""
    rows = list(itertools.takewhile(lambda line: line.startswith("|"), content.splitlines()))
    if len(rows) > 2 and _RULE.fullmatch(rows[1]):
        rows = rows[2:]
    cells = [cell.strip() for cell in rows[0].split("|")]
    return next((cell for cell in reversed(cells) if cell), "")


def _sentence(text: str) -> str:
    for found in _END.finditer(text):
        before = text[: found.start()]
        if found[0] == "." and (
            _ABBREVIATION.search(before[-8:])
            or (re.search(r"(?:^|\W)[A-Z]$", before) and _INITIALS.match(text, found.end()))
        ):
            continue
        if found["why"] and not re.search(r"[0-9\\]", before):
            continue  # "he left because it rained" is an answer
        if found["bold"] and "**" in before:
            continue  # it closes what began after the mark
        if found[0] == "." and _REPEATED.search(text, max(found.start() - 40, 0), found.end()):
            return text[: found.end()]  # 0.333...
        return before
    return text


def _boxes(text: str) -> Iterator[tuple[int, int, str]]:
    """The contents of the boxes that close and are not blank, the one that opens last first."""
    opened: list[re.Match[str] | None] = []
    # One pass with a stack: looking for each box's end in turn takes quadratic time.
    spans: list[tuple[int, int, int]] = []
    for found in _BOX_OR_BRACE.finditer(text):
        if found["bare"]:
            spans.append((*found.span("bare"), found.start()))
        elif found["box"]:
            opened.append(found)
        elif found["brace"] == "{":
            opened.append(None)
        elif found["brace"] and opened:
            box = opened.pop()
            if box is not None and text[box.end() : found.start()].strip():
                spans.append((box.end(), found.start(), box.start()))
    joined: list[str] = []
    spans = heapq.nlargest(MAX_MARKS, spans)
    for (begin, end, start), before in itertools.zip_longest(spans, spans[1:]):
        joined.insert(0, text[begin:end].strip())
        if before is None or not _AND.fullmatch(text, before[1] + 1, start):
            yield begin, end, ", ".join(joined)
            joined.clear()
