"""The modules of experiments/01-countdown, for the tests of its run and of its report."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from support.processes import modules_of

NAMES = (
    *("units", "workers", "work", "outcomes", "finds", "picking", "longer", "tables"),
    *("report", "run"),
)


@pytest.fixture(scope="module")
def countdown() -> Iterator[Any]:
    with modules_of("01-countdown", *NAMES) as modules:
        yield SimpleNamespace(**dict(zip(NAMES, modules, strict=True)))


@pytest.fixture(scope="module")
def config(countdown: Any) -> Any:
    return countdown.units.load_config()
