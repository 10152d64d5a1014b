"""Clients that people use, in an environment of their own (`make clients`), against a real process.

Each asks for choices that Engine gives, too: a client that loses or mixes up choices shows.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import interlace
from interlace import SamplingParams
from support.server import byte_engine, serving

CLIENTS = Path(__file__).parents[2] / ".venv-clients"
PROMPT, WIDTH, SEED, TOKENS = "A prompt: ", 3, 7, 9
CHAT = [{"role": "user", "content": "Hello"}]
FIELDS = {"n": WIDTH, "seed": SEED, "max_tokens": TOKENS, "temperature": 1.0}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CLIENTS.exists(), reason="no .venv-clients: make clients builds it"),
]


@pytest.fixture(scope="module")
def twin() -> interlace.Engine:
    return byte_engine()


@pytest.fixture(scope="module")
def folder(twin: interlace.Engine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model, whose tokens are bytes and which has a chat template."""
    place = tmp_path_factory.mktemp("model") / "bytes"
    interlace.save(twin.model, place, full=True, tokenizer=twin.tokenizer)
    return place


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    with serving(str(folder), "--max-tokens", "64") as (_, address):
        yield address


def wanted(twin: interlace.Engine, prompt: Any, width: int = WIDTH) -> list[str]:
    params = SamplingParams(width=width, seed=SEED, max_new_tokens=TOKENS)
    return twin.generate([prompt], params)[0].texts


