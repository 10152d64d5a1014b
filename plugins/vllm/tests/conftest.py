"""One engine for all tests that need no other: its start takes most of the time."""

from __future__ import annotations

from typing import Any

import pytest

import served


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A tiny attached Llama, and vLLM's engine on its export."""
    folder = tmp_path_factory.mktemp("llama")
    model = served.exported(folder)
    return model, served.served(folder)
