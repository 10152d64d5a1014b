"""vLLM's OpenAI server, in processes of its own: many clients, some of whom leave.

It runs from wheels, in an environment outside the checkout, on what `interlace export` wrote.
"""

from __future__ import annotations

import json
import os
import random
import re
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest

import interlace
from compare import logprobs_of, narrowed_gap
from served import ENDS, TOLERANCE, exported, prompts, unsure
from support.text import EOS, VOCAB, byte_tokenizer

ROOT = Path(__file__).parents[3]
CLIENTS, REQUESTS = 16, 200


def wheels_alone(folder: Path) -> Path:
    """The programs of an environment that has both wheels, and all else of this one."""
    pip = [sys.executable, "-m", "pip", "--quiet"]
    for source in (ROOT, ROOT / "plugins/vllm"):
        own = ["--no-deps", "--no-build-isolation", "--wheel-dir", folder / "wheels", source]
        subprocess.run([*pip, "wheel", *own], check=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    programs = folder / "venv/bin"
    wheels = list((folder / "wheels").glob("*.whl"))
    pip += ["--python", str(programs / "python")]
    subprocess.run([*pip, "install", "--no-deps", "--no-index", *wheels], check=True)
    # Of a folder that is named here the .pth files are not read: they lead back to the checkout.
    (packages,) = (folder / "venv/lib").glob("python*/site-packages")
    (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return programs


class Server:
    """A running server, its model as Interlace has it, and its log."""

    def __init__(
        self, model: Any, folder: Path, more: str = "", python: str = sys.executable
    ) -> None:
        self.model, self.log = model, folder / "log.txt"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        options = (
            f"--model {folder} --port {port} --dtype float32 --enforce-eager --max-model-len 256 "
            "--max-num-seqs 24 --max-num-batched-tokens 96 --block-size 32 "
            f"--kv-cache-memory-bytes {4 * 2**20} {more}"
        )
        self.process = subprocess.Popen(
            [python, "-m", "vllm.entrypoints.openai.api_server", *options.split()],
            stdout=self.log.open("w"),
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "PYTHONPATH": ""},
        )
        self.name = str(folder)
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=None)
        while True:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            try:
                if self.http.get("/health").status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(1)

    def ask(self, prompt: Any, n: int, **options: Any) -> httpx.Response:
        return self.http.post("/v1/completions", json=self.body(prompt, n, **options))

    def body(self, prompt: Any, n: int, **options: Any) -> dict[str, Any]:
        asked = {"max_tokens": 24, "temperature": 2.0, "logprobs": 0, "stop_token_ids": ENDS}
        asked["return_token_ids"] = True
        return {"model": self.name, "prompt": prompt, "n": n} | asked | options

    def memory(self) -> float:
        """MiB of the server's processes."""
        root = psutil.Process(self.process.pid)
        return sum(p.memory_info().rss for p in (root, *root.children(recursive=True))) / 2**20

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()

    def metric(self, name: str) -> float:
        text = self.http.get("/metrics").text
        return sum(float(v) for v in re.findall(rf"^{name}{{.*}} (\S+)$", text, re.MULTILINE))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    programs = wheels_alone(folder)
    model = unsure(sizes={"vocab_size": VOCAB, "eos_token_id": EOS})
    saved = interlace.save(model, folder / "saved", full=True, tokenizer=byte_tokenizer())
    export = [programs / "interlace", "export", saved, folder / "served", "--to", "vllm"]
    apart: Any = {"cwd": folder, "env": os.environ | {"PYTHONPATH": ""}, "check": True}
    subprocess.run(export, **apart)
    where = "import interlace, interlace_vllm as p; print(interlace.__file__, p.__file__)"
    found = subprocess.run([programs / "python", "-c", where], stdout=subprocess.PIPE, **apart)
    assert all(path.startswith(str(folder)) for path in found.stdout.decode().split())
    server = Server(
        model,
        folder / "served",
        "--max-logprobs -1 --enable-auto-tool-choice --tool-call-parser pythonic",
        str(programs / "python"),
    )
    yield server
    server.close()


