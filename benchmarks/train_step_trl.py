"""How long is one optimizer step of TRL's GRPOTrainer, phase by phase?

The other side of a comparison of training steps: `TrlTraining` builds TRL's real trainer (Hugging
Face generation, no vLLM) and runs it one optimizer step at a time, so that it can take turns with
another trainer in one process. As a script it measures TRL alone.

Method
- `train` of the trainer runs in a thread of its own, which waits between two steps; nothing of its
  loop is replaced. Two of its methods are wrapped with a clock. The phases of a step:
  `rollout` (tokenise, generate, decode), `score_backward` (rewards, advantages, the teacher-forced
  passes, backward), `optimizer` (clipping, the update, gradients freed) and `other` (data loading);
  `total` is their sum.
- One update for each rollout and no KL, so that TRL skips the old and the reference
  log-probabilities. No activation checkpointing, no autocast: everything is computed in `dtype`.
- Every row has all its tokens (`full_length`): end tokens are forbidden, so that steps are alike.
- The default clock is CPU time of the process, which other processes' turns on the core do not
  enter; on a GPU, wall time, with the device synchronised at each mark.
- glibc is told to keep freed memory. One unmeasured step comes first; reported are the medians.

Usage: python benchmarks/train_step_trl.py [--prompts 2] [--generations 8] [--tokens 32]
    [--micro-batch-rows ROWS] [--repeats 3] [--dtype float32] [--quick]
Progress goes to stderr; the last line of stdout is one JSON object. Needs `pip install trl`;
without, the object says so.
"""

from __future__ import annotations

import argparse
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
from common.models import SMOLLM2, attach_random
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    TrainerCallback,
)

ENVIRONMENT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "-1"}
PHASES = ("rollout", "score_backward", "optimizer", "other", "total")
DATASET_REPEATS = 1000  # an epoch's end costs a new data loader: make it rare
Reward = Callable[..., list[float]]


def odd_share(completion_ids: Sequence[Sequence[int]], **columns: Any) -> list[float]:
    """A reward that differs between rows and costs nothing: the share of odd token ids."""
    return [sum(i % 2 for i in ids) / max(len(ids), 1) for ids in completion_ids]


