"""A server on loopback, in a thread of the test's process or in a process of its own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from queue import Queue
from typing import Any

import interlace
from interlace.server.app import build_app
from interlace.server.run import DrainingServer, configured, listen
from interlace.server.settings import ServerSettings
from support.architectures import attach_random, build
from support.text import EOS, VOCAB, byte_tokenizer


def byte_engine(tied: bool = True, alone: str = "block", **options: Any) -> interlace.Engine:
    """A random model with random blocks whose tokens are bytes: most of its text is no UTF-8."""
    sizes = {"vocab_size": VOCAB, "max_position_embeddings": 256, "eos_token_id": EOS}
    model = build("llama", seed=1, tie_word_embeddings=tied, **sizes)
    attach_random(model, "bridge", alone=alone)
    return interlace.Engine(model, byte_tokenizer(), **options)


class Running:
    """A server in a thread.

    Attributes:
        address: Where it listens, without a path.
        service: What it serves, to look into.
    """

    def __init__(self, engine: interlace.Engine, settings: ServerSettings) -> None:
        app = build_app(engine, settings)
        listening = listen(settings)
        self.address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        self.service = app.state.service
        ready: Queue[None] = Queue()
        self.server = DrainingServer(
            configured(app, "error"), self.service, lambda: ready.put(None)
        )
        self._thread = threading.Thread(target=self.server.run, args=([listening],))
        self._thread.start()
        ready.get(timeout=60)

    def stop(self) -> None:
        """End it as a signal does."""
        self.server.handle_exit(15, None)
        self._thread.join(timeout=60)
        assert not self._thread.is_alive()


@contextlib.contextmanager
def running(engine: interlace.Engine | None = None, **settings: Any) -> Iterator[Running]:
    """A server in a thread, until the block ends."""
    server = Running(
        engine or byte_engine(), ServerSettings(**{"name": "bytes", "port": 0} | settings)
    )
    try:
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def serving(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`interlace serve ARGUMENTS --port 0` in a process, with its address."""
    command = [sys.executable, "-m", "interlace.cli.main", "serve", *arguments, "--port", "0"]
    process = subprocess.Popen(
        command,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        first = process.stdout.readline()
        if " at http" not in first:
            process.kill()
            raise AssertionError(process.communicate()[1][-4000:])
        yield process, first.split(" at ")[1].strip().removesuffix("/v1")
    finally:
        process.kill()
        process.communicate()
