"""What clients may send: OpenAI's fields, some of ours, and a clear refusal of every other field.

A field that would change the output and is not supported is refused by name; a field without effect
on the output is ignored.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from interlace.engine.types import Prompt, SamplingParams
from interlace.errors import nearest

MOST_LOGPROBS = 20
IGNORED = {
    *("user", "metadata", "store", "service_tier", "parallel_tool_calls", "safety_identifier"),
    *("prompt_cache_key", "prompt_cache_retention", "verbosity", "request_id", "priority"),
}
# Fields that would change the output, and the values with which they do not.
REFUSED: dict[str, tuple[Any, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": ("none",),
    "web_search_options": (),
    "best_of": (1,),
    "suffix": ("",),
}


class ApiError(Exception):
    """A request that ends with OpenAI's error object.

    Args:
        status: HTTP status.
        message: Sentence for the user; never a prompt, a path or a traceback.
        param: Name of the field that is at fault.
        code: Word for programs.
        headers: Headers of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = headers or {}

    def body(self) -> dict[str, Any]:
        """The error object."""
        kinds = {401: "authentication_error", 429: "rate_limit_error"}
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = kinds.get(self.status, kind)
        return {
            "error": {
                "message": self.message,
                "type": kind,
                "param": self.param,
                "code": self.code,
            }
        }


class StreamOptions(BaseModel):
    """How a stream is sent."""

    model_config = ConfigDict(extra="ignore")
    include_usage: bool | None = Field(None, description="Send the usage as the last chunk.")


class AggregateOptions(BaseModel):
    """One answer out of the n choices, beside them."""

    model_config = ConfigDict(extra="forbid")
    method: Literal["majority", "weighted", "best_of_n"]
    scorer: str | None = Field(
        None, description="Name of a scorer that the server was started with; else log-probability."
    )


Temperature = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
# Of a list that is wrong throughout only the first fault is told: a million of them would hold the
# server up for half a minute.
Ids = Annotated[list[TokenId], Field(fail_fast=True)]
Texts = Annotated[list[str], Field(fail_fast=True)]
Messages = Annotated[list[dict[str, Any]], Field(fail_fast=True)]
# Each token of each row is looked at for each of these.
StopText = Annotated[str, Field(max_length=500)]
StopTexts = Annotated[list[StopText], Field(fail_fast=True, max_length=32)]


class SamplingRequest(BaseModel):
    """What both endpoints share."""

    model_config = ConfigDict(extra="allow", strict=False, hide_input_in_errors=True)

    model: str | None = Field(None, description="Name of the served model.")
    n: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Width of the group: the n choices read each other. Without it 1."
    )
    temperature: Temperature | None = Field(None, description="1 without it; 0 is greedy.")
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = Field(
        None, description="Share of the probability that the kept tokens reach."
    )
    seed: Seed | None = Field(None, description="Equal seeds give equal texts; without it random.")
    stop: StopText | StopTexts | None = Field(None, description="Strings that end a choice.")
    stream: bool | None = Field(None, description="Send each token as it is sampled.")
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=0)] | None = Field(
        None, description="Most tokens that a choice may get."
    )
    presence_penalty: Penalty | None = Field(
        None, description="Taken from the logit of each token that the choice has already."
    )
    frequency_penalty: Penalty | None = Field(
        None, description="Taken from a token's logit once for each time that the choice has it."
    )
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]] | None = (
        Field(None, description="Added to the logits of tokens, by their ids.")
    )
    # Ours, by `extra_body`.
    top_k: Annotated[int, Field(ge=-1)] | None = Field(None, description="Most likely tokens kept.")
    min_p: Share | None = Field(
        None, description="Tokens less likely than this share of the likeliest are dropped."
    )
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100, allow_inf_nan=False)] | None = None
    stop_token_ids: Ids | None = None
    ignore_eos: bool | None = Field(None, description="Go on past the model's own end tokens.")
    coupled: bool | None = Field(
        None, description="False samples the rows alone, with the same weights and seeds."
    )
    aggregate: Literal["majority", "weighted", "best_of_n"] | AggregateOptions | None = Field(
        None, description="One answer out of the choices, beside them."
    )
    record_attention: bool | Literal["mean", "layers"] | None = Field(
        None, description="Return who listened to whom at each step."
    )
    return_token_ids: bool | None = Field(None, description="Return token ids beside texts.")
    sample_id: str | int | None = Field(
        None, description="Tells groups of one prompt and seed apart."
    )

    @property
    def width(self) -> int:
        """Rows of a group."""
        return self.n or 1

    @property
    def is_coupled(self) -> bool:
        """Whether the choices of a prompt read each other."""
        return self.coupled is not False

    @property
    def alternatives(self) -> int | None:
        """How many likely tokens stand beside each sampled one; None without log-probabilities."""
        raise NotImplementedError

    @property
    def aggregation(self) -> AggregateOptions | None:
        """How to come to one answer."""
        if isinstance(self.aggregate, str):
            return AggregateOptions(method=self.aggregate, scorer=None)
        return self.aggregate


