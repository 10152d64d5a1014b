"""The page at `/`, and what it asks beside OpenAI's endpoints: examples, and verdicts.

Its files are a fixed table: no path of a request ever reaches the file system.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import anyio
from fastapi import Depends, FastAPI, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse, Response

from interlace.server.protocol import ApiError, parse

if TYPE_CHECKING:
    from interlace.server.service import Service

_FILES = {
    "page.css": "text/css",
    "page.js": "text/javascript",
    "rows.js": "text/javascript",
    "listening.js": "text/javascript",
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
_EXAMPLES = 24


class VerdictRequest(BaseModel):
    """Texts to be judged as answers to one of the task's problems."""

    model_config = ConfigDict(hide_input_in_errors=True)
    prompt: str
    texts: list[str] = Field(max_length=256)


def add_playground(
    app: FastAPI, service: Service, guard: Callable[[Request], Awaitable[None]]
) -> None:
    """Add the page's routes.

    Args:
        app: The application.
        service: What it stands on.
        guard: What every endpoint that computes asks first.
    """
    folder = files("interlace.server") / "static"
    task = service.settings.task
    problems = {} if task is None else _problems(task)

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return Response((folder / "page.html").read_bytes(), 200, _HEADERS, "text/html")

    @app.get("/static/{name}", include_in_schema=False)
    async def file(name: str) -> Response:
        if name not in _FILES:
            raise ApiError(404, "There is no such path.")
        return Response((folder / name).read_bytes(), 200, _HEADERS, _FILES[name])

    @app.get("/playground/model", dependencies=[Depends(guard)], include_in_schema=False)
    async def model() -> dict[str, Any]:
        return _facts(service) | {"examples": list(problems)[:_EXAMPLES]}

    @app.post("/playground/verdicts", dependencies=[Depends(guard)], include_in_schema=False)
    async def verdicts(http: Request) -> Response:
        asked = parse(VerdictRequest, await http.body())
        example = problems.get(asked.prompt)
        if task is None or example is None:
            return JSONResponse({"verdicts": None})
        found = await anyio.to_thread.run_sync(
            lambda: [task.verify(example, text) for text in asked.texts]
        )
        return JSONResponse(
            {"verdicts": [{"correct": one.correct, "answer": one.answer} for one in found]}
        )


def _problems(task: Any) -> dict[str, Any]:
    """The task's problems whose prompts are texts, by their prompts."""
    examples = [task[index] for index in range(min(len(task), 2_000))]
    prompts = [task.prompt(example) for example in examples]
    each = zip(prompts, examples, strict=True)
    return {prompt: example for prompt, example in each if isinstance(prompt, str)}


def _facts(service: Service) -> dict[str, Any]:
    settings, tokenizer = service.settings, service.worker.tokenizer
    return {
        "model": settings.name,
        "coupling": service.coupling,
        "chat": bool(getattr(tokenizer, "chat_template", None)),
        "task": None if settings.task is None else type(settings.task).__name__,
        "max_width": settings.max_width,
        "max_tokens": settings.max_tokens,
        "needs_key": settings.api_key is not None,
    }
