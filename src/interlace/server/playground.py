"""The page at `/`, and what it asks beside OpenAI's endpoints: examples, and verdicts.

Its files are a fixed table: no path of a request ever reaches the file system.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib.resources import files
from typing import TYPE_CHECKING, Annotated, Any

import anyio
from fastapi import Depends, FastAPI, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse, Response

from interlace.answers import extract_answer, majority_vote
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
_EXAMPLES = slice(6, 30)  # the first is what the page opens with: one that shows reading at once


class VerdictRequest(BaseModel):
    """Rows of a group, each as the pieces that its steps added."""

    model_config = ConfigDict(hide_input_in_errors=True)
    prompt: str
    pieces: Annotated[
        list[Annotated[list[str], Field(fail_fast=True, max_length=4096)]], Field(fail_fast=True)
    ] = Field(max_length=256)


def add_playground(
    app: FastAPI, service: Service, guard: Callable[[Request], Awaitable[None]]
) -> None:
    """Add the page's routes; `guard` runs before those that compute."""
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
        return _facts(service) | {"examples": list(problems)[_EXAMPLES]}

    @app.post("/playground/verdicts", dependencies=[Depends(guard)], include_in_schema=False)
    async def verdicts(http: Request) -> Response:
        asked = parse(VerdictRequest, await http.body())
        example = problems.get(asked.prompt)
        return JSONResponse(await anyio.to_thread.run_sync(_judged, task, example, asked.pieces))


def _judged(task: Any, example: Any, pieces: list[list[str]]) -> dict[str, Any]:
    """What each row answers, since when it is right, and how the rows vote.

    A row is right since a step at which all that it had written became a right answer.
    """
    texts = ["".join(row) for row in pieces]
    rows: list[dict[str, Any]]
    if example is None:
        nothing = {"correct": None, "start": None, "since": None}
        rows = [{"answer": extract_answer(text), **nothing} for text in texts]
    else:
        found = [task.verify(example, text) for text in texts]
        hits = [
            _hit(task, example, row) if one.correct and row else (None, None)
            for one, row in zip(found, pieces, strict=True)
        ]
        rows = [
            {"answer": one.answer, "correct": one.correct, "start": start, "since": since}
            for one, (start, since) in zip(found, hits, strict=True)
        ]
    vote = majority_vote([row["answer"] for row in rows])
    for row, kind in zip(rows, vote.classes, strict=True):
        row["answer"] = None if kind is None else rows[kind]["answer"]  # equal ones look equal
    return {"rows": rows, "winner": vote.winner, "index": vote.index}


def _hit(task: Any, example: Any, row: list[str]) -> tuple[int, int]:
    """First and last step of what made a right row right, each found by halving: a verdict of every
    beginning and of every end would take the square of the row's length."""

    def is_right(start: int, stop: int) -> bool:
        return bool(task.verify(example, "".join(row[start:stop])).correct)

    stop = _turn(0, len(row), lambda end: is_right(0, end))
    start = _turn(stop, 0, lambda begin: is_right(begin, stop))
    return start, stop - 1


def _turn(wrong: int, right: int, is_right: Callable[[int], bool]) -> int:
    """A place that is right, next to one that is wrong, between one of each."""
    while abs(right - wrong) > 1:
        middle = (wrong + right) // 2
        wrong, right = (wrong, middle) if is_right(middle) else (middle, right)
    return right


def _problems(task: Any) -> dict[str, Any]:
    """The task's problems whose prompts are texts, by their prompts."""
    examples = [task[index] for index in range(min(len(task), 2_000))]
    prompts = [task.prompt(example) for example in examples]
    each = zip(prompts, examples, strict=True)
    return {prompt: example for prompt, example in each if isinstance(prompt, str)}


def _facts(service: Service) -> dict[str, Any]:
    settings = service.settings
    return {
        "model": settings.name,
        **service.facts,
        "reads": service.reads,
        "task": None if settings.task is None else type(settings.task).__name__,
        "max_width": settings.max_width,
        "max_tokens": settings.max_tokens,
        "needs_key": settings.api_key is not None,
    }
