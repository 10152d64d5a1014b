"""`interlace tasks`: what there is to solve, and how an answer is judged."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from interlace.cli.shared import prompt_text, task_of
from interlace.configuration import Parser
from interlace.errors import TaskError
from interlace.terminal import say

if TYPE_CHECKING:
    from argparse import Namespace

    from rich.console import Console

    from interlace.tasks import Example, Task

EXAMPLES = """\
examples:
  interlace tasks
  interlace tasks countdown --option numbers=4
  interlace tasks gsm8k --data problems.jsonl --text 'The answer is 72.'
"""
WRONG = "I cannot solve this one."


@dataclass(frozen=True)
class Settings:
    """Options.

    Args:
        action: Word list, word show, or the name of the task to show.
        name: Name of the task to show, rg:NAME, jsonl:PATH or FILE.py:CLASS.
        index: Number of the example, the first being 0.
        text: Text to judge, instead of the reference and a wrong answer.
        data: Path of a JSONL file, or another hub id, to read the problems from.
        split: Split of the problems; by default the task's own.
        option: Option of the task, its value as YAML; the flag may be repeated.
    """

    action: str = "list"
    name: str = ""
    index: int = 0
    text: str | None = None
    data: str | None = None
    split: Literal["train", "test", "all"] | None = None
    option: dict[str, Any] = field(default_factory=dict)


def build_parser(prog: str) -> Parser:
    """The options of `interlace tasks`."""
    parser = Parser(
        prog,
        usage="[list]\n[show] NAME [options]",
        description="List the tasks, or show one: an example, the prompt that a model gets, and\n"
        "verdicts.",
        examples=EXAMPLES,
        config="split: train",
    )
    parser.add_options(Settings, words=["action", "name"])
    return parser


def run(arguments: Namespace) -> int:
    """Print the table, or one task."""
    from rich.console import Console

    console = Console()
    words = [word for word in (arguments.action, arguments.name) if word]
    if words == ["list"]:
        _list(console)
        return 0
    name = words[-1] if len(words) == 1 + (words[0] == "show") else ""
    if not name:
        raise TaskError(f"Say which task: interlace tasks countdown; got {' '.join(words)!r}.")
    _show(console, name, arguments)
    return 0


def _list(console: Console) -> None:
    from rich.table import Table

    from interlace.tasks import list_tasks

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("task", "problems", "verdict", "source", "extra"):
        table.add_column(heading, no_wrap=heading != "problems")
    for info in list_tasks():
        table.add_row(info.name, info.summary, info.verdict, info.source, info.extra)
    console.print(table)
    console.print(
        "\n`interlace tasks NAME` shows an example. An extra is installed with "
        "pip install 'interlace\\[EXTRA]'."
    )


def _show(console: Console, name: str, arguments: Namespace) -> None:
    task = task_of(name, arguments, arguments.option)
    if not -len(task) <= arguments.index < len(task):
        raise TaskError(f"--index is from 0 to {len(task) - 1}; got {arguments.index}.")
    example = task[arguments.index]
    say(console, f"{task.name}, split {task.split}: {len(task)} problems", "bold")
    _field(console, "id", example.id)
    _field(console, "prompt", prompt_text(task, example))
    _field(console, "template", task.framed(example, "{question}"))
    _field(console, "reference", example.answer or "none: the task checks the rules instead")
    texts = [arguments.text] if arguments.text else [task.reference_text(example), WRONG]
    for text in texts:
        if text:
            _verdict(console, task, example, text)


def _verdict(console: Console, task: Task, example: Example, text: str) -> None:
    verdict = task.verify(example, text)
    console.print()
    say(console, "verdict", "bold")
    _field(console, "text", text)
    _field(console, "correct", "yes" if verdict.correct else "no")
    _field(console, "score", f"{verdict.score:.3g}")
    _field(console, "answer", "none" if verdict.answer is None else verdict.answer)
    _field(console, "reason", verdict.reason)
    for step in task.steps(example, text):
        _field(console, "step", f"{'holds' if step.holds else 'fails'}: {step.text}")


def _field(console: Console, name: str, value: str) -> None:
    lines = value.split("\n")
    indented = "\n".join([lines[0], *(" " * 11 + line for line in lines[1:])])
    say(console, f"{name:<10} {indented}")
