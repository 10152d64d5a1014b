"""The policy loss against its formula, its parts against the whole, its gradients against
differences."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from torch import Tensor

from interlace.training.batch import collate_ids
from interlace.training.losses import LossConfig, denominator, policy_loss
from interlace.training.scoring import score
from support.architectures import attach_random, build

LOW, HIGH = 0.2, 0.28


def inputs(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-probabilities now and then, advantages, and a mask whose rows end at different tokens."""
    generator = torch.Generator().manual_seed(seed)
    new = -torch.rand(2, 3, 5, generator=generator, dtype=torch.float64)
    old = new + 0.5 * torch.randn(2, 3, 5, generator=generator, dtype=torch.float64)
    gains = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    lengths = torch.tensor([[5, 2, 3], [1, 0, 4]])
    return new, old, gains, torch.arange(5) < lengths[..., None]


def by_hand(config: LossConfig, longest: int) -> float:
    """One token at a time, from the formulas of the papers."""
    new, old, gains, mask = inputs()
    rows = []
    for p, w in itertools.product(range(2), range(3)):
        length = int(mask[p, w].sum())
        tokens = []
        for t in range(length):
            difference = new[p, w, t] - old[p, w, t]
            if config.ratio_level == "sequence":
                difference = (new - old)[p, w, :length].mean()
            ratio = difference.exp()
            clipped = min(max(float(ratio), 1 - LOW), 1 + HIGH)
            gain = gains[p, w]
            tokens.append(-min(float(ratio * gain), float(clipped * gain)))
        rows.append(tokens)
    if config.kind == "token":
        return sum(map(sum, rows)) / sum(map(len, rows))
    if config.kind == "sequence":
        return sum(sum(r) / max(len(r), 1) for r in rows) / len(rows)
    return sum(map(sum, rows)) / (len(rows) * longest)


@pytest.mark.parametrize("kind", ["token", "sequence", "dr_grpo"])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_loss_is_its_formula_and_parts_add_up(kind: str, level: str) -> None:
    config = LossConfig(kind=kind, ratio_level=level, clip_low=LOW, clip_high=HIGH)  # type: ignore[arg-type]
    new, old, gains, mask = inputs()
    whole = denominator(config.kind, mask, 7)
    got = policy_loss(new, old, gains, mask, config, whole)
    assert float(got.loss) == pytest.approx(by_hand(config, 7), rel=1e-12)
    parts = [
        policy_loss(
            new[i : i + 1], old[i : i + 1], gains[i : i + 1], mask[i : i + 1], config, whole
        )
        for i in range(2)
    ]
    assert float(sum(p.loss for p in parts)) == pytest.approx(float(got.loss), rel=1e-12)
    assert sum(p.tokens for p in parts) == got.tokens == int(mask.sum())
    pieces = [denominator(config.kind, mask[i : i + 1], 7) for i in range(2)]
    assert sum(pieces) == whole


def test_clipping_is_counted_where_it_bites() -> None:
    new = torch.tensor([[[0.0, 0.0, 0.0, 0.0]]])
    old = new - torch.tensor([[[0.5, -0.5, 0.1, 0.5]]])  # ratios 1.65, 0.61, 1.11, 1.65
    mask = torch.tensor([[[True, True, True, False]]])
    up = policy_loss(new, old, torch.ones(1, 1), mask, LossConfig(), 1.0)
    down = policy_loss(new, old, -torch.ones(1, 1), mask, LossConfig(), 1.0)
    assert (up.clipped, down.clipped) == (1, 1)  # the high one for a gain, the low one for a loss
    assert up.ratio_max == pytest.approx(2.718281828**0.5)
    assert up.ratio_min == pytest.approx(2.718281828**-0.5)


