"""What does a GPU make of the engine? One command, one page, within nine minutes.

Question: do the tests that need a GPU pass; are the static step's tokens those of Hugging Face's
modules; what does a step cost at widths 1, 8 and 32, with and without Bridge blocks, for models of
135 million, 1.5 and 8 billion parameters, and how far is that from reading the weights once; what
does an optimizer step of GRPO cost; how much memory do 4,096 tokens a row take?

Method
- Nothing is installed or downloaded: models have random weights in the shapes of SmolLM2-135M,
  Qwen2.5-1.5B and Llama-3.1-8B, in bf16. Blocks add 5 % of parameters; their W_O is random.
- It needs torch 2.11 or newer and a version of transformers that the package supports; it says
  which wheels to bring where one is missing.
- A step is the difference of two calls, of all tokens and of two, by the number of steps between,
  after a call that captured the graphs; contenders run in turn, and the median counts. The floor is
  the time to read the weights of a step once, at the speed at which the device copies memory.
- GRPO: a rollout of 2 groups of 8 rows, their teacher-forced pass, backward, AdamW, at the 1.5B
  shape with blocks; random advantages.
- Memory: the peak of a call at width 8 whose rows may get 4,096 tokens, of which it takes a few,
  since the static step makes room for all of them at once; less the model.
- Sections run in the order of their worth; one that does not fit in what is left of the time is
  skipped, and the page says so. One that fails leaves its error there.

Usage: python benchmarks/gpu_report.py [--output gpu-report] [--minutes 9] [--quick]
It writes gpu-report.json and gpu-report.md. `--quick` goes the same ways on a CPU with tiny models.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import transformers
from common.models import SMOLLM2, attach_random
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

import interlace
from interlace.training.batch import collate
from interlace.training.scoring import score

ROOT = Path(__file__).parents[1]
LLAMA_8B = LlamaConfig(
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    max_position_embeddings=8192,
)
QWEN_1_5B = Qwen2Config(
    vocab_size=151936,
    hidden_size=1536,
    intermediate_size=8960,
    num_hidden_layers=28,
    num_attention_heads=12,
    num_key_value_heads=2,
    max_position_embeddings=8192,
    tie_word_embeddings=True,
)
SMOLLM_135M = LlamaConfig(**SMOLLM2, max_position_embeddings=8192)
SHAPES = {"135M": SMOLLM_135M, "1.5B": QWEN_1_5B, "8B": LLAMA_8B}
WIDTHS = (1, 8, 32)


@dataclass
class Report:
    """What was found, and what is left of the time.

    Args:
        device: Device to measure.
        tiny: Whether sizes are those of a test.
        seconds: Time that the whole may take.
    """

    device: torch.device
    tiny: bool
    seconds: float
    sections: dict[str, Any] = field(default_factory=dict)
    began: float = field(default_factory=time.perf_counter)

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self.seconds - (time.perf_counter() - self.began)

    def section(self, name: str, seconds: float, run: Callable[[Report], Any]) -> None:
        """Run a section that takes about so many seconds, if there are so many left."""
        began = time.perf_counter()
        if self.left < seconds:
            self.sections[name] = {"skipped": f"{self.left:.0f} s left, about {seconds:.0f} needed"}
        else:
            try:
                self.sections[name] = run(self)
            except Exception as error:
                self.sections[name] = {"failed": f"{type(error).__name__}: {error}"[:500]}
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        took = time.perf_counter() - began
        print(f"{name}: {took:.0f} s, {self.sections[name]}", file=sys.stderr, flush=True)

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def clocked(self, run: Callable[[], Any]) -> float:
        """Seconds of a call, the device's part included."""
        self.wait()
        began = time.perf_counter()
        run()
        self.wait()
        return time.perf_counter() - began

    def model(self, shape: str, bridge: bool, dtype: torch.dtype = torch.bfloat16) -> Any:
        """A random model of a shape on the device."""
        config = SHAPES[shape]
        if self.tiny:
            sizes = {"vocab_size": 97, "hidden_size": 24, "intermediate_size": 40}
            heads = {"num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2}
            config = type(config)(**sizes, **heads, max_position_embeddings=8192)
        torch.manual_seed(0)
        with self.device:
            model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
            if bridge:
                attach_random(model)
        return model


def params(width: int, tokens: int, **changes: Any) -> interlace.SamplingParams:
    """Rows of so many tokens each."""
    return interlace.SamplingParams(
        width=width, max_new_tokens=tokens, ignore_eos=True, seed=1, **changes
    )


def prompt_of(length: int, vocabulary: int) -> list[int]:
    """A random prompt."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(1, vocabulary, (length,), generator=generator).tolist()


def tests(report: Report) -> Any:
    """The tests that are marked gpu; on a CPU, whether they could run."""
    where = ["--version"] if report.tiny else ["-q", "-n", "0", "-m", "gpu"]
    command = [sys.executable, "-m", "pytest", *where]
    done = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=max(1.0, report.left),
        check=False,
    )
    lines = (done.stdout + done.stderr).strip().splitlines()
    return {"exit code": done.returncode, "said": lines[-8:]}


def equality(report: Report) -> Any:
    """Static steps against Hugging Face's modules: the same tokens in fp32, and how far apart
    log-probabilities are."""
    model = report.model("135M", bridge=True, dtype=torch.float32)
    prompts = [prompt_of(n, 90) for n in (7, 30, 12)]
    asked = [params(width, 24) for width in (4, 1, 7)]
    made = {
        name: interlace.Engine(model, backend=name).generate(prompts, asked)
        for name in ("graph", "hf")
    }
    rows = [
        (one.token_ids, other.token_ids, one.logprobs, other.logprobs)
        for group, twin in zip(made["graph"], made["hf"], strict=True)
        for one, other in zip(group.completions, twin.completions, strict=True)
    ]
    same = [a == b for a, b, _, _ in rows]
    gaps = [abs(x - y) for a, b, p, q in rows if a == b for x, y in zip(p, q, strict=True)]
    return {
        "rows": len(rows),
        "rows with the same tokens": sum(same),
        "largest gap of log-probabilities": max(gaps, default=None),
    }


def bandwidth(report: Report) -> float:
    """Bytes a second that the device reads and writes when it copies."""
    size = 2**20 if report.tiny else 2**30
    source = torch.empty(size, dtype=torch.uint8, device=report.device)
    target = torch.empty_like(source)
    times = [report.clocked(lambda: target.copy_(source)) for _ in range(5)]
    return 2 * size / min(times)


def bytes_of_step(model: Any) -> int:
    """What a step reads of a model: all but the embedding of the tokens, unless it is the head,
    too."""
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    embedding = model.get_input_embeddings().weight
    if embedding is model.get_output_embeddings().weight:
        return weights
    return weights - embedding.numel() * embedding.element_size()


def steps(shape: str) -> Callable[[Report], Any]:
    """The section about one shape."""

    def run(report: Report) -> Any:
        speed, tokens = bandwidth(report), 6 if report.tiny else 66
        prompt = prompt_of(10 if report.tiny else 100, 90)
        models = {"plain": report.model(shape, bridge=False), "bridge": report.model(shape, True)}
        floors = {name: bytes_of_step(model) / speed * 1e3 for name, model in models.items()}
        engines = {
            f"{name} {backend}": interlace.Engine(model, backend=backend)
            for name, model in models.items()
            for backend in ("graph", "hf")
        }
        found: dict[str, Any] = {"floor ms": floors, "widths": {}}
        for width in WIDTHS[: 2 if report.tiny else None]:
            times: dict[str, list[float]] = {name: [] for name in engines}
            for repeat in range(2 if report.tiny else 4):
                for name, engine in engines.items():
                    whole, first = (
                        report.clocked(partial(engine.generate, [prompt], params(width, n)))
                        for n in (tokens, 2)
                    )
                    if repeat:
                        times[name].append((whole - first) / (tokens - 2) * 1e3)
            step = {name: statistics.median(ms) for name, ms in times.items()}
            found["widths"][width] = {
                "step ms": step,
                "bridge over plain": step["bridge graph"] / step["plain graph"],
                "modules over static": step["plain hf"] / step["plain graph"],
                "share of the floor": floors["plain"] / step["plain graph"],
            }
        return found

    return run


def grpo(report: Report) -> Any:
    """Seconds of an optimizer step at the 1.5B shape, by phase."""
    model = report.model("1.5B", bridge=True)
    engine = interlace.Engine(model, backend="graph")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    prompts = [prompt_of(n, 90) for n in (40, 50)]
    tokens = 8 if report.tiny else 128
    seconds: dict[str, list[float]] = {"rollout": [], "score and backward": [], "optimizer": []}
    for repeat in range(3):
        made: dict[str, Any] = {}

        def rollout(made: dict[str, Any] = made) -> None:
            made["batch"] = collate(engine.generate(prompts, params(8, tokens)), 0)

        def learn(made: dict[str, Any] = made) -> None:
            batch = made["batch"].to(report.device)
            logprobs = score(model, batch).logprobs
            advantages = torch.randn(logprobs.shape[:2], device=report.device)[..., None]
            mask = batch.completion_mask
            (-(advantages * logprobs * mask).sum() / mask.sum()).backward()

        def update() -> None:
            optimizer.step()
            optimizer.zero_grad()

        for name, phase in zip(seconds, (rollout, learn, update), strict=True):
            took = report.clocked(phase)
            if repeat:
                seconds[name].append(took)
    return {name: statistics.median(times) for name, times in seconds.items()}


def memory(report: Report) -> Any:
    """Peak memory of a call whose rows may get 4,096 tokens, beside the model."""
    model, tokens = report.model("1.5B", bridge=True), 256 if report.tiny else 4096
    on_gpu = report.device.type == "cuda"
    before = torch.cuda.memory_allocated() if on_gpu else 0
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    engine = interlace.Engine(model, backend="graph")
    with engine.stream(prompt_of(100, 90), params(8, tokens)) as stream:
        for number, _ in enumerate(stream):
            if number == 8:
                break
    peak = torch.cuda.max_memory_allocated() - before if on_gpu else None
    return {
        "tokens a row": tokens,
        "width": 8,
        "peak bytes": peak,
        "keys and values": nbytes(engine),
    }


def nbytes(engine: interlace.Engine) -> int:
    """What the engine's keys and values take."""
    return engine.core.backend.nbytes


def versions() -> dict[str, str]:
    """What is used here.

    Raises:
        SystemExit: for a version that is too old, with the wheels to bring.
    """
    major, minor = (int(part) for part in torch.__version__.split(".")[:2])
    if (major, minor) < (2, 11):
        sys.exit(f"torch is {torch.__version__}; bring a wheel of torch 2.11 or newer.")
    wanted = [
        line for line in metadata.requires("interlace") or () if line.startswith("transformers")
    ]
    found = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    if not (5, 17) <= found < (6, 0):
        sys.exit(f"transformers is {transformers.__version__}; bring a wheel of {wanted}.")
    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def page(result: dict[str, Any]) -> str:
    """The report as Markdown."""
    lines = ["# GPU report", ""]
    lines += [f"- {name}: {result[name]}" for name in result if name != "sections"]
    command = "python benchmarks/gpu_report.py" + " --quick" * result["quick"]
    lines += ["", f"Made by `{command}`, whose head tells the method.", ""]
    if result["quick"]:
        lines += [
            "Tiny models on a CPU, whatever the sections are called: nothing about a GPU.",
            "",
        ]
    for name, section in result["sections"].items():
        lines += [f"## {name}", ""]
        widths = section.get("widths")
        lines += [f"- {key}: {rounded(v)}" for key, v in section.items() if key != "widths"]
        if widths:
            columns = [*next(iter(widths.values()))["step ms"]]
            others = [key for key in next(iter(widths.values())) if key != "step ms"]
            head = ["width", *(f"{c}, ms" for c in columns), *others]
            lines += ["", f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
            for width, row in widths.items():
                cells = [*row["step ms"].values(), *(row[key] for key in others)]
                lines.append(f"| {width} | {' | '.join(map(rounded, cells))} |")
        lines.append("")
    return "\n".join(lines)


def rounded(value: Any) -> str:
    """A number with four digits; anything else as it is."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {rounded(part)}" for key, part in value.items())
    return str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("gpu-report"))
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--quick", action="store_true", help="tiny models, on the CPU")
    args = parser.parse_args()
    used = versions()
    if not args.quick and not torch.cuda.is_available():
        print(json.dumps({"skipped": "there is no GPU here; --quick goes the same ways on a CPU"}))
        return
    args.output.parent.mkdir(parents=True, exist_ok=True)  # before minutes of work, not after
    device = torch.device("cpu" if args.quick else "cuda")
    warnings.filterwarnings("ignore", message="The blocks add")
    transformers.logging.set_verbosity_error()
    report = Report(device, args.quick, 60 * args.minutes - 15)
    report.section("equality", 30, equality)
    report.section("tests", 60, tests)
    for shape, seconds in (("1.5B", 60), ("8B", 120), ("135M", 40)):
        report.section(f"steps {shape}", seconds, steps(shape))
    report.section("grpo", 40, grpo)
    report.section("memory", 30, memory)
    name = platform.machine() if args.quick else torch.cuda.get_device_name()
    took = round(time.perf_counter() - report.began, 1)
    facts = {"device": name, "quick": args.quick, **used, "seconds": took}
    result = {**facts, "sections": report.sections}
    args.output.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    args.output.with_suffix(".md").write_text(page(result))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
