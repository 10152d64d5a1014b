"""Experiments' modules, which are scripts in a folder of their own rather than a package."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2] / "experiments"


@contextmanager
def modules_of(experiment: str, *names: str) -> Iterator[list[ModuleType]]:
    """Modules of an experiment; two experiments may use the same names one after the other."""
    before = set(sys.modules)
    sys.path.insert(0, str(ROOT / experiment))
    try:
        yield [importlib.import_module(name) for name in names]
    finally:
        sys.path.remove(str(ROOT / experiment))
        for name in set(sys.modules) - before:
            file = getattr(sys.modules[name], "__file__", None)
            if file is not None and Path(file).is_relative_to(ROOT):
                del sys.modules[name]