def test_kl_and_entropy_terms() -> None:
    new, old, gains, mask = inputs()
    reference = new - 0.3
    spread = torch.rand_like(new)
    base = policy_loss(new, old, gains, mask, LossConfig(), 1.0)
    config = LossConfig(kl_weight=0.7, entropy_weight=0.2)
    got = policy_loss(
        new, old, gains, mask, config, 1.0, reference_logprobs=reference, entropy=spread
    )
    k3 = torch.exp(torch.tensor(-0.3, dtype=torch.float64)) + 0.3 - 1
    weight = ((new - old).exp() * mask).sum()  # each token's estimate times its ratio
    wanted = base.loss + 0.7 * k3 * weight - 0.2 * (spread * mask).sum()
    torch.testing.assert_close(got.loss, wanted)
    assert got.kl == pytest.approx(float(k3 * weight))
    plain = dataclasses.replace(config, kl_corrected=False)
    got = policy_loss(
        new, old, gains, mask, plain, 1.0, reference_logprobs=reference, entropy=spread
    )
    assert got.kl == pytest.approx(float(k3 * mask.sum()))


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("moved", [0.0, 0.5])
def test_expected_kl_and_its_gradient_are_the_divergences(level: str, moved: float) -> None:
    """Over all tokens that could have been sampled, in value and gradient: KL(model, reference)."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    logits = noise[0].clone().requires_grad_()
    old = (noise[0] + moved * noise[1]).log_softmax(0)
    reference = noise[2].log_softmax(0)
    config = LossConfig(kl_weight=1.0, ratio_level=level)  # type: ignore[arg-type]
    expected = torch.zeros((), dtype=torch.float64)
    for token in range(5):
        # A second token that stays as it was: a row's mean ratio is not the token's.
        now = torch.stack([logits.log_softmax(0)[token], old.new_tensor(-1.0)]).view(1, 1, 2)
        then, frozen = (
            torch.stack([x[token], x.new_tensor(-1.0)]).view(1, 1, 2) for x in (old, reference)
        )
        mask = torch.ones(1, 1, 2, dtype=torch.bool)
        gain = torch.zeros(1, 1, dtype=torch.float64)
        parts = policy_loss(now, then, gain, mask, config, 1.0, reference_logprobs=frozen)
        expected = expected + old[token].exp() * parts.loss
    now = logits.log_softmax(0)
    divergence = (now.exp() * (now - reference)).sum()
    torch.testing.assert_close(expected, divergence)
    got, wanted = (
        torch.autograd.grad(x, logits, retain_graph=True)[0] for x in (expected, divergence)
    )
    torch.testing.assert_close(got, wanted)


def test_coupled_gradients_are_finite_differences() -> None:
    """In float64 through a tiny Bridge model: the gradient holds the sibling terms."""
    # GPT-2, because Llama's norms compute in float32 whatever the model is in.
    model = attach_random(build("gpt2", dtype=torch.float64))
    batch = collate_ids(
        [[5, 6, 7], [8]], [[[9, 10, 11], [12]], [[13, 14], [15, 16, 17]]], pad_token_id=0
    )
    old = score(model, batch).logprobs.detach() + 0.05
    gains = torch.tensor([[1.0, 0.0], [0.0, -1.5]], dtype=torch.float64)  # two rows have no gain
    config = LossConfig()

    def loss() -> Tensor:
        now = score(model, batch).logprobs
        count = denominator("token", batch.completion_mask, 3)
        return policy_loss(now, old, gains, batch.completion_mask, config, count).loss

    embedding = model.get_input_embeddings().weight
    loss().backward()
    assert embedding.grad is not None
    # Token 13 is fed by row 0 of group 1, whose own gain is zero: what it does is to its sibling.
    generator = torch.Generator().manual_seed(0)
    for token in (9, 13, 5):
        direction = torch.randn(embedding.shape[1], generator=generator, dtype=torch.float64)
        step = 1e-6
        with torch.no_grad():
            embedding[token] += step * direction
            above = loss()
            embedding[token] -= 2 * step * direction
            below = loss()
            embedding[token] += step * direction
        slope = float(above - below) / (2 * step)
        assert float(embedding.grad[token] @ direction) == pytest.approx(slope, rel=1e-5, abs=1e-9)


def test_sibling_terms_are_there() -> None:
    """The gradient with respect to a row's own input is not zero where only its sibling gains."""
    model = attach_random(build("llama", dtype=torch.float64))
    batch = collate_ids([[5]], [[[9, 10, 11], [12, 13, 14]]], pad_token_id=0)
    count = denominator("token", batch.completion_mask, 3)
    gains = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    grads = []
    for alive in (batch.alive, torch.zeros_like(batch.alive)):
        part = dataclasses.replace(batch, alive=alive)
        now = score(model, part).logprobs
        old = now.detach()
        model.zero_grad()
        policy_loss(now, old, gains, part.completion_mask, LossConfig(), count).loss.backward()
        weight = model.get_input_embeddings().weight.grad
        assert weight is not None
        grads.append(weight.clone())
    # Token 9 was fed by row 0 only. With tied embeddings it also has a gradient as an output.
    assert (grads[0][9] - grads[1][9]).abs().max() > 1e-6
