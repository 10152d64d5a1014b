"""Tasks by name."""

from __future__ import annotations

import importlib
import inspect
from dataclasses import dataclass
from typing import Any

from interlace.errors import InterlaceError, TaskError, nearest
from interlace.tasks.base import Task
from interlace.user_code import named_object, told


@dataclass(frozen=True)
class TaskInfo:
    """What is known of a task before it is built.

    Attributes:
        name: Name for `get_task`; "rg:NAME", "jsonl:PATH" and "FILE.py:CLASS" stand for whole
            families.
        summary: Sentence about its problems.
        verdict: Sentence about how an answer is judged.
        source: Origin of its problems.
        extra: Name of the extra (`pip install 'interlace[extra]'`) that it needs or may need.
        module: Name of the module that defines it.
        builder: Name of the class in that module.
    """

    name: str
    summary: str
    verdict: str
    source: str
    extra: str
    module: str
    builder: str


OWN = "FILE.py:CLASS"


# Name, summary, verdict, source, extra, and module:class.
_TABLE = """\
countdown | reach a target from given numbers | exact value | generated | | countdown:Countdown
tiny-countdown | countdown as the tiny models write it | exact value | generated | | \
tiny_countdown:TinyCountdown
chain-arithmetic | several operations, step by step | exact value | generated | | \
chain_arithmetic:ChainArithmetic
pair-sum | which two numbers add up, a token a character | exact pair | generated | | \
pair_sum:PairSum
gsm8k | grade school word problems | value | openai/gsm8k | | hub_sets:MathSet
math500 | competition mathematics | value | HuggingFaceH4/MATH-500 | math | hub_sets:MathSet
aime24 | AIME 2024 | value | HuggingFaceH4/aime_2024 | | hub_sets:MathSet
aime25 | AIME 2025 | value | math-ai/aime25 | | hub_sets:MathSet
amc23 | AMC 2023 | value | math-ai/amc23 | | hub_sets:MathSet
brumo25 | BRUMO 2025 | value | MathArena/brumo_2025 | math | hub_sets:MathSet
cmimc25 | CMIMC 2025 | value | MathArena/cmimc_2025 | math | hub_sets:MathSet
hmmt-feb25 | HMMT February 2025 | value | MathArena/hmmt_feb_2025 | math | hub_sets:MathSet
gpqa | graduate-level science | choice letter | Idavidrein/gpqa | | hub_sets:Gpqa
zebralogic | logic grid puzzles | cell matching | WildEval/ZebraLogic | | zebralogic:ZebraLogic
xsum | one-sentence summaries | ROUGE-L | EdinburghNLP/xsum | eval | hub_sets:Summarisation
cnn-dailymail | summaries of news | ROUGE-L | abisee/cnn_dailymail | eval | hub_sets:Summarisation
rg:NAME | any task of reasoning-gym | full marks | generated | tasks | reasoning_gym:ReasoningGym
jsonl:PATH | your own, one a line | as you say | the file | | jsonl:JsonlTask
FILE.py:CLASS | your own class | as you say | the class | | :
"""


def _info(line: str) -> TaskInfo:
    name, summary, verdict, source, extra, place = (cell.strip() for cell in line.split("|"))
    module, _, builder = place.partition(":")
    return TaskInfo(name, summary, verdict, source, extra, module, builder)


_TASKS = {info.name: info for info in map(_info, _TABLE.splitlines())}


def list_tasks() -> list[TaskInfo]:
    """Every task, generated ones first; "rg:NAME", "jsonl:PATH" and "FILE.py:CLASS" stand for
    whole families.

    Examples:
        >>> [info.name for info in list_tasks()][:3]
        ['countdown', 'tiny-countdown', 'chain-arithmetic']
    """
    return list(_TASKS.values())


def get_task(name: str, /, **options: Any) -> Task:
    """A task by name.

    Args:
        name: Name, one of `list_tasks()`; "rg:sudoku", "jsonl:my/file.jsonl" or "my/task.py:MyTask"
            for the families. The last runs that file.
        options: Options of the task's class. All have `split` ("train", "test", "all"), `size`,
            `chat` and `template`; sets from the hub have `data`, a JSONL file to read instead.

    Returns:
        The task, with its problems loaded.

    Raises:
        TaskError: for an unknown name or option, a value out of range, or data that does not fit.
        MissingDependencyError: if the task needs an extra that is not installed.

    >>> task = get_task("countdown", split="train", size=2)
    >>> len(task), task.verify(task[0], "Answer: 1 + 1").correct
    (2, False)
    """
    info = _find(name)
    if info.name == OWN:
        builder = _own_class(name)
    else:
        builder = getattr(importlib.import_module(f"interlace.tasks.{info.module}"), info.builder)
    known = _parameters(builder)
    arguments = {"name": name, **options} if "name" in known else options
    unknown = [option for option in options if option not in known or option == "name"]
    if unknown:
        takes = [parameter for parameter in known if parameter != "name"]
        raise TaskError(
            f"The task {name!r} takes the options {', '.join(takes)}; got {unknown[0]!r}."
            f"{nearest(unknown[0], takes)}"
        )
    if options.get("split") not in (None, "train", "test", "all"):
        raise TaskError(f"A split is 'train', 'test' or 'all'; got {options['split']!r}.")
    try:
        built: Task = builder(**arguments)
    except (InterlaceError, KeyboardInterrupt):
        raise
    except BaseException as error:  # options of a wrong type; whatever a class of one's own raises
        raise TaskError(f"The task {name!r} cannot be built: {told(error)}.") from error
    return built


def _parameters(builder: type) -> list[str]:
    """The names of a class's arguments, with those that it passes on to its base."""
    found: list[str] = []
    for own in (one for one in builder.__mro__ if "__init__" in vars(one)):
        given = inspect.signature(own).parameters.values()
        named = [one for one in given if one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)]
        found += [one.name for one in named if one.kind is one.KEYWORD_ONLY or own is builder]
        if len(named) == len(given):
            break
    return list(dict.fromkeys(found))


def _own_class(name: str) -> Any:
    try:
        found = named_object(name)
    except ImportError as error:
        raise TaskError(f"The task {name!r} cannot be imported: {error}.") from error
    if not (isinstance(found, type) and issubclass(found, Task)):
        raise TaskError(
            f"{name!r} must be a class derived from interlace.tasks.Task; it is {found!r:.80}."
        )
    return found


def _find(name: str) -> TaskInfo:
    if name.partition(":")[0].endswith(".py"):
        return _TASKS[OWN]
    for family in ("rg:NAME", "jsonl:PATH"):
        prefix = family.partition(":")[0] + ":"
        if name.startswith(prefix) and len(name) > len(prefix):
            return _TASKS[family]
    if name in _TASKS and ":" not in name:
        return _TASKS[name]
    raise TaskError(
        f"There is no task {name!r}; there are {', '.join(_TASKS)}.{nearest(name, _TASKS)}"
    )
