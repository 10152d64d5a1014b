"""Runs the server until a signal ends it: the first drains, the second stops."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI

from interlace.engine.engine import Engine
from interlace.errors import ConfigError
from interlace.server.app import build_app
from interlace.server.protocol import ApiError
from interlace.server.service import Service
from interlace.server.settings import ServerSettings

_LOOK = 0.05  # seconds between looks at what still runs
_LAST_WORDS = 5  # seconds to tell those who are not waited for
SHUT_DOWN = ApiError(503, "The server has shut down before this was done.", code="draining")
_MOST_HEADERS = 64 * 2**10  # bytes


class DrainingServer(uvicorn.Server):
    """A server that lets running requests end before it does.

    Attributes:
        is_cutting_off: Whether requests are ended before they are done.
    """

    def __init__(self, config: uvicorn.Config, service: Service, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._service, self._ready = service, ready
        self._drains: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._deadline = 0.0
        self.is_cutting_off = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
        await super().startup(sockets)
        self._loop = asyncio.get_running_loop()
        if self.started:
            self._ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal: the first refuses new requests and waits, the second waits for nobody."""
        if self._loop is None:
            self.should_exit = self.force_exit = True
        elif self._service.draining:
            self._deadline = 0.0
        else:
            self._service.draining = True
            self._deadline = time.monotonic() + self._service.settings.drain_seconds
            self._loop.call_soon_threadsafe(self._begin_to_drain)

    def _begin_to_drain(self) -> None:
        self._drains = asyncio.get_running_loop().create_task(self._drain())

    async def _drain(self) -> None:
        await self._emptied()
        if self._service.open_groups:  # who still waits is told, rather than cut off
            self.is_cutting_off = True
            self._service.worker.refuse(SHUT_DOWN)
            self._deadline = time.monotonic() + _LAST_WORDS
            await self._emptied()
        self.should_exit = True

    async def _emptied(self) -> None:
        while self._service.open_groups and time.monotonic() < self._deadline:
            await asyncio.sleep(_LOOK)


def serve(
    engine: Engine,
    settings: ServerSettings,
    *,
    log_level: str = "warning",
    ready: Callable[[str], None] = print,
) -> bool:
    """Serve until SIGTERM or Ctrl-C.

    Args:
        engine: Engine that the server owns from now on.
        settings: Limits and names.
        log_level: Level of what is logged; at "warning" and above no request is.
        ready: Function called with the address once it listens.

    Returns:
        Whether all that was accepted was answered.

    Raises:
        ConfigError: for an address that cannot be listened on.
    """
    app = build_app(engine, settings)
    listening = listen(settings)
    host, port = listening.getsockname()[:2]
    address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    service = app.state.service
    server = DrainingServer(configured(app, log_level), service, lambda: ready(address))
    try:
        server.run(sockets=[listening])
    finally:
        listening.close()
    return not server.is_cutting_off


def configured(app: FastAPI, log_level: str) -> uvicorn.Config:
    """How uvicorn is to run the application."""
    return uvicorn.Config(
        app,
        log_level=log_level,
        http="h11",
        ws="none",
        h11_max_incomplete_event_size=_MOST_HEADERS,
        timeout_graceful_shutdown=5,
        server_header=False,
    )


def listen(settings: ServerSettings) -> socket.socket:
    """A socket at the address."""
    try:
        found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(found[0], socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(found[4])
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"{settings.host} port {settings.port} cannot be listened on: {error}. Choose another "
            "with --port; 0 takes a free one."
        ) from error
    return listening
