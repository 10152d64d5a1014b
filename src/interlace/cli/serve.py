"""`interlace serve MODEL`: an OpenAI-compatible server whose n choices are one group."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from interlace.cli.config_file import MODELS, Parser, settle
from interlace.own_code import named_function

KEY = "INTERLACE_API_KEY"
DEFAULT_MODEL, DEFAULT_TASK = "tiny-bridge", "tiny-countdown"
EXAMPLES = f"""\
examples:
  The packaged model, and a page to play with it:
    interlace serve
  Your own, for clients on this machine:
    interlace serve out/ --port 8000 --max-tokens 2048
    curl http://127.0.0.1:8000/v1/completions -H "Content-Type: application/json" \\
      -d '{{"prompt": "What is 17 + 25?", "n": 8, "max_tokens": 64}}'
  For other machines (it needs a key, from --api-key or {KEY}):
    interlace serve out/ --host 0.0.0.0 --api-key "$KEY"
"""


@dataclass(frozen=True)
class Settings:
    """All options of one server, by name; `build_parser` explains them."""

    model: str = DEFAULT_MODEL
    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    served_model_name: str | None = None
    max_width: int = 64
    max_queue: int = 256
    max_tokens: int = 4096
    max_prompt_tokens: int | None = None
    memory: float | None = None
    max_rows: int | None = None
    dtype: str | None = None
    device: str | None = None
    allow_origin: tuple[str, ...] = ()
    no_playground: bool = False
    task: str | None = None
    scorer: tuple[str, ...] = ()
    drain_seconds: float = 30.0
    log_level: str = "warning"


def build_parser(prog: str) -> argparse.ArgumentParser:
    """The options of `interlace serve`."""
    parser = Parser(
        prog=prog,
        description="Serve a model to OpenAI clients. The n choices of a request are one group: "
        "they read each other while they are sampled. All clients share each pass of the model.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    add = parser.add_argument
    add("model", nargs="?", metavar="MODEL", help=f"{MODELS} (default: {DEFAULT_MODEL})")
    add("--config", metavar="FILE", help="YAML file with these options")
    add("--log-level", choices=("error", "warning", "info", "debug"), help="what is logged")
    listen = parser.add_argument_group("address").add_argument
    listen("--host", help="address to listen on (default: 127.0.0.1)")
    listen("--port", type=int, help="port to listen on; 0 takes a free one (default: 8000)")
    listen("--api-key", help=f"key that clients must send (default: {KEY}, if it is set)")
    listen("--allow-origin", nargs="+", help="pages elsewhere that may call from a browser")
    listen("--served-model-name", help="name of the model for clients (default: MODEL's last part)")
    listen("--drain-seconds", type=float, help="time for running requests at SIGTERM (default: 30)")
    limits = parser.add_argument_group("limits").add_argument
    limits("--max-width", type=int, help="most choices a prompt (default: 64)")
    limits("--max-queue", type=int, help="most groups accepted and not finished (default: 256)")
    limits("--max-tokens", type=int, help="most tokens of a choice (default: 4096)")
    limits("--max-prompt-tokens", type=int, help="most tokens of a prompt (default: the context)")
    limits("--memory", type=float, help="GiB for keys and values (default: half of what is free)")
    limits("--max-rows", type=int, help="most rows in one pass")
    model = parser.add_argument_group("model and page").add_argument
    model("--dtype", help="of the weights, such as bfloat16 (default: the checkpoint's)")
    model("--device", help="where to load, such as cuda:0 (default: the CPU)")
    model("--task", help="task whose problems the page offers and judges")
    model("--scorer", nargs="+", help="FILE.py:FUNCTION that `aggregate` may name by FUNCTION")
    model("--no-playground", action="store_true", help="serve no page at /")
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Load the model, and serve it until a signal comes."""
    settings = settle(arguments, Settings, build_parser)
    from interlace.engine.engine import Engine
    from interlace.models.loading import load
    from interlace.server.run import serve
    from interlace.server.settings import ServerSettings
    from interlace.tasks.registry import get_task

    task = settings.task or (DEFAULT_TASK if settings.model == DEFAULT_MODEL else None)
    name = settings.served_model_name or settings.model.rstrip("/").rsplit("/", 1)[-1]
    server = ServerSettings(  # before a model is loaded for what is refused
        name=name,
        host=settings.host,
        port=settings.port,
        api_key=_key(settings),
        max_width=settings.max_width,
        max_queue=settings.max_queue,
        max_tokens=settings.max_tokens,
        max_prompt_tokens=settings.max_prompt_tokens,
        allow_origin=settings.allow_origin,
        playground=not settings.no_playground,
        drain_seconds=settings.drain_seconds,
        task=None if task is None else get_task(task),
        scorers=_scorers(settings.scorer),
    )
    model, tokenizer = load(settings.model, dtype=settings.dtype, device=settings.device)
    budget = None if settings.memory is None else int(settings.memory * 2**30)
    engine = Engine(model, tokenizer, memory_budget=budget, max_rows=settings.max_rows)

    def ready(address: str) -> None:
        from interlace.attaching import get_attachment, is_attached

        kind = get_attachment(model).coupling.kind if is_attached(model) else "nothing attached"
        print(f"{name} ({kind}) at {address}/v1", flush=True)
        limits = f"n up to {server.max_width}, {server.max_tokens} tokens a choice"
        page = f"; page: {address}/" if server.playground else ""
        print(f"{limits}, {server.max_queue} groups at once{page}", flush=True)

    serve(engine, server, log_level=settings.log_level, ready=ready)
    print("interlace: drained", file=sys.stderr)


def _key(settings: Settings) -> str | None:
    return settings.api_key or os.environ.get(KEY) or None


def _scorers(places: tuple[str, ...]) -> dict[str, Callable[..., Any]]:
    return {place.rsplit(":", 1)[-1]: named_function(place, "--scorer") for place in places}
