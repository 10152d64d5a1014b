"""The server's routes: OpenAI's endpoints, health and metrics, and the page at `/`."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from openai.types import Completion
from openai.types.chat import ChatCompletion
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import interlace
from interlace.engine.engine import Engine
from interlace.errors import InterlaceError
from interlace.server.playground import add_playground
from interlace.server.protocol import (
    ApiError,
    ChatRequest,
    CompletionRequest,
    ErrorReply,
    TokenizeReply,
    TokenizeRequest,
    parse,
)
from interlace.server.service import Service, failure
from interlace.server.settings import ServerSettings, is_loopback_name

log = logging.getLogger("interlace.server")

_PORT = re.compile(r":\d*$")
_REPLIES: dict[str, type[BaseModel]] = {
    "/v1/chat/completions": ChatCompletion,
    "/v1/completions": Completion,
    "/tokenize": TokenizeReply,
}


def build_app(engine: Engine, settings: ServerSettings) -> FastAPI:
    """The application; `app.state.service` is what it stands on."""
    service = Service(engine, settings)

    @asynccontextmanager
    async def running(_: FastAPI) -> AsyncIterator[None]:
        service.worker.start(asyncio.get_running_loop())
        yield
        service.worker.stop()

    app = FastAPI(
        title="Interlace",
        version=interlace.__version__,
        description="The n choices of a prompt are one group, whose rows read each other.",
        lifespan=running,
        docs_url=None,
        redoc_url=None,
    )
    app.state.service = service
    _add_errors(app)
    _add_endpoints(app, service)
    if settings.playground:
        add_playground(app, service, _guard(service))
    app.add_middleware(BodyLimit, most=settings.max_body)
    app.add_middleware(Heads)
    if settings.allow_origin:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.allow_origin),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],  # OpenAI's client for browsers tells by some what it runs on
            expose_headers=["retry-after"],
        )
    return app


def _add_endpoints(app: FastAPI, service: Service) -> None:
    settings, guard = service.settings, [Depends(_guard(service))]

    @app.get("/health", responses={503: {"description": "Shutting down"}})
    async def health() -> Response:
        """Whether requests are taken."""
        if service.draining:
            return JSONResponse({"status": "draining"}, 503)
        if not service.worker.is_working:
            return JSONResponse({"status": "failed"}, 503)
        return JSONResponse({"status": "ok"})

    @app.get("/version")
    async def version() -> dict[str, str]:
        """Version of Interlace."""
        return {"version": interlace.__version__}

    @app.get("/metrics", response_class=PlainTextResponse, dependencies=guard)
    async def metrics() -> Response:
        """Counters for Prometheus."""
        return Response(service.metrics.page(), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models", dependencies=guard)
    async def models() -> dict[str, Any]:
        """The one model that is served."""
        return {"object": "list", "data": [_model(service)]}

    @app.get("/v1/models/{model:path}", dependencies=guard, responses=_told(404))
    async def model(model: str) -> dict[str, Any]:
        """The model of that name."""
        if model != settings.name:
            raise ApiError(404, "There is no model of that name.", code="model_not_found")
        return _model(service)

    _post(app, service, "/v1/chat/completions", ChatRequest, service.answer)
    _post(app, service, "/v1/completions", CompletionRequest, service.answer)
    _post(app, service, "/tokenize", TokenizeRequest, service.tokenize)


def _post(
    app: FastAPI,
    service: Service,
    path: str,
    kind: type[BaseModel],
    answer: Callable[[Any, Request], Awaitable[Response]],
) -> None:
    """A route whose body we parse ourselves: every fault is OpenAI's error object."""

    async def endpoint(http: Request) -> Response:
        status = 500
        try:
            body = await http.body()  # read it whatever is wrong: else the answer is lost with it
            if not http.headers.get("content-type", "").lower().startswith("application/json"):
                raise ApiError(415, "The body is JSON: send Content-Type: application/json.")
            response = await answer(parse(kind, body), http)
            status = response.status_code
            return response
        except ClientDisconnect:  # within its body
            status = 499
            return Response(status_code=status)
        except Exception as error:
            told = failure(error)
            status = told.status
            raise told from None
        finally:
            service.metrics.requests.labels(path, status).inc()

    endpoint.__doc__ = kind.__doc__
    schema = kind.model_json_schema(ref_template="#/components/schemas/{model}")
    app.add_api_route(
        path,
        endpoint,
        methods=["POST"],
        name=kind.__name__,
        dependencies=[Depends(_guard(service))],
        responses={
            200: {"model": _REPLIES[path], "content": {"text/event-stream": {}}},
            **_told(400, 401, 403, 404, 413, 415, 429, 500, 503),
        },
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": _inlined(schema)}},
            }
        },
    )


