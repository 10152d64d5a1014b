"""Trainers of a tiny random model on sums whose numbers are its words, and what a run leaves."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback

import interlace
from interlace.tasks.base import Example, Task, Verdict
from interlace.training.arguments import GRPOConfig, WarmupConfig
from interlace.training.grpo import GRPOTrainer
from interlace.training.trainer import GroupTrainer
from interlace.training.warmup import WarmupTrainer
from support.architectures import attach_random
from support.text import NUMBERS, number_folder, number_model, number_tokenizer, sums

QUIET: dict[str, Any] = {"use_cpu": True, "report_to": "none", "disable_tqdm": True}
OF_TRAINER = ("reward_funcs", "train_dataset", "eval_dataset", "optimizers", "peft_config")
MIXED: dict[str, Any] = {
    "prompts_per_rollout": 4,
    "num_generations": 6,
    "width": [1, 2, 3, 6],
    "max_new_tokens": 9,
    "rewards": {"correctness": 1.0, "support.training:shorter": 0.5},
    "learning_rate": 1e-3,
}


def shorter(
    prompts: Sequence[Any], completions: Sequence[str], **columns: Any
) -> list[float | None]:
    """A reward that differs between rows, though hardly any is right."""
    return [-len(text) / 10 for text in completions]


class Evens(Task):
    """Sums for which every even number will do, so that a random model is often right."""

    def __init__(self, size: int = 10) -> None:
        super().__init__("evens", sums(size)[:], split="train", chat=False)

    def check(self, example: Example, answer: str) -> Verdict:
        """Whether the answer is even."""
        right = answer.isdigit() and int(answer) % 2 == 0
        return Verdict(right, float(right), answer, "by its last bit")


def grpo(
    folder: Path | str,
    model: PreTrainedModel | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    **options: Any,
) -> GRPOTrainer:
    """GRPO with mixed widths on a model with random blocks (W_O, too).

    `options` are of GRPOConfig, and those in `OF_TRAINER` of the trainer.
    """
    options_of_trainer = {name: options.pop(name) for name in OF_TRAINER if name in options}
    args = GRPOConfig(output_dir=str(folder), **QUIET | MIXED | {"max_steps": 1} | options)
    model = tiny_model() if model is None else model
    return GRPOTrainer(
        model,
        options_of_trainer.pop("reward_funcs", None),
        args,
        options_of_trainer.pop("train_dataset", Evens()),
        processing_class=number_tokenizer(),
        callbacks=callbacks,
        **options_of_trainer,
    )


def warmup(
    folder: Path | str,
    model: PreTrainedModel | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    **options: Any,
) -> WarmupTrainer:
    """The warm-up of a model with random blocks, whose base is in a folder beside."""
    options_of_trainer = {name: options.pop(name) for name in OF_TRAINER if name in options}
    common = {"max_steps": 1, "groups_per_step": 5, "max_new_tokens": 9, "learning_rate": 1e-2}
    args = WarmupConfig(output_dir=str(folder), **QUIET | common | options)
    model = stored_model(Path(folder) / "start") if model is None else model
    return WarmupTrainer(
        model,
        args=args,
        train_dataset=options_of_trainer.pop("train_dataset", Evens()),
        processing_class=number_tokenizer(),
        callbacks=callbacks,
        **options_of_trainer,
    )


def stored_model(place: Path) -> PreTrainedModel:
    """A model with random blocks whose base is in a folder, so that blocks can be saved alone."""
    return stopping(attach_random(interlace.load(number_folder(place))[0]))


def tiny_model(blocks: str | None = "bridge", **options: Any) -> PreTrainedModel:
    """A model with random blocks (W_O, too)."""
    return stopping(number_model(blocks, **options))


def stopping(model: PreTrainedModel) -> PreTrainedModel:
    """The model with so many end tokens that rows finish at all lengths."""
    config: Any = model.generation_config
    config.eos_token_id = [NUMBERS.index(word) for word in ("<end>", "5", "7", "16")]
    return model


def write_responses(path: Path, count: int = 12) -> Path:
    """Responses of 1 to 4 rows of 1 to 7 words: ragged groups."""
    lines = []
    for number in range(count):
        rows = [
            " ".join(str((number + 3 * row + word) % 19) for word in range(1 + (number + row) % 7))
            for row in range(1 + number % 4)
        ]
        lines.append(json.dumps({"prompt": " 7 " * (1 + number % 3), "responses": rows}))
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def metrics(folder: Path) -> list[dict[str, float]]:
    """metrics.jsonl without what a clock says."""
    clocks = ("seconds/", "tokens_per_second/")
    lines = read_lines(folder / "metrics.jsonl")
    return [{k: v for k, v in line.items() if not k.startswith(clocks)} for line in lines]


def gradients(trainer: GroupTrainer) -> dict[str, Tensor]:
    """Run to the end and give the gradients of every optimizer step, summed, as they were before
    clipping."""
    found: dict[str, Tensor] = {}

    class Note(TrainerCallback):
        def on_pre_optimizer_step(self, *args: Any, model: nn.Module, **kwargs: Any) -> None:
            for name, parameter in model.named_parameters():
                if parameter.grad is not None:
                    whole = getattr(parameter.grad, "full_tensor", lambda p=parameter: p.grad)()
                    found[name] = found.get(name, 0) + whole.detach().clone()

    trainer.add_callback(Note())
    trainer.args.max_grad_norm = 0.0
    trainer.train()
    return found


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], relative: float) -> None:
    """The distance of two sets of tensors, over the norm of the expected, tensor by tensor."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        gap = (found[name] - tensor).norm() / tensor.norm().clamp(min=1e-12)
        assert gap <= relative, f"{name}: {gap:.2g}"


def at_step(step: int, action: Callable[[], None]) -> TrainerCallback:
    """A callback that acts when this optimizer step is done, before it is logged or saved."""

    class Act(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == step:
                action()

    return Act()


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters, whole."""
    return {
        name: getattr(p, "full_tensor", lambda p=p: p)().detach().clone()
        for name, p in model.named_parameters()
    }


def same_bits(found: dict[str, Tensor], expected: dict[str, Tensor]) -> list[str]:
    """The names of tensors that are the same, bit for bit."""
    return [name for name in expected if torch.equal(found[name], expected[name])]


def noise(prompts: Sequence[Any], completions: Sequence[str], **columns: Any) -> list[float | None]:
    """A reward that reads Python's generator: a resumed run must have it as it was."""
    return [random.random() for _ in completions]
