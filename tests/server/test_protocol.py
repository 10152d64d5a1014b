"""What clients may send, and how what they may not is refused."""

from __future__ import annotations

import json

import pytest
from pydantic import BaseModel, ValidationError

from interlace.server.playground import VerdictRequest
from interlace.server.protocol import (
    ApiError,
    ChatRequest,
    CompletionRequest,
    TokenizeRequest,
    parse,
    sampling_params,
)

MESSAGES = [{"role": "user", "content": "hi"}]


def completion(**fields: object) -> CompletionRequest:
    return parse(CompletionRequest, json.dumps({"prompt": "a", **fields}).encode())


def chat(**fields: object) -> ChatRequest:
    return parse(ChatRequest, json.dumps({"messages": MESSAGES, **fields}).encode())


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([5, 6, 7], [[5, 6, 7]]),
        ([[5], [6, 7]], [[5], [6, 7]]),
    ],
)
def test_a_prompt_is_a_text_or_ids_or_a_list_of_either(prompt: object, prompts: object) -> None:
    assert completion(prompt=prompt).prompts == prompts


def test_fields_become_the_parameters_of_the_engine() -> None:
    request = completion(
        n=3, max_tokens=7, temperature=0.5, top_p=0.9, top_k=4, min_p=0.1, seed=-5, stop="x",
        logprobs=2, repetition_penalty=1.5, stop_token_ids=[9], ignore_eos=True,
        record_attention=True,
    )  # fmt: skip
    params = sampling_params(request, 100)
    assert (params.width, params.max_new_tokens, params.temperature) == (3, 7, 0.5)
    assert (params.top_p, params.top_k, params.min_p, params.seed) == (0.9, 4, 0.1, -5)
    assert (params.stop, params.top_logprobs, params.repetition_penalty) == (("x",), 2, 1.5)
    assert (params.stop_token_ids, params.ignore_eos) == ((9,), True)
    assert params.record_attention == "mean"


def test_what_is_left_out_or_null_has_openais_defaults() -> None:
    params = sampling_params(completion(n=None, temperature=None, seed=None, stop=None), 4096)
    assert (params.width, params.max_new_tokens, params.temperature) == (1, 16, 1.0)
    assert params.top_k is None
    assert sampling_params(completion(), 4096).seed != params.seed
    assert sampling_params(chat(), 99).max_new_tokens == 99
    assert sampling_params(chat(max_tokens=3, max_completion_tokens=5), 99).max_new_tokens == 5
    for name in ("max_tokens", "max_completion_tokens"):
        with pytest.raises(ApiError, match=f"{name} is at most 4") as refused:
            sampling_params(chat(**{name: 5}), 4)
        assert refused.value.param == name


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"best_of": 4}, "best_of"),
        ({"suffix": "x"}, "suffix"),
        ({"audio": {}}, "audio"),
        ({"guided_json": {}}, "guided_json"),
        ({"temprature": 1}, "temprature"),
    ],
)
def test_a_field_that_would_change_the_output_is_refused_by_name(
    fields: dict[str, object], param: str
) -> None:
    with pytest.raises(ApiError) as caught:
        completion(**fields)
    assert (caught.value.status, caught.value.param) == (400, param)
    assert param in caught.value.message


def test_an_unknown_field_gets_the_nearest_right_name() -> None:
    with pytest.raises(ApiError, match="Did you mean 'temperature'"):
        completion(temprature=1)


def test_fields_without_effect_are_ignored() -> None:
    completion(
        user="me", metadata={}, store=True, service_tier="auto", tools=[], tool_choice="none",
        response_format={"type": "text"}, best_of=1, suffix="", guided_json=None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 0}, "n"),
        ({"n": "many"}, "n"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"logprobs": 99}, "logprobs"),
        ({"seed": 2**64}, "seed"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"logit_bias": {"5": 1e9}}, "logit_bias"),
        ({"aggregate": "mean"}, "aggregate"),
    ],
)
def test_a_value_out_of_its_range_is_refused_without_showing_the_prompt(
    fields: dict[str, object], param: str
) -> None:
    with pytest.raises(ApiError) as caught:
        completion(**{"prompt": "the secret prompt", **fields})
    assert (caught.value.status, caught.value.param) == (400, param)
    assert "secret" not in caught.value.message


def test_a_missing_prompt_is_named() -> None:
    with pytest.raises(ApiError, match="'prompt' is missing"):
        parse(CompletionRequest, b"{}")


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"prompt": "\xff"}', b'{"prompt": "\\ud800"}',
        b"[" * 100_000, b'{"prompt":' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        b'{"prompt": "a", "temperature": NaN}', b'{"prompt": "a", "seed": 1' + b"0" * 9999 + b"}",
    ],
    ids=range(11),
)  # fmt: skip
def test_a_body_that_is_no_request_is_a_400(body: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        parse(CompletionRequest, body)
    assert caught.value.status == 400
    assert len(caught.value.message) < 1000


def test_parts_of_text_are_joined_and_others_refused() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert chat(messages=[{"role": "user", "content": parts}]).messages == [
        {"role": "user", "content": "ab"}
    ]
    image = [{"type": "image_url", "image_url": {"url": "http://x"}}]
    with pytest.raises(ApiError, match="image_url") as caught:
        chat(messages=[{"role": "user", "content": image}])
    assert caught.value.param == "messages[0].content[0]"


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"role": 5, "content": "a"},
        {"role": "user"},
        {"role": "user", "content": None},
        {"role": "user", "content": [5]},
        {"role": "user", "content": [{"type": "text"}]},
        {"role": "assistant", "content": "a", "tool_calls": [{}]},
    ],
)
def test_a_message_that_is_none_is_refused_with_its_place(message: object) -> None:
    with pytest.raises(ApiError) as caught:
        chat(messages=[*MESSAGES, message])
    assert (caught.value.param or "").startswith("messages[1]")


def test_errors_have_openais_shape() -> None:
    assert ApiError(429, "full", code="queue_full").body() == {
        "error": {
            "message": "full",
            "type": "rate_limit_error",
            "param": None,
            "code": "queue_full",
        }
    }


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (CompletionRequest, {"prompt": [{}] * 5_000}),
        (CompletionRequest, {"prompt": [[{}] * 5_000] * 2}),
        (CompletionRequest, {"prompt": "a", "stop": [1] * 5_000}),
        (CompletionRequest, {"prompt": "a", "stop_token_ids": ["x"] * 5_000}),
        (ChatRequest, {"messages": [1] * 5_000}),
        (TokenizeRequest, {"messages": [1] * 5_000}),
        (VerdictRequest, {"prompt": "a", "pieces": [[1] * 4_000] * 200}),
    ],
)
def test_a_list_that_is_wrong_throughout_is_given_up_at_its_first_fault(
    kind: type[BaseModel], fields: dict[str, object]
) -> None:
    """Each fault is an object: a body of four megabytes held the server up for half a minute."""
    with pytest.raises(ValidationError) as caught:
        kind.model_validate_json(json.dumps(fields))
    assert caught.value.error_count() <= 6


@pytest.mark.parametrize("stop", ["x" * 501, ["x" * 501], ["x"] * 33])
def test_stops_have_limits(stop: object) -> None:
    """Each row is searched for each of them at each step."""
    with pytest.raises(ApiError, match="at most"):
        completion(stop=stop)
    completion(stop=["x" * 500] * 32)


def test_a_penalty_that_overflows_logits_is_the_clients_fault() -> None:
    with pytest.raises(ApiError, match="repetition_penalty"):
        completion(repetition_penalty=1e-40)
