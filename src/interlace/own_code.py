"""Functions and classes of the user's own, named as `module:NAME` or `file.py:NAME`."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any


def named_object(name: str) -> Any:
    """What a name stands for; a file is run to find it, so only names that the user gave get here.

    Args:
        name: `module:NAME` or `file.py:NAME`.

    Raises:
        ImportError: if there is no such place, it cannot be imported, or it has no such name.

    >>> named_object("math:sqrt")(9)
    3.0
    """
    place, _, attribute = name.rpartition(":")
    module = _module(place)
    if not hasattr(module, attribute):
        raise ImportError(f"{place} has no {attribute!r}")
    return getattr(module, attribute)


def _module(place: str) -> Any:
    path = Path(place)
    try:
        if path.suffix != ".py":
            return importlib.import_module(place)
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    except (OSError, SyntaxError, TypeError, ValueError) as error:
        raise ImportError(str(error)) from error
