"""What goes wrong ends in one clear answer, and in nobody else's request."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import torch

from interlace import SamplingParams
from interlace.engine.core import Event
from interlace.engine.types import Step
from interlace.errors import ConfigError
from interlace.server import worker
from interlace.server.settings import ServerSettings
from support.server import Running, byte_engine, running

PROMPT = "A prompt: "


def ask(http: httpx.Client, **fields: Any) -> httpx.Response:
    return http.post("/v1/completions", json={"prompt": PROMPT, "max_tokens": 4, **fields})


def until(condition: Callable[[], bool]) -> None:
    """Wait for what must come; the bound is for a test that fails."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def raw(server: Running, data: bytes) -> bytes:
    """What comes back for bytes on a socket."""
    place = urlsplit(server.address)
    with socket.create_connection((place.hostname, place.port), timeout=60) as connection:
        connection.sendall(data)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def answer_or_close(server: Running, data: bytes) -> bytes:
    """The same, where the server may close while it is still written to."""
    try:
        return raw(server, data)
    except ConnectionError:
        return b""


@pytest.mark.parametrize(
    ("status", "fields", "word"),
    [
        (404, {"model": "gpt-9"}, "model"),
        (400, {"n": 65}, "n"),
        (400, {"max_tokens": 49}, "max_tokens"),
        (400, {"max_tokens": 0}, "max_tokens"),
        (400, {"prompt": ""}, "prompt"),
        (400, {"prompt": []}, "prompt"),
        (400, {"prompt": [99_999]}, "prompt"),
        (400, {"prompt": "x" * 300}, "prompt"),
        (400, {"aggregate": {"method": "best_of_n", "scorer": "mine"}}, "aggregate"),
        (400, {"aggregate": "majority", "stream": True}, "aggregate"),
        (400, {"record_attention": True, "coupled": False}, "record_attention"),
        (400, {"logit_bias": {"m": 1}}, "logit_bias"),
        (400, {"logit_bias": {"260": 1}}, "logit_bias"),
        (400, {"stop": [""]}, "stop"),
        (400, {"stop_token_ids": [99_999]}, "stop_token_ids"),
    ],
)
def test_what_is_not_carried_out_is_openais_error(
    http: httpx.Client, status: int, fields: dict[str, Any], word: str | None
) -> None:
    reply = ask(http, **fields)
    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (status, word)
    assert error["type"] == "invalid_request_error"
    assert "Traceback" not in reply.text
    assert "/" not in error["message"]


def test_messages_that_the_template_refuses_are_not_shown(http: httpx.Client) -> None:
    body = {"messages": [{"role": "user", "content": "the secret"}], "chat_template": "x"}
    reply = http.post("/v1/chat/completions", json=body)
    assert reply.status_code == 400
    assert "secret" not in reply.text


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v2", 404), ("GET", "/v1/completions", 405), ("POST", "/health", 405),
     ("GET", "/v1/models/gpt-9", 404), ("OPTIONS", "/v1/models", 405), ("TRACE", "/", 405)],
)  # fmt: skip
def test_paths_and_methods_that_are_none(
    http: httpx.Client, method: str, path: str, status: int
) -> None:
    reply = http.request(method, path)
    assert reply.status_code == status
    assert reply.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/", "/health", "/v1/models", "/metrics", "/openapi.json"])
def test_head_is_get_without_a_body(http: httpx.Client, path: str) -> None:
    """As load balancers ask for health."""
    reply = http.head(path)
    assert (reply.status_code, reply.content) == (200, b"")
    assert reply.headers["Content-Type"] == http.get(path).headers["Content-Type"]
    assert http.head("/v1/completions").status_code == 405


