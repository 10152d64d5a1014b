"""Two optimizer steps of TRL's own GRPOTrainer, recorded: what it sampled, and every gradient.

Nothing of TRL is replaced. Its `train` tokenises the prompts, generates, rewards, scores, splits
the rows into micro-batches and accumulates; a subclass writes down what passes through its methods,
and a callback the gradients at the moment when the optimizer would use them. Both steps train on
the same rollouts (`num_iterations=2`), and in between every weight is moved at random, as a large
step would: in the second step the log-probabilities differ from those at sampling.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState
from trl import GRPOConfig, GRPOTrainer

from interlace.training.batch import GroupBatch, collate_ids
from support.architectures import build, randomise
from support.text import tiny_tokenizer

PROMPTS = ["w20 w21 w22 w23 w24 w25 w26", "w30 w31", "w40 w41 w42 w43"]
ROLLOUTS = 4
LONGEST = 12
SAMPLED = 10  # less than is allowed, or a divisor of one could pass for the other
ENDS = [2, *range(60, 97)]  # so many end tokens that random rows end at different lengths
TEMPERATURE = 0.7
# By row: a plain prompt, one without variance, and one whose rewards are no halves or quarters.
REWARDS = [1.0, 0.0, 0.0, 1.0, 0.5, 0.5, 0.5, 0.5, 0.3, -1.2, 0.7, 0.1]
MOVES = {"policy": 0.1, "step": 0.1}


@dataclass
class Step:
    """One optimizer step: the weights it started from, and what TRL made of them."""

    model: PreTrainedModel
    loss: float = 0.0
    gradients: dict[str, Tensor] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass
class Run:
    """What TRL did.

    Attributes:
        reference: the frozen reference's weights.
        sampler: the weights that sampled.
        rollouts: TRL's tensors, one row a completion, before it shuffles them.
        steps: the two optimizer steps.
    """

    reference: PreTrainedModel
    sampler: PreTrainedModel
    rollouts: dict[str, Tensor] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)

    def batch(self, width: int = ROLLOUTS) -> GroupBatch:
        """The rollouts as groups: their tokens alone, masks and padding are made anew."""
        rows = {
            kind: [
                ids[mask.bool()].tolist()
                for ids, mask in zip(
                    self.rollouts[f"{kind}_ids"], self.rollouts[f"{kind}_mask"], strict=True
                )
            ]
            for kind in ("prompt", "completion")
        }
        starts = range(0, len(rows["prompt"]), width)
        return collate_ids(
            [rows["prompt"][i] for i in starts],
            [rows["completion"][i : i + width] for i in starts],
            pad_token_id=0,
        )


class RecordingTrainer(GRPOTrainer):
    """TRL's trainer, which also writes down what it computes."""

    run: Run

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Tensor]:
        output: dict[str, Tensor] = super()._generate_and_score_completions(inputs)
        assert not self.run.rollouts, "both steps share one set of rollouts"
        self.run.rollouts = {name: value.clone() for name, value in output.items()}
        return output

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        loss: Tensor = super().compute_loss(model, inputs, *args, **kwargs)
        self.run.steps[-1].loss += float(loss.detach())
        return loss


class Recorder(TrainerCallback):
    """Weights when a step begins, gradients when it ends; between two steps, the weights move."""

    def __init__(self, trainer: RecordingTrainer) -> None:
        self.trainer = trainer

    def on_step_begin(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        steps = self.trainer.run.steps
        if steps:
            randomly_moved(self.trainer.model, MOVES["step"], seed=6)
        steps.append(Step(twin(self.trainer.run.sampler, self.trainer.model)))

    def on_pre_optimizer_step(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        step = self.trainer.run.steps[-1]
        for name, parameter in self.trainer.model.named_parameters():
            assert parameter.grad is not None, name
            step.gradients[name] = parameter.grad.clone()
        seen = self.trainer._metrics["train"]
        step.metrics = {name: values[-1] for name, values in seen.items() if values}


def run_trl(folder: Path, architecture: str = "llama", **settings: Any) -> Run:
    """Train with TRL for two steps; `settings` are of GRPOConfig."""
    reference = build(architecture, eos_token_id=ENDS)
    reference.generation_config.eos_token_id = ENDS
    reference.save_pretrained(folder / "reference")
    policy = copy.deepcopy(reference)
    policy.config._name_or_path = str(folder / "reference")  # where TRL looks for the reference
    randomly_moved(policy, MOVES["policy"], seed=5)
    run = Run(reference, copy.deepcopy(policy))
    parts = settings.pop("gradient_accumulation_steps", 1)
    config = GRPOConfig(
        output_dir=str(folder / "out"),
        use_cpu=True,
        bf16=False,
        activation_checkpointing=False,
        max_steps=2,
        max_grad_norm=0.0,  # or the gradients would be clipped before the callback sees them
        per_device_train_batch_size=len(REWARDS) // parts,
        gradient_accumulation_steps=parts,
        num_generations=ROLLOUTS,
        num_iterations=2,
        max_completion_length=LONGEST,
        generation_kwargs={"max_new_tokens": SAMPLED},
        temperature=TEMPERATURE,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        seed=0,
        **settings,
    )
    trainer = RecordingTrainer(
        model=policy,
        reward_funcs=fixed_rewards,
        args=config,
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in PROMPTS]),
        processing_class=tiny_tokenizer(),
        optimizers=(torch.optim.SGD(policy.parameters(), lr=0.0), None),
    )
    trainer.run = run
    trainer.add_callback(Recorder(trainer))
    trainer.train()
    assert len(run.steps) == 2
    return run


def fixed_rewards(completions: Sequence[str], **columns: Any) -> list[float]:
    """The same rewards, whatever was sampled."""
    assert len(completions) == len(REWARDS)
    return REWARDS


@torch.no_grad()
def randomly_moved(model: PreTrainedModel, size: float, seed: int) -> None:
    """Move every weight by `size` times what a random model's would be."""
    noise = copy.deepcopy(model)
    randomise(noise.named_parameters(), seed)
    for parameter, other in zip(model.parameters(), noise.parameters(), strict=True):
        parameter.add_(size * other)


def twin(shape: PreTrainedModel, weights: PreTrainedModel) -> PreTrainedModel:
    """A model of its own with the present weights, without what TRL has put around the other."""
    model = copy.deepcopy(shape)
    model.load_state_dict(weights.state_dict())
    return model
