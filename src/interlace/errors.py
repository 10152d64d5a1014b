"""Every error that Interlace raises on purpose.

Each class also derives from the builtin that fits, so `except ValueError` keeps working. A message
holds the rule, the value that broke it, and the way out.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

LONGEST = 3000  # characters of a message; a value in it may be megabytes
LONGEST_FOREIGN = 600  # characters of another library's message inside one of ours


class InterlaceError(Exception):
    """Base of every error raised by Interlace.

    Args:
        message: Rule, value received, and way out. A long value is cut out of the middle.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(shortened(str(message), LONGEST))


def shortened(text: str, most: int) -> str:
    """A text with its middle left out if it is long: the rule stands first, the way out last.

    >>> shortened("rule, " + 10 * "value " + "way out", 30)
    'rule, value value val [46 characters left out] ay out'
    """
    if len(text) <= most:
        return text
    head, tail = text[: most * 7 // 10].rstrip(), text[-(most * 2 // 10) :].lstrip()
    return f"{head} [{len(text) - len(head) - len(tail):,} characters left out] {tail}"


def shown(value: object, most: int = 200) -> str:
    """A value as a message shows it: its `repr`, shortened; some values have none.

    >>> shown("a"), shown(10**5000)
    ("'a'", 'an int too long to show')
    """
    try:
        return shortened(repr(value), most)
    except Exception:  # whole numbers above 4300 digits; a user's own __repr__
        kind = type(value).__name__
        return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind} too long to show"


@contextmanager
def reading(kind: type[InterlaceError], what: str, way_out: str = "") -> Iterator[None]:
    """Boundary around code that reads what a user or the world gave: a file, a folder, a value.

    Libraries raise anything at damaged input: bare exceptions, errors of types and shapes, panics
    of other languages. All of it becomes one error of ours, with the cause attached.

    Args:
        kind: Class of the error to raise.
        what: Beginning of its message: the place, and what cannot be done with it.
        way_out: End of its message.

    Raises:
        InterlaceError: of the given kind, for whatever is raised inside and is not ours already.
    """
    try:
        yield
    except (InterlaceError, KeyboardInterrupt, GeneratorExit, SystemExit):
        raise
    except BaseException as error:  # a panic in Rust is no Exception
        raise kind(f"{what}: {in_one_line(error)} {way_out}".rstrip()) from error


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint at the known name that was probably meant, or no text.

    >>> nearest("widht", ["width", "seed"]), nearest("zzz", ["width"])
    (" Did you mean 'width'?", '')
    """
    near = difflib.get_close_matches(name[:100], list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What differs between two settings, each as `name was A and is B`.

    >>> differences({"seed": 0, "task": {"name": "a"}}, {"seed": 0, "task": {"name": "b"}})
    ["task.name was 'a' and is 'b'"]
    """
    lines = []
    for name in dict.fromkeys([*before, *now]):
        old, new = before.get(name), now.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            lines += differences(old, new, f"{prefix}{name}.")
        elif old != new:
            lines.append(f"{prefix}{name} was {old!r:.80} and is {new!r:.80}")
    return lines


def in_one_line(error: BaseException) -> str:
    """An exception in one line, its class named where the message alone says nothing.

    >>> in_one_line(KeyError("vocab"))
    "KeyError: 'vocab'."
    """
    try:
        message = " ".join(str(error).split())
    except Exception:  # the message of an error may fail, too
        message = ""
    text = shortened(message, LONGEST_FOREIGN).rstrip(".")
    if isinstance(error, (OSError, ValueError, ImportError)) and text:
        return f"{text}."
    return f"{type(error).__name__}: {text}." if text else f"{type(error).__name__}."


class ConfigError(InterlaceError, ValueError):
    """A configuration value is out of its range or contradicts another."""


class GroupError(InterlaceError, ValueError):
    """Rows and groups do not fit together: a width that does not divide, a mask of the wrong shape,
    a split group."""


class AttachError(InterlaceError, ValueError):
    """A model cannot take blocks, has them already, has none, or went by one of them in a forward
    pass."""


class GenerationError(InterlaceError, ValueError):
    """A generation request that cannot be carried out as asked."""


class AggregationError(InterlaceError, ValueError):
    """Answers, weights or responses that cannot be aggregated as asked."""


class DataFileError(InterlaceError, ValueError):
    """A file of prompts, raw generations or results that cannot be read, written, or gone on with,
    or that contradicts itself."""


class GenerationInterrupted(InterlaceError, KeyboardInterrupt):
    """Ctrl-C in the middle of a generation call.

    Attributes:
        groups: Groups that were begun, by the index of their prompt.
    """

    def __init__(self, message: str, groups: dict[int, Any]) -> None:
        super().__init__(message)
        self.groups = groups

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.groups)


class CheckpointError(InterlaceError, ValueError):
    """Saved blocks that are damaged, incomplete, too new, or meant for another base model."""


class LoadError(InterlaceError, ValueError):
    """A model source that cannot be found, read or understood."""


class MetricError(InterlaceError, ValueError):
    """Counts, values or results from which a metric, an interval, a fit or a comparison cannot be
    computed: a subset of a Bridge group for a narrower run, different problems, too few widths."""


class RunError(InterlaceError, ValueError):
    """A run folder that is missing, belongs to another configuration, or cannot be written."""


class TaskError(InterlaceError, ValueError):
    """A task that does not exist, options that contradict it, or data that does not fit it."""


class ExpressionError(InterlaceError, ValueError):
    """Text that is no arithmetic expression, or one beyond the bounds of its parser."""


class RewardError(InterlaceError, ValueError):
    """Completions, columns or weights from which a reward cannot be computed."""


class MissingDependencyError(InterlaceError, ImportError):
    """An optional package is needed for what was asked."""


class GuardError(InterlaceError, RuntimeError):
    """Sampling and training disagree about log-probabilities (invariant I7)."""


class WorkerError(InterlaceError, RuntimeError):
    """A process that a command started for a part of its work has failed."""


class UndecidedWarning(UserWarning):
    """Answers that could not be compared within the bounds count as different."""


# Extra -> names that its packages are imported by; what asks for one of them needs all.
EXTRAS = {
    "cli": ("rich", "yaml", "jsonargparse", "docstring_parser"),
    "train": ("accelerate", "datasets", "tensorboard", "rich", "jsonargparse"),
    "eval": ("scipy", "matplotlib"),
    "serve": ("fastapi", "uvicorn", "sse_starlette", "prometheus_client", "openai"),
}
PYPI = {"yaml": "pyyaml"}  # where the package has another name


def require_extras(why: str, *extras: str) -> None:
    """Check that all packages of some extras are there, without importing them."""
    lacking = {
        extra: [package for package in EXTRAS[extra] if find_spec(package) is None]
        for extra in extras
    }
    wanted = [extra for extra, packages in lacking.items() if packages]
    if wanted:
        require(lacking[wanted[0]][0], ",".join(wanted), why)


def require(package: str, extra: str, why: str) -> None:
    """Check that an optional package is there, without importing it."""
    if find_spec(package) is None:
        raise MissingDependencyError(
            f"{why} needs the package {PYPI.get(package, package).replace('_', '-')}, which is "
            f'not installed: pip install "interlace[{extra}]"'
        )