def test_a_page_elsewhere_may_ask_only_if_its_origin_is_allowed() -> None:
    asked = {
        "Origin": "https://mine.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os",
    }
    for allowed, status in (((), 405), (("https://mine.example",), 200), (("https://a.b",), 400)):
        with running(allow_origin=allowed) as server:
            reply = httpx.options(f"{server.address}/v1/completions", headers=asked)
        assert reply.status_code == status
        granted = reply.headers.get("Access-Control-Allow-Origin")
        assert granted == (asked["Origin"] if status == 200 else None)


def test_a_scorer_that_fails_shows_nothing_of_what_it_read(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its message may quote a completion, and its place is a path: neither is told or logged."""

    def scorer(text: str) -> float:
        raise ValueError(f"cannot read {text}")

    with running(scorers={"mine": scorer}) as server, httpx.Client(base_url=server.address) as http:
        aggregate = {"method": "best_of_n", "scorer": "mine"}
        reply = ask(http, n=2, aggregate=aggregate)
    assert (reply.status_code, reply.json()["error"]["code"]) == (500, "scorer_failed")
    logged = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert logged == ["The scorer 'mine' failed: ValueError"]
    assert "cannot read" not in reply.text


def test_a_score_that_json_lacks_is_null() -> None:
    """The reply could not be written, and the client got a 500."""
    with running(scorers={"worst": lambda text: float("-inf")}) as server:
        chosen = {"method": "best_of_n", "scorer": "worst"}
        with httpx.Client(base_url=server.address, timeout=60) as http:
            reply = ask(http, n=2, aggregate=chosen)
    assert reply.status_code == 200
    assert reply.json()["aggregate"][0]["details"]["scores"] == [None, None]
    assert reply.json()["aggregate"][0]["index"] == 0


def test_a_body_of_another_type_is_refused(http: httpx.Client) -> None:
    """A page elsewhere may send a form without asking, and no JSON."""
    body = json.dumps({"prompt": PROMPT})
    reply = http.post("/v1/completions", content=body, headers={"Content-Type": "text/plain"})
    assert reply.status_code == 415


def test_a_large_body_of_another_type_is_read_before_it_is_refused(server: Running) -> None:
    """Closed with bytes unread, a connection is reset, and the answer is lost with it."""
    size = 3 * 2**20
    head = b"POST /v1/completions HTTP/1.0\r\nHost: localhost\r\nContent-Type: text/plain\r\n"
    place = urlsplit(server.address)
    with socket.create_connection((place.hostname, place.port), timeout=60) as connection:
        connection.sendall(head + b"Content-Length: %d\r\n\r\n" % size)
        connection.settimeout(0.3)
        with pytest.raises(TimeoutError):
            connection.recv(100)  # nothing is said before the body is there
        connection.settimeout(60)
        connection.sendall(b"a" * size)
        assert connection.recv(100).startswith(b"HTTP/1.1 415")


def test_a_name_that_is_not_this_machines_is_refused_without_a_key(http: httpx.Client) -> None:
    reply = http.get("/v1/models", headers={"Host": "evil.example"})
    assert reply.status_code == 403


@pytest.mark.parametrize("name", ["127.0.0.2", "LOCALHOST", "[::1]"])
def test_all_names_of_loopback_are_answered(http: httpx.Client, name: str) -> None:
    """`--host 127.0.0.2` needs no key, so its name must do."""
    assert http.get("/v1/models", headers={"Host": f"{name}:8000"}).status_code == 200
    assert http.get("/v1/models", headers={"Host": name}).status_code == 200


def test_a_client_that_goes_within_its_body_is_no_error(
    server: Running, caplog: pytest.LogCaptureFixture
) -> None:
    place = urlsplit(server.address)
    head = b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    asked = server.service.metrics.requests.labels("/tokenize", 499)
    with socket.create_connection((place.hostname, place.port)) as connection:
        connection.sendall(head + b"Content-Length: 99\r\n\r\n{")
    until(lambda: asked._value.get() == 1)
    assert not caplog.records


def test_a_key_is_asked_for() -> None:
    with running(api_key="secret") as server, httpx.Client(base_url=server.address) as http:
        assert http.get("/health").status_code == 200
        for path in ("/v1/models", "/metrics", "/playground/model"):
            assert http.get(path).status_code == 401
        wrong = {"Authorization": "Bearer secretx"}
        assert http.post("/v1/completions", json={"prompt": "a"}, headers=wrong).status_code == 401
        right = {"Authorization": "bearer secret", "Host": "my.example"}
        assert http.get("/v1/models", headers=right).status_code == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "example.org", "10.0.0.1"])
def test_a_public_address_needs_a_key(host: str) -> None:
    with pytest.raises(ConfigError, match="--api-key"):
        ServerSettings(host=host)
    ServerSettings(host=host, api_key="k")


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_over_the_limit_is_413_and_the_connection_closes(chunked: bool) -> None:
    with running(max_body=1000) as server:
        head = b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json"
        if chunked:
            head += b"\r\nTransfer-Encoding: chunked\r\n\r\n"
            answer = raw(server, head + b"400\r\n" + b" " * 1024 + b"\r\n")
        else:
            answer = raw(server, head + b"\r\nContent-Length: 2000\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"body_too_large" in answer


def test_headers_without_an_end_are_refused(server: Running) -> None:
    flood = b"GET /health HTTP/1.1\r\n" + b"x-filler: " + b"a" * 200_000
    assert answer_or_close(server, flood)[:10] in (b"", b"HTTP/1.1 4")
    assert raw(server, b"GET /health HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 200")


def test_a_full_queue_is_429_and_says_when_to_come_back() -> None:
    long = {"max_tokens": 200, "ignore_eos": True, "n": 2}
    with (
        running(max_queue=2, max_tokens=200) as server,
        httpx.Client(base_url=server.address, timeout=60) as http,
        ThreadPoolExecutor(12) as pool,
    ):
        replies = list(pool.map(lambda _: ask(http, **long), range(12)))
    codes = [reply.status_code for reply in replies]
    assert set(codes) == {200, 429}
    full = replies[codes.index(429)]
    assert full.headers["Retry-After"] == "1"
    assert full.json()["error"]["code"] == "queue_full"


def test_rows_alone_are_groups_of_their_own_in_the_queue() -> None:
    """They are as many groups in the core; counted as one, they got past the limit."""
    with running(max_queue=4) as server, httpx.Client(base_url=server.address) as http:
        assert ask(http, n=5).status_code == 200
        reply = ask(http, n=5, coupled=False)
        assert reply.status_code == 400
        assert "at most 4 groups; got 5" in reply.json()["error"]["message"]
        assert ask(http, n=2, prompt=["a", "b"], coupled=False).status_code == 200
        until(lambda: server.service.open_groups == 0)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_frees_its_rows(stream: bool) -> None:
    engine = byte_engine()
    body = {"prompt": "a", "max_tokens": 240, "ignore_eos": True, "n": 8, "stream": stream}
    with (
        running(engine, max_tokens=240) as server,
        httpx.Client(base_url=server.address, timeout=60) as http,
    ):
        for _ in range(3):
            with (
                contextlib.suppress(httpx.ReadTimeout),
                http.stream("POST", "/v1/completions", json=body, timeout=0.3) as reply,
            ):
                next(reply.iter_bytes())
        until(lambda: server.service.open_groups == 0 and engine.core.is_idle)
        assert ask(http).status_code == 200
    assert engine.core.backend.nbytes == 0


def test_a_slow_reader_ends_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits is counted by tokens: counted by steps, wide ones filled the memory."""
    monkeypatch.setattr(worker, "MOST_UNREAD", 5 * 64 * 21)
    monkeypatch.setattr(worker, "PATIENCE", 0.05)
    with running(max_tokens=240) as server:
        place = urlsplit(server.address)
        fields = {"prompt": "a", "max_tokens": 240, "ignore_eos": True, "n": 64, "stream": True}
        fields |= {"logprobs": 20}
        body = json.dumps(fields).encode()
        head = (
            b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json"
            b"\r\nContent-Length: %d\r\n\r\n" % len(body)
        )
        with socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.connect((place.hostname, place.port))
            slow.sendall(head + body)
            with httpx.Client(base_url=server.address, timeout=60) as http:
                until(lambda: server.service.open_groups == 1)
                assert ask(http).status_code == 200
                until(lambda: server.service.engine.core.is_idle)
            assert server.service.metrics.tokens._value.get() < 240 * 64


def test_who_reads_slower_than_is_sampled_keeps_its_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own writing of wide steps may be the slow part."""
    monkeypatch.setattr(worker, "MOST_UNREAD", 0)
    with running(max_tokens=60) as server, httpx.Client(base_url=server.address) as http:
        reply = ask(http, n=16, max_tokens=60, ignore_eos=True, stream=True, logprobs=20)
        assert reply.text.endswith("data: [DONE]\n\n")
        assert reply.text.count('"finish_reason": "length"') == 16


def test_what_waits_for_a_reader_is_bounded_though_it_reads() -> None:
    """Who takes a little from time to time would fill the memory without end."""
    job = worker.Job(["a"], SamplingParams(width=64, top_logprobs=20), streaming=True)
    step = Step([1] * 64, [True] * 64, ["a"] * 64, [None] * 64, [0.0] * 64, [[]] * 64)
    steps = 0
    while not job.is_ignored:
        job.post((0, Event(0, step)))
        job.read, steps = time.monotonic(), steps + 1
    assert steps == worker.BOUND // (64 * 21) + 1


def test_a_group_that_fails_ends_alone() -> None:
    """Not-a-numbers in the embedding of one token reach only those who feed it."""
    engine = byte_engine(tied=False)
    with torch.no_grad():
        engine.model.get_input_embeddings().weight[7] = float("nan")
    with running(engine) as server, httpx.Client(base_url=server.address, timeout=60) as http:
        good = ask(http, prompt=[20, 21], seed=1).json()["choices"]
        with ThreadPoolExecutor(2) as pool:
            bad = pool.submit(ask, http, prompt=[20, 7])
            again = pool.submit(ask, http, prompt=[20, 21], seed=1)
        assert bad.result().status_code == 500
        assert bad.result().json()["error"]["code"] == "generation_failed"
        assert again.result().json()["choices"] == good
        stream = ask(http, prompt=[20, 7], stream=True)
        events = [line for line in stream.text.splitlines() if line]
        assert "generation_failed" in events[-2]
        assert events[-1] == "data: [DONE]"


def test_a_fault_of_ours_fails_what_runs_and_the_next_request_goes_on() -> None:
    engine = byte_engine()
    step = engine.core.step
    with running(engine) as server, httpx.Client(base_url=server.address, timeout=60) as http:
        engine.core.step = lambda: 1 / 0  # type: ignore[method-assign]
        reply = ask(http)
        assert reply.status_code == 500
        assert reply.json()["error"]["code"] == "internal_error"
        assert "division" not in reply.text
        engine.core.step = step  # type: ignore[method-assign]
        assert ask(http).status_code == 200
        engine.core.abort = lambda number: 1 / 0  # type: ignore[method-assign, assignment]
        engine.core.step = lambda: 1 / 0  # type: ignore[method-assign]
        assert ask(http).status_code == 500
        until(lambda: http.get("/health").status_code == 503)
        assert ask(http).json()["error"]["code"] == "failed"


def test_who_waits_when_the_worker_ends_is_told() -> None:
    engine, begun, go = byte_engine(), threading.Event(), threading.Event()

    def step() -> Any:
        begun.set()
        go.wait(60)
        raise ZeroDivisionError

    engine.core.step = step  # type: ignore[method-assign]
    engine.core.abort = lambda number: 1 / 0  # type: ignore[method-assign, assignment]
    with (
        running(engine) as server,
        httpx.Client(base_url=server.address, timeout=20) as http,
        ThreadPoolExecutor(3) as pool,
    ):
        asked = [pool.submit(ask, http)]
        assert begun.wait(60)
        asked += [pool.submit(ask, http) for _ in range(2)]
        until(lambda: server.service.worker._inbox.qsize() == 2)
        go.set()
        assert [one.result().status_code for one in asked] == [500, 500, 500]


def test_who_goes_away_while_its_prompt_is_scored_harms_nobody() -> None:
    """The worker could not tell it the result, took that for a fault, and failed all requests."""
    begun, go = threading.Event(), threading.Event()

    def hold() -> None:
        begun.set()
        go.wait(60)

    with (
        running() as server,
        httpx.Client(base_url=server.address, timeout=60) as http,
        ThreadPoolExecutor(1) as pool,
    ):
        server.service.worker._inbox.put(hold)
        assert begun.wait(60)
        other = pool.submit(ask, http)
        until(lambda: server.service.worker._inbox.qsize() == 1)
        body = {"prompt": PROMPT, "echo": True, "logprobs": 1, "stream": True}
        with (
            contextlib.suppress(httpx.ReadTimeout),
            http.stream("POST", "/v1/completions", json=body, timeout=0.5) as reply,
        ):
            next(reply.iter_bytes())
        until(lambda: server.service.open_groups == 1)
        go.set()
        assert other.result().status_code == 200


def test_metrics_count_what_was_done() -> None:
    with running() as server, httpx.Client(base_url=server.address, timeout=60) as http:
        ask(http, n=3, max_tokens=5, ignore_eos=True)
        ask(http, n=0)
        lines = http.get("/metrics").text.splitlines()
        values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    asked = 'interlace_requests_total{endpoint="/v1/completions",status="%d"}'
    assert values[asked % 200] == "1.0"
    assert values[asked % 400] == "1.0"
    assert values["interlace_tokens_total"] == "15.0"
    assert values["interlace_prompt_tokens_total"] == str(float(len(PROMPT)))
    assert values["interlace_rows_alive"] == values["interlace_groups_waiting"] == "0.0"
    assert values["interlace_time_to_first_token_seconds_count"] == "1.0"
    assert values["interlace_group_straggler_share"] == "0.0"


def test_tokenize_gives_what_the_engine_is_fed(http: httpx.Client) -> None:
    reply = http.post("/tokenize", json={"prompt": PROMPT}).json()
    assert reply["count"] == len(reply["tokens"]) == len(PROMPT)
    chat = http.post("/tokenize", json={"messages": [{"role": "user", "content": "a"}]}).json()
    assert chat["count"] > reply["count"]
    assert http.post("/tokenize", json={}).status_code == 400


def test_tokenize_counts_prompts_that_are_too_long_and_parts_of_texts(http: httpx.Client) -> None:
    """What it is asked for, to compare with max_model_len, it refused; and what it counted of parts
    was their notation."""
    reply = http.post("/tokenize", json={"prompt": "x" * 300}).json()
    assert (reply["count"], reply["max_model_len"]) == (300, 256)
    parts: list[Any] = ["ab", [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]]
    found = [
        http.post("/tokenize", json={"messages": [{"role": "user", "content": content}]}).json()
        for content in parts
    ]
    assert found[0] == found[1]
    odd = http.post("/tokenize", json={"messages": [{"role": "user", "content": None}]})
    assert odd.json()["error"]["param"] == "messages[0].content"


def test_a_stream_that_only_echoes_says_that_it_ends(http: httpx.Client) -> None:
    reply = ask(http, n=2, max_tokens=0, echo=True, stream=True)
    events = [
        json.loads(line[6:]) for line in reply.text.splitlines() if line.startswith("data: {")
    ]
    reasons = [(c["index"], c["finish_reason"]) for event in events for c in event["choices"]]
    assert reasons == [(0, "length"), (1, "length")]