def _inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema without `$defs`, which OpenAPI documents keep elsewhere."""
    definitions = schema.pop("$defs", {})

    def resolve(node: Any) -> Any:
        if isinstance(node, list):
            return [resolve(item) for item in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:
            return resolve(definitions[node["$ref"].rsplit("/", 1)[-1]])
        return {name: resolve(value) for name, value in node.items()}

    resolved: dict[str, Any] = resolve(schema)
    return resolved


def _told(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {
        status: {"description": "OpenAI's error object", "model": ErrorReply} for status in statuses
    }


def _model(service: Service) -> dict[str, Any]:
    return {
        "id": service.settings.name,
        "object": "model",
        "created": service.born,
        "owned_by": "interlace",
        "max_model_len": service.context,
        **service.facts,
    }


def _guard(service: Service) -> Callable[[Request], Awaitable[None]]:
    """What every endpoint that computes asks first."""
    settings = service.settings

    async def guard(http: Request) -> None:
        if settings.api_key is not None:
            kind, _, given = http.headers.get("authorization", "").partition(" ")
            is_right = secrets.compare_digest(given.encode("latin-1"), settings.api_key.encode())
            if kind.lower() != "bearer" or not is_right:
                raise ApiError(
                    401,
                    "The API key is missing or wrong: send Authorization: Bearer KEY.",
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )
        elif not is_loopback_name(_PORT.sub("", http.headers.get("host", ""))):
            # A page elsewhere could give its name this machine's address, and read the answers.
            raise ApiError(403, "Without an API key the server answers to its loopback names only.")

    return guard


def _add_errors(app: FastAPI) -> None:
    def answer(error: ApiError) -> JSONResponse:
        return JSONResponse(error.body(), error.status, headers=error.headers)

    @app.exception_handler(ApiError)
    async def api_error(_: Request, error: ApiError) -> JSONResponse:
        return answer(error)

    @app.exception_handler(HTTPException)
    async def http_error(_: Request, error: HTTPException) -> JSONResponse:
        told = {404: "There is no such path.", 405: "This path does not take that method."}
        message = told.get(error.status_code, "The request cannot be answered.")
        return answer(ApiError(error.status_code, message, headers=dict(error.headers or {})))

    @app.exception_handler(InterlaceError)
    async def own_error(_: Request, error: InterlaceError) -> JSONResponse:
        return answer(ApiError(400, str(error)))


class Heads:
    """HEAD is answered as GET is; uvicorn sends no body then."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Route by the other name."""
        asks = scope.get("method") == "HEAD"
        await self._app({**scope, "method": "GET"} if asks else scope, receive, send)


class BodyLimit:
    """Ends a request whose body is too large before it is read whole."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self._app, self._most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Count what is received."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        seen = int(announced) if announced.isdigit() else 0
        if seen > self._most:
            error = self._error()
            response = JSONResponse(error.body(), error.status, headers=error.headers)
            await response(scope, receive, send)
            return
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._most:
                raise self._error()
            return message

        await self._app(scope, counted, send)

    def _error(self) -> ApiError:
        return ApiError(
            413,
            f"A body has at most {self._most} bytes.",
            code="body_too_large",
            headers={"Connection": "close"},
        )
