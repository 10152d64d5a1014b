"""Functions and classes of the user's own, named as `module:NAME` or `file.py:NAME`.

A file runs once a process, however often it is named (and again only if it has changed), as a
module that is known to `sys.modules`: dataclasses and pickle look their module up there. What it
raises, while it runs or later, is told in one line with the file and the line in it.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from interlace.errors import ConfigError, InterlaceError

MOST = 300  # characters of an exception's own message

# Each file that ran, by its full path: its name as it was given, and when it was changed.
_files: dict[str, tuple[str, int]] = {}


def named_object(name: str) -> Any:
    """What a name stands for; a file is run to find it, so only names that the user gave get here.

    Raises:
        ImportError: if there is no such place, it raises anything while it is imported, or it has
            no such name.

    >>> named_object("math:sqrt")(9)
    3.0
    """
    place, _, attribute = name.rpartition(":")
    if not place or not attribute:
        raise ImportError("a name is file.py:NAME or package.module:NAME")
    try:
        module = _run(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit, too: it is the file's, not ours
        raise ImportError(told(error)) from error
    if not hasattr(module, attribute):
        raise ImportError(f"{place} has no {attribute!r}")
    return getattr(module, attribute)


def named_function(name: str, what: str) -> Callable[..., Any]:
    """A function of the user's own, by its name as in `named_object`; `what` begins the message if
    it cannot be imported, or is no function: "The reward", "--scorer"."""
    try:
        found = named_object(name)
    except ImportError as error:
        raise ConfigError(f"{what} {name!r} cannot be imported: {error}.") from error
    if not callable(found):
        raise ConfigError(f"{what} {name!r} is no function, but {found!r:.80}.")
    return found  # type: ignore[no-any-return]


def blame(
    error: BaseException, what: str, kind: type[InterlaceError], function: Any = None
) -> NoReturn:
    """Whatever code of the user's own raised, SystemExit too, as one error in one line.

    `what` begins the message: "The reward length". `function` is what was called, for where it
    stands.
    """
    if isinstance(error, InterlaceError | KeyboardInterrupt):
        raise error  # of a function of ours, and says what is wrong; or the user's
    raise kind(f"{what} failed: {told(error, function)}.") from error


def told(error: BaseException, function: Any = None) -> str:
    """An exception in one line, with the place in the user's own code where there is one.

    Args:
        error: Exception.
        function: Function or object of the user's that was called, where it is known.

    >>> told(ValueError("no such thing"))
    'ValueError: no such thing'
    """
    try:
        said = str(error.msg if isinstance(error, SyntaxError) else error)
    except Exception:  # the user's classes can do anything
        said = ""
    message = " ".join(said.split())
    text = f"{type(error).__name__}: {message}" if message else type(error).__name__
    place = own_place(error) or _place_in(function, error)
    return (f"{place}: " if place else "") + text[:MOST]


def own_place(error: BaseException) -> str | None:
    """File and line of the user's own at which an exception arose; None if it was elsewhere."""
    frames = [(f.filename, f.lineno) for f in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError):
        frames.append((error.filename or "", error.lineno))
    places = [f"{_files[file][0]}, line {line}" for file, line in frames if file in _files]
    return places[-1] if places else None


def _place_in(function: Any, error: BaseException) -> str | None:
    """Where an exception passed in the file of a function, or where that function is defined."""
    own: Any = inspect.unwrap(getattr(function, "func", function))  # of partial, or decorated
    code = getattr(own, "__code__", getattr(type(own).__call__, "__code__", None))
    if code is None:
        return None
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__)
             if f.filename == code.co_filename]  # fmt: skip
    # It may not have been called at all, for instance for its arguments.
    return f"{code.co_filename}, line {lines[-1] if lines else code.co_firstlineno}"


def _run(path: Path) -> ModuleType:
    """The module of a file."""
    full = os.path.abspath(path)
    changed = path.stat().st_mtime_ns
    digest = hashlib.sha256(full.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    name = f"interlace_own_{path.stem}_{digest}"  # its own for each file, or dataclasses mix
    if name in sys.modules and _files[full][1] == changed:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, full)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    _files[full] = str(path), changed
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
