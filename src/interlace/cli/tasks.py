"""`interlace tasks`: what there is to solve, and how an answer is judged."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from interlace.errors import TaskError
from interlace.terminal import say

if TYPE_CHECKING:
    from rich.console import Console

    from interlace.tasks import Example, Task

WRONG = "I cannot solve this one."


def build_parser(prog: str) -> argparse.ArgumentParser:
    """The arguments of `interlace tasks`."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="List the tasks, or show one: an example, its prompt, and verdicts.",
        epilog="Examples: interlace tasks | interlace tasks show countdown --option numbers=4 | "
        "interlace tasks show gsm8k --data problems.jsonl --text 'The answer is 72.'",
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    actions.add_parser("list", help="a table of all tasks (the default)")
    # Errors go to `interlace`'s main, which explains them in one line.
    show = actions.add_parser(
        "show", help="an example, its prompt, and verdicts", exit_on_error=False
    )
    show.add_argument("name", help="a task's name, rg:NAME, jsonl:PATH or FILE.py:CLASS")
    show.add_argument("--index", type=int, default=0, help="which example (default: 0, the first)")
    show.add_argument("--text", help="judge this text instead of the reference and a wrong answer")
    show.add_argument("--data", help="a JSONL file, or another hub id, to read the problems from")
    show.add_argument("--split", choices=("train", "test", "all"), help="default: the task's own")
    show.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an option of the task, its value as JSON or text; may be given several times",
    )
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Print the table, or one task."""
    from rich.console import Console

    console = Console()
    if arguments.action == "show":
        _show(console, arguments)
    else:
        _list(console)
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
        "\n`interlace tasks show NAME` shows an example. An extra is installed with "
        "pip install 'interlace\\[EXTRA]'."
    )


def _show(console: Console, arguments: argparse.Namespace) -> None:
    from interlace.tasks import get_task

    options = dict(_option(text) for text in arguments.option)
    for name in ("data", "split"):
        if getattr(arguments, name) is not None:
            options[name] = getattr(arguments, name)
    task = get_task(arguments.name, **options)
    if not -len(task) <= arguments.index < len(task):
        raise TaskError(f"--index is from 0 to {len(task) - 1}; got {arguments.index}.")
    example = task[arguments.index]
    _heading(console, f"{task.name}, split {task.split}: {len(task)} problems")
    _field(console, "id", example.id)
    _field(console, "prompt", _prompt_text(task, example))
    _field(console, "reference", example.answer or "none: the task checks the rules instead")
    texts = [arguments.text] if arguments.text else [task.reference_text(example), WRONG]
    for text in texts:
        if text:
            _verdict(console, task, example, text)


def _verdict(console: Console, task: Task, example: Example, text: str) -> None:
    verdict = task.verify(example, text)
    console.print()
    _heading(console, "verdict")
    _field(console, "text", text)
    _field(console, "correct", "yes" if verdict.correct else "no")
    _field(console, "score", f"{verdict.score:.3g}")
    _field(console, "answer", "none" if verdict.answer is None else verdict.answer)
    _field(console, "reason", verdict.reason)
    for step in task.steps(example, text):
        _field(console, "step", f"{'holds' if step.holds else 'fails'}: {step.text}")


def _prompt_text(task: Task, example: Example) -> str:
    prompt = task.prompt(example)
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt)


def _option(text: str) -> tuple[str, Any]:
    name, sign, value = text.partition("=")
    if not sign or not name.strip():
        raise TaskError(f"--option takes NAME=VALUE, such as numbers=4; got {text!r}.")
    try:
        return name.strip(), json.loads(value)
    except ValueError:
        return name.strip(), value


def _heading(console: Console, text: str) -> None:
    say(console, text, "bold")


def _field(console: Console, name: str, value: str) -> None:
    lines = value.split("\n")
    indented = "\n".join([lines[0], *(" " * 11 + line for line in lines[1:])])
    say(console, f"{name:<10} {indented}")
