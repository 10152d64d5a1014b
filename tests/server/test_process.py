"""`interlace serve` as a process: it says where it is, drains at the first signal, ends with 0."""

from __future__ import annotations

import json
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest

from interlace.cli.main import main
from support.server import serving

PROMPT = "3 4 9 -> 21 :"


def test_the_packaged_model_is_served_and_sigterm_drains() -> None:
    with serving("--max-tokens", "300", "--drain-seconds", "600") as (process, address):
        with httpx.Client(base_url=address) as http:
            assert http.get("/health").json() == {"status": "ok"}
            assert http.get("/v1/models").json()["data"][0]["id"] == "tiny-bridge"
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        long = {"model": "tiny-bridge", "prompt": PROMPT, "n": 8, "max_tokens": 300}
        body = {"ignore_eos": True}
        stream = client.completions.create(**long, stream=True, extra_body=body)
        first = next(stream)
        counts = [0] * 8
        counts[first.choices[0].index] += 1
        process.send_signal(signal.SIGTERM)
        refused = threading.Thread(target=_expect_draining, args=(address,))
        refused.start()
        for chunk in stream:
            for choice in chunk.choices:
                counts[choice.index] += 1
        refused.join(timeout=600)
        assert counts == [300] * 8  # nothing of what ran was lost
        assert process.wait(timeout=600) == 0


def _expect_draining(address: str) -> None:
    with httpx.Client(base_url=address) as http:
        try:
            while http.get("/health").status_code == 200:
                pass
            reply = http.post("/v1/completions", json={"prompt": PROMPT})
        except httpx.ConnectError:
            return  # it has ended already
        assert reply.status_code == 503
        assert reply.json()["error"]["code"] == "draining"


def test_a_second_signal_waits_for_nobody() -> None:
    with serving("--max-tokens", "1000", "--max-queue", "40") as (process, address):
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        stream = client.completions.create(
            model="tiny-bridge", prompt=[PROMPT] * 8, n=8, max_tokens=1000, stream=True,
            extra_body={"ignore_eos": True},
        )  # fmt: skip
        next(stream)
        process.send_signal(signal.SIGINT)
        with httpx.Client(base_url=address) as http:
            while http.get("/health").status_code == 200:
                pass
        process.send_signal(signal.SIGINT)
        with pytest.raises(openai.APIError, match="shut down"):
            list(stream)
        assert process.wait(timeout=600) == 1
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()


@pytest.mark.parametrize("stream", [False, True])
def test_who_is_not_done_at_the_deadline_is_told_so(stream: bool) -> None:
    """It was a bare 500, or a stream without an end, and a traceback in the log."""
    body = {"prompt": PROMPT, "n": 16, "max_tokens": 3000, "ignore_eos": True, "stream": stream}
    with serving("--drain-seconds", "0.1") as (process, address), ThreadPoolExecutor(1) as pool:
        asked = pool.submit(httpx.post, f"{address}/v1/completions", json=body, timeout=600)
        while "rows_alive 16" not in httpx.get(f"{address}/metrics").text:
            pass
        process.send_signal(signal.SIGTERM)
        reply = asked.result()
        told = reply.text.splitlines()
        error = json.loads(told[-4].removeprefix("data: ") if stream else told[-1])["error"]
        assert (error["type"], error["code"]) == ("server_error", "draining")
        assert reply.status_code == (200 if stream else 503)
        assert process.wait(timeout=600) == 1
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--host", "0.0.0.0"], "--api-key"),
        (["--port", "99999999"], "port"),
        (["--max-width", "0"], "max_width"),
        (["--memory", "-1"], "--memory"),
        (["--scorer", "math:sqrt", "--scorer", "cmath:sqrt"], "two functions 'sqrt'"),
        (["no-such-model"], "no-such-model"),
    ],
)
def test_what_cannot_be_served_is_one_line(
    arguments: list[str], word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", *arguments]) == 2
    said = capsys.readouterr().err
    assert word in said
    assert "Traceback" not in said
