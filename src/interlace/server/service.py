"""From a parsed request to its reply: limits, jobs, streams, aggregates.

Nothing here knows HTTP's routes; `app.py` has them.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
import logging
import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import anyio
from sse_starlette.sse import EventSourceResponse, SendTimeoutError
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from interlace.answers import (
    Aggregate,
    Aggregator,
    BestOfN,
    MajorityVote,
    Responses,
    WeightedVote,
)
from interlace.attached import get_attachment, is_attached
from interlace.engine.engine import Engine
from interlace.engine.request import Request
from interlace.engine.types import GroupOutput, Prompt
from interlace.errors import AggregationError, GenerationError, InterlaceError
from interlace.server.logits import Scored, scored_tokens, with_penalties
from interlace.server.metrics import Metrics
from interlace.server.protocol import (
    AggregateOptions,
    ApiError,
    ChatRequest,
    CompletionRequest,
    SamplingRequest,
    TokenizeRequest,
    sampling_params,
)
from interlace.server.replies import Replier, TokenTexts, attention_json, usage
from interlace.server.settings import ServerSettings
from interlace.server.worker import Job, SlowReaderError, Worker, assembled
from interlace.user_code import blame

log = logging.getLogger("interlace.server")

_PING, _SEND_TIMEOUT = 15, 60  # seconds
_DONE = b"data: [DONE]\n\n"


class Stream(EventSourceResponse):
    """Server-sent events that close what they have opened, however they end, and also if nobody
    asks for the first."""

    def __init__(self, content: AsyncIterator[bytes], opened: contextlib.ExitStack) -> None:
        super().__init__(content, ping=_PING, sep="\n", send_timeout=_SEND_TIMEOUT)
        self._opened = opened

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        try:
            await super().__call__(scope, receive, send)
        except SendTimeoutError:
            log.info("A client did not read for %d s: its stream ends", _SEND_TIMEOUT)
        finally:
            self._opened.close()


class Service:
    """A model behind a worker, with its limits; from now on the engine is its own."""

    def __init__(self, engine: Engine, settings: ServerSettings) -> None:
        self.settings, self.metrics = settings, Metrics()
        self.engine, self.worker = engine, Worker(engine, self.metrics)
        # The event loop's own, since the encoder's thread uses the worker's.
        self._tokenizer = copy.deepcopy(engine.tokenizer)
        self.texts = TokenTexts(self._tokenizer)
        self.draining = False
        self.born = int(time.time())
        self.open_groups = 0  # accepted and not finished
        self.metrics.in_flight.set_function(lambda: self.open_groups)

    @property
    def context(self) -> int | None:
        """The most tokens that the model reads."""
        return self.engine.core.backend.context[0]

    @property
    def facts(self) -> dict[str, Any]:
        """What clients are told of the model: the kind of its blocks, whether rows of a group see
        each other, and whether messages are taken."""
        model, kind, couples = self.engine.model, None, False
        if is_attached(model):
            coupling = get_attachment(model).coupling
            kind, couples = coupling.kind, coupling.couples
        chats = bool(getattr(self._tokenizer, "chat_template", None))
        return {"coupling": kind, "couples": couples, "chat": chats}

    @property
    def reads(self) -> str | None:
        """What its blocks read of siblings."""
        model = self.engine.model
        return get_attachment(model).config.reads if is_attached(model) else None

    @property
    def vocabulary(self) -> int:
        """Tokens of the model."""
        weight = self.engine.core.backend.base.get_input_embeddings().weight
        return int(weight.shape[0])

    async def tokenize(self, request: TokenizeRequest, _: HttpRequest) -> Response:
        """The token ids of a text or of messages."""
        if (request.prompt is None) == (request.messages is None):
            raise ApiError(400, "Give either prompt or messages.", param="prompt")
        try:
            ids = await self.worker.encode(request.prompt or request.messages or "")
        except GenerationError as error:
            raise _refusal(error, "prompt" if request.messages is None else "messages") from None
        return JSONResponse({"tokens": ids, "count": len(ids), "max_model_len": self.context})

    async def answer(self, request: SamplingRequest, http: HttpRequest) -> Response:
        """The reply to a request of either endpoint."""
        if self.draining:
            raise ApiError(503, "The server is shutting down.", code="draining")
        if not self.worker.is_working:
            raise ApiError(503, "The server has failed and must be restarted.", code="failed")
        self._check(request)
        job = self._job(request)
        groups = len(job.prompts) * job.groups_a_prompt
        self.open_groups += groups
        opened = contextlib.ExitStack()
        opened.callback(self._close, groups)
        try:
            await self._submit(job, request)
            if request.stream:
                opened.callback(self.worker.abort, job)
                return Stream(self._stream(request, job), opened.pop_all())
            return await self._whole(request, job, http)
        finally:
            opened.close()

    def _close(self, groups: int) -> None:
        self.open_groups -= groups

    # Limits ---------------------------------------------------------------------------------------

    def _check(self, request: SamplingRequest) -> None:
        settings = self.settings
        if request.model not in (None, settings.name):
            raise ApiError(
                404,
                f"There is no model {request.model[:200]!r}; this server has {settings.name!r}.",
                param="model",
                code="model_not_found",
            )
        if request.width > settings.max_width:
            raise ApiError(
                400, f"n is at most {settings.max_width}; got {request.width}.", param="n"
            )
        echoes = isinstance(request, CompletionRequest) and request.echo
        if request.max_tokens == 0 and not echoes:
            raise ApiError(400, "max_tokens is at least 1 without echo.", param="max_tokens")
        if request.aggregation is not None:
            if request.stream:
                raise ApiError(
                    400, "aggregate needs whole texts: leave out stream.", param="aggregate"
                )
            self._aggregator(request.aggregation)
        if request.record_attention and not request.is_coupled:
            raise ApiError(
                400,
                "record_attention needs coupled rows: alone, a row listens to nobody.",
                param="record_attention",
            )

    def _job(self, request: SamplingRequest) -> Job:
        try:
            params = sampling_params(request, self.settings.max_tokens)
        except GenerationError as error:
            raise ApiError(400, str(error), param=_field_in(str(error))) from None
        prompts: list[Prompt]
        prompts = [request.messages] if isinstance(request, ChatRequest) else request.prompts  # type: ignore[attr-defined]
        if not prompts:
            raise ApiError(400, "prompt holds at least one prompt.", param="prompt")
        job = Job(
            prompts=prompts,
            params=params,
            coupled=request.is_coupled,
            sample_id=request.sample_id,
            streaming=bool(request.stream),
        )
        self._check_room(len(prompts) * job.groups_a_prompt)
        return job

    def _check_room(self, groups: int) -> None:
        most = self.settings.max_queue
        if groups > most:
            raise ApiError(
                400,
                f"A request has at most {most} groups; got {groups}: one a prompt, or with coupled "
                "false one a choice.",
                param="prompt",
            )
        if self.open_groups + groups > most:
            raise ApiError(
                429,
                f"The queue is full: {self.open_groups} of {most} groups.",
                code="queue_full",
                headers={"Retry-After": "1"},
            )

    async def _submit(self, job: Job, request: SamplingRequest) -> None:
        def check(requests: list[Request]) -> None:
            most = self.settings.max_prompt_tokens
            longest = max(len(one.token_ids) for one in requests)
            if most is not None and longest > most:
                raise ApiError(
                    400,
                    f"A prompt has at most {most} tokens on this server; got {longest}.",
                    param=_prompts_of(request),
                    code="context_length_exceeded",
                )
            self.metrics.prompt_tokens.inc(
                sum(len(one.token_ids) for one in requests[:: job.groups_a_prompt])
            )

        def change(one: Request) -> Request:
            return with_penalties(one, request, self.vocabulary)

        try:
            await self.worker.submit(job, check, change)
        except GenerationError as error:
            raise _refusal(error, _prompts_of(request)) from None

    # Replies --------------------------------------------------------------------------------------

    async def _whole(self, request: SamplingRequest, job: Job, http: HttpRequest) -> Response:
        """The unstreamed reply; a client that goes away ends the job."""
        work = asyncio.create_task(self._groups(job))
        gone = asyncio.create_task(_gone(http))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                return Response(status_code=499)
            groups = await work
        finally:
            self.worker.abort(job)
            for task in (work, gone):
                task.cancel()
        scored = await self._scored(request, job)
        aggregates = None
        if request.aggregation is not None:
            aggregates = [await self._aggregated(request.aggregation, group) for group in groups]
        replier = Replier(request, self.settings.name, self.texts)
        generated = request.max_tokens != 0
        return JSONResponse(replier.complete_reply(groups, scored, aggregates, generated))

    async def _groups(self, job: Job) -> list[GroupOutput]:
        found: dict[int, GroupOutput] = {}
        async for index, event in job.mail():
            if event.group is not None:
                found[index] = event.group
        return assembled(job, found)

    async def _stream(self, request: SamplingRequest, job: Job) -> AsyncIterator[bytes]:
        """Server-sent events."""
        replier = Replier(request, self.settings.name, self.texts)
        wants_usage = bool(request.stream_options and request.stream_options.include_usage)
        more: dict[str, Any] = {"usage": None} if wants_usage else {}
        found: dict[int, GroupOutput] = {}
        width = request.width
        try:
            for choice in replier.opening(len(job.prompts)):
                yield _sse(replier.chunk([choice], **more))
            for number, prompt in enumerate(await self._scored(request, job) or []):
                for choice in replier.echo(number * width, prompt):
                    yield _sse(replier.chunk([choice], **more))
            async for index, event in job.mail():
                if event.step is not None and request.max_tokens != 0:
                    first = index * width if job.coupled else index
                    chunks = [replier.chunk([c], **more) for c in replier.step(first, event.step)]
                    yield b"".join(map(_sse, chunks))
                if event.group is not None:
                    found[index] = event.group
            groups = assembled(job, found)
            if request.record_attention:
                attention = [attention_json(group) for group in groups]
                yield _sse(replier.chunk([], attention=attention, **more))
            if wants_usage:
                yield _sse(replier.chunk([], usage=usage(groups, request.max_tokens != 0)))
            yield _DONE
        except SlowReaderError:
            return
        except Exception as error:
            yield _sse(failure(error).body())
            yield _DONE

    async def _scored(self, request: SamplingRequest, job: Job) -> list[Scored] | None:
        """The prompts with their log-probabilities, where the request echoes them."""
        if not (isinstance(request, CompletionRequest) and request.echo):
            return None
        scored = []
        for one in job.requests[:: job.groups_a_prompt]:
            ids, top = one.token_ids, request.logprobs
            text = one.prompt if isinstance(one.prompt, str) else self._tokenizer.decode(ids)
            tokens = []
            if top is not None:
                act = partial(scored_tokens, self.engine.model, ids, top)
                tokens = await self.worker.between_steps(act)
            scored.append(Scored(text, tokens))
        return scored

    def _aggregator(self, options: AggregateOptions) -> Aggregator:
        scorer = None
        if options.scorer is not None:
            if options.scorer not in self.settings.scorers:
                known = ", ".join(sorted(self.settings.scorers)) or "none"
                raise ApiError(
                    400,
                    f"There is no scorer {options.scorer[:100]!r}; this server has {known}.",
                    param="aggregate",
                )
            scorer = self.settings.scorers[options.scorer]
        if options.method == "majority":
            return MajorityVote()
        return (
            WeightedVote(scorer=scorer) if options.method == "weighted" else BestOfN(scorer=scorer)
        )

    async def _aggregated(self, options: AggregateOptions, group: GroupOutput) -> Aggregate:
        """Beside the loop, since a vote may compare answers for long."""
        responses = Responses(
            prompt=group.prompt if isinstance(group.prompt, str) else "",
            texts=group.texts,
            logprobs=[completion.logprobs for completion in group.completions],
        )
        aggregator, what = self._aggregator(options), f"The scorer {options.scorer!r}"
        scorer = self.settings.scorers.get(options.scorer or "")

        def aggregated() -> Aggregate:
            try:
                return aggregator(responses)
            except BaseException as error:
                blame(error, what, AggregationError, scorer)

        try:
            return await anyio.to_thread.run_sync(aggregated)
        except AggregationError as error:
            if error.__cause__ is None:  # ours, of what the request asks for
                raise
            log.error("%s failed: %s", what, type(error.__cause__).__name__)
            log.debug("%s", error)  # it may quote what the model wrote
            raise ApiError(500, f"{what} of this server failed.", code="scorer_failed") from error


async def _gone(http: HttpRequest) -> None:
    """Wait until the client has closed the connection."""
    while (await http.receive())["type"] != "http.disconnect":
        pass


def _sse(value: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n".encode("utf-8", "replace")


def _prompts_of(request: SamplingRequest) -> str:
    return "messages" if isinstance(request, ChatRequest) else "prompt"


def _refusal(error: GenerationError, param: str) -> ApiError:
    """A prompt or a parameter that the engine does not take; without the prompt."""
    if error.__cause__ is not None:  # the tokenizer's or the template's; ours would show the prompt
        return ApiError(400, f"{param} cannot be encoded for this model.", param=param)
    text = str(error)
    if not text.startswith("Prompt "):
        param = _field_in(text) or param
    code = "context_length_exceeded" if "context" in text else None
    return ApiError(400, text, param=param, code=code)


def _field_in(text: str) -> str | None:
    """The field that an error of the engine begins with, if it does."""
    word = text.split(maxsplit=1)[0]
    return word if word in {*ChatRequest.model_fields, *CompletionRequest.model_fields} else None


def failure(error: Exception) -> ApiError:
    """What a client hears of a job that failed while it ran."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, InterlaceError):
        out_of_memory = "memory" in str(error)
        return ApiError(
            503 if out_of_memory else 500,
            str(error),
            code="out_of_memory" if out_of_memory else "generation_failed",
        )
    log.error("A request failed: %s", type(error).__name__)
    log.debug("A request failed", exc_info=error)
    return ApiError(500, "The server failed at this request.", code="internal_error")
