"""`RemoteEngine`: an engine's groups, from a server."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest

import interlace
from interlace import RemoteEngine, SamplingParams
from interlace.cli.main import main
from interlace.errors import GenerationError, GenerationInterrupted
from interlace.evaluation.run import load_run
from support.architectures import build
from support.server import Running, running
from support.text import EOS, VOCAB
from support.typecheck import unchecked

PARAMS = SamplingParams(width=5, seed=3, max_new_tokens=14, temperature=0.9, top_k=40)
PROMPTS = ["One: ", "Two: ", "One: "]


@pytest.fixture(scope="module")
def remote(server: Running) -> RemoteEngine:
    return RemoteEngine(f"{server.address}/v1", chat=False)


def tokens(groups: list[interlace.GroupOutput]) -> list[list[list[int]]]:
    return [[completion.token_ids for completion in group.completions] for group in groups]


def test_groups_are_the_engines_to_the_token(remote: RemoteEngine, twin: interlace.Engine) -> None:
    found, wanted = remote.generate(PROMPTS, PARAMS), twin.generate(PROMPTS, PARAMS)
    assert tokens(found) == tokens(wanted)
    assert [group.texts for group in found] == [group.texts for group in wanted]
    assert [g.prompt_token_ids for g in found] == [g.prompt_token_ids for g in wanted]
    for one, other in zip(found, wanted, strict=True):
        for row, own in zip(one.completions, other.completions, strict=True):
            assert row.logprobs == pytest.approx(own.logprobs, abs=1e-4)
            assert row.finish_reason == own.finish_reason
    assert remote.stats.sampled_tokens == sum(group.num_tokens for group in found)


def test_sample_ids_and_messages_and_token_ids_are_kept(
    remote: RemoteEngine, twin: interlace.Engine
) -> None:
    prompts: list[Any] = [[20, 21, 22], [{"role": "user", "content": "hi"}]]
    ids = ["a", 7]
    found = remote.generate(prompts, PARAMS, sample_ids=ids)
    assert tokens(found) == tokens(twin.generate(prompts, PARAMS, sample_ids=ids))


def test_rows_alone_are_asked_for(server: Running, twin: interlace.Engine) -> None:
    alone = RemoteEngine(f"{server.address}/v1", coupled=False, chat=False)
    (group,) = alone.generate(PROMPTS[:1], PARAMS)
    single = twin.generate(PROMPTS[:1], PARAMS.replace(width=1))[0]
    assert group.completions[0].token_ids == single.completions[0].token_ids
    assert tokens([group]) != tokens(twin.generate(PROMPTS[:1], PARAMS))


def test_a_group_that_is_refused_says_what_the_server_says(remote: RemoteEngine) -> None:
    with pytest.raises(GenerationError, match=r"\(400\).*n is at most 64"):
        remote.generate(["a"], PARAMS.replace(width=65))
    with pytest.raises(GenerationError, match="logits processors"):
        remote.generate(["a"], PARAMS.replace(logits_processors=[lambda ids, scores: scores]))
    with pytest.raises(GenerationError, match="empty"):
        remote.encode("")


@pytest.mark.parametrize(
    ("url", "options", "word"),
    [
        ("http://127.0.0.1:9/v1", {}, "/v1"),
        (None, {"model": "gpt-9"}, "'bytes'"),
    ],
)
def test_a_server_that_cannot_be_asked_is_one_clear_error(
    server: Running, url: str | None, options: dict[str, Any], word: str
) -> None:
    with pytest.raises(GenerationError, match=word):
        RemoteEngine(url or f"{server.address}/v1", retries=0, **options)


@pytest.mark.parametrize(
    ("url", "options", "word"),
    [
        ("127.0.0.1:8000/v1", {}, "http://"),
        ("http://", {}, "http://"),
        ("http://127.0.0.1:eight/v1", {}, "http://"),
        ("http://[::1/v1", {}, "http://"),
        ("ftp://127.0.0.1/v1", {}, "http://"),
        ("http://127.0.0.1/a b", {}, "http://"),
        ("", {}, "http://"),
        ("http://127.0.0.1:9/v1", {"concurrency": 0}, "concurrency is at least 1"),
        ("http://127.0.0.1:9/v1", {"retries": -1}, "retries at least 0"),
        ("http://127.0.0.1:9/v1", {"timeout": 0}, "timeout above 0"),
    ],
)
def test_arguments_that_are_none_are_one_clear_error(
    url: str, options: dict[str, Any], word: str
) -> None:
    """They were errors of other libraries, and concurrency=0 one at the first call."""
    with pytest.raises(GenerationError, match=word):
        RemoteEngine(url, **options)


def test_a_key_is_sent() -> None:
    with running(api_key="secret") as server:
        url = f"{server.address}/v1"
        with pytest.raises(GenerationError, match="401"):
            RemoteEngine(url, api_key="wrong", retries=0)
        assert RemoteEngine(url, api_key="secret").coupled


class Plain(http.server.BaseHTTPRequestHandler):
    """A plain server: one choice a request whatever n is, no token ids; it fails now and then."""

    asked: ClassVar[list[dict[str, Any]]] = []
    odd: ClassVar[bytes | None] = None  # sent in place of an answer
    models: ClassVar[list[str] | None] = ["plain"]
    failures = 0
    silent: ClassVar[threading.Event | None] = None  # until which it says nothing

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        if Plain.models is None:
            self._send({"error": {"message": "no such path"}}, 404)
            return
        entries = [{"id": name, "object": "model"} for name in Plain.models]
        self._send({"object": "list", "data": entries})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if Plain.failures > 0:
            Plain.failures -= 1
            self._send({"error": {"message": "busy"}}, 503)
            return
        Plain.asked.append(body)
        if Plain.silent is not None:
            Plain.silent.wait(300)
            return
        if Plain.odd is not None:
            self._send(json.loads(Plain.odd or "null"))
            return
        text = f"seed {body['seed']}"
        logprobs = {"tokens": ["a", "b"], "token_logprobs": [-1.0, -2.0], "text_offset": [0, 1],
                    "top_logprobs": [{}, {}]}  # fmt: skip
        choice = {"index": 0, "text": text, "finish_reason": "stop", "logprobs": logprobs}
        usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
        self._send({"id": "x", "object": "text_completion", "created": 0, "model": "plain",
                    "choices": [choice], "usage": usage})  # fmt: skip

    def _send(self, value: dict[str, Any], status: int = 200) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def plain() -> Iterator[str]:
    Plain.asked.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Plain) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()
        thread.join()


def test_a_plain_server_gives_the_independent_baseline(plain: str) -> None:
    remote = RemoteEngine(plain, chat=False)
    assert not remote.coupled
    Plain.failures = 2  # and is asked again
    groups = remote.generate(["a", "b", "a"], PARAMS)
    assert [len(group.completions) for group in groups] == [5, 5, 5]
    seeds = [body["seed"] for body in Plain.asked]
    assert len(set(seeds)) == 15  # no row is another's copy
    assert all("sample_id" not in body for body in Plain.asked)
    assert groups[0].completions[0].logprobs == [-1.0, -2.0]
    assert groups[0].num_tokens == 10
    assert remote.stats.notes == [f"{remote.id} gives 1 choices a request."]


def test_a_server_that_splits_a_group_is_refused_where_rows_are_to_be_coupled(plain: str) -> None:
    remote = RemoteEngine(plain, chat=False, coupled=True)
    with pytest.raises(GenerationError, match=r"gave 1 of 5 choices.*coupled=False"):
        remote.generate(["a"], PARAMS)


ODD = [
    b"null", b'{"error": {"message": "no credit"}}', b'{"choices": null}', b'{"choices": [7]}',
    b'{"choices": [{"index": 0, "text": "a", "logprobs": {"token_logprobs": ["a"]}}]}',
    b'{"choices": [{"index": 0, "text": "a"}], "usage": {}}',
]  # fmt: skip


@pytest.mark.parametrize("odd", ODD)
def test_an_answer_of_another_shape_is_one_clear_error(
    plain: str, monkeypatch: pytest.MonkeyPatch, odd: bytes
) -> None:
    monkeypatch.setattr(Plain, "odd", odd)
    with pytest.raises(GenerationError, match="none of OpenAI's"):
        RemoteEngine(plain, chat=False).generate(["a"], PARAMS)


def test_choices_are_rows_by_their_index(plain: str, monkeypatch: pytest.MonkeyPatch) -> None:
    choices = [{"index": index, "text": str(index), "logprobs": None} for index in (2, 0, 1)]
    monkeypatch.setattr(Plain, "odd", json.dumps({"choices": choices}).encode())
    (group,) = RemoteEngine(plain, chat=False).generate(["a"], PARAMS.replace(width=3))
    assert group.texts == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("prompts", "options", "word"),
    [
        ("abc", {}, "single one"),
        ([[]], {}, "empty"),
        ([None], {}, "got NoneType"),
        ([["a", "b"]], {}, "list of texts"),
        ([[[1, 2]]], {}, "mixed things"),
        (["a", {"role": "user", "content": "a"}], {}, r"write \[message\]"),
        (["a"], {"sample_ids": [1, 2]}, "one entry"),
        (["a"], {"params": PARAMS.replace(top_logprobs=2)}, "top_logprobs"),
        (["a"], {"params": PARAMS.replace(record_attention="mean")}, "record_attention"),
        (["a"], {"params": PARAMS.replace(consensus=str)}, "consensus"),
    ],
)
def test_what_no_server_carries_out_is_refused(
    plain: str, prompts: Any, options: dict[str, Any], word: str
) -> None:
    """It was left out in silence, taken for something else, or ended in another library's error."""
    with unchecked(), pytest.raises(GenerationError, match=word):
        RemoteEngine(plain, chat=False).generate(prompts, **options)
    assert not Plain.asked


