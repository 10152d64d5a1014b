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
    thinking = {
        "reasoning_start_str": f"w{served.THINKS}",
        "reasoning_end_str": f"w{served.THOUGHT}",
    }
    # A tokenizer for grammars and bad words; as many log-probabilities as are asked for.
    engine = served.served(
        folder, skip_tokenizer_init=False, max_logprobs=-1, reasoning_config=thinking
    )
    return model, engine
