"""Which weights train and how fast; the terms of the loss that need a second model or a bonus."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, TrainerCallback

import interlace
from interlace.attached import new_parameters
from interlace.errors import ConfigError
from interlace.training.arguments import GroupArguments
from interlace.training.batch import collate
from interlace.training.grpo import GRPOTrainer
from interlace.training.rollout import draw
from interlace.training.scoring import score
from support.architectures import attach_random
from support.text import NUMBERS, number_model, number_tokenizer
from support.training import (
    Evens,
    at_step,
    gradients,
    grpo,
    metrics,
    same_bits,
    stopping,
    stored_model,
    tiny_model,
    warmup,
    weights,
)


def names_of_new(model: PreTrainedModel) -> set[str]:
    new = {id(p) for _, p in new_parameters(model)}
    return {name for name, p in model.named_parameters() if id(p) in new}


@pytest.mark.parametrize("kind", ["bridge", "pmatch"])
def test_train_new_leaves_the_old_weights_as_they_are(kind: str, tmp_path: Path) -> None:
    model = tiny_model(kind)
    before, new = weights(model), names_of_new(model)
    grpo(tmp_path, model, max_steps=3, train="new").train()
    assert set(same_bits(weights(model), before)) == before.keys() - new
    assert new


def test_train_all_with_nothing_attached(tmp_path: Path) -> None:
    model = tiny_model(None)
    before = weights(model)
    trainer = grpo(tmp_path, model, max_steps=2)
    loaded, _ = interlace.load(trainer.run())
    assert same_bits(weights(model), before) == []
    assert len(same_bits(weights(loaded), weights(model))) == len(before)
    assert "block_output_over_input" not in metrics(tmp_path)[0]


def test_train_new_with_nothing_attached_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing is attached"):
        warmup(tmp_path, tiny_model(None))


def test_lora_trains_adapters_and_blocks(tmp_path: Path) -> None:
    model = stored_model(tmp_path / "start")
    before, new = weights(model), names_of_new(model)
    options: dict[str, Any] = {"train": "lora", "lora": {"r": 3, "target_modules": ["q_proj"]}}
    trainer = grpo(tmp_path / "run", model, max_steps=3, learning_rate=1e-2, **options)
    result = trainer.run()
    after = {name.replace(".base_layer", ""): p for name, p in weights(model).items()}
    assert set(same_bits(after, before)) == before.keys() - new
    adapters = [name for name in after if "lora_" in name]
    assert len(adapters) == 6
    assert all(after[name].any() for name in adapters)

    loaded, _ = interlace.load(result)
    assert not any("lora" in name for name, _ in loaded.named_parameters())
    asked = draw(trainer.task, trainer.args, 0, [0, 1], trainer.args.drawn_widths)
    engine = interlace.Engine(model, trainer.tokenizer)
    group = engine.generate(asked.prompts, asked.params, sample_ids=asked.sample_ids)[-1]
    batch = collate([group], 0)
    with torch.no_grad():
        torch.testing.assert_close(
            score(loaded, batch).logprobs, score(model, batch).logprobs, atol=1e-5, rtol=0
        )
    merged = [name for name, p in loaded.named_parameters() if not torch.equal(p, before[name])]
    assert {name for name in merged if "q_proj" in name} == set(merged) - new


def test_lora_goes_on_after_a_stop(tmp_path: Path) -> None:
    def stop() -> None:
        raise InterruptedError

    options: dict[str, Any] = {"train": "lora", "max_steps": 4, "save_steps": 2, "kl_weight": 0.1}
    folder = tmp_path / "stopped"
    whole = grpo(tmp_path / "whole", **options)
    whole.run()
    with pytest.raises(InterruptedError):
        grpo(folder, callbacks=[at_step(3, stop)], **options).run()
    torch.manual_seed(5)  # adapters are drawn anew, and then read
    again = grpo(folder, **options)
    again.run()
    assert metrics(folder) == metrics(tmp_path / "whole")
    expected = weights(whole.model)
    assert len(same_bits(weights(again.model), expected)) == len(expected)


def test_old_and_new_weights_have_learning_rates_of_their_own(tmp_path: Path) -> None:
    model = tiny_model()
    before, new = weights(model), names_of_new(model)
    trainer = grpo(
        tmp_path,
        model,
        optim="sgd",
        learning_rate=0.01,
        new_learning_rate=0.3,
        lr_scheduler_type="constant",
    )
    moved_by = gradients(trainer)
    for name, tensor in weights(model).items():
        rate = 0.3 if name in new else 0.01
        torch.testing.assert_close(tensor, before[name] - rate * moved_by[name], rtol=0, atol=1e-6)


def test_both_learning_rates_are_logged(tmp_path: Path) -> None:
    options: dict[str, Any] = {"learning_rate": 1e-3, "new_learning_rate": 4e-3, "max_steps": 4}
    grpo(tmp_path, lr_scheduler_type="linear", **options).run()
    for line in metrics(tmp_path):
        assert line["learning_rate/old"] == line["learning_rate"]
        assert line["learning_rate/new"] == pytest.approx(4 * line["learning_rate/old"])


def test_steps_that_16_bits_round_to_nothing_are_warned_of(tmp_path: Path) -> None:
    model = tiny_model().bfloat16()
    before = weights(model)
    with pytest.warns(UserWarning, match="too large to be moved .*1e-06.*float32.*bf16=true"):
        trainer = grpo(tmp_path, model, learning_rate=1e-6, max_steps=2)
    trainer.train()
    after = weights(model)
    still = sum(int((after[name] == tensor).sum()) for name, tensor in before.items())
    assert still > 0.9 * sum(tensor.numel() for tensor in before.values())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        grpo(tmp_path / "wide", tiny_model(), learning_rate=1e-6)


def test_only_the_first_process_warns_of_lost_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails if every process of a run warns."""
    monkeypatch.setattr(GroupArguments, "process_index", 1, raising=False)
    grpo(tmp_path, tiny_model().bfloat16(), learning_rate=1e-6)  # warnings are errors here