class TrlTraining:
    """TRL's GRPOTrainer, one optimizer step at a time, with the seconds of its phases.

    Args:
        model: the model, which is taken over: moved to `dtype`, patched by TRL, and trained.
        tokenizer: its tokenizer.
        prompts: the texts of one optimizer step; every step has the same ones.
        num_generations: rollouts a prompt.
        max_completion_length: tokens of a completion, at most.
        dtype: what the model computes in.
        micro_batch_rows: rows of one forward and backward pass; by default all rows of the step.
        full_length: forbid end tokens, so that every completion has all its tokens.
        temperature: of sampling and scoring.
        learning_rate: of AdamW, constant.
        reward: TRL's signature; by default `odd_share`.
        clock: seconds; by default CPU time of the process, or wall time on a GPU.
        settings: other fields of GRPOConfig, `loss_type` for instance.

    >>> with TrlTraining(model, tokenizer, ["What is 2 + 3?"], 8, 64) as training:  # doctest: +SKIP
    ...     training.step()
    {'rollout': 2.1, 'score_backward': 1.4, 'optimizer': 0.2, 'other': 0.0, 'total': 3.7}
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[str],
        num_generations: int,
        max_completion_length: int,
        dtype: torch.dtype = torch.float32,
        *,
        micro_batch_rows: int | None = None,
        full_length: bool = True,
        temperature: float = 1.0,
        learning_rate: float = 1e-6,
        reward: Reward = odd_share,
        clock: Callable[[], float] | None = None,
        **settings: Any,
    ) -> None:
        from datasets import Dataset
        from trl import GRPOConfig, GRPOTrainer

        rows = len(prompts) * num_generations
        micro_batch_rows = micro_batch_rows or rows
        if rows % micro_batch_rows:
            raise ValueError(
                f"TRL wants micro-batches of equally many rows; {rows} rows cannot be split into "
                f"{micro_batch_rows} each."
            )
        self._cuda = next(model.parameters()).device.type == "cuda"
        self._clock = clock or (time.perf_counter if self._cuda else time.process_time)
        self._folder = tempfile.TemporaryDirectory()  # TRL wants one; nothing is saved
        config = GRPOConfig(
            output_dir=self._folder.name,
            use_cpu=not self._cuda,
            bf16=False,
            activation_checkpointing=False,
            per_device_train_batch_size=micro_batch_rows,
            gradient_accumulation_steps=rows // micro_batch_rows,
            num_generations=num_generations,
            max_completion_length=max_completion_length,
            generation_kwargs={"min_new_tokens": max_completion_length} if full_length else None,
            temperature=temperature,
            learning_rate=learning_rate,
            lr_scheduler_type="constant",
            shuffle_dataset=False,
            max_steps=10**9,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            **settings,
        )
        self._trainer = GRPOTrainer(
            model=model.to(dtype),
            reward_funcs=reward,
            args=config,
            train_dataset=Dataset.from_dict({"prompt": list(prompts) * DATASET_REPEATS}),
            processing_class=tokenizer,
            callbacks=[_Turns(self)],
        )
        self._trainer.remove_callback(transformers.PrinterCallback)  # stdout is the caller's
        self._trainer._generate = self._timed("rollout", self._trainer._generate)
        self._trainer.training_step = self._timed("training_step", self._trainer.training_step)
        self._seconds: dict[str, float] = {}
        self._step_ended = 0.0
        self._threads = torch.get_num_threads()
        self._ours, self._theirs = threading.Semaphore(0), threading.Semaphore(0)
        self._closing = False
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._train, daemon=True)

    def step(self) -> dict[str, float]:
        """Run one whole optimizer step: roll out, score, backward, update.

        Returns:
            Seconds by phase (`PHASES`).

        Raises:
            RuntimeError: if TRL's training ended, by an error (its cause) or a `close`.
        """
        if not self._thread.is_alive():
            if self._closing or self._failure:
                raise RuntimeError("This training has ended; build another.") from self._failure
            self._thread.start()
            self._ours.acquire()  # set up, and at the door of the first step
            self._check()
        self._seconds = {"rollout": 0.0, "training_step": 0.0}
        began = self._mark()
        self._theirs.release()
        self._ours.acquire()
        self._check()
        total = self._step_ended - began
        passes = self._seconds["training_step"]
        optimizer = self._step_ended - self._seconds["passes_ended"]
        return {
            "rollout": self._seconds["rollout"],
            "score_backward": passes - self._seconds["rollout"],
            "optimizer": optimizer,
            "other": total - passes - optimizer,
            "total": total,
        }

    def close(self) -> None:
        """End the training and its thread."""
        self._closing = True
        if self._thread.is_alive():
            self._theirs.release()
            self._thread.join()
        self._folder.cleanup()

    def __enter__(self) -> TrlTraining:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _train(self) -> None:
        torch.set_num_threads(self._threads)  # OpenMP keeps the number for each thread
        try:
            self._trainer.train()
        except BaseException as error:
            self._failure = error
        self._ours.release()

    def _check(self) -> None:
        if self._failure is not None:
            raise RuntimeError("TRL's training failed.") from self._failure

    def _mark(self) -> float:
        if self._cuda:
            torch.cuda.synchronize()
        return self._clock()

    def _timed(self, phase: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            began = self._mark()
            result = method(*args, **kwargs)
            ended = self._mark()
            self._seconds[phase] += ended - began
            if phase == "training_step":
                self._seconds["passes_ended"] = ended
            return result

        return timed

    def _hand_over(self, control: Any) -> None:
        """In TRL's thread: let the caller go on, and wait for its next step."""
        self._step_ended = self._mark()
        self._ours.release()
        self._theirs.acquire()
        control.should_training_stop = control.should_epoch_stop = self._closing


