"""What does one optimizer step of GRPO cost with Bridge, without, and with TRL, phase by phase?

Question: seconds of a whole optimizer step and of its phases (rollout, verify, score, backward,
optimizer) with Bridge (5 % new parameters, W_O random) over the same model without, and of ours
without Bridge over TRL's GRPOTrainer with Hugging Face generation, at the same sizes and dtype.

Method
- Model: random, of SmolLM2-135M's shape, sdpa attention, on the CPU, one thread. Each contender has
  a copy of the same weights, the same prompts, and one update for each rollout; every row gets all
  its tokens (end tokens are switched off). The reward is the share of odd token ids.
- Each contender's real trainer runs in a thread that waits between two steps, so that they take
  turns in one process: each repeat runs A, B, C, C, B, A, and its ratios are of the sums over it,
  so that a drift of the machine's speed cancels. One unmeasured step of each comes first.
- The clock is CPU time of the process (one thread works at a time), which other processes' turns on
  the core do not enter. glibc is told to keep freed memory.
- TRL's score and backward cannot be told apart without changing it, so they are one phase there.
- Reported: medians of the repeats' ratios with their smallest and largest, and median seconds.

Usage: python benchmarks/train_step.py [--prompts 2] [--generations 8] [--tokens 32] [--repeats 3]
    [--dtype float32 bfloat16] [--quick]
Progress goes to stderr; the last line of stdout is one JSON object. Without TRL (`pip install
trl`) the first comparison alone is made.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import os
import platform
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers
from common.models import attach_random
from train_step_trl import (
    ENVIRONMENT,
    TrlTraining,
    odd_share,
    random_prompts,
    smollm2_shape,
    word_tokenizer,
)
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

import interlace
from interlace.tasks.base import Example, Task, Verdict

PHASES = ("rollout", "verify", "score", "backward", "optimizer", "total")


class Words(Task):
    """Prompts without a right answer: the reward does not ask for one."""

    def __init__(self, prompts: Sequence[str]) -> None:
        examples = [Example(f"words-{i}", prompt, "") for i, prompt in enumerate(prompts)]
        super().__init__("words", examples, split="train", chat=False, template="{question}")

    def normalise(self, answer: str) -> str | None:
        """Any text is its own form."""
        return answer

    def check(self, example: Example, answer: str) -> Verdict:
        """Nothing is right."""
        return Verdict(False, 0.0, answer, "no reference")


class OurTraining:
    """Interlace's GRPOTrainer, one optimizer step at a time, with the seconds of its phases.

    Args:
        model: taken over and trained.
        tokenizer: its tokenizer.
        prompts: the texts of one optimizer step.
        num_generations: of a prompt.
        max_new_tokens: that every row gets.
        width: W.
        **options: Further ones of GRPOConfig.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[str],
        num_generations: int,
        max_new_tokens: int,
        width: int,
        **options: Any,
    ) -> None:
        self._folder = tempfile.TemporaryDirectory()
        config = interlace.GRPOConfig(
            output_dir=self._folder.name,
            use_cpu=True,
            prompts_per_rollout=len(prompts),
            num_generations=num_generations,
            width=width,
            max_new_tokens=max_new_tokens,
            max_steps=10**6,
            learning_rate=1e-6,
            lr_scheduler_type="constant",
            rewards={"train_step:odd": 1.0},
            log_completions=0,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **options,
        )
        model.generation_config.eos_token_id = model.config.eos_token_id = None
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.eos_token = None
        task = Words(prompts)
        self._trainer = interlace.GRPOTrainer(
            model, None, config, task, processing_class=tokenizer, callbacks=[_Turns(self)]
        )
        self._trainer.remove_callback(transformers.PrinterCallback)
        self._seconds: dict[str, float] = {}
        trainer: Any = self._trainer
        sampler = trainer.sampler(model)
        sampler.generate = self._timed("rollout", sampler.generate)
        trainer._judge = self._timed("verify", trainer._judge)
        trainer.accelerator.backward = self._timed("backward", trainer.accelerator.backward)
        trainer.training_step = self._timed("passes", trainer.training_step)
        self._ours, self._theirs = threading.Semaphore(0), threading.Semaphore(0)
        self._closing = False
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._train, daemon=True)

    def step(self) -> dict[str, float]:
        """Run one whole optimizer step; seconds by phase."""
        if not self._thread.is_alive():
            self._thread.start()
            self._ours.acquire()
            self._check()
        self._seconds = {}
        began = time.process_time()
        self._theirs.release()
        self._ours.acquire()
        self._check()
        total, s = time.process_time() - began, self._seconds
        inside = s["rollout"] + s["verify"] + s["backward"]
        return {
            "rollout": s["rollout"],
            "verify": s["verify"],
            "score": s["passes"] - inside,
            "backward": s["backward"],
            "optimizer": total - s["passes"],
            "total": total,
        }

    def close(self) -> None:
        """End the training and its thread."""
        self._closing = True
        if self._thread.is_alive():
            self._theirs.release()
            self._thread.join()
        self._folder.cleanup()

    def hand_over(self, control: Any) -> None:
        """In the trainer's thread: let the caller go on, and wait for its next step."""
        self._ours.release()
        self._theirs.acquire()
        control.should_training_stop = control.should_epoch_stop = self._closing

    def _train(self) -> None:
        torch.set_num_threads(1)
        try:
            self._trainer.train()
        except BaseException as error:
            self._failure = error
        self._ours.release()

    def _check(self) -> None:
        if self._failure is not None:
            raise RuntimeError("The training failed.") from self._failure

    def _timed(self, phase: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.process_time()
            result = method(*args, **kwargs)
            spent = time.process_time() - began
            self._seconds[phase] = self._seconds.get(phase, 0.0) + spent
            return result

        return timed


class _Turns(TrainerCallback):
    def __init__(self, training: OurTraining) -> None:
        self._training = training

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._training.hand_over(control)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._training.hand_over(control)


def odd(prompts: Any, completions: Any, **columns: Any) -> list[float]:
    """As the other side's reward."""
    return odd_share(**columns)


def contenders(args: argparse.Namespace, dtype: torch.dtype) -> dict[str, Any]:
    """The trainers, each with a copy of the same weights."""
    model = smollm2_shape().to(dtype)
    vocabulary = model.config.vocab_size
    tokenizer = word_tokenizer(vocabulary)
    prompts = random_prompts(args.prompts, args.prompt_tokens, vocabulary)
    bridged = attach_random(copy.deepcopy(model), seed=0, std=0.01)
    sizes = (args.generations, args.tokens)
    found: dict[str, Any] = {}
    if importlib.util.find_spec("trl") is not None:
        found["trl"] = TrlTraining(copy.deepcopy(model), tokenizer, prompts, *sizes, dtype)
    found["bridge"] = OurTraining(bridged, tokenizer, prompts, *sizes, args.generations)
    found["plain"] = OurTraining(model, tokenizer, prompts, *sizes, args.generations)
    return found


def measure(args: argparse.Namespace, name: str) -> dict[str, Any]:
    """Ratios and seconds in one dtype."""
    trainers = contenders(args, getattr(torch, name))
    order = [*trainers, *reversed(trainers)]
    for trainer in trainers.values():
        trainer.step()
    repeats: list[dict[str, dict[str, float]]] = []
    for repeat in range(args.repeats):
        sums: dict[str, dict[str, float]] = {key: {} for key in trainers}
        for key in order:
            for phase, seconds in trainers[key].step().items():
                sums[key][phase] = sums[key].get(phase, 0.0) + seconds / 2
        repeats.append(sums)
        print(f"{name} repeat {repeat}: {json.dumps(sums)}", file=sys.stderr, flush=True)
    for trainer in trainers.values():
        trainer.close()
    result: dict[str, Any] = {
        "seconds": {
            key: {p: round(statistics.median(r[key][p] for r in repeats), 3) for p in sums[key]}
            for key in trainers
        },
        "bridge_over_plain": {p: _ratio(repeats, "bridge", "plain", p) for p in PHASES},
    }
    if "trl" in trainers:
        for key in ("plain", "bridge"):
            result[f"trl_over_{key}"] = {
                p: _ratio(repeats, "trl", key, p) for p in ("rollout", "total")
            }
    return result


def _ratio(repeats: Sequence[Any], over: str, under: str, phase: str) -> list[float]:
    """Median, smallest and largest."""
    ratios = [r[over][phase] / r[under][phase] for r in repeats]
    return [round(x, 3) for x in (statistics.median(ratios), min(ratios), max(ratios))]


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--generations", type=int, default=8, help="rollouts a prompt, and width")
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=32, help="new tokens for each row")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument(
        "--quick", action="store_true", help="1 prompt, 4 rollouts of 8 tokens, fp32, 1 repeat"
    )
    args = parser.parse_args()
    if args.quick:
        args.prompts, args.generations, args.tokens, args.repeats = 1, 4, 8, 1
        args.dtype = args.dtype[:1]
    if os.environ | ENVIRONMENT != os.environ:
        os.execve(sys.executable, sys.orig_argv, os.environ | ENVIRONMENT)
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    print(
        json.dumps(
            {
                "benchmark": "train_step",
                "model": "random, of SmolLM2-135M's shape",
                "rows": args.prompts * args.generations,
                "prompt_tokens": args.prompt_tokens,
                "new_tokens": args.tokens,
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "machine": platform.processor() or platform.machine(),
                "results": {name: measure(args, name) for name in args.dtype},
            }
        )
    )


if __name__ == "__main__":
    main()
