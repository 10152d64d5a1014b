"""Servers that tests share, and clients for them."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import openai
import pytest

import interlace
from support.server import Running, byte_engine, running


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    """A server of random bytes."""
    with running(max_width=64, max_tokens=48) as server:
        yield server


@pytest.fixture(scope="module")
def twin() -> interlace.Engine:
    """An engine with the same model as `server`'s."""
    return byte_engine()


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[openai.OpenAI]:
    """OpenAI's own client, which refuses responses that are not as documented."""
    with openai.OpenAI(
        base_url=f"{server.address}/v1",
        api_key="none",
        max_retries=0,
        _strict_response_validation=True,
    ) as client:
        yield client


@pytest.fixture(scope="module")
def loose(server: Running) -> Iterator[openai.OpenAI]:
    """The client for what OpenAI's own server sends and its types forbid: chunks of a completion
    without a finish reason, and the first token of an echo without a log-probability."""
    with openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def http(server: Running) -> Iterator[httpx.Client]:
    """Plain HTTP."""
    with httpx.Client(base_url=server.address, timeout=60) as http:
        yield http