class _Turns(TrainerCallback):
    """Hands the turn over before the first step and after each."""

    def __init__(self, training: TrlTraining) -> None:
        self._training = training

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._training._hand_over(control)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._training._hand_over(control)


def smollm2_shape(**changes: int) -> LlamaForCausalLM:
    """SmolLM2-135M without its weights, or a model of which some sizes differ."""
    config = LlamaConfig(
        **(SMOLLM2 | changes),
        attn_implementation="sdpa",
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config)


def short_smollm2_with_bridge(layers: int) -> LlamaForCausalLM:
    """The same cut to a few layers, with blocks that do something."""
    model = smollm2_shape()
    del model.model.layers[layers:]
    model.config.num_hidden_layers = layers
    return attach_random(model, seed=0, std=0.01)


def arguments(doc: str, quick: dict[str, Any], **sizes: Any) -> argparse.Namespace:
    """Flags of a benchmark: its sizes with their defaults, and --quick with those that it sets."""
    parser = argparse.ArgumentParser(description=doc.split("\n")[0])
    for name, default in sizes.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    said = ", ".join(f"{name} {value}" for name, value in quick.items())
    parser.add_argument("--quick", action="store_true", help=said)
    args = parser.parse_args()
    return argparse.Namespace(**vars(args) | (quick if args.quick else {}))


def word_tokenizer(size: int) -> PreTrainedTokenizerFast:
    """One token a word: token i is `w{i}`, but for padding, the end and the unknown."""
    words = ["<pad>", "<end>", "<unk>", *(f"w{i}" for i in range(3, size))]
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<end>", unk_token="<unk>"
    )


def random_prompts(count: int, length: int, vocabulary: int) -> list[str]:
    """Prompts for `word_tokenizer`."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, vocabulary, (count, length), generator=generator)
    return [" ".join(f"w{i}" for i in row) for row in ids.tolist()]


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Medians of the phases over the measured steps."""
    import trl

    model = smollm2_shape()
    vocabulary = model.config.vocab_size
    with TrlTraining(
        model,
        word_tokenizer(vocabulary),
        random_prompts(args.prompts, args.prompt_tokens, vocabulary),
        args.generations,
        args.tokens,
        getattr(torch, args.dtype),
        micro_batch_rows=args.micro_batch_rows,
    ) as training:
        steps = []
        for repeat in range(args.repeats + 1):
            steps.append(training.step())
            print(f"step {repeat}: {json.dumps(steps[-1])}", file=sys.stderr, flush=True)
    return {
        "benchmark": "train_step_trl",
        "model": "random, of SmolLM2-135M's shape",
        "rows": args.prompts * args.generations,
        "prompt_tokens": args.prompt_tokens,
        "new_tokens": args.tokens,
        "dtype": args.dtype,
        "repeats": args.repeats,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "trl": trl.__version__,
        "machine": platform.processor() or platform.machine(),
        "seconds": {p: round(statistics.median(s[p] for s in steps[1:]), 3) for p in PHASES},
    }


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--generations", type=int, default=8, help="rollouts a prompt")
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=32, help="new tokens for each row")
    parser.add_argument("--micro-batch-rows", type=int, help="default: all rows")
    parser.add_argument("--repeats", type=int, default=3, help="measured steps")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--quick", action="store_true", help="2 rollouts of 8 tokens, 1 step")
    args = parser.parse_args()
    if args.quick:
        args.generations, args.tokens, args.repeats = 2, 8, 1
    if importlib.util.find_spec("trl") is None:
        print(json.dumps({"benchmark": "train_step_trl", "skipped": "trl is not installed"}))
        return
    if os.environ | ENVIRONMENT != os.environ:
        os.execve(sys.executable, sys.orig_argv, os.environ | ENVIRONMENT)
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    print(json.dumps(measure(args)))


if __name__ == "__main__":
    main()
