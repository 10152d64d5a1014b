"""Does the server lose, mix up, leak or hang, and how fast is it beside Engine and other servers?

All parts use real processes (`interlace serve`, in a session of its own) on loopback, and end by
themselves. The client is this process: plain sockets, HTTP/1.0, one connection a request.

Parts on tiny-bridge, one server for all of them; it ends with SIGTERM, and its exit code and the
tracebacks in its log are counted:
- mixed: clients that send requests without a pause for some minutes, each drawn from a catalogue of
  fixed ones (1 to 3 prompts, n of 1 to 16, 1 to 29 tokens, four temperatures, filters, stops),
  streamed or not. What every one must give is computed before by Engine in this process, and each
  answer is compared with it: token ids, texts, reasons. Lost: no whole answer. Mixed up: another
  one. Time to the first token is a stream's, from before the connection to the first chunk.
- memory: many such requests; the slope of the server's resident memory over the last three fifths.
- disconnects: clients that go away at a random moment, with FIN or RST, streamed or not.
- kills: client processes that get SIGKILL at a random moment. After both: seconds until no row is
  alive and no group is held, growth of memory, and right answers to others all the while.
- fuzz: bodies for all four endpoints, valid ones damaged by fields or by bytes. A fault: a 5xx, a
  traceback or an internal error in the reply, more than 5 seconds.
- schemathesis: the same from our own OpenAPI document, where the tool is (`make clients`).
- hostile: bodies of 10 MB, JSON 10,000 deep, UTF-8 that is none, floods of headers, contradictory
  lengths: 4xx or closed; readers that do not read, while others are answered.

Parts on SmolLM2-135M's shape (random weights, bf16, Bridge with 5 % new parameters, W_O random, one
thread each):
- offline: the same groups (n = 8, 100 prompt tokens, 64 new ones) by Engine in this process, and at
  once through the server, in turn. Throughput of the server over Engine's: by the wall and by
  processor time (the server's whole session), medians of the rounds.
- peers: the same requests at llama-cpp-python's server (bf16; it ignores n, so that each group is 8
  requests) and vLLM's (CPU, bf16), one after the other in each round; ratios of requests a second,
  ours over theirs. Their environments are given by --llama and --vllm.

Usage: python benchmarks/serve.py [--parts mixed,memory,...] [--minutes 5] [--clients 64]
    [--requests 5000] [--gone 500] [--killed 200] [--bodies 10000] [--examples 300] [--slow 10]
    [--groups 4] [--rounds 3] [--llama PYTHON] [--vllm PYTHON] [--quick]
Progress goes to stderr; the last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import copy
import itertools
import json
import os
import random
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import interlace
from interlace import SamplingParams

SECONDS = 5.0  # that no answer to a fuzzed body may take
TICKS, PAGE = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
PROMPT_TOKENS, NEW_TOKENS, WIDTH = 100, 64, 8
# One token each with its blank: llama-cpp-python's server takes texts only.
WORDS = [
    "time",
    "people",
    "way",
    "water",
    "day",
    "man",
    "work",
    "life",
    "world",
    "year",
    "house",
    "head",
    "hand",
    "side",
    "place",
    "home",
]
ENDS = {"0": -100, "2": -100}  # SmolLM2's tokens that end a text; that server has no ignore_eos
CLIENT = """\
import socket, sys
connection = socket.create_connection((sys.argv[1], int(sys.argv[2])))
connection.sendall(sys.stdin.buffer.read())
print("sent", flush=True)
while connection.recv(4096):
    pass
