"""How much of the package does one prompt pass, and one optimizer step?

Question: through how many files and functions of `src/interlace` goes `Engine.generate` of three
tokens for one prompt, and one GRPO step (rollout, verdicts, advantages, loss, backward, optimizer),
so that a reader knows what stands between a call and its numbers?

Method
- The packaged model `tiny-bridge` (the untrained `tiny` with fresh blocks for the step) on the CPU.
- Everything that only happens once, imports above all, is done before counting: the same call is
  made once uncounted, and of optimizer steps the third is counted.
- `sys.setprofile` and `threading.setprofile` see every call of a Python function. Distinct code
  objects of functions and methods are counted, with their files; module bodies, class bodies,
  comprehensions and lambdas are not functions that a reader looks for.

Usage: python benchmarks/trace.py [--list]
`--list` names files and functions on stderr; the last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import transformers
from transformers import TrainerCallback

import interlace

SOURCE = str(Path(interlace.__file__).parent)
WIDTH, TOKENS = 4, 3


@contextmanager
def counting(found: set[CodeType]) -> Iterator[None]:
    """Collect the functions of the package that are called within this context."""

    def note(frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(SOURCE) and code.co_name[0] != "<":
            found.add(code)

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        yield
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def one_prompt() -> set[CodeType]:
    """`Engine.generate` of three tokens for each of four rows."""
    model, tokenizer = interlace.load("tiny-bridge")
    engine = interlace.Engine(model, tokenizer)
    params = interlace.SamplingParams(width=WIDTH, max_new_tokens=TOKENS, seed=0)
    prompt = interlace.tasks.get_task("tiny-countdown")
    prompts = [prompt.prompt(prompt[0])]
    engine.generate(prompts, params)
    found: set[CodeType] = set()
    with counting(found):
        engine.generate(prompts, params)
    return found


class ThirdStep(TrainerCallback):
    """Count between the beginning and the end of the third optimizer step."""

    def __init__(self, found: set[CodeType]) -> None:
        self.found = found
        self.running: Any = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2:
            self.running = counting(self.found)
            self.running.__enter__()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.running is not None:
            self.running.__exit__(None, None, None)
            self.running = None


def one_step() -> set[CodeType]:
    """The third optimizer step of GRPO with Bridge blocks."""
    model, tokenizer = interlace.load("tiny")
    interlace.attach(model, interlace.BridgeConfig(parameter_share=0.05), seed=0)
    found: set[CodeType] = set()
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(model, tokenizer, folder, ThirdStep(found))
        trainer.train()
    return found


def make_trainer(model: Any, tokenizer: Any, folder: str, callback: TrainerCallback) -> Any:
    """A GRPO trainer that makes three optimizer steps and says nothing."""
    quiet: dict[str, Any] = {"use_cpu": True, "report_to": "none", "disable_tqdm": True}
    sizes = {"prompts_per_rollout": 4, "width": WIDTH, "max_new_tokens": 8, "max_steps": 3}
    args = interlace.GRPOConfig(output_dir=folder, **quiet, **sizes)
    task = interlace.tasks.get_task("tiny-countdown")
    return interlace.GRPOTrainer(
        model, None, args, train_dataset=task, processing_class=tokenizer, callbacks=[callback]
    )


def summary(found: set[CodeType]) -> dict[str, int]:
    """How many files and functions."""
    return {"files": len({code.co_filename for code in found}), "functions": len(found)}


def listed(name: str, found: set[CodeType]) -> None:
    """Name what was passed, file by file, on stderr."""
    print(name, file=sys.stderr)
    for file in sorted({code.co_filename for code in found}):
        names = sorted(code.co_qualname for code in found if code.co_filename == file)
        print(f"  {file[len(SOURCE) + 1 :]}: {', '.join(names)}", file=sys.stderr)


def main() -> None:
    """Count both and print the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--list", action="store_true", help="name files and functions on stderr")
    parser.add_argument("--quick", action="store_true", help="the prompt alone, without a step")
    options = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    traces: dict[str, Callable[[], set[CodeType]]] = {
        "one_prompt": one_prompt,
        **({} if options.quick else {"one_step": one_step}),
    }
    result: dict[str, Any] = {"benchmark": "trace"}
    for name, trace in traces.items():
        found = trace()
        result[name] = summary(found)
        if options.list:
            listed(name, found)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
