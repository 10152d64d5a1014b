"""Odd command lines through `main()`, all in one process.

Whatever is asked, the answer is an exit status of 0, 2 or 130 and a message that is no traceback,
soon; nothing of what a file or an argument holds is executed, unless the user named it as code.
Case i is the same on every machine; `python tests/fuzz/test_commands.py I` shows one. A short
sample runs by default, all of it with `make fuzz`.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import re
import shlex
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import pytest
from transformers.utils import logging

from interlace.cli.main import COMMANDS, main
from support.typecheck import unchecked

SEED, CASES, SAMPLE = 20261130, 5_000, 120
SECONDS = 5.0  # of processor time for one command line
LONGEST = 60_000  # characters of output; a command's whole help is shorter
CANARY = "interlace_canary"
CODE = f"open({CANARY!r}, 'w').close()"

VALUES = [
    *(
        "0",
        "-1",
        "1",
        "8",
        "1,2,4",
        "1,,2",
        "8,1",
        "1000000000",
        "9" * 5_000,
        "1e400",
        "nan",
        "inf",
        "-inf",
        "0.5",
    ),
    *(
        "",
        " ",
        "-",
        "--",
        "x",
        "tiny",
        "none",
        "null",
        "true",
        "[1, 2]",
        "{a: 1}",
        "[[",
        "{{",
        "*a",
        "!!python/none",
    ),
    *(
        "cuda:7",
        "cuda",
        "nonsense",
        "float8",
        "float64",
        "meta",
        "cpu",
        "mps",
        "/",
        ".",
        "..",
        "/dev/null",
        "/dev/zero/x",
    ),
    *(
        "rows.jsonl",
        "bad.jsonl",
        "bad.yaml",
        "bomb.yaml",
        "deep.yaml",
        "empty",
        "folder",
        "binary",
        "absent",
        "loop",
    ),
    *(
        "[/foo]",
        "[bold]x",
        "\x1b[2J",
        "\u202e",
        "\x00",
        "a\nb",
        "é" * 100,
        "x" * 300_000,
        "%s%n",
        "{0.__class__}",
        "../" * 50,
    ),
    *(
        "own.py:boom",
        "own.py:leaves",
        "own.py:deep",
        "own.py:fine",
        "own.py:absent",
        "own.py:number",
        "bad.py:x",
        "own.py",
        ":",
    ),
    *(
        "own.py:Boom",
        "own.py:Empty",
        "own.py:NoTask",
        "json:loads",
        "os:system",
        "no.such.module:x",
        "math:pi",
        "a:b:c",
    ),
    *(
        "countdown",
        "tiny-countdown",
        "rg:",
        "rg:nonsense",
        "jsonl:",
        "jsonl:rows.jsonl",
        "jsonl:bad.jsonl",
        "jsonl:folder",
    ),
    *(
        "digits=1",
        "numbers=99",
        "a=b=c",
        "=",
        "max_number={}",
        "size=1e9",
        "split=x",
        "template={nope}",
        "size=-5",
        "data=binary",
    ),
    *(
        "recipe.yaml",
        "grpo.width=0",
        "warmup=none",
        "seed=x",
        "output_dir=/dev/null/x",
        CODE,
        f"$({CODE})",
    ),
]
NAMES = [
    *COMMANDS,
    *COMMANDS,
    *COMMANDS,
    "genrate",
    "",
    "--version",
    "--help",
    "-h",
    "help",
    "\x1b[2J",
    "x" * 100_000,
]
OWN = """
import sys
from interlace.tasks import Example, Task, Verdict

number = 7

def boom(*args, **columns):
    raise RuntimeError("boom [/x]" + "y" * 100_000)

def leaves(*args, **columns):
    sys.exit(3)

def deep(*args, **columns):
    return deep()

def fine(text="", **columns):
    return len(text)

class Boom(Task):
    def __init__(self, **options):
        raise ZeroDivisionError("boom")

    def check(self, example, answer): ...

class Empty(Task):
    def __init__(self, *, split="test"):
        super().__init__("empty", [], split=split)

class NoTask:
    pass