def run(command: list[str], home: Path, **variables: str) -> str:
    """What a client's program prints; it finds no settings of the user's."""
    environment = os.environ | {
        "HOME": str(home), "HF_HUB_OFFLINE": "1", "OPENAI_API_KEY": "none",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True", "PYTHONPATH": "", "LLM_USER_PATH": str(home),
    }  # fmt: skip
    done = subprocess.run(
        command, env=environment | variables, cwd=home, capture_output=True, text=True,
        check=False, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def program(name: str) -> str:
    path = CLIENTS / (name if "/" in name else f"bin/{name}")
    if not path.exists():
        pytest.skip(f"{name} is not installed in .venv-clients")
    return str(path)


def python(code: str, home: Path, *arguments: str, **variables: str) -> Any:
    """The JSON in the last line that Python code of a client prints."""
    module = code.split("import ", 1)[1].split()[0].split(".")[0]
    if not list((CLIENTS / "lib").glob(f"python*/site-packages/{module}")):
        pytest.skip(f"{module} is not installed in .venv-clients")
    head = "import json, sys\naddress = sys.argv[1]\n"
    head += f"PROMPT, CHAT, FIELDS = {PROMPT!r}, {CHAT!r}, {FIELDS!r}\n"
    command = [program("python"), "-c", head + code, *arguments]
    return json.loads(run(command, home, **variables).strip().split("\n")[-1])


NODE = """
import OpenAI from "openai";
const [address, prompt, chat, fields] = process.argv.slice(2).map((word) => JSON.parse(word));
const client = new OpenAI({ baseURL: `${address}/v1`, apiKey: "none", maxRetries: 0 });
const asked = { model: "bytes", ...fields };
const whole = await client.completions.create({ ...asked, prompt });
const talked = await client.chat.completions.create({ ...asked, messages: chat });
const texts = Array(fields.n).fill("");
let usage = null;
const options = { stream: true, stream_options: { include_usage: true } };
for await (const chunk of await client.chat.completions.create(
  { ...asked, messages: chat, ...options })) {
  for (const choice of chunk.choices) texts[choice.index] += choice.delta.content ?? "";
  usage = chunk.usage ?? usage;
}
let refused = null;
try { await client.completions.create({ ...asked, prompt, n: 1000 }); }
catch (error) { refused = [error.status, error.param]; }
console.log(JSON.stringify({ completions: whole.choices.map((c) => c.text),
  chat: talked.choices.map((c) => c.message.content), streamed: texts, usage, refused,
  models: (await client.models.list()).data.map((m) => m.id) }));
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_openai_for_node(address: str, twin: interlace.Engine, tmp_path: Path) -> None:
    if not (CLIENTS / "node_modules" / "openai").exists():
        pytest.skip("npm's openai is not installed in .venv-clients")
    (tmp_path / "node_modules").symlink_to(CLIENTS / "node_modules")
    (tmp_path / "client.mjs").write_text(NODE)
    words = [json.dumps(word) for word in (address, PROMPT, CHAT, FIELDS)]
    found = json.loads(run(["node", "client.mjs", *words], tmp_path))
    assert found["completions"] == wanted(twin, PROMPT)
    assert found["chat"] == found["streamed"] == wanted(twin, CHAT)
    assert found["usage"]["prompt_tokens"] > 0
    assert found["refused"] == [400, "n"]
    assert found["models"] == ["bytes"]


LITELLM = """
import litellm
place = {"api_base": f"{address}/v1", "api_key": "none"}
text = litellm.text_completion(
    model="text-completion-openai/bytes", prompt=PROMPT, **FIELDS, **place)
chat = litellm.completion(
    model="openai/bytes", messages=CHAT, logprobs=True, top_logprobs=2, **FIELDS, **place)
parts = {}
for chunk in litellm.completion(
    model="openai/bytes", messages=CHAT, stream=True, **FIELDS, **place):
    for choice in chunk.choices:
        parts[choice.index] = parts.get(choice.index, "") + (choice.delta.content or "")
print(json.dumps({"text": [c.text for c in text.choices],
    "chat": [c.message.content for c in chat.choices],
    "streamed": "".join(parts[index] for index in sorted(parts)),
    "top": len(chat.choices[2].logprobs.content[0].top_logprobs),
    "used": chat.usage.completion_tokens}))
"""


def test_litellm(address: str, twin: interlace.Engine, tmp_path: Path) -> None:
    found = python(LITELLM, tmp_path, address)
    assert found["text"] == wanted(twin, PROMPT)
    assert found["chat"] == wanted(twin, CHAT)
    assert sorted(found["streamed"]) == sorted("".join(wanted(twin, CHAT)))
    assert found["top"] == 2
    assert found["used"] > WIDTH


LANGCHAIN = """
import langchain_openai
from langchain_core.messages import HumanMessage
place = {"base_url": f"{address}/v1", "api_key": "none", "model": "bytes"}
chat = langchain_openai.ChatOpenAI(**place, **FIELDS)
found = [one.message.content for one in chat.generate([[HumanMessage("Hello")]]).generations[0]]
text = langchain_openai.OpenAI(**place, **FIELDS)
texts = [one.text for one in text.generate([PROMPT]).generations[0]]
single = langchain_openai.ChatOpenAI(**place, **(FIELDS | {"n": 1}))
streamed = "".join(part.content for part in single.stream("Hello"))
print(json.dumps({"chat": found, "text": texts, "streamed": streamed}))
"""


def test_langchain(address: str, twin: interlace.Engine, tmp_path: Path) -> None:
    found = python(LANGCHAIN, tmp_path, address)
    assert found["chat"] == wanted(twin, CHAT)
    assert found["text"] == wanted(twin, PROMPT)
    assert [found["streamed"]] == wanted(twin, CHAT, width=1)


def test_llm(address: str, twin: interlace.Engine, tmp_path: Path) -> None:
    """The command `llm`, which asks for one choice."""
    model = {"model_id": "mine", "model_name": "bytes", "api_base": f"{address}/v1"}
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps([model]))
    asked = ["-m", "mine", "-o", "seed", str(SEED), "-o", "max_tokens", str(TOKENS), "Hello"]
    for more in (["--no-stream"], []):
        said = run([program("llm"), *asked, *more], tmp_path)
        assert [said.strip()] == [text.strip() for text in wanted(twin, CHAT, width=1)]


INSPECT = """
import inspect_ai.model
from inspect_ai.model import GenerateConfig, get_model
import asyncio
config = GenerateConfig(num_choices=3, seed=FIELDS["seed"], max_tokens=FIELDS["max_tokens"],
    temperature=1.0, logprobs=True, top_logprobs=2)
async def main():
    model = get_model("openai-api/local/bytes", base_url=f"{address}/v1", api_key="none",
        config=config)
    output = await model.generate("Hello")
    print(json.dumps({"texts": [choice.message.text for choice in output.choices],
        "logprobs": [len(choice.logprobs.content) for choice in output.choices]}))
asyncio.run(main())
"""


def test_inspect_ai(address: str, twin: interlace.Engine, tmp_path: Path) -> None:
    found = python(INSPECT, tmp_path, address)
    assert found["texts"] == wanted(twin, CHAT)
    assert all(1 <= count <= TOKENS for count in found["logprobs"])


LM_EVAL = """
import lm_eval
from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalCompletionsAPI
model = LocalCompletionsAPI(base_url=f"{address}/v1/completions", model="bytes",
    tokenizer=sys.argv[2], max_length=200, seed=FIELDS["seed"], num_concurrent=2)
pairs = [("A prompt:", " yes"), ("A prompt:", " no"), ("Another:", " so it is")]
scored = [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(pairs)]
until = {"until": ["e", "z"], "max_gen_toks": 9, "temperature": 0, "do_sample": False}
asked = [Instance("generate_until", {}, (PROMPT, until), 0)]
print(json.dumps({"scores": model.loglikelihood(scored), "texts": model.generate_until(asked)}))
"""


def test_lm_eval(address: str, folder: Path, twin: interlace.Engine, tmp_path: Path) -> None:
    """Log-likelihoods by echo, and generation; the oracle is the model itself."""
    found = python(LM_EVAL, tmp_path, address, str(folder / "base"))
    pairs = [("A prompt:", " yes"), ("A prompt:", " no"), ("Another:", " so it is")]
    for (score, greedy), (context, answer) in zip(found["scores"], pairs, strict=True):
        ids = torch.tensor([twin.tokenizer(context + answer)["input_ids"]])
        with torch.inference_mode():
            logprobs = twin.model.eval()(ids).logits[0].log_softmax(-1)
        tail = range(ids.shape[1] - len(answer) - 1, ids.shape[1] - 1)
        total = sum(float(logprobs[at, ids[0, at + 1]]) for at in tail)
        assert score == pytest.approx(total, abs=1e-3)
        assert greedy == all(int(logprobs[at].argmax()) == int(ids[0, at + 1]) for at in tail)
    params = SamplingParams(max_new_tokens=9, temperature=0, stop=["e", "z"])
    assert found["texts"] == twin.generate([PROMPT], params)[0].texts


def test_llm_comply(address: str, tmp_path: Path) -> None:
    """Its checks of chat completions, but for tools, images and reasoning, which the server refuses
    by name, and for a request without a model, which it answers. Random weights seldom end."""
    command = [program("llm-comply"), "run", "--format", "openai-chat", "-u", f"{address}/v1",
               "-k", "none", "-m", "bytes", "--json"]  # fmt: skip
    names = ["basic-response", "system-prompt", "multi-turn", "streaming-response",
             "streaming-usage"]  # fmt: skip
    command += ["-i", "expected 'stop'"]
    told = run([*command, "-f", ",".join(f"chat-{name}" for name in names)], tmp_path)
    report = json.loads(told[told.index("{") :])
    assert len(report["results"]) == len(names)
    for result in report["results"]:
        assert result["status"] == "passed", result
        assert not [w for w in result.get("warnings", []) if "expected 'stop'" not in w], result


def test_schemathesis(address: str, tmp_path: Path) -> None:
    """Requests made of our own OpenAPI document: no 5xx, and no reply that it does not announce."""
    checks = "not_a_server_error,status_code_conformance,content_type_conformance"
    run([program("schemathesis"), "run", f"{address}/openapi.json", "--checks", checks,
         "--max-examples", "20", "--request-timeout", "60", "--seed", "5"], tmp_path)  # fmt: skip


def test_aiperf(address: str, folder: Path, tmp_path: Path) -> None:
    """A load run by a tool of others: every request counts."""
    asked = {
        "model": "bytes", "url": address, "endpoint-type": "chat", "tokenizer": folder / "base",
        "concurrency": 4, "request-count": 24, "synthetic-input-tokens-mean": 20,
        "output-tokens-mean": 12, "ui": "none", "artifact-dir": tmp_path / "out",
    }  # fmt: skip
    words = [str(word) for name, value in asked.items() for word in (f"--{name}", value)]
    command = [program("aiperf/bin/aiperf"), "profile", "--streaming", *words]
    run(command, tmp_path, HF_HUB_OFFLINE="")  # set, it takes no folder
    (report,) = (tmp_path / "out").rglob("profile_export_aiperf.json")
    found = json.loads(report.read_text())
    assert found["request_count"]["avg"] == 24