def test_an_interrupt_gives_what_was_there_before(plain: str) -> None:
    def interrupt(stats: interlace.EngineStats) -> None:
        raise KeyboardInterrupt

    with pytest.raises(GenerationInterrupted) as caught:
        RemoteEngine(plain, chat=False, concurrency=1).generate(
            ["a", "b"], PARAMS, progress=interrupt
        )
    assert 0 in caught.value.groups


def test_an_interrupted_command_does_not_wait_for_the_server(
    plain: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It said that it was interrupted, and stayed until its requests had ended and been
    repeated."""
    silent = threading.Event()
    monkeypatch.setattr(Plain, "silent", silent)
    command = [sys.executable, "-m", "interlace.cli.main", "generate", "--model", plain, "--json"]
    process = subprocess.Popen([*command, "a"], stderr=subprocess.PIPE, text=True)
    try:
        while not Plain.asked:
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert "Interrupted" in process.communicate(timeout=60)[1]
        assert process.returncode == 130
    finally:
        silent.set()
        process.kill()
        process.communicate()


def test_a_model_is_named_where_a_server_has_several_or_lists_none(
    plain: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A command line had no way to name one, and a server without a list was refused."""
    asked = ["generate", "--width", "1", "--json", "a", "--model"]
    monkeypatch.setattr(Plain, "models", ["one", "plain"])
    assert main([*asked, plain]) == 2
    assert "ADDRESS#NAME" in capsys.readouterr().err
    for models in (["one", "plain"], [], None):
        monkeypatch.setattr(Plain, "models", models)
        assert RemoteEngine(plain, model="plain", chat=False, retries=0).model_name == "plain"
    with pytest.raises(GenerationError, match="404"):
        RemoteEngine(plain, retries=0)


def test_a_raw_text_is_no_message_at_a_server_either(
    server: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["generate", "--model", f"{server.address}/v1", "--width", "1", "--json", "abc"]
    counts = []
    for raw in ([], ["--raw"]):
        assert main([*asked, "--max-new-tokens", "1", *raw]) == 0
        counts.append(json.loads(capsys.readouterr().out)["prompt_tokens"])
    assert counts[0] > counts[1] == 3


@pytest.mark.slow
def test_a_foreign_server(twin: interlace.Engine, tmp_path: Path) -> None:
    """`transformers serve`: it lists no such model, ignores n, and gives neither token ids nor
    log-probabilities."""
    folder = tmp_path / "bytes"
    twin.tokenizer.save_pretrained(folder)
    model = build("llama", seed=1, vocab_size=VOCAB, eos_token_id=EOS)
    model.generation_config.do_sample = True  # else it is greedy, whatever is asked for
    model.save_pretrained(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = Path(sys.executable).with_name("transformers")
    command = [program, "serve", folder, "--port", str(port), "--host", "127.0.0.1"]
    log = tmp_path / "log"
    with log.open("w") as written:
        process = subprocess.Popen(
            [*map(str, command), "--device", "cpu"],
            env=os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"},
            stdout=written,
            stderr=written,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        while True:
            assert process.poll() is None, log.read_text()[-2000:]
            with contextlib.suppress(httpx.TransportError):
                httpx.get(f"{url}/health", timeout=60)
                break
            time.sleep(0.2)
        remote = RemoteEngine(f"{url}/v1", model=str(folder), retries=1)
        groups = remote.generate(PROMPTS, PARAMS.replace(top_k=None))
        assert [len(group.texts) for group in groups] == [5, 5, 5]
        assert len({text for group in groups for text in group.texts}) > 5  # seeds of their own
        assert all(group.prompt_token_ids for group in groups)
        assert not remote.coupled
        assert [note.split(" gives ")[1][:16] for note in remote.stats.notes] == [
            "1 choices a requ",
            "no log-probabili",
        ]
        coupled = RemoteEngine(f"{url}/v1", model=str(folder), coupled=True, retries=1)
        with pytest.raises(GenerationError, match="does not keep the rows"):
            coupled.generate(PROMPTS[:1], PARAMS.replace(top_k=None))
    finally:
        process.kill()
        process.wait()


def test_generate_and_eval_take_an_address(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, tokenizer = interlace.load("tiny-bridge")
    engine = interlace.Engine(model, tokenizer)
    with running(engine, name="tiny-bridge") as server:
        url = f"{server.address}/v1"
        asked = ["--width", "4", "--max-new-tokens", "29"]
        assert main(["generate", "--model", url, *asked, "--json", "3 4 9 -> 21 :"]) == 0
        remote = json.loads(capsys.readouterr().out)
        assert main(["generate", "--model", url, *asked, "3 4 9 -> 21 :"]) == 0
        assert remote["completions"][0]["text"] in capsys.readouterr().out
        lines = tmp_path / "prompts.jsonl"
        lines.write_text('{"prompt": "3 4 9 -> 21 :"}\n{"prompt": "1 3 8 -> 2 :"}\n')
        out = tmp_path / "out.jsonl"
        assert main(["generate", "--model", url, *asked, "--input", str(lines),
                     "--output", str(out)]) == 0  # fmt: skip
        task = ["--task", "tiny-countdown", "--limit", "6", "--widths", "1,4", "--figures", "none"]
        runs = {"remote": url, "local": "tiny-bridge"}
        for name, source in runs.items():
            folder = ["--output", str(tmp_path / name), "--timed", "0"]
            assert main(["eval", "--model", source, *task, *folder]) == 0
    assert main(["generate", "--model", "tiny-bridge", *asked, "--json", "3 4 9 -> 21 :"]) == 0
    local = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [r["text"] for r in remote["completions"]] == [r["text"] for r in local["completions"]]
    assert len(out.read_text().splitlines()) == 2
    results = {name: load_run(tmp_path / name) for name in runs}
    assert results["remote"].coupled
    for metric in ("pass@1", "maj"):
        found, wanted = (results[name].get(metric, 4).estimate for name in ("remote", "local"))
        assert found == wanted