"""


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# Servers -----------------------------------------------------------------------------------------


class Server:
    """A server in a session of its own.

    Args:
        command: Command that runs it.
        port: Port that it listens on; None reads it from the first line it prints.
        environment: Variables beside our own.
    """

    def __init__(self, command: list[str], port: int | None = None, **environment: str) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the server
        self._process = subprocess.Popen(
            command, env=os.environ | ENVIRONMENT | environment, start_new_session=True, text=True,
            stdout=subprocess.PIPE if port is None else self._log, stderr=self._log,
        )  # fmt: skip
        if port is None:
            assert self._process.stdout is not None
            first = self._process.stdout.readline()
            if " at http" not in first:
                raise SystemExit(f"No server: {self._told()[-2000:]}")
            port = urlsplit(first.split(" at ")[1].strip()).port
        assert port is not None
        self.host, self.port = "127.0.0.1", port

    def wait(self, path: str = "/health") -> None:
        """Until it answers; for servers that print no address."""
        end = time.monotonic() + 400
        while time.monotonic() < end and self._process.poll() is None:
            with contextlib.suppress(OSError, ValueError):
                if asyncio.run(exchange(self, get(path)))[0] == 200:
                    return
            time.sleep(1)
        raise SystemExit(f"No server at {self.port}: {self._told()[-2000:]}")

    def memory(self) -> float:
        """Resident MiB of the process."""
        statm = Path(f"/proc/{self._process.pid}/statm").read_text()
        return int(statm.split()[1]) * PAGE / 2**20

    def processor(self) -> float:
        """Seconds of processor time of its session."""
        total = 0
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                words = stat.read_text().rpartition(")")[2].split()
                if int(words[3]) == self._process.pid:
                    total += int(words[11]) + int(words[12])
        return total / TICKS

    def gauges(self) -> dict[str, float]:
        """What /metrics says."""
        status, body = asyncio.run(exchange(self, get("/metrics")))
        assert status == 200
        lines = [line.rsplit(" ", 1) for line in body.decode().splitlines() if line[0] != "#"]
        return {name: float(value) for name, value in lines}

    def stop(self) -> dict[str, Any]:
        """End it as an operator does: its exit code, and the tracebacks that it logged."""
        self._process.terminate()
        try:
            code = self._process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            code = self._process.wait()
        return {"exit_code": code, "tracebacks": self._told().count("Traceback")}

    def _told(self) -> str:
        self._log.seek(0)
        return self._log.read().decode(errors="replace")


def ours(*arguments: str) -> Server:
    """`interlace serve` on a free port."""
    return Server([sys.executable, "-m", "interlace.cli.main", "serve", *arguments, "--port", "0"])


# The client --------------------------------------------------------------------------------------


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode()


def post(path: str, body: bytes, kind: str = "application/json") -> bytes:
    head = f"POST {path} HTTP/1.0\r\nHost: localhost\r\nContent-Type: {kind}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def completion(**fields: Any) -> bytes:
    return post("/v1/completions", json.dumps(fields).encode())


async def exchange(
    server: Server, request: bytes, first: list[float] | None = None
) -> tuple[int, bytes]:
    """Status and body; `first` gets the moment of the body's first bytes."""
    reader, writer = await asyncio.open_connection(server.host, server.port)
    try:
        writer.write(request)
        status = int((await reader.readuntil(b"\r\n\r\n")).split(None, 2)[1])
        parts = []
        while part := await reader.read(2**16):
            if not parts and first is not None:
                first.append(time.perf_counter())
            parts.append(part)
        return status, b"".join(parts)
    finally:
        writer.close()


@dataclass(frozen=True)
class Case:
    """A request and what Engine gives for it: ids, text and reason of each choice."""

    fields: dict[str, Any]
    rows: list[tuple[list[int], str, str]] = field(repr=False)

    async def ask(self, server: Server, stream: bool, first: list[float] | None = None) -> str:
        """ "right", "lost" or "mixed up"."""
        request = completion(**self.fields, return_token_ids=True, stream=stream)
        try:
            status, body = await exchange(server, request, first)
            found = _joined(body) if stream else json.loads(body)["choices"]
        except (OSError, ValueError, KeyError, asyncio.IncompleteReadError):
            return "lost"
        if status != 200:
            return "lost"
        rows = [(c["token_ids"], c["text"], c["finish_reason"]) for c in found]
        return "right" if rows == self.rows else "mixed up"


