"""What a server is started with."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

from interlace.errors import ConfigError


@dataclass(frozen=True)
class Address:
    """Address.

    Args:
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one.
        api_key: Key that clients must send as a bearer token; by default INTERLACE_API_KEY, if it
            is set. Without one the address must be a loopback address.
        allow_origin: Page elsewhere that may call from a browser; the flag may be repeated.
        drain_seconds: Seconds for running requests at SIGTERM.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = field(default=None, repr=False)
    allow_origin: tuple[str, ...] = ()
    drain_seconds: float = 30.0

    def __post_init__(self) -> None:
        if not 0 <= self.port < 2**16:
            raise ConfigError(f"port is 0 to 65535; got {self.port}.")
        if self.api_key is not None and not self.api_key.strip():
            raise ConfigError("The API key is empty; leave it out, or give one.")
        if self.api_key is None and not is_loopback_name(self.host):
            raise ConfigError(
                f"{self.host} can be reached from elsewhere, so it needs a key: pass --api-key, or "
                "set INTERLACE_API_KEY. Without one, listen on 127.0.0.1."
            )


@dataclass(frozen=True)
class Limits:
    """Limits.

    Args:
        max_width: Number of choices of a prompt, at most.
        max_queue: Number of groups accepted and not finished, at most; more get 429.
        max_tokens: Number of tokens of a choice, at most.
        max_prompt_tokens: Number of tokens of a prompt, at most; by default the context.
        max_body: Number of bytes of a request's body, at most; more get 413.
    """

    max_width: int = 64
    max_queue: int = 256
    max_tokens: int = 4096
    max_prompt_tokens: int | None = None
    max_body: int = 4 * 2**20

    def __post_init__(self) -> None:
        for limit in fields(Limits):
            value = getattr(self, limit.name)
            if value is not None and value < 1:
                raise ConfigError(f"{limit.name} is at least 1; got {value}.")


@dataclass(frozen=True)
class ServerSettings(Address, Limits):
    """What a server is started with, beside its model.

    Args:
        name: Name of the model for clients; also what they may call it.
        playground: Whether the page at / is served.
        task: Task whose problems the page offers and judges; None for free text.
        scorers: Functions that `aggregate` may name, as `best_of_n` takes them.

    Raises:
        ConfigError: for a public address without a key, or a limit below 1.
    """

    name: str = "interlace"
    playground: bool = True
    task: Any = None
    scorers: dict[str, Callable[..., Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        Address.__post_init__(self)
        Limits.__post_init__(self)


def is_loopback_name(name: str) -> bool:
    """Whether only this machine can be meant: by an address to listen on, or a request's host."""
    if name.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(name.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False
