"""What works with the core's packages alone, and what each missing extra says.

Everything runs in a child process in which the packages of all extras cannot be found.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

# PyYAML stays: transformers and huggingface-hub need it, so it is always there.
EXTRAS = (
    *("accelerate", "datasets", "tensorboard", "rich", "scipy", "matplotlib", "lm_eval", "gguf"),
    *("sentencepiece", "math_verify", "reasoning_gym", "rouge_score", "jsonargparse", "pebble"),
    *("fastapi", "uvicorn", "sse_starlette", "prometheus_client", "peft", "trl"),
)
BLOCK = f"""
import importlib.machinery, sys
real = importlib.machinery.PathFinder.find_spec
def find_spec(name, path=None, target=None):
    return None if name.partition(".")[0] in {EXTRAS!r} else real(name, path, target)
importlib.machinery.PathFinder.find_spec = staticmethod(find_spec)
import importlib.util
assert importlib.util.find_spec("rich") is None
import interlace
"""


def child(code: str, folder: Path) -> str:
    """What a child process without the extras prints."""
    command = [sys.executable, "-W", "error", "-c", BLOCK + code]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def test_the_core_attaches_samples_scores_saves_and_loads(tmp_path: Path) -> None:
    code = """
import torch
model, tokenizer = interlace.load("tiny", device="cpu", dtype="float32")
interlace.attach(model, interlace.BridgeConfig(parameter_share=0.05), seed=0)
engine = interlace.Engine(model, tokenizer)
params = interlace.SamplingParams(width=4, max_new_tokens=5)
(group,) = engine.generate(["3 7 12 > 16:"], params)
batch = interlace.collate([group], tokenizer.pad_token_id or 0)
assert interlace.score(model, batch).logprobs.shape[:2] == (1, 4)
model.generate(**tokenizer("3 7", return_tensors="pt"), num_return_sequences=4, max_new_tokens=2)
interlace.save(model, "out", full=True, tokenizer=tokenizer)
again, _ = interlace.load("out")
assert interlace.majority_vote(["7", "7", "3"]).winner == "7"
assert 0 < interlace.pass_at_k(4, 2, 1) < 1
task = interlace.tasks.get_task("tiny-countdown")
print("all done", len(group.completions))
"""
    assert "all done 4" in child(code, tmp_path)


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [
        ("GRPOTrainer", "accelerate", "train"),
        ("GRPOConfig", "accelerate", "train"),
        ("WarmupTrainer", "accelerate", "train"),
        ("WarmupConfig", "accelerate", "train"),
        ("evaluate", "scipy", "eval"),
    ],
)
def test_a_name_without_its_extra_says_what_to_install(
    name: str, package: str, extra: str, tmp_path: Path
) -> None:
    code = f"""
try:
    interlace.{name}
except ImportError as error:
    print(type(error).__name__, error)
assert "torch" not in sys.modules
"""
    assert child(code, tmp_path).splitlines() == [
        f"MissingDependencyError interlace.{name} needs the package {package}, which is not "
        f'installed: pip install "interlace[{extra}]"'
    ]


def test_a_command_without_its_extras_says_what_to_install(tmp_path: Path) -> None:
    code = """
from interlace.cli.main import COMMANDS, main
import contextlib, io
assert main(["--help"]) == main(["--version"]) == 0
for name in COMMANDS:
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        assert main([name, "--help"]) == 2
    print(said.getvalue(), end="")
assert "torch" not in sys.modules
"""
    lines = child(code, tmp_path).splitlines()
    said = [line for line in lines if line.startswith("interlace: ")]
    wanted = {
        "compare": "cli,eval",
        "demo": "cli,train,eval",
        "eval": "cli,eval",
        "export": "cli",
        "generate": "cli",
        "info": "cli",
        "serve": "cli,serve",
        "tasks": "cli",
        "train": "cli,train",
    }
    assert said == [
        f"interlace: `interlace {name}` needs the package rich, which is not installed: "
        f'pip install "interlace[{extras}]"'
        for name, extras in wanted.items()
    ]


@pytest.mark.parametrize(
    ("code", "extra"),
    [
        ("interlace.load('tiny.gguf')", "gguf"),
        ("from interlace.evaluation.intervals import mean_interval as f; f([1.0, 2.0])", "eval"),
        ("interlace.tasks.get_task('gsm8k')[0]", "train"),
        ("interlace.tasks.get_task('rg:basic_arithmetic')", "tasks"),
        ("import interlace.integrations.lm_eval", "lm-eval"),
    ],
)
def test_a_call_without_its_extra_says_what_to_install(
    code: str, extra: str, tmp_path: Path
) -> None:
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF")
    lines = f"""
import numpy
try:
    {code.replace("[1.0, 2.0]", "numpy.array([1.0, 2.0])")}
except ImportError as error:
    print(type(error).__name__, error)
"""
    (said,) = child(lines, tmp_path).splitlines()
    assert said.startswith("MissingDependencyError ")
    assert f'which is not installed: pip install "interlace[{extra}]"' in said
