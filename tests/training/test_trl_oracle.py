"""TRL's GRPOTrainer as the oracle: with nothing attached, our loss and gradients are its own.

Two optimizer steps of TRL's real trainer are recorded (see `support.trl_run`): what it generated
from prompts of different lengths, its advantages, the log-probabilities of the sampler and of the
reference, each step's loss and every parameter's gradient. Ours start from the same weights, token
ids and rewards alone, and must agree in everything. In the first step the ratios are 1; before
the second the weights were moved, so that tokens are clipped on both sides.

All in float32, the precision that TRL's fused head computes log-probabilities in whatever the model
is in. Tolerances: 1e-5 of the loss (or 5e-7, for its terms are of order 1 and can cancel: at ratios
of 1 they do, exactly), and 1e-5 of the largest entry of each parameter's gradient. Each side is up
to 9e-6 away from the same step in float64.

TRL's normalisers: "dapo" divides by the completion tokens of the whole generation batch, which is
one optimizer step's here (`steps_per_generation` equals `gradient_accumulation_steps`), "grpo" and
"dr_grpo" take means over the micro-batch and divide by the number of micro-batches: the same as
ours, since TRL's micro-batches have equally many rows.

Where the two differ on purpose:

- *Entropy bonus.* TRL subtracts the mean over a micro-batch's tokens, whatever the loss's kind, so
  that its value depends on how a batch is split when rows are ragged. Ours is part of each token's
  loss and normalised with it: micro-batches add up to the batch exactly. The two agree for
  kind="token" without accumulation. In other kinds TRL's is ours of kind "token" added to a loss
  without a bonus.
- *KL with a ratio for each row.* The correction that makes a token's k3 an estimate of the KL needs
  that token's ratio; TRL takes the row's, and says that the property is then lost.
- *Position ids.* TRL passes none, so that a model numbers columns, the padding's too. With rotary
  embeddings that is only a shift. With learned positions (GPT-2) a padded row is then scored
  as no model samples it, TRL's own `generate` included. Ours count real tokens.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from interlace.training.batch import GroupBatch, collate_ids
from interlace.training.losses import LossConfig, LossParts, advantages, denominator, policy_loss
from interlace.training.scoring import Scores, score

pytest.importorskip("trl", reason="needs the extra trl: pip install trl")

from support.trl_run import LONGEST, REWARDS, ROLLOUTS, TEMPERATURE, Run, Step, run_trl

pytestmark = [
    pytest.mark.slow,
    # TRL reads a property that transformers has renamed.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]

# Whole rows move together less than single tokens do.
CLIPS = {"token": (0.15, 0.28), "sequence": (0.1, 0.02)}
TOLERANCE = 1e-5
TRL_KINDS = {"token": "dapo", "sequence": "grpo", "dr_grpo": "dr_grpo"}
COUNT = len(REWARDS) // ROLLOUTS


def config(kind: Any, ratio_level: Any = "token", **changes: Any) -> LossConfig:
    low, high = CLIPS[ratio_level]
    return LossConfig(kind, low, high, ratio_level, **changes)


def recorded(folder: Path, ours: LossConfig, **settings: Any) -> Run:
    """TRL's run with the settings that mean the same as `ours`."""
    return run_trl(
        folder,
        loss_type=TRL_KINDS[ours.kind],
        epsilon=ours.clip_low,
        epsilon_high=ours.clip_high,
        importance_sampling_level=ours.ratio_level,
        beta=ours.kl_weight,
        use_bias_correction_kl=ours.kl_corrected,
        entropy_coef=ours.entropy_weight,
        **settings,
    )


def scored(model: Any, batch: GroupBatch, gradients: bool = False) -> Scores:
    with torch.set_grad_enabled(gradients):
        return score(
            model, batch, temperature=TEMPERATURE, entropy=True, entropy_gradients=gradients
        )


def our_loss(run: Run, step: Step, ours: LossConfig, gains: Tensor | None = None) -> LossParts:
    """Our loss, from tokens, rewards and weights alone."""
    batch = run.batch()
    if gains is None:
        gains = advantages(torch.tensor(REWARDS).view(COUNT, ROLLOUTS), torch.arange(COUNT))
    now = scored(step.model, batch, gradients=True)
    return policy_loss(
        now.logprobs,
        scored(run.sampler, batch).logprobs,
        gains,
        batch.completion_mask,
        ours,
        denominator(ours.kind, batch.completion_mask, LONGEST),
        reference_logprobs=scored(run.reference, batch).logprobs if ours.kl_weight else None,
        entropy=now.entropy,
    )


def assert_same_gradients(loss: Tensor, step: Step) -> None:
    step.model.zero_grad()
    loss.backward()
    assert float(loss.detach()) == pytest.approx(step.loss, rel=TOLERANCE, abs=5e-7)
    parameters = dict(step.model.named_parameters())
    assert parameters.keys() == step.gradients.keys()
    for name, parameter in parameters.items():
        assert parameter.grad is not None, name
        wanted = step.gradients[name]
        assert wanted.abs().max() > 0, name
        gap = (parameter.grad - wanted).abs().max() / wanted.abs().max()
        assert gap < TOLERANCE, f"{name}: {gap:.2e}"


def assert_hard(run: Run) -> None:
    """The scenario holds what could go wrong: padding on both sides, and moved ratios."""
    for side in ("prompt", "completion"):
        assert len(set(run.rollouts[f"{side}_mask"].sum(dim=1).tolist())) > 1
    assert (run.rollouts["prompt_mask"][:, 0] == 0).any()


