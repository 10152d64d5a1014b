"""Every error that Interlace raises on purpose.

Each class also derives from the builtin that fits, so `except ValueError` keeps working. A message
holds the rule, the value that broke it, and the way out.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any


class InterlaceError(Exception):
    """Base of every error raised by Interlace."""


class ConfigError(InterlaceError, ValueError):
    """A configuration value is out of its range or contradicts another."""


class GroupError(InterlaceError, ValueError):
    """Rows and groups do not fit together: a width that does not divide, a mask of the wrong shape,
    a split group."""


class AttachError(InterlaceError, ValueError):
    """A model cannot take blocks, has them already, or has none."""


class UnreachedBlockError(InterlaceError, RuntimeError):
    """A forward pass went by without passing through every attached block."""


class GenerationError(InterlaceError, ValueError):
    """A generation request that cannot be carried out as asked."""


class UnknownOptionError(GenerationError, TypeError):
    """An option that does not exist."""


class AggregationError(InterlaceError, ValueError):
    """Answers, weights or responses that cannot be aggregated as asked."""


class DataFileError(InterlaceError, ValueError):
    """A file of prompts or of results that cannot be read, written, or gone on with."""


class GenerationInterrupted(InterlaceError, KeyboardInterrupt):
    """Ctrl-C in the middle of a generation call.

    Attributes:
        groups: prompt index -> group, for whatever there is by then.
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
    """Counts, values or a threshold from which a metric or an interval cannot be computed."""


class DependentRowsError(MetricError):
    """A subset of a Bridge group was to stand for a narrower run."""


class RecordError(InterlaceError, ValueError):
    """Raw generations that are damaged, contradict themselves or do not belong together."""


class RunError(InterlaceError, ValueError):
    """A run folder that is missing, belongs to another configuration, or cannot be written."""


class ComparisonError(InterlaceError, ValueError):
    """Results that do not cover the same problems, widths or seeds."""


class FitError(InterlaceError, ValueError):
    """A scaling law with more parameters than the widths can tell apart."""


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


def require(package: str, extra: str, why: str) -> None:
    """Checks that an optional package is there, without importing it.

    Args:
        package: Name that it is imported by.
        extra: Name of the extra that installs it.
        why: Beginning of the message: what needs it.

    Raises:
        MissingDependencyError: if it is not.
    """
    if find_spec(package) is None:
        raise MissingDependencyError(
            f"{why} needs the package {package.replace('_', '-')}, which is not installed: "
            f"pip install 'interlace[{extra}]'"
        )
