"""What a server is started with."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from interlace.errors import ConfigError


@dataclass(frozen=True)
class ServerSettings:
    """Limits and names of one server.

    Args:
        name: Name of the model for clients; also what they may call it.
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one.
        api_key: Key that clients send as a bearer token; None asks for none, on a loopback
            address only.
        max_width: Number of choices a prompt at most.
        max_queue: Number of groups that are accepted and not finished at most; more get 429.
        max_tokens: Number of tokens that a choice may get at most.
        max_prompt_tokens: Number of tokens of a prompt at most; None is the model's context.
        max_body: Number of bytes of a request's body at most; more get 413.
        allow_origin: Origins of pages elsewhere that may call the server from a browser.
        playground: Whether the page at / is served.
        drain_seconds: Number of seconds that running requests get after SIGTERM.
        task: Task whose problems the page offers and judges; None for free text.
        scorers: Functions that `aggregate` may name, as `best_of_n` takes them.

    Raises:
        ConfigError: for a public address without a key, or a limit below 1.
    """

    name: str = "interlace"
    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = field(default=None, repr=False)
    max_width: int = 64
    max_queue: int = 256
    max_tokens: int = 4096
    max_prompt_tokens: int | None = None
    max_body: int = 4 * 2**20
    allow_origin: Sequence[str] = ()
    playground: bool = True
    drain_seconds: float = 30.0
    task: Any = None
    scorers: dict[str, Callable[..., Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("max_width", "max_queue", "max_tokens", "max_body"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is at least 1; got {getattr(self, name)}.")
        if not 0 <= self.port < 2**16:
            raise ConfigError(f"port is 0 to 65535; got {self.port}.")
        if self.api_key is not None and not self.api_key.strip():
            raise ConfigError("The API key is empty; leave it out, or give one.")
        if self.api_key is None and not self.is_loopback:
            raise ConfigError(
                f"{self.host} can be reached from elsewhere, so it needs a key: pass --api-key, or "
                "set INTERLACE_API_KEY. Without one, listen on 127.0.0.1."
            )

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches the address."""
        return is_loopback_name(self.host)


def is_loopback_name(name: str) -> bool:
    """Whether only this machine can be meant: by an address to listen on, or a request's host."""
    if name.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(name.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False
