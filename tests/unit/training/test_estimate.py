"""Estimates: counts against what the trainers do, memory against what real passes keep.

Mutations that were seen to fail here: steps that are not rounded up to whole rollouts; a reference
that is forgotten; eager attention counted for all; weights counted as activations.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

import interlace
from interlace.errors import ConfigError
from interlace.rows import Groups
from interlace.training.estimate import memory, plan, probe, setting, ways_out
from interlace.training.recipe import parse_recipe
from support.architectures import attach_random, build

MIB = 2**20


def options(stage, **values):
    bare = {"model": "m", "task": "t", "output_dir": "o"}
    return parse_recipe(bare | {stage: values}).options(stage)


def skeleton(blocks="bridge", train="all", **more):
    with torch.device("meta"):
        model = build("llama", **more)
    model.set_attn_implementation("eager")
    if blocks is not None:
        attach_random(model, blocks)
    if train == "new":
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("bridge" in name)
    return model


def at(stage="grpo", prompt=10, processes=1, sharded=False, cpu=False, model=None, **values):
    defaults = {"max_new_tokens": 20} | values
    return setting(
        options(stage, **defaults),
        stage,
        model or nn.Linear(2, 2, device="meta"),
        prompt,
        processes=processes,
        sharded=sharded,
        cpu=cpu,
    )


def test_a_plan_counts_whole_rollouts():
    found = plan(
        options(
            "grpo",
            prompts_per_rollout=6,
            num_generations=8,
            width=[2, 4],
            mini_batches=3,
            max_steps=7,
            max_new_tokens=5,
        ),
        "grpo",
        problems=100,
    )
    assert found == {
        "problems": 100,
        "rollouts": 3,
        "prompts sampled": 18,
        "rows sampled": 144,
        "tokens sampled, at most": 720,
        "optimizer steps": 9,
    }


def test_without_max_steps_epochs_count():
    found = plan(
        options("grpo", prompts_per_rollout=10, mini_batches=2, num_train_epochs=3),
        "grpo",
        problems=40,
    )
    assert (found["optimizer steps"], found["rollouts"], found["prompts sampled"]) == (24, 12, 120)


def test_a_plan_of_the_warm_up():
    found = plan(
        options(
            "warmup", problems=30, samples=7, groups_per_step=4, max_steps=5, max_new_tokens=11
        ),
        "warmup",
        problems=20,
    )
    assert (found["optimizer steps"], found["problems"], found["rows sampled"]) == (5, 20, 140)
    assert found["tokens sampled, at most"] == 1540
    assert found["groups trained on, repeats counted"] == 20


def test_a_plan_of_a_ready_data_set_counts_its_groups(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text('{"prompt": "1", "responses": ["2", "3"]}\n' * 48)
    given = options("warmup", data=str(path), num_train_epochs=2, groups_per_step=24)
    found = plan(given, "warmup", problems=1000)
    assert (found["problems"], found["rows sampled"]) == (48, 0)
    assert (found["optimizer steps, at most"], found["tokens sampled, at most"]) == (4, 0)


@pytest.mark.parametrize(
    ("bf16", "name", "size"),
    [(True, "copy in 32 bits (guard)", 4), (False, "copy in 64 bits (guard, if it needs one)", 8)],
)
def test_the_guards_copy_counts(bf16, name, size):
    """Fails if the copy is left out that fp32 needs where it is coarse (decision 0012)."""
    subject = probe(skeleton(), 8, eager=True)

    def copies(stage="grpo", **more):
        found = memory(subject, at(stage, bf16=bf16, **more)).training
        return {part: value for part, value in found.items() if "guard" in part}

    assert copies() == {name: size * (subject.old_parameters + subject.new_parameters)}
    assert copies(guard=False) == copies("warmup") == {}


def test_rows_of_a_pass_are_whole_groups_of_the_worst_width():
    assert (
        at(num_generations=12, width=[3, 4], micro_rows=11, prompts_per_rollout=8).micro_rows == 9
    )
    assert at(num_generations=8, width=4, prompts_per_rollout=8, mini_batches=2).micro_rows == 32
    assert at("warmup", samples=8, micro_rows=4, data="x.jsonl").micro_rows == 8
    with pytest.raises(ConfigError, match="3 processes do not divide it"):
        at(prompts_per_rollout=8, processes=3)


@pytest.mark.parametrize("train", ["all", "new"])
def test_the_probe_agrees_with_a_real_pass(train):
    """Bytes that a real forward pass with SDPA keeps for the backward pass, at a length that the
    probe did not see."""
    width, length = 3, 200
    real = build("llama").train()
    attach_random(real, "bridge")
    if train == "new":
        for name, parameter in real.named_parameters():
            parameter.requires_grad_("bridge" in name)
    own = {t.untyped_storage()._cdata for t in (*real.parameters(), *real.buffers())}
    kept = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        real(
            input_ids=torch.zeros(width, length, dtype=torch.long),
            attention_mask=torch.ones(width, length, dtype=torch.long),
            groups=Groups(width),
            use_cache=False,
            logits_to_keep=1,
        )
    measured = sum(storage.nbytes() for storage in kept.values())
    subject = probe(skeleton(train=train), width)
    estimated = width * length * subject.per_position
    assert estimated == pytest.approx(measured, rel=0.15)


def test_the_probe_counts_parameters():
    model = build("llama")
    base = sum(p.numel() for p in model.parameters())
    interlace.attach(model, interlace.BridgeConfig(parameter_share=0.05))
    subject = probe(skeleton(train="new"), 2)
    attached = sum(p.numel() for n, p in skeleton().named_parameters() if "bridge" in n)
    assert subject.old_parameters == base
    assert subject.new_parameters == subject.trained_new == attached
    assert subject.trained_old == 0
    assert subject.trained_bytes == 4 * attached


def test_each_switch_adds_its_part():
    subject = probe(skeleton(), 4)
    weights = subject.weight_bytes
    plain = memory(subject, at())
    assert plain.fixed == {
        "weights": weights,
        "gradients": weights,
        "optimizer states": 2 * weights,
    }
    assert memory(subject, at(optim="sgd")).fixed["optimizer states"] == 0
    assert memory(subject, at(kl_weight=0.1)).fixed["frozen reference"] == weights
    new = probe(skeleton(train="new"), 4)
    assert memory(new, at(kl_weight=0.1)).fixed["frozen reference"] == new.trained_bytes < weights
    assert memory(subject, at(processes=2)).fixed["gradient buckets (DDP)"] == weights
    sharded = memory(subject, at(processes=4, sharded=True))
    assert sharded.fixed["weights"] == weights // 4
    assert sharded.sampling["gathered weights (FSDP)"] == weights - weights // 4
    assert "packed linears (CPU engine)" in memory(subject, at(cpu=True)).fixed
    assert memory(subject, at(bf16=True)).training["weights in 16 bits"] == weights // 2


def test_checkpointing_and_attention_change_the_activations():
    long = {"prompt": 100, "max_new_tokens": 900}

    def activations(subject, **more):
        found = memory(subject, at(**long, **more)).training
        return next(value for name, value in found.items() if name.startswith("activations"))

    flash, eager = (probe(skeleton(), 4, eager=kind) for kind in (False, True))
    assert activations(eager) > 5 * activations(flash)
    assert activations(flash, gradient_checkpointing=True) < activations(flash) / 2
    half = probe(skeleton(), 4, mixed=True)
    assert 0.45 < activations(half, bf16=True) / activations(flash) < 0.75


def test_the_cache_holds_prompts_once_a_group():
    subject = probe(skeleton(), 4)
    one = subject.cache_per_position
    found = memory(
        subject, at(prompt=10, max_new_tokens=20, width=4, num_generations=8, max_rows=8)
    )
    assert found.sampling["keys and values, 8 rows"] == int((2 * 10 + 8 * 20) * one)
    model = build("llama")
    sizes = model.config
    heads = sizes.num_key_value_heads * (
        getattr(sizes, "head_dim", None) or sizes.hidden_size // sizes.num_attention_heads
    )
    assert one == 2 * sizes.num_hidden_layers * heads * 4


def test_the_way_out_fits():
    """What is proposed, applied, is within the memory there is."""
    subject = probe(skeleton(), 4)
    start = at(prompts_per_rollout=64, width=4, num_generations=8)
    there = sum(memory(subject, start).fixed.values()) + memory(subject, start).peak // 5
    assert memory(subject, start).peak > there
    (words,) = ways_out(subject, start, there, "grpo")
    assert words.startswith("grpo.micro_rows=")
    fewer = at(
        prompts_per_rollout=64, width=4, num_generations=8, micro_rows=int(words.split("=")[1])
    )
    assert memory(subject, fewer).peak <= there
    ways = list(ways_out(subject, start, subject.weight_bytes, "grpo"))
    assert any("grpo.train=new" in way for way in ways)


def test_logits_are_a_few_chunks_however_many_there_are():
    subject = probe(skeleton(), 4)
    few, some, many = (
        memory(dataclasses.replace(subject, vocabulary=size), at(micro_rows=64, max_new_tokens=800))
        for size in (100, 50_000, 150_000)
    )
    assert few.training["logits"] < some.training["logits"] == many.training["logits"] < 2**29