def gap_of(server: Server, prompt: list[int], answer: dict[str, Any]) -> float:
    """Of one answer, the largest difference to Interlace's log-probabilities."""
    choices = sorted(answer["choices"], key=lambda choice: choice["index"])
    rows = [choice["token_ids"] for choice in choices]
    expected = logprobs_of(server.model, prompt, rows)
    found = [choice["logprobs"]["token_logprobs"] for choice in choices]
    return max(
        abs(a - b)
        for mine, theirs in zip(found, expected, strict=True)
        for a, b in zip(mine, theirs, strict=True)
    )


def test_n_choices_are_one_group(server: Server) -> None:
    prompt = prompts(1)[0]
    for n, seed in ((8, None), (4, 3), (1, None)):
        answer = server.ask(prompt, n, seed=seed).json()
        assert len(answer["choices"]) == n
        assert gap_of(server, prompt, answer) < TOLERANCE


def test_a_client_of_openais_gets_one_group(server: Server) -> None:
    client = openai.OpenAI(base_url=f"{server.http.base_url}/v1", api_key="any")
    answer = client.chat.completions.create(
        model=server.name,
        messages=[{"role": "user", "content": "3 7 12 > 16:"}],
        n=8,
        logprobs=True,
        temperature=2.0,
        max_tokens=24,
        extra_body={"return_token_ids": True, "stop_token_ids": ENDS},
    ).model_dump()
    rows = [choice["token_ids"] for choice in answer["choices"]]
    assert len(rows) == 8
    wanted = logprobs_of(server.model, answer["prompt_token_ids"], rows)
    found = [[step["logprob"] for step in c["logprobs"]["content"]] for c in answer["choices"]]
    steps = [
        abs(a - b)
        for mine, theirs in zip(found, wanted, strict=True)
        for a, b in zip(mine, theirs, strict=True)
    ]
    assert max(steps) < TOLERANCE
    assert len({len(row) for row in rows}) > 1


NUMBER = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


@pytest.mark.parametrize(
    "asked",
    [
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": NUMBER},
            }
        },
        {
            "tools": [{"type": "function", "function": {"name": "f", "parameters": NUMBER}}],
            "tool_choice": {"type": "function", "function": {"name": "f"}},
        },
    ],
)
def test_choices_of_one_form_are_one_group(server: Server, asked: dict[str, Any]) -> None:
    body = {
        "model": server.name,
        "messages": [{"role": "user", "content": "A number, please."}],
        "n": 4,
        "max_tokens": 40,
        "logprobs": True,
        "top_logprobs": VOCAB,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
    }
    answer = server.http.post("/v1/chat/completions", json=body | asked)
    assert answer.status_code == 200, answer.text
    choices = answer.json()["choices"]
    rows = [choice["token_ids"] for choice in choices]
    steps = [
        [
            {int(other["token"].split(":")[1]): other["logprob"] for other in step["top_logprobs"]}
            for step in choice["logprobs"]["content"]
        ]
        for choice in choices
    ]
    prompt = answer.json()["prompt_token_ids"]
    assert narrowed_gap(server.model, prompt, rows, steps) < TOLERANCE
    for row in rows:
        text = byte_tokenizer().decode(row, skip_special_tokens=True)
        if row[-1] == EOS:
            assert isinstance(json.loads(text)["a"], int)


def test_prompts_of_one_request_are_groups_of_their_own(server: Server) -> None:
    two = prompts(2, 9, 40, seed=5)
    choices = server.ask(two, 3).json()["choices"]
    assert len(choices) == 6
    for number, prompt in enumerate(two):
        own = {"choices": choices[3 * number : 3 * number + 3]}
        assert gap_of(server, prompt, own) < TOLERANCE


def test_choices_that_are_streamed_are_one_group(server: Server) -> None:
    """Two groups of one prompt at once, with one seed: each has its own siblings."""
    prompt = prompts(1, 3, 3, seed=2)[
        0
    ]  # 16 rows of it fit in a step: see docs/guide/vllm.md on seeds

    def streamed(seed: int) -> dict[str, Any]:
        rows: dict[int, tuple[list[int], list[float]]] = {w: ([], []) for w in range(8)}
        body = server.body(prompt, 8, stream=True, seed=seed)
        with server.http.stream("POST", "/v1/completions", json=body) as stream:
            for line in stream.iter_lines():
                if line.startswith("data: {"):
                    for choice in json.loads(line[6:])["choices"]:
                        tokens, logprobs = rows[choice["index"]]
                        tokens += choice["token_ids"] or []
                        logprobs += (
                            choice["logprobs"]["token_logprobs"] if choice["logprobs"] else []
                        )
        return {
            "choices": [
                {"index": w, "token_ids": tokens, "logprobs": {"token_logprobs": logprobs}}
                for w, (tokens, logprobs) in rows.items()
            ]
        }

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(streamed, (5, 5))
    assert max(gap_of(server, prompt, answer) for answer in (first, second)) < TOLERANCE
    assert [c["token_ids"] for c in first["choices"]] == [c["token_ids"] for c in second["choices"]]