CASES = {
    "dapo": config("token"),
    "grpo": config("sequence"),
    "dr_grpo": config("dr_grpo"),
    "dapo-kl": config("token", kl_weight=0.3),
    "grpo-kl": config("sequence", kl_weight=0.3),
    "dr_grpo-kl": config("dr_grpo", kl_weight=0.3),
    "gspo": config("sequence", ratio_level="sequence"),
    "grpo-plain-kl": config("sequence", kl_weight=0.3, kl_corrected=False),
    "gspo-plain-kl": config("sequence", ratio_level="sequence", kl_weight=0.3, kl_corrected=False),
    "dapo-sequence-ratio": config("token", ratio_level="sequence"),
}


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradients_are_trls(name: str, parts: int, tmp_path: Path) -> None:
    """Both steps, in one piece and in micro-batches into which TRL has shuffled the rows."""
    ours = CASES[name]
    run = recorded(tmp_path, ours, gradient_accumulation_steps=parts)
    assert_hard(run)
    losses = [our_loss(run, step, ours) for step in run.steps]
    for loss, step in zip(losses, run.steps, strict=True):
        assert_same_gradients(loss.loss, step)
    assert losses[0].clipped == 0
    assert losses[1].clipped > 0
    if parts == 1:
        assert all(run.steps[1].metrics[f"clip_ratio/{side}_mean"] > 0 for side in ("low", "high"))
    if ours.kl_weight:
        assert losses[0].kl > 0.1


def test_what_the_parts_report(tmp_path: Path) -> None:
    ours = config("token", kl_weight=0.3)
    run = recorded(tmp_path, ours)
    for step in run.steps:
        got = our_loss(run, step, ours)
        for name, total in {
            "kl": got.kl,
            "entropy": got.entropy,
            "clip_ratio/region_mean": got.clipped,
        }.items():
            assert total / got.tokens == pytest.approx(step.metrics[name], rel=TOLERANCE), name


def test_old_and_reference_logprobs_are_trls(tmp_path: Path) -> None:
    run = recorded(tmp_path, config("token", kl_weight=0.3))
    batch = run.batch()
    keep = batch.completion_mask.flatten(0, 1)
    for model, name in ((run.sampler, "old"), (run.reference, "ref")):
        got = scored(model, batch).logprobs.flatten(0, 1)
        wanted = run.rollouts[f"{name}_per_token_logps"]
        torch.testing.assert_close(got[keep], wanted[keep], rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize(("theirs", "scale"), [("group", "std"), ("none", "none")])
@pytest.mark.parametrize("width", [ROLLOUTS, ROLLOUTS // 2])
def test_advantages_are_trls(theirs: str, scale: Any, width: int, tmp_path: Path) -> None:
    """Over all rollouts of a prompt, in one group or in several."""
    run = recorded(tmp_path, config("token"), scale_rewards=theirs)
    rewards = torch.tensor(REWARDS).view(-1, width)
    prompts = torch.arange(COUNT).repeat_interleave(ROLLOUTS // width)
    got = advantages(rewards, prompts, scale=scale)
    torch.testing.assert_close(got.flatten(), run.rollouts["advantages"], rtol=1e-5, atol=1e-6)
    assert (run.rollouts["advantages"].view(COUNT, ROLLOUTS)[1] == 0).all()


def test_entropy_bonus_of_the_token_kind_is_trls(tmp_path: Path) -> None:
    ours = config("token", entropy_weight=0.2)
    run = recorded(tmp_path, ours)
    for step in run.steps:
        assert_same_gradients(our_loss(run, step, ours).loss, step)


@pytest.mark.parametrize("kind", ["sequence", "dr_grpo"])
def test_entropy_bonus_of_other_kinds_is_ours_of_tokens(kind: str, tmp_path: Path) -> None:
    """The difference that the module's docstring records, exactly."""
    ours = config(kind, entropy_weight=0.2)
    run = recorded(tmp_path, ours)
    step = run.steps[1]
    policy = our_loss(run, step, dataclasses.replace(ours, entropy_weight=0.0)).loss
    bonus = our_loss(run, step, config("token", entropy_weight=0.2), torch.zeros(COUNT, ROLLOUTS))
    assert_same_gradients(policy + bonus.loss, step)
    assert our_loss(run, step, ours).loss.item() != pytest.approx(step.loss, rel=1e-3)


@pytest.mark.parametrize("name", ["gemma2", "granite"])
def test_other_heads(name: str, tmp_path: Path) -> None:
    """Soft-capped and scaled logits, which TRL's fused head computes in its own way."""
    ours = config("token", kl_weight=0.3)
    run = recorded(tmp_path, ours, architecture=name)
    for step in run.steps:
        assert_same_gradients(our_loss(run, step, ours).loss, step)


def test_learned_positions_count_tokens_not_padding(tmp_path: Path) -> None:
    """The other recorded difference: unpadded rows agree, and ours is what each row has alone."""
    run = recorded(tmp_path, config("token"), architecture="gpt2")
    batch = run.batch()
    wanted = run.rollouts["old_per_token_logps"].unflatten(0, (COUNT, ROLLOUTS))
    got = scored(run.sampler, batch).logprobs
    start = batch.input_ids.shape[1] - batch.completion_mask.shape[2]
    for p in range(COUNT):
        keep = batch.completion_mask[p]
        row = batch.select(p, p + 1)
        prompt = row.input_ids[0, :start][row.attention_mask[0, :start]].tolist()
        completions = [
            ids[kept].tolist() for ids, kept in zip(row.completion_ids[0], keep, strict=True)
        ]
        alone = scored(run.sampler, collate_ids([prompt], [completions], 0)).logprobs[0]
        length = alone.shape[1]
        torch.testing.assert_close(got[p, :, :length], alone, rtol=TOLERANCE, atol=TOLERANCE)
        gap = (got[p] - wanted[p])[keep].abs().max()
        assert (gap < TOLERANCE) == (len(prompt) == start)