def _joined(body: bytes) -> list[dict[str, Any]]:
    """The choices of a stream.

    Raises:
        ValueError: for one that does not end.
    """
    events = body.decode().split("\n\n")
    if events[-2:] != ["data: [DONE]", ""]:
        raise ValueError("no end")
    found: dict[int, dict[str, Any]] = {}
    for event in events[:-2]:
        for choice in json.loads(event.removeprefix("data: "))["choices"]:
            one = found.setdefault(choice["index"], {"token_ids": [], "text": ""})
            one["token_ids"] += choice["token_ids"]
            one["text"] += choice["text"]
            one["finish_reason"] = choice["finish_reason"]
    return [found[index] for index in sorted(found)]


def catalogue(count: int) -> list[Case]:
    """Requests of all kinds, with their answers."""
    model, tokenizer = interlace.load("tiny-bridge")
    task = interlace.tasks.get_task("tiny-countdown")
    problems = [task.prompt(task[index]) for index in range(300)]
    draw = random.Random(17)
    asked, prompts, params = [], [], []
    for _ in range(count):
        some = draw.sample(problems, draw.choice((1, 1, 1, 2, 3)))
        fields = {
            "n": draw.choice((1, 2, 3, 4, 8, 16)), "max_tokens": draw.randint(1, 29),
            "temperature": draw.choice((0, 0.7, 1.0, 1.4)), "top_p": draw.choice((1.0, 0.9)),
            "stop": draw.choice(([], [], [")"], ["* ", "12"])), "seed": draw.randrange(2**31),
        }  # fmt: skip
        asked.append({"prompt": some, **fields})
        renamed = {"width": fields["n"], "max_new_tokens": fields["max_tokens"]}
        rest = {name: fields[name] for name in ("temperature", "top_p", "stop", "seed")}
        prompts += some
        params += [SamplingParams(**renamed, **rest)] * len(some)
    groups = iter(
        interlace.Engine(model, tokenizer).generate(prompts, params, sample_ids=[0] * len(prompts))
    )
    cases = []
    for fields in asked:
        mine = itertools.islice(groups, len(fields["prompt"]))
        rows = [(r.token_ids, r.text, r.finish_reason) for g in mine for r in g.completions]
        cases.append(Case(fields, rows))
    return cases


# Parts on tiny-bridge ----------------------------------------------------------------------------


@dataclass
class Bench:
    """What the parts share."""

    server: Server
    cases: list[Case]
    args: argparse.Namespace
    draw: random.Random = field(default_factory=lambda: random.Random(5))

    async def clients(
        self, count: int, more: Callable[[], bool]
    ) -> tuple[Counter[str], list[float]]:
        """Clients that ask while there is more; what became of it, and times to first tokens."""
        seen: Counter[str] = Counter()
        firsts: list[float] = []

        async def client(draw: random.Random) -> None:
            while more():
                stream, first = draw.random() < 0.5, []
                began = time.perf_counter()
                seen[await draw.choice(self.cases).ask(self.server, stream, first)] += 1
                seen["streams"] += stream
                firsts.extend(moment - began for moment in first if stream)

        await asyncio.gather(*(client(random.Random(seed)) for seed in range(count)))
        return seen, firsts

    async def beside(self, work: Awaitable[Any]) -> Counter[str]:
        """What becomes of another client's requests while the work is done."""
        job = asyncio.ensure_future(work)
        seen, _ = await self.clients(1, lambda: not job.done())
        await job
        return seen

    def freed(self) -> float | None:
        """Seconds until nothing is alive or held any more; None: not within a minute."""
        began = time.monotonic()
        names = ("rows_alive", "groups_in_flight", "groups_waiting")
        while time.monotonic() < began + 60:
            gauges = self.server.gauges()
            if not any(gauges[f"interlace_{name}"] for name in names):
                return round(time.monotonic() - began, 2)
            time.sleep(0.05)
        return None


def judged(seen: Counter[str]) -> dict[str, int]:
    whole = {name: seen[name] for name in ("right", "lost", "mixed up")}
    return {"requests": sum(whole.values()), "streams": seen["streams"], **whole}