def test_a_group_stays_on_one_rank(tmp_path: Path) -> None:
    """vLLM's balancing sends each request to the rank that has least to do; the rows of a group
    would wait on both of them for ever."""
    server = Server(exported(tmp_path), tmp_path, "--data-parallel-size 2")
    try:
        jobs = list(zip(prompts(24, longest=60, seed=3), [4, 1, 3, 8] * 6, strict=True))
        with ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(lambda job: server.ask(*job), jobs))
        for (prompt, n), answer in zip(jobs, answers, strict=True):
            assert len(answer.json()["choices"]) == n
            assert gap_of(server, prompt, answer.json()) < TOLERANCE
        text = server.http.get("/metrics").text
        done = re.findall(
            r'^vllm:generation_tokens_total{engine="(\d)".*} (\S+)$', text, re.MULTILINE
        )
        assert {rank for rank, tokens in done if float(tokens) > 0} == {"0", "1"}
    finally:
        server.close()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"n": 25}, "at most 24 rows here"),
        ({"n": 3, "stop": ["9"]}, "Stop strings"),
        ({"n": 3, "use_beam_search": True}, "Beams would read none"),
        ({"n": 24, "max_tokens": 200}, "needs room for all its tokens"),
        ({"n": 2, "vllm_xargs": {"interlace": "mine"}}, "the server's own"),
    ],
)
def test_what_cannot_be_is_an_error_of_the_request(
    server: Server, options: dict[str, Any], why: str
) -> None:
    answer = server.ask(prompts(1)[0], **options)
    assert answer.status_code == 400, answer.text
    assert why in answer.text
    assert server.ask(prompts(1)[0], 2).status_code == 200


def test_many_clients_some_of_whom_leave(server: Server) -> None:
    """Groups stay whole, nothing is lost, nothing is left, memory is flat."""
    draw = random.Random(0)
    jobs = [
        (prompt, draw.choice([1, 1, 2, 3, 4, 8, 12]), draw.random() < 0.2, draw.randrange(12))
        for prompt in prompts(REQUESTS, longest=120, seed=1)
    ]

    def client(job: tuple[list[int], int, bool, int]) -> tuple[list[int], dict[str, Any]] | None:
        prompt, n, leaves, after = job
        if not leaves:
            answer = server.ask(prompt, n)
            assert answer.status_code == 200, answer.text
            return prompt, answer.json()
        body = server.body(prompt, n, stream=True, max_tokens=60, stop_token_ids=[])
        with server.http.stream("POST", "/v1/completions", json=body) as stream:
            for number, _ in enumerate(stream.iter_lines()):
                if number == after:
                    return None
        return None

    memory = []
    answers: list[Any] = []
    with ThreadPoolExecutor(CLIENTS) as pool:
        for half in (jobs[: REQUESTS // 2], jobs[REQUESTS // 2 :]):
            answers += pool.map(client, half)
            memory.append(server.memory())
    for (_, n, leaves, _), answer in zip(jobs, answers, strict=True):
        assert (answer is None) == leaves
        assert leaves or len(answer[1]["choices"]) == n
    kept = [answer for answer in answers if answer is not None]
    assert max(gap_of(server, *answer) for answer in kept[::5]) < TOLERANCE
    for _ in range(100):  # the last abort is on its way
        if not server.metric("vllm:num_requests_running"):
            break
        time.sleep(0.1)
    assert server.metric("vllm:num_requests_running") == 0
    assert server.metric("vllm:num_requests_waiting") == 0
    assert server.metric("vllm:kv_cache_usage_perc") == 0
    assert memory[1] < 1.05 * memory[0], memory
    log = server.log.read_text()
    assert "group of" not in log, log[-3000:]  # none came apart, none lacked room
    assert "Traceback" not in log, log[-3000:]
