"""Hostile texts through verifiers, extraction, votes, sampling parameters, recipes and JSON lines.

Whatever a text holds, there is a result or one error of ours, soon, and none of it is executed.
Case i of a target is the same on every machine; `python tests/fuzz/test_texts.py TARGET I` shows
one. A short sample runs by default, all of it with `make fuzz`.
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from interlace.answers import (
    Responses,
    best_of_n,
    extract_answer,
    logprob_weights,
    majority_vote,
    medoid,
    normalise_answer,
    symbolically_equal,
    synthesis_prompt,
    weighted_vote,
)
from interlace.answers.choose import BestOfN, MajorityVote, Medoid, WeightedVote
from interlace.answers.extract import final_part, marked_answers
from interlace.engine.types import SamplingParams
from interlace.errors import InterlaceError
from interlace.jsonl import Store, as_line, read, read_object
from interlace.rewards import Correctness, Format, SelfConsistency, StepVerification
from interlace.tasks import Task, get_task
from interlace.tasks.checkers import choice_letter, chosen, lone_letter
from interlace.training.recipe import load_recipe
from support.task_files import ARTICLES, CHOICES, FORMULAS, PUZZLES, WORD_PROBLEMS, write_jsonl
from support.typecheck import unchecked

SEED, CASES = 20261129, 10_000
SAMPLE = {"recipes": 40}  # by default 150; a recipe takes a tenth of a second
SECONDS = 5.0  # of processor time for one input
CANARY = "interlace_canary"
CODE = f"open({CANARY!r}, 'w').close()"


# What texts are made of.

NUMBERS = [
    "0",
    "-1",
    "72",
    "1,000",
    "1/2",
    "0.333",
    "1e9",
    "9" * 400,
    "٣",
    "½",
    "²",
    "１２",
    "0/0",
    "1_0",
]
MARKS = [
    *("\\boxed{", "\\fbox{", "}", "{", "####", "#### ", "answer is ", "Answer: ", "**Answer**\n"),
    *(
        "| Answer |",
        "答案是",
        "<answer>",
        "</answer>",
        "<think>",
        "</think>",
        "The answer is (B).",
        "A)",
    ),
    *(
        "(",
        ")",
        "[",
        "]",
        "$",
        "$$",
        "\\[",
        "\\]",
        "```",
        "\n",
        "\n\n",
        "\t",
        " ",
        ",",
        ";",
        ".",
        "!",
        "?",
    ),
]
LATEX = [
    *(
        "\\frac",
        "\\sqrt",
        "\\text{",
        "\\left(",
        "\\right)",
        "\\pi",
        "\\infty",
        "\\pm",
        "\\cdot ",
        "^",
        "_",
    ),
    *(
        "\\begin{pmatrix}",
        "\\binom{10^9}{10^8}",
        "9^{9^{9^9}}",
        "\\int_0^1",
        "\\sum",
        "\\uparrow",
        "!!",
        "\\\\",
    ),
    *(
        "x",
        "y=",
        "=",
        "<",
        ">",
        "+",
        "-",
        "*",
        "/",
        "**",
        "%",
        "\\le ",
        "\\cup ",
        "\\in ",
        "\\{",
        "\\}",
    ),
]
ODD = [
    *(
        "\x00",
        "\x1b[2J",
        "\u2028",
        "\u0085",
        "\u202e",
        "\ud800",
        "\U0001f600",
        "e\u0301",
        "\ufeff",
        "\u200b",
    ),
    *(
        "[/foo]",
        "[bold]",
        "{0.__class__}",
        "%s%n",
        "null",
        "NaN",
        "Infinity",
        "true",
        "None",
        '"',
        "'",
        "\\",
    ),
]
CODES = [
    CODE,
    f"__import__('os').system('touch {CANARY}')",
    f"eval({CODE!r})",
    f"exec({CODE!r})",
    f"(lambda: {CODE})()",
    f"{{{{ ''.__class__.__mro__[1].__subclasses__() }}}} {CODE}",
    f"!!python/object/apply:os.system ['touch {CANARY}']",
    f"\\write18{{touch {CANARY}}}",
]
WORDS = [
    "the",
    "So",
    "Therefore",
    "is",
    "St. Louis",
    "72 clips",
    "Paris",
    "no",
    "Option B",
    "B because",
    "steps",
]
JSONS = [
    '{"House 1": {"Name": "Bo"}}',
    '{"solution": ',
    "[1, 2]",
    '{"a": 1}',
    "[[" * 50,
    '{"a":' * 50,
]
PIECES = [NUMBERS, NUMBERS, MARKS, MARKS, LATEX, ODD, CODES, WORDS, JSONS]


def text(rng: random.Random) -> str:
    """A text of some pieces; now and then very long."""
    pieces = [rng.choice(rng.choice(PIECES)) for _ in range(rng.choice((0, 1, 2, 3, 5, 8, 13, 40)))]
    if rng.random() < 0.05:
        pieces.append(rng.choice(pieces or ["("]) * rng.choice((100, 3_000, 60_000)))
    joined = rng.choice(("", "", " ", "\n")).join(pieces)
    if rng.random() < 0.3:
        joined = rng.choice(
            (f"\\boxed{{{joined}}}", f"Answer: {joined}", f"<answer>{joined}</answer>")
        )
    return joined


def value(rng: random.Random) -> Any:
    """A value of any type that Python or JSON has."""
    return rng.choice(
        (
            *(
                None,
                True,
                False,
                0,
                1,
                -1,
                2,
                8,
                2**31,
                2**63,
                -(2**63),
                10**5000,
                0.5,
                -0.0,
                1e308,
            ),
            *(
                float("nan"),
                float("inf"),
                "",
                "8",
                "abc",
                b"x",
                [],
                [1],
                [[]],
                {},
                {"a": 1},
                (1, 2),
            ),
            *(object(), int, len, text(rng), [text(rng)], {text(rng): text(rng)}, {1, 2}, 1j),
        )
    )


# Targets: each takes one case, and raises nothing but errors of ours.


@cache
def tasks() -> list[Task]:
    folder = Path(tempfile.mkdtemp())
    sets: list[tuple[str, list[Any], dict[str, Any]]] = [
        ("gsm8k", WORD_PROBLEMS, {}),
        ("math500", FORMULAS, {}),
        ("gpqa", CHOICES, {}),
        ("zebralogic", PUZZLES, {}),
        ("xsum", ARTICLES, {}),
    ]
    found = [get_task("countdown", size=3), get_task("tiny-countdown", size=3)]
    found += [get_task("chain-arithmetic", size=3), get_task("rg:chain_sum", size=2)]
    for name, rows, options in sets:
        found.append(get_task(name, data=write_jsonl(folder / f"{name}.jsonl", rows), **options))
    rows = [{"question": f"Q{i}?", "answer": "B"} for i in range(3)]
    path = write_jsonl(folder / "own.jsonl", rows)
    found += [get_task(f"jsonl:{path}", checker=checker) for checker in ("exact", "choice")]
    return found


def verifiers(rng: random.Random, folder: Path) -> None:
    task = rng.choice(tasks())
    example, given = rng.choice(list(task)), text(rng)
    if rng.random() < 0.2:  # a right answer amid it
        given = text(rng) + (task.reference_text(example) or "") + given
    verdict = task.verify(example, given)
    assert 0 <= verdict.score <= 1
    assert verdict.correct or verdict.score < 1 or task.name == "xsum"
    if verdict.answer is not None:
        task.normalise(verdict.answer)
    for step in task.steps(example, given):
        assert isinstance(step.holds, bool)
    Correctness(task)(["?"], [given], examples=[example])
    StepVerification(task)(["?"], [given], examples=[example])


def extraction(rng: random.Random, folder: Path) -> None:
    given = text(rng)
    found = extract_answer(given)
    assert found is None or (found.strip() and found in given)
    for answer in marked_answers(final_part(given)):
        choice_letter(answer)
        normalise_answer(answer)
    chosen(given)
    lone_letter(given)
    Format()(["?"], [given])
    form = normalise_answer(given)
    assert form is None or hash(form) == hash(normalise_answer(given))


def votes(rng: random.Random, folder: Path) -> None:
    texts = [text(rng) for _ in range(rng.choice((1, 2, 3, 5)))]
    answers = [None if rng.random() < 0.1 else extract_answer(one) for one in texts]
    vote = majority_vote(answers)
    assert vote.winner is None or vote.winner in answers
    for one in answers:
        if one is not None and normalise_answer(one) is not None:
            assert symbolically_equal(one, one) in (True, None)
    weights = [rng.choice((0, 0.5, 1, 1e-300, None)) for _ in answers]
    weighted_vote(answers, weights)
    medoid(texts)
    best_of_n(texts, len)
    logprobs = [[-rng.random()] * rng.randrange(4) for _ in texts]
    logprob_weights(logprobs)
    group = Responses(text(rng), texts, logprobs)
    for aggregator in (MajorityVote(), WeightedVote(), BestOfN(), Medoid()):
        json.dumps(aggregator(group).details, allow_nan=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        SelfConsistency(width=len(texts))(["?"] * len(texts), texts)
    if any(one.strip() for one in texts):
        assert synthesis_prompt(text(rng), texts, special_tokens=["<|end|>", "[/foo]"])[0]


FIELDS = list(SamplingParams.__dataclass_fields__)


def params(rng: random.Random, folder: Path) -> None:
    values = {
        rng.choice([*FIELDS, "widht", text(rng)]): value(rng)
        for _ in range(rng.choice((1, 1, 2, 4)))
    }
    with unchecked():
        SamplingParams(**values)


RECIPE = {
    "model": "tiny",
    "attach": {"method": "bridge", "parameter_share": 0.05},
    "task": "countdown",
    "task_options": {"max_number": 9},
    "output_dir": "runs/x",
    "seed": 0,
    "warmup": {"groups_per_step": 2, "max_steps": 2, "learning_rate": 1e-3, "report_to": "none"},
    "grpo": {"num_generations": 4, "width": [2, 4], "max_steps": 4, "report_to": "none"},
}
YAML = [
    *(
        "a: &a [x, x]\nb: &b [*a, *a]\n",
        "model: 2020-01-01\n",
        "seed: " + "9" * 5_000 + "\n",
        "? [a]\n: b\n",
    ),
    *(
        "grpo: !!python/object/apply:os.system ['touch x']\n",
        "a: *nowhere\n",
        "- x\n",
        "null\n",
        "{{{{",
    ),
    *(
        "<<: [1]\n",
        "seed: 1\nseed: 2\n",
        "%YAML 9.9\n",
        "\t",
        "model: [tiny\n",
        "grpo: " + "[" * 2_000 + "\n",
    ),
    "l0: &l0 ["
    + "x, " * 9
    + "x]\n"
    + "".join(f"l{i}: &l{i} [" + f"*l{i - 1}, " * 9 + f"*l{i - 1}]\n" for i in range(1, 10)),
    "m0: &m0 {a: 1}\n"
    + "".join(
        f"m{i}: &m{i} {{<<: [*m{i - 1}, *m{i - 1}], k{i}: *m{i - 1}}}\n" for i in range(1, 25)
    ),
]


def recipes(rng: random.Random, folder: Path) -> None:
    values: dict[str, Any] = json.loads(json.dumps(RECIPE))
    for _ in range(rng.choice((0, 1, 1, 2))):
        place = rng.choice((values, values["warmup"], values["grpo"], values["attach"]))
        if isinstance(place, dict):
            key = rng.choice([*place, "nonsense", text(rng)[:50]])
            place[key] = rng.choice(
                (
                    None,
                    True,
                    -1,
                    10**30,
                    1e400,
                    "",
                    "x",
                    [],
                    {},
                    [[]],
                    {"a": {}},
                    text(rng),
                    "cuda:7",
                    "1e-5",
                )
            )
        values = {**RECIPE, **values}
    try:
        written = yaml.safe_dump(values, allow_unicode=True)
    except yaml.YAMLError:
        written = ""
    how = rng.random()
    data = written.encode("utf-8", "surrogatepass")
    if how < 0.2:
        data = (written + rng.choice(YAML)).encode("utf-8", "surrogatepass")
    elif how < 0.35:
        data = rng.choice(YAML).encode()
    elif how < 0.5:
        data = flipped(rng, data)
    path = folder / "recipe.yaml"
    path.write_bytes(data)
    given = rng.choice(
        (
            "grpo.width",
            "seed",
            "model",
            "attach.method",
            "grpo.nonsense",
            "a.b.c",
            "",
            text(rng)[:40],
        )
    )
    overrides = [
        f"{given}={rng.choice(('1', '[2,4]', 'x', '', '1e400', '{a: *b}', text(rng)[:80]))}"
    ]
    with unchecked():
        load_recipe(path, rng.choice(([], [], overrides, [text(rng)[:80]])))


def jsonl(rng: random.Random, folder: Path) -> None:
    rows = [{"question": text(rng)[:500], "answer": value(rng), "n": i} for i in range(3)]
    try:
        lines = "".join(json.dumps(row, ensure_ascii=rng.random() < 0.5) + "\n" for row in rows)
    except (TypeError, ValueError):
        lines = "".join(
            as_line({"question": text(rng)[:300], "answer": text(rng)[:50] or "1"}) for _ in "abc"
        )
    data = lines.encode("utf-8", "surrogatepass")
    how = rng.random()
    if how < 0.3:
        data = flipped(rng, data)
    elif how < 0.5:
        extra = (
            b"\xff",
            b"\xef\xbb\xbf",
            b"[" * 50_000,
            b"null\n",
            b"7\n",
            b'{"a":' * 3_000,
            b"9" * 5_000,
            b"\x00",
        )
        at = rng.randrange(len(data) + 1)
        data = data[:at] + rng.choice(extra) + data[at:]
    path = folder / "rows.jsonl"
    path.write_bytes(data)
    for task in (f"jsonl:{path}", "gsm8k"):
        attempt(lambda task=task: get_task(task, data=str(path)))
    attempt(lambda: list(read(path)))
    attempt(lambda: list(read(path, own=True)))
    attempt(lambda: read_object(path, InterlaceError, "Write another."))
    before = path.read_bytes()
    with Store(path, sync_seconds=float("inf")) as store:
        assert path.read_bytes() == before
        store.begin()
        store.append({"text": text(rng)})
    assert path.read_bytes().startswith(before[: before.rfind(b"\n") + 1])


def attempt(action: Callable[[], object]) -> None:
    try:
        action()
    except InterlaceError as error:
        if len(str(error)) >= 4_000:
            raise AssertionError("a long message") from error


def flipped(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 3, 20)) if data else 0):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


TARGETS: dict[str, Callable[[random.Random, Path], None]] = {
    one.__name__: one for one in (verifiers, extraction, votes, params, recipes, jsonl)
}


# What came of it.


def outcome(target: str, case: int, folder: Path) -> tuple[str, str]:
    """A word for what became of a case, and what there is to say about it."""
    rng = random.Random(f"{SEED}-{target}-{case}")
    found, said, started = "result", "", time.process_time()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            TARGETS[target](rng, folder)
    except InterlaceError as error:
        found, said = type(error).__name__, str(error)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        found, said = "FOREIGN", "".join(traceback.format_exception(error)[-4:])
    seconds = time.process_time() - started
    if Path(CANARY).exists():
        return "EXECUTED", said
    if seconds > SECONDS:
        return "SLOW", f"{seconds:.1f} s: {said}"
    if len(said) > 4_000 and found != "FOREIGN":
        return "LONG", said[:300]
    return found, said


def run(target: str, cases: Iterable[int], folder: Path) -> tuple[Counter[str], list[str]]:
    """Outcomes of cases, counted, and the faults among them."""
    counts: Counter[str] = Counter()
    faults = []
    for case in cases:
        found, said = outcome(target, case, folder)
        counts[found] += 1
        if found.isupper():
            faults.append(f"{target} {case}: {found}: {said[-1200:]}")
    return counts, faults


@pytest.mark.parametrize("target", TARGETS)
def test_a_sample_of_hostile_texts(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sample = SAMPLE.get(target, 150)
    counts, faults = run(target, range(CASES, CASES + sample), tmp_path)
    assert not faults, "\n\n".join(faults[:10])
    assert counts["result"] > sample // 50, counts


@pytest.mark.fuzz
@pytest.mark.parametrize("target", TARGETS)
def test_hostile_texts(target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    counts, faults = run(target, range(CASES), tmp_path)
    print(f"\n{target}: {dict(counts)}")
    assert not faults, f"{len(faults)}\n\n" + "\n\n".join(faults[:20])


if __name__ == "__main__":
    name, span = sys.argv[1], [int(part) for part in sys.argv[2].split("-")]
    home = Path(tempfile.mkdtemp())
    os.chdir(home)
    print(*run(name, range(span[0], span[-1] + 1), home), sep="\n")