def test_gradient_norms_are_those_of_unscaled_gradients(tmp_path: Path) -> None:
    grpo(tmp_path / "plain").train()
    scaled = grpo(tmp_path / "scaled")
    scaled.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaled.train()
    for name in ("gradient_norm/old", "gradient_norm/new"):
        plain, found = (metrics(tmp_path / part)[0][name] for part in ("plain", "scaled"))
        assert found == pytest.approx(plain, rel=1e-4), name
        assert plain > 0


def test_several_gpus_in_one_process_do_not_split_groups(tmp_path: Path) -> None:
    model = tiny_model()
    args = grpo(tmp_path / "a", model).args
    args._n_gpu = 2
    trainer = GRPOTrainer(model, None, args, Evens(), processing_class=number_tokenizer())
    assert trainer.args.n_gpu <= 1
    assert trainer._wrap_model(model) is model


def test_weight_decay_of_matrices_alone(tmp_path: Path) -> None:
    trainer = grpo(tmp_path, weight_decay=0.1)
    names = {id(p): name for name, p in trainer.model.named_parameters()}
    for group in trainer.create_optimizer().param_groups:
        assert {"norm" in names[id(p)] for p in group["params"]} == {group["weight_decay"] == 0}


def test_dropout_of_the_model_is_off_in_both_passes(tmp_path: Path) -> None:
    config = GPT2Config(
        vocab_size=len(NUMBERS), n_positions=64, n_embd=24, n_layer=2, n_head=4,
        resid_pdrop=0.3, embd_pdrop=0.3, attn_pdrop=0.3,
        bos_token_id=None, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    model = attach_random(GPT2LMHeadModel(config))
    grpo(tmp_path, model, max_steps=2).train()
    assert max(line["sampled_gap/max"] for line in metrics(tmp_path)) < 1e-5


# The reference, and the bonus.


class Watch(TrainerCallback):
    """Notes the reference's weights after every step."""

    def __init__(self) -> None:
        self.seen: list[dict[str, torch.Tensor]] = []
        self.trainer: Any = None

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.seen.append(weights(self.trainer._reference))


@pytest.mark.parametrize("precision", ["fp32", "bf16 autocast"])
def test_the_reference_is_the_model_at_the_start_with_its_blocks(
    precision: str, tmp_path: Path
) -> None:
    model = tiny_model()
    before = weights(model)
    watch = Watch()
    more = {"bf16": True} if precision == "bf16 autocast" else {}
    trainer = grpo(tmp_path, model, [watch], max_steps=3, kl_weight=0.1, learning_rate=5e-3, **more)
    watch.trainer = trainer
    trainer.train()
    divergence = [line["kl"] for line in metrics(tmp_path)]
    assert divergence[0] == 0
    assert min(divergence[1:]) > 1e-3
    for seen in watch.seen:
        assert len(same_bits(seen, before)) == len(before)


@pytest.mark.parametrize("train", ["new", "all"])
def test_the_reference_shares_what_does_not_train(train: str, tmp_path: Path) -> None:
    model = number_model(None)
    attachment = interlace.attach(model, interlace.BridgeConfig(parameter_share=0.2), seed=2)
    trainer = grpo(tmp_path, stopping(model), train=train, kl_weight=0.1, max_steps=3)
    trainer.train()
    reference: Any = trainer._reference
    new = {name for name, _ in new_parameters(model)}
    own = dict(model.named_parameters())
    for name, parameter in reference.named_parameters():
        assert (parameter is own[name]) == (train == "new" and name not in new), name
    batch = trainer._mini_batches[0][0]
    with torch.no_grad(), attachment.disabled():
        base = score(model, batch).logprobs
    with torch.no_grad():
        frozen, trained = score(reference, batch).logprobs, score(model, batch).logprobs
    assert not torch.equal(trained, frozen), "the model has moved"
    # Fresh blocks add nothing: then the reference is the model with its blocks off.
    assert torch.equal(frozen, base) == (train == "new")


def test_the_kl_pulls_back(tmp_path: Path) -> None:
    for name, weight in (("free", 1e-9), ("held", 1.0)):
        grpo(tmp_path / name, max_steps=8, kl_weight=weight).train()
    free, held = (metrics(tmp_path / name)[-1]["kl"] for name in ("free", "held"))
    assert held < 0.3 * free


def test_an_entropy_bonus_changes_gradients_and_raises_entropy(tmp_path: Path) -> None:
    without = gradients(grpo(tmp_path / "a"))
    bonus = gradients(grpo(tmp_path / "b", entropy_weight=0.1))
    assert all(not torch.equal(bonus[name], without[name]) for name in without)
    constant: dict[str, Any] = {"rewards": {"format": 0.0}, "max_steps": 6, "learning_rate": 1e-3}
    grpo(tmp_path / "c", entropy_weight=1.0, **constant).train()  # nothing but the bonus
    lines = metrics(tmp_path / "c")
    assert lines[-1]["entropy"] > lines[0]["entropy"] + 0.1


def test_prompts_without_variance_are_left_out_on_demand(tmp_path: Path) -> None:
    options: dict[str, Any] = {"rewards": {"format": 1.0}, "max_steps": 2}  # 0 for every row
    trainer = grpo(tmp_path, drop_without_variance=True, **options)
    before = weights(trainer.model)
    trainer.train()
    line = metrics(tmp_path)[0]
    assert line["groups_without_variance"] == 1.0
    assert "tokens/train" not in line
    assert line["loss"] == 0
    assert len(same_bits(weights(trainer.model), before)) == len(before)