def mixed(bench: Bench) -> dict[str, Any]:
    """Many clients for some minutes."""
    end = time.monotonic() + 60 * bench.args.minutes
    before = bench.server.gauges()
    seen, firsts = asyncio.run(bench.clients(bench.args.clients, lambda: time.monotonic() < end))
    tokens = bench.server.gauges()["interlace_tokens_total"] - before["interlace_tokens_total"]
    cut = statistics.quantiles(firsts, n=100)
    return judged(seen) | {
        "clients": bench.args.clients,
        "minutes": bench.args.minutes,
        "first_token_ms": {"p50": round(1e3 * cut[49]), "p99": round(1e3 * cut[98])},
        "tokens": int(tokens),
    }


def memory(bench: Bench) -> dict[str, Any]:
    """Does the server grow with its requests?"""
    measured, done = [], itertools.count()
    whole, every = bench.args.requests, max(1, bench.args.requests // 50)

    def more() -> bool:
        number = next(done)
        if number % every == 0 and number >= 2 * whole // 5:
            measured.append((number / 1000, bench.server.memory() * 1024))
        return number < whole

    seen, _ = asyncio.run(bench.clients(16, more))
    slope = statistics.linear_regression(*zip(*measured, strict=True)).slope
    return judged(seen) | {
        "slope_kib_per_1000_requests": round(slope, 1),
        "mib": [round(measured[at][1] / 1024, 1) for at in (0, -1)],
    }


def long_request(draw: random.Random) -> bytes:
    """A request that takes seconds."""
    some = {"prompt": "3 4 9 -> 21 :", "n": 8, "max_tokens": 250, "ignore_eos": True}
    return completion(**some, stream=draw.random() < 0.5, seed=draw.randrange(2**31))


def disconnects(bench: Bench) -> dict[str, Any]:
    """Clients that go away at random moments."""

    async def leave() -> None:
        _, writer = await asyncio.open_connection(bench.server.host, bench.server.port)
        writer.write(long_request(bench.draw))
        await asyncio.sleep(bench.draw.uniform(0, 0.5))
        if bench.draw.random() < 0.5:  # RST in place of FIN
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.close()

    async def all_of_them() -> None:
        for _ in range(bench.args.gone // 10):
            await asyncio.gather(*(leave() for _ in range(10)))

    return _gone(bench, all_of_them(), bench.args.gone // 10 * 10)


def kills(bench: Bench) -> dict[str, Any]:
    """Client processes that are killed at random moments."""
    where = [bench.server.host, str(bench.server.port)]

    async def die() -> None:
        command = [sys.executable, "-S", "-E", "-c", CLIENT, *where]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        process = await asyncio.create_subprocess_exec(*command, **pipes)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(long_request(bench.draw))
        process.stdin.close()
        await process.stdout.readline()
        await asyncio.sleep(bench.draw.uniform(0, 0.5))
        process.kill()
        await process.wait()

    async def all_of_them() -> None:
        for _ in range(bench.args.killed // 4):
            await asyncio.gather(*(die() for _ in range(4)))

    return _gone(bench, all_of_them(), bench.args.killed // 4 * 4)


def _gone(bench: Bench, work: Awaitable[None], count: int) -> dict[str, Any]:
    before = bench.server.memory()
    seen = asyncio.run(_run_beside(bench, work))
    freed = bench.freed()
    growth = round(bench.server.memory() - before, 1)
    return {"clients": count, "freed_after_s": freed, "growth_mib": growth, "others": judged(seen)}


async def _run_beside(bench: Bench, work: Awaitable[None]) -> Counter[str]:
    return await bench.beside(work)


# Bodies that are none ----------------------------------------------------------------------------

BODIES: dict[str, list[dict[str, Any]]] = {
    "/v1/completions": [
        {"prompt": "3 4 9 -> 21 :", "n": 3, "max_tokens": 5, "temperature": 0.7, "stop": ["x"]},
        {"prompt": [[5, 6], [7]], "echo": True, "logprobs": 2, "max_tokens": 0},
        {"prompt": ["3", "4"], "stream": True, "stream_options": {"include_usage": True}, "n": 2,
         "logit_bias": {"5": 1.5}, "presence_penalty": 1, "record_attention": "layers"},
        {"prompt": "3 4", "aggregate": {"method": "best_of_n"}, "coupled": True, "top_k": 3,
         "min_p": 0.1, "sample_id": "a", "return_token_ids": True, "stop_token_ids": [3]},
    ],
    "/v1/chat/completions": [
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}], "n": 2,
         "logprobs": True, "top_logprobs": 3, "max_completion_tokens": 4},
    ],
    "/tokenize": [{"prompt": "3 4"}, {"messages": [{"role": "user", "content": "a"}]}],
    "/playground/verdicts": [{"prompt": "3 4 9 -> 21 :", "pieces": [["3 *", " 4", " + 9"], []]}],
}  # fmt: skip
ODD: list[Any] = [
    None, True, False, 0, -1, 1, 2, 64, 65, 10**9, -(10**40), 1e308, 0.5, float("nan"),
    float("-inf"), "", "a", "\ud800", "\x00", "\u202e" * 9, "x" * 100_000, [], [[]], [None], {},
    {"a": {}}, [1] * 5000, ["a", 1], "0", "NaN", {"type": "text"}, [[[[[[[[]]]]]]]], b"",
]  # fmt: skip


def damaged(draw: random.Random) -> tuple[str, bytes]:
    """A path and a body that was valid."""
    path = draw.choice(list(BODIES))
    body = json.loads(json.dumps(draw.choice(BODIES[path])))
    for _ in range(draw.randint(1, 3)):
        _damage(draw, body)
    data = json.dumps(body, default=repr).encode("utf-8", "surrogatepass")
    for _ in range(draw.choice((0, 0, 0, 1, 4))):
        at, size = draw.randrange(len(data) + 1), draw.randint(0, 9)
        data = data[:at] + draw.randbytes(draw.randint(0, 3)) + data[at + size :]
    return path, data


def _damage(draw: random.Random, body: Any) -> None:
    """One entry of it or of a part of it: another value, gone, or new."""
    names = list(body) if isinstance(body, dict) else list(range(len(body)))
    inner = [n for n in names if isinstance(body[n], dict | list) and body[n]]
    if inner and draw.random() < 0.4:
        _damage(draw, body[draw.choice(inner)])
    elif names and draw.random() < 0.7:
        body[draw.choice(names)] = copy.deepcopy(draw.choice(ODD))
    elif names and draw.random() < 0.5:
        del body[draw.choice(names)]
    elif isinstance(body, dict):
        every = [name for some in BODIES.values() for one in some for name in one]
        body[draw.choice([*every, "tools", "best_of", "suffix", "temprature"])] = copy.deepcopy(
            draw.choice(ODD)
        )
    else:
        body.append(copy.deepcopy(draw.choice(ODD)))


def fuzz(bench: Bench) -> dict[str, Any]:
    """Damaged bodies; the first faults are shown."""
    left, draw = itertools.count(), random.Random(20261128)
    statuses: Counter[str] = Counter()
    faults: list[str] = []
    slowest = 0.0

    async def client() -> None:
        nonlocal slowest
        while next(left) < bench.args.bodies:
            path, body = damaged(draw)
            kind = draw.choice(["application/json"] * 20 + ["text/plain", "application/jsonx", "*"])
            began = time.perf_counter()
            try:
                work = exchange(bench.server, post(path, body, kind))
                status, reply = await asyncio.wait_for(work, 60)
            except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
                status, reply = 0, type(error).__name__.encode()
            seconds = time.perf_counter() - began
            statuses[str(status)] += 1
            slowest = max(slowest, seconds)
            wrong = b"Traceback" in reply or b"internal_error" in reply or seconds > SECONDS
            if wrong or not 200 <= status < 500:
                faults.append(f"{status} {seconds:.1f} s {path} {body[:300]!r} -> {reply[:200]!r}")

    async def clients() -> None:
        await asyncio.gather(*(client() for _ in range(4)))

    asyncio.run(clients())
    return {
        "bodies": bench.args.bodies,
        "statuses": dict(statuses.most_common()),
        "faults": len(faults),
        "shown": faults[:5],
        "slowest_s": round(slowest, 2),
        "right_after": asyncio.run(bench.cases[0].ask(bench.server, False)) == "right",
    }


def schemathesis(bench: Bench) -> dict[str, Any]:
    """Requests that schemathesis makes of our OpenAPI document."""
    tool = Path(".venv-clients/bin/schemathesis")
    if not tool.exists():
        return {"skipped": f"{tool} is not there: make clients"}
    base = f"http://127.0.0.1:{bench.server.port}"
    checks = "not_a_server_error,status_code_conformance,content_type_conformance"
    done = subprocess.run(
        [str(tool.absolute()), "run", f"{base}/openapi.json", "--checks", checks, "--seed", "5",
         "--no-color", "--max-examples", str(bench.args.examples), "--request-timeout", "60"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    told = done.stdout.splitlines()
    counts = [line.strip() for line in told if "test cases" in line or "generated" in line]
    found = told[-60:] if done.returncode else []
    return {"exit_code": done.returncode, "counts": counts, "found": found}


def hostile(bench: Bench) -> dict[str, Any]:
    """What no client should send; each answered with 4xx or closed, and others are served."""
    deep = b'{"prompt": ' + b"[" * 10_000 + b"]" * 10_000 + b"}"
    big = 10 * 2**20
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    texts = {
        "10 MB body": post("/v1/completions", b'{"prompt": "' + b"a" * big + b'"}'),
        "10 MB of brackets": post("/v1/completions", b"[" * big),
        "10 MB in chunks": head + b"Transfer-Encoding: chunked\r\n\r\n"
        + b"10000\r\n" + b"a" * 2**16 + b"\r\n" * (big // 2**16),
        "10 MB announced": head + b"Content-Length: 10485760\r\n\r\n",
        "10,000 deep": post("/v1/completions", deep),
        "no UTF-8": post("/v1/completions", b'{"prompt": "\xff\xfe"}'),
        "half a surrogate": post("/v1/completions", b'{"prompt": "\\ud800"}'),
        "10,000 headers": b"GET / HTTP/1.1\r\n" + b"X-A: b\r\n" * 10_000 + b"\r\n",
        "a header of 1 MB": b"GET / HTTP/1.1\r\nX-A: " + b"b" * 2**20 + b"\r\n\r\n",
        "a path of 1 MB": b"GET /" + b"b" * 2**20 + b" HTTP/1.1\r\n\r\n",
        "two lengths": head + b"Content-Length: 2\r\nContent-Length: 9\r\n\r\n{}",
        "a length below 0": head + b"Content-Length: -5\r\n\r\n{}",
        "chunks that are none": head + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n",
        "no HTTP": bytes(range(256)) * 40,
    }  # fmt: skip
    found = {name: asyncio.run(_told(bench.server, text)) for name, text in texts.items()}
    refused = sum(told == "closed" or told.startswith("4") for told in found.values())
    return {
        "sent": len(found),
        "refused": refused,
        "others": {name: told for name, told in found.items() if not told.startswith(("4", "cl"))},
        "slow_readers": _slow(bench),
    }


async def _told(server: Server, text: bytes) -> str:
    """The status, or that the connection was closed."""
    reader, writer = await asyncio.open_connection(server.host, server.port)
    try:
        writer.write(text)
        line = await asyncio.wait_for(reader.readline(), 30)
        return line.split()[1].decode() if line else "closed"
    except ConnectionError:
        return "closed"
    except TimeoutError:
        return "no answer in 30 s"
    finally:
        writer.close()


def _slow(bench: Bench) -> dict[str, Any]:
    """Streams that nobody reads; others are answered meanwhile."""
    request = completion(
        prompt="3 4", n=64, max_tokens=250, ignore_eos=True, stream=True, logprobs=20
    )
    before = bench.server.memory()
    slow = []
    for _ in range(4):
        one = socket.socket()
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        one.connect((bench.server.host, bench.server.port))
        one.sendall(request)
        slow.append(one)
    seen = asyncio.run(_run_beside(bench, asyncio.sleep(bench.args.slow)))
    grown = round(bench.server.memory() - before, 1)
    for one in slow:
        one.close()
    return {
        "clients": 4,
        "others": judged(seen),
        "grown_mib": grown,
        "freed_after_s": bench.freed(),
    }


TINY = {
    part.__name__: part for part in (mixed, memory, disconnects, kills, fuzz, schemathesis, hostile)
}


# Parts on SmolLM2-135M's shape -------------------------------------------------------------------


def shape_folder(folder: Path) -> Any:
    """A model of that shape with blocks, saved to be served; the model."""
    import torch
    from common.models import attach_random
    from train_step_trl import smollm2_shape, word_tokenizer

    model = smollm2_shape()
    tokenizer = word_tokenizer(model.config.vocab_size)
    model.to(torch.bfloat16).save_pretrained(folder / "plain")
    tokenizer.save_pretrained(folder / "plain")
    attach_random(model, seed=0, std=0.01)
    interlace.save(model.to(torch.bfloat16), folder / "bridge", full=True, tokenizer=tokenizer)
    return model


def prompts(count: int) -> list[list[int]]:
    draw = random.Random(3)
    return [[draw.randrange(10, 40_000) for _ in range(PROMPT_TOKENS)] for _ in range(count)]


def shape_request(prompt: list[int] | str, width: int, model: str, **more: Any) -> bytes:
    """One group, unstreamed."""
    return completion(
        model=model, prompt=prompt, n=width, max_tokens=NEW_TOKENS, ignore_eos=True, seed=1,
        temperature=1.0, **more,
    )  # fmt: skip


async def _all(server: Server, requests: list[bytes]) -> None:
    for status, body in await asyncio.gather(*(exchange(server, one) for one in requests)):
        if status != 200:
            raise SystemExit(f"{server.port} answered {status}: {body[:500]!r}")


def timed(server: Server, requests: list[bytes]) -> tuple[float, float]:
    """Seconds on the wall and of the processor for all requests at once."""
    began, used = time.perf_counter(), server.processor()
    asyncio.run(_all(server, requests))
    return time.perf_counter() - began, server.processor() - used


def offline(args: argparse.Namespace, server: Server, model: Any) -> dict[str, Any]:
    """The server's throughput over Engine's."""
    engine = interlace.Engine(model)
    asked = prompts(args.groups)
    params = SamplingParams(width=WIDTH, max_new_tokens=NEW_TOKENS, ignore_eos=True, seed=1)
    wall, processor = [], []
    for turn in range(args.rounds + 1):
        began, used = time.perf_counter(), time.process_time()
        engine.generate(asked, params)
        alone = time.perf_counter() - began, time.process_time() - used
        served = timed(server, [shape_request(one, WIDTH, "shape") for one in asked])
        say(f"offline {alone[0]:.1f} s, {alone[1]:.1f} s CPU; served {served}")
        if turn:  # the first is a warm-up
            wall.append(alone[0] / served[0])
            processor.append(alone[1] / served[1])
    return {"groups": args.groups, "wall": spread(wall), "processor": spread(processor)}


def spread(ratios: list[float]) -> list[float]:
    """Median, smallest, largest."""
    return [round(f(ratios), 3) for f in (statistics.median, min, max)]


def peers(args: argparse.Namespace, server: Server, folder: Path) -> dict[str, Any]:
    """Requests a second, ours over theirs."""
    asked = prompts(args.groups)
    one_each = {"interlace": (server, [shape_request(p, WIDTH, "shape") for p in asked])}
    skipped = {}
    with contextlib.ExitStack() as stack:
        for name, start in (("llama.cpp", _llama), ("vllm", _vllm)):
            python = getattr(args, name.replace(".cpp", ""))
            if python is None:
                skipped[name] = "its environment was not given"
                continue
            peer, requests = start(python, folder, asked)
            stack.callback(peer.stop)
            one_each[name] = peer, requests
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in one_each}
        for _ in range(args.rounds + 1):
            for name, (peer, requests) in one_each.items():
                times[name].append(timed(peer, requests))
                say(f"{name}: {times[name][-1]}")
    mine = times.pop("interlace")[1:]
    ratios = {
        name: {
            "wall": spread([b[0] / a[0] for a, b in zip(mine, theirs[1:], strict=True)]),
            "processor": spread([b[1] / a[1] for a, b in zip(mine, theirs[1:], strict=True)]),
        }
        for name, theirs in times.items()
    }
    return {"groups": args.groups, "ours_over": ratios, "skipped": skipped}


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _llama(python: str, folder: Path, asked: list[list[int]]) -> tuple[Server, list[bytes]]:
    from decode import bf16_gguf

    port = free_port()
    command = [python, "-m", "llama_cpp.server", "--model", str(bf16_gguf(folder)), "--port",
               str(port), "--n_threads", "1", "--n_threads_batch", "1", "--n_ctx", "512",
               "--model_alias", "peer", "--verbose", "false"]  # fmt: skip
    server = Server(command, port)
    server.wait("/v1/models")
    draw = random.Random(3)
    texts = [" ".join(draw.choices(WORDS, k=PROMPT_TOKENS)) for _ in asked]
    more = {"logit_bias": ENDS, "logit_bias_type": "input_ids"}
    return server, [shape_request(one, 1, "peer", **more) for one in texts for _ in range(WIDTH)]


def _vllm(python: str, folder: Path, asked: list[list[int]]) -> tuple[Server, list[bytes]]:
    port = free_port()
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder / "plain"),
               "--port", str(port), "--host", "127.0.0.1", "--dtype", "bfloat16", "--enforce-eager",
               "--max-model-len", "512", "--served-model-name", "peer"]  # fmt: skip
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    server = Server(command, port, PYTHONPATH="", **environment)
    server.wait()
    return server, [shape_request(one, WIDTH, "peer") for one in asked]


# All of it ---------------------------------------------------------------------------------------


def on_tiny(args: argparse.Namespace, parts: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The parts that one server of tiny-bridge answers, and how it ended."""
    server = ours("--max-tokens", "250", "--max-queue", "1000")
    try:
        bench = Bench(server, catalogue(args.cases), args)
        for name in parts:
            yield name, TINY[name](bench)
    finally:
        ended = server.stop()
    yield "end", ended


def on_shape(args: argparse.Namespace, parts: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The parts that measure speed."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        model = shape_folder(place)
        server = ours(str(place / "bridge"), "--dtype", "bfloat16", "--served-model-name", "shape")
        try:
            if "offline" in parts:
                yield "offline", offline(args, server, model)
            if "peers" in parts:
                yield "peers", peers(args, server, place)
        finally:
            server.stop()


def main() -> None:
    """Run the parts."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--parts", default=",".join([*TINY, "offline", "peers"]))
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--cases", type=int, default=400, help="requests of the catalogue")
    parser.add_argument("--requests", type=int, default=5000, help="of the part memory")
    parser.add_argument("--gone", type=int, default=500, help="clients that disconnect")
    parser.add_argument("--killed", type=int, default=200, help="clients that are killed")
    parser.add_argument("--bodies", type=int, default=10_000, help="of the part fuzz")
    parser.add_argument("--examples", type=int, default=300, help="of schemathesis an operation")
    parser.add_argument(
        "--slow", type=float, default=10, help="seconds of readers that do not read"
    )
    parser.add_argument("--groups", type=int, default=4, help="requests in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--llama", help="python that has llama-cpp-python's server")
    parser.add_argument("--vllm", help="python that has vLLM")
    parser.add_argument("--quick", action="store_true", help="every part but peers, seconds each")
    args = parser.parse_args()
    parts = args.parts.split(",")
    if unknown := set(parts) - {*TINY, "offline", "peers"}:
        parser.error(f"no parts: {', '.join(sorted(unknown))}")
    if args.quick:
        args.minutes, args.clients, args.cases, args.requests = 0.05, 8, 20, 50
        args.gone, args.killed, args.bodies, args.examples, args.slow = 10, 4, 100, 2, 1
        parts = [name for name in parts if name in TINY]
    result: dict[str, Any] = {"benchmark": "serve", "quick": args.quick}
    tiny = [name for name in parts if name in TINY]
    for run, some in ((on_tiny, tiny), (on_shape, [name for name in parts if name not in TINY])):
        for name, found in run(args, some) if some else ():
            say(f"{name}: {json.dumps(found)}")
            result[name] = found
    print(json.dumps(result))


if __name__ == "__main__":
    main()
