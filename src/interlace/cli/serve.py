"""`interlace serve MODEL`: an OpenAI-compatible server whose n choices are one group."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from interlace.cli.shared import check_loading
from interlace.configuration import Parser
from interlace.errors import ConfigError
from interlace.server.settings import Address, Limits, ServerSettings
from interlace.user_code import named_function

if TYPE_CHECKING:
    from argparse import Namespace

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
class _Memory(Limits):
    """Memory.

    Args:
        memory: GiB for keys and values; by default half of what is free.
        max_rows: Number of rows in one pass, at most.
    """

    memory: float | None = None
    max_rows: int | None = None


@dataclass(frozen=True)
class Settings(Address, _Memory):
    """Model and page.

    Args:
        model: Model: a hub id, a folder, a .gguf file, saved blocks, or one of tiny, tiny-bridge,
            tiny-rlvr, tiny-pmatch (packaged) and smollm2-135m.
        dtype: Type of the weights, such as bfloat16; by default the checkpoint's.
        device: Device to load on, such as cuda:0; by default the CPU.
        served_model_name: Name of the model for clients; by default MODEL's last part.
        log_level: Level of what is logged.
        task: Name of the task whose problems the page offers and judges.
        scorer: FILE.py:FUNCTION that `aggregate` may name by FUNCTION; the flag may be repeated.
        no_playground: Serve no page at /.
    """

    model: str = DEFAULT_MODEL
    dtype: str | None = None
    device: str | None = None
    served_model_name: str | None = None
    log_level: Literal["error", "warning", "info", "debug"] = "warning"
    task: str | None = None
    scorer: tuple[str, ...] = ()
    no_playground: bool = False


def build_parser(prog: str) -> Parser:
    """The options of `interlace serve`."""
    parser = Parser(
        prog,
        usage="[MODEL] [options]",
        description="Serve a model to OpenAI clients. The n choices of a request are one group: "
        "they\nread each other while they are sampled. All clients share each pass of the\nmodel.",
        examples=EXAMPLES,
        config="port: 8000",
    )
    parser.add_options(Settings, words=["model"])
    return parser


def run(arguments: Namespace) -> int:
    """Load the model, and serve it until a signal comes."""
    given = vars(arguments)
    given["api_key"] = given["api_key"] or os.environ.get(KEY) or None
    settings = Settings(**given)  # before a model is loaded for what is refused
    check_loading(settings)
    from interlace.engine.engine import Engine
    from interlace.models.loading import load
    from interlace.server.run import serve
    from interlace.tasks.registry import get_task

    task = settings.task or (DEFAULT_TASK if settings.model == DEFAULT_MODEL else None)
    name = settings.served_model_name or settings.model.rstrip("/").rsplit("/", 1)[-1]
    shared = [f.name for part in (Address, Limits) for f in fields(part)]
    server = ServerSettings(
        **{option: getattr(settings, option) for option in shared},
        name=name,
        playground=not settings.no_playground,
        task=None if task is None else get_task(task),
        scorers=_scorers(settings.scorer),
    )
    model, tokenizer = load(settings.model, dtype=settings.dtype, device=settings.device)
    budget = None if settings.memory is None else int(settings.memory * 2**30)
    engine = Engine(model, tokenizer, memory_budget=budget, max_rows=settings.max_rows)

    def ready(address: str) -> None:
        from interlace.attached import get_attachment, is_attached

        kind = get_attachment(model).coupling.kind if is_attached(model) else "nothing attached"
        print(f"{name} ({kind}) at {address}/v1", flush=True)
        limits = f"n up to {server.max_width}, {server.max_tokens} tokens a choice"
        page = f"; page: {address}/" if server.playground else ""
        print(f"{limits}, {server.max_queue} groups at once{page}", flush=True)

    if serve(engine, server, log_level=settings.log_level, ready=ready):
        print("interlace: drained", file=sys.stderr)
        return 0
    print("interlace: stopped before all was answered", file=sys.stderr)
    return 1


def _scorers(places: tuple[str, ...]) -> dict[str, Callable[..., Any]]:
    found: dict[str, Callable[..., Any]] = {}
    for place in places:
        name, function = place.rsplit(":", 1)[-1], named_function(place, "--scorer")
        if found.setdefault(name, function) is not function:
            raise ConfigError(
                f"--scorer names two functions {name!r}, which clients could not tell apart. Give "
                "one of them another name."
            )
    return found