"""
# Never begun by chance: what would take minutes by right.
ALWAYS = {
    "demo": ["--output", "/dev/null/x"],
    "serve": ["--model", "absent", "--host", "256.256.256.256"],
    "eval": ["--output", "out"],
}


WARM = {
    "demo": ["--output", "/dev/null/x"],
    "eval": ["--model", "absent", "--task", "tiny-countdown", "--output", "out"],
    "generate": ["--model", "absent", "x"],
    "serve": ["--model", "absent"],
    "train": ["grpo", "recipe.yaml", "--dry-run"],
}


def make_files(home: Path) -> None:
    (home / "own.py").write_text(OWN)
    (home / "bad.py").write_text("def x(:\n")
    (home / "rows.jsonl").write_text(
        '{"question": "1+1?", "answer": "2", "prompt": "1 + 1?"}\n' * 2
    )
    (home / "bad.jsonl").write_bytes(b'{"a": 1}\n\xff\xfe\n[1]\n{"question"')
    (home / "bad.yaml").write_text("width: [1\n  a: b: c\n")
    bomb = "l0: &l0 [x, x]\n" + "".join(
        f"l{i}: &l{i} [*l{i - 1}, *l{i - 1}]\n" for i in range(1, 40)
    )
    (home / "bomb.yaml").write_text(bomb)
    (home / "deep.yaml").write_text("model: " + "[" * 3_000)
    (home / "recipe.yaml").write_text(
        "model: absent\ntask: countdown\noutput_dir: out\ngrpo: {max_steps: 1}\n"
    )
    (home / "empty").write_bytes(b"")
    (home / "binary").write_bytes(bytes(range(256)) * 40)
    (home / "folder").mkdir()
    (home / "folder" / "config.json").write_text("[1, 2")
    (home / "folder" / "result.json").write_text('{"format": "x"}')
    (home / "loop").symlink_to(home / "loop")
    for name in ("json.py", "config.py", "yaml.py", "torch.py", "sitecustomize.py"):
        (home / name).write_text(CODE)


@cache
def options_of(command: str) -> list[str]:
    """The options that a command's help names."""
    written = io.StringIO()
    with contextlib.redirect_stdout(written), contextlib.suppress(SystemExit):
        main([command, "--help"])
    return sorted(set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", written.getvalue())))


def command_line(rng: random.Random) -> list[str]:
    """One odd command line."""
    name = rng.choice(NAMES)
    if name not in COMMANDS:
        return [name, *rng.choices(VALUES, k=rng.randrange(3))]
    known = options_of(name)
    given: list[str] = []
    for _ in range(rng.choice((0, 1, 1, 2, 3, 5))):
        option = (
            rng.choice([*known, "--nonsense", "-z"]) if rng.random() < 0.9 else rng.choice(VALUES)
        )
        value = rng.choice(VALUES)
        given += rng.choice(([option, value], [f"{option}={value}"], [option], [value]))
    if name == "tasks" and rng.random() < 0.7:
        given = [rng.choice(("show", "list", rng.choice(VALUES))), *given]
    if name == "train" and rng.random() < 0.8:
        given = [rng.choice(("warmup", "grpo", "both")), rng.choice(VALUES), *given]
        given += ["--dry-run"] * ("tiny" in given)  # its recipe trains for minutes, by right
    if name == "generate" and rng.random() < 0.8:
        short = [
            "--model",
            rng.choice(("absent", "folder", "tiny")),
            "--max-new-tokens",
            "2",
            "--width",
            "2",
        ]
        given = [*given, *short, rng.choice(("3 7 8 -> 45 :", rng.choice(VALUES)))]
    if name == "eval" and rng.random() < 0.8:
        given = ["--model", rng.choice(("absent", "folder")), "--task", rng.choice(VALUES), *given]
    return [name, *given, *ALWAYS.get(name, [])]


def outcome(case: int) -> tuple[str, str, list[str]]:
    """A word for what became of a case, what was written, and the command line."""
    rng = random.Random(f"{SEED}-{case}")
    line = command_line(rng)
    out, said = io.StringIO(), ""
    before, started = sys.stdin, time.process_time()
    sys.stdin = io.StringIO("a prompt\n")
    found = "?"
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(out),
            unchecked(),
        ):
            warnings.simplefilter("ignore")
            found = f"status {main(line)}"
    except SystemExit as error:
        found = f"status {error.code}"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        found, said = "FOREIGN", "".join(traceback.format_exception(error)[-5:])
    finally:
        sys.stdin = before
    seconds, written = time.process_time() - started, out.getvalue()
    if Path(CANARY).exists():
        found = "EXECUTED"
    elif found != "FOREIGN":
        if found not in ("status 0", "status 2", "status 130"):
            found = f"STATUS {found}"
        elif seconds > SECONDS:
            found, said = "SLOW", f"{seconds:.1f} s"
        elif "Traceback (most recent call last)" in written:
            found = "TRACEBACK"
        elif len(written) > LONGEST:
            found = "LONG"
        elif "\x1b[2J" in written or "\u202e" in written:
            found = "STEERS"
    return found, (said + written)[-1500:], line


def run(cases: Iterable[int]) -> tuple[Counter[str], list[str]]:
    """Outcomes of cases, counted, and the faults among them."""
    for name in COMMANDS:  # imports are no part of a case
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            main([name, *WARM.get(name, ["absent"])])
    counts: Counter[str] = Counter()
    faults = []
    for case in cases:
        found, written, line = outcome(case)
        counts[found] += 1
        if found.isupper() or found.startswith("STATUS"):
            shown = " ".join(shlex.quote(part[:60]) for part in line)
            faults.append(f"case {case}: interlace {shown}\n  {found}: {written}")
    return counts, faults


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INTERLACE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(logging, "disable_progress_bar", lambda: None)
    make_files(tmp_path)


def test_a_sample_of_odd_command_lines() -> None:
    counts, faults = run(range(CASES, CASES + SAMPLE))
    assert not faults, "\n\n".join(faults[:10])
    assert counts["status 2"] > SAMPLE // 2, counts


@pytest.mark.fuzz
def test_odd_command_lines() -> None:
    counts, faults = run(range(CASES))
    print(f"\ncommands: {dict(counts)}")
    assert not faults, f"{len(faults)}\n\n" + "\n\n".join(faults[:20])


if __name__ == "__main__":
    span = [int(part) for part in sys.argv[1].split("-")]
    place = Path(tempfile.mkdtemp())
    make_files(place)
    os.chdir(place)
    found_counts, found_faults = run(range(span[0], span[-1] + 1))
    print("\n\n".join(found_faults), json.dumps(found_counts), sep="\n")