class ChatRequest(SamplingRequest):
    """The body of `POST /v1/chat/completions`."""

    messages: Annotated[Messages, Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = Field(
        None, description="The same as max_tokens, and stronger."
    )
    logprobs: bool | None = Field(None, description="Return log-probabilities, in nats.")
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None

    @property
    def alternatives(self) -> int | None:
        """See `SamplingRequest`."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(SamplingRequest):
    """The body of `POST /v1/completions`."""

    prompt: str | Ids | Texts | Annotated[list[Ids], Field(fail_fast=True)]
    logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = Field(
        None, description="Return log-probabilities, with so many likely tokens beside each."
    )
    echo: bool | None = Field(None, description="Return the prompt before each choice.")

    @property
    def alternatives(self) -> int | None:
        """See `SamplingRequest`."""
        return self.logprobs

    @property
    def prompts(self) -> list[Prompt]:
        """One prompt for each group."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        several: list[Any] = list(self.prompt)
        return [several] if several and isinstance(several[0], int) else several


class TokenizeRequest(BaseModel):
    """The body of `POST /tokenize`."""

    model_config = ConfigDict(extra="ignore", hide_input_in_errors=True)
    model: str | None = None
    prompt: str | None = None
    messages: Messages | None = None


class TokenizeReply(BaseModel):
    """Token ids of a prompt."""

    tokens: list[int]
    count: int
    max_model_len: int | None


class ErrorDetails(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(BaseModel):
    """OpenAI's error object."""

    error: ErrorDetails


Body = TypeVar("Body", bound=BaseModel)


def parse(kind: type[Body], body: bytes) -> Body:
    """The request that a body holds."""
    try:
        request = kind.model_validate_json(body)
    except ValidationError as error:
        raise _from_validation(error) from None
    except (ValueError, RecursionError):
        raise ApiError(400, "The body is not JSON that can be read.") from None
    if isinstance(request, SamplingRequest):
        _refuse(request)
    if isinstance(request, ChatRequest | TokenizeRequest) and request.messages:
        request.messages[:] = [_text_message(m, i) for i, m in enumerate(request.messages)]
    return request


def sampling_params(request: SamplingRequest, longest: int) -> SamplingParams:
    """What the engine is asked for."""
    name = "max_tokens"
    if getattr(request, "max_completion_tokens", None) is not None:
        name = "max_completion_tokens"
    asked: int | None = getattr(request, name)
    if asked is not None and asked > longest:
        raise ApiError(400, f"{name} is at most {longest} on this server; got {asked}.", param=name)
    default = longest if isinstance(request, ChatRequest) else min(16, longest)
    attention = request.record_attention
    return SamplingParams(
        width=request.width,
        max_new_tokens=max(1, default if asked is None else asked),
        temperature=1.0 if request.temperature is None else request.temperature,
        top_k=request.top_k if request.top_k and request.top_k > 0 else None,
        top_p=1.0 if request.top_p is None else request.top_p,
        min_p=request.min_p or 0.0,
        repetition_penalty=request.repetition_penalty or 1.0,
        stop=request.stop or (),
        stop_token_ids=request.stop_token_ids or (),
        ignore_eos=bool(request.ignore_eos),
        seed=secrets.randbits(63) if request.seed is None else request.seed,
        top_logprobs=request.alternatives or 0,
        record_attention="mean" if attention is True else (attention or None),
    )


def _refuse(request: SamplingRequest) -> None:
    """Fields that we do not carry."""
    for name, value in (request.model_extra or {}).items():
        if value is None or name in IGNORED:
            continue
        if name in REFUSED:
            if value in REFUSED[name]:
                continue
            raise ApiError(
                400, f"{name} is not supported, and it would change the output.", param=name
            )
        hint = nearest(name, type(request).model_fields)
        raise ApiError(400, f"There is no field {name[:100]!r}.{hint}", param=name[:100])


def _text_message(message: dict[str, Any], index: int) -> dict[str, Any]:
    """A message whose content is text; parts of text are joined."""
    where = f"messages[{index}]"
    if not isinstance(message.get("role"), str):
        raise ApiError(400, f"{where} needs a role, such as 'user'.", param=f"{where}.role")
    for name in ("tool_calls", "function_call", "audio"):
        if message.get(name):
            raise ApiError(400, f"{where}.{name} is not supported.", param=f"{where}.{name}")
    content = message.get("content")
    if isinstance(content, str):
        return {"role": message["role"], "content": content}
    if not isinstance(content, list):
        raise ApiError(400, f"{where}.content is a text.", param=f"{where}.content")
    return {"role": message["role"], "content": "".join(_texts(content, where))}


def _texts(parts: list[Any], where: str) -> Iterator[str]:
    for number, part in enumerate(parts):
        place = f"{where}.content[{number}]"
        if not isinstance(part, dict) or part.get("type") != "text":
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise ApiError(
                400,
                f"{place} is of type {str(kind)[:40]!r}; this server reads text only.",
                param=place,
            )
        if not isinstance(part.get("text"), str):
            raise ApiError(400, f"{place}.text is a text.", param=place)
        yield part["text"]


def _from_validation(error: ValidationError) -> ApiError:
    """The first field at fault, in words; never with what was sent."""
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    place = faults[0]["loc"][:1]
    same = [fault for fault in faults if fault["loc"][:1] == place]
    param = str(place[0])[:100] if place else None
    if same[0]["type"] == "missing" and len(same[0]["loc"]) == 1:
        return ApiError(400, f"The field {param!r} is missing.", param=param)
    told = "; or ".join(dict.fromkeys(fault["msg"][:200] for fault in same[:3]))
    return ApiError(400, f"{param}: {told}." if param else f"The body: {told}.", param=param)
