"""Attaching, running, training, copying and detaching, on every architecture."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from interlace import Groups, detach
from interlace.attached import get_attachment, is_attached, new_parameters
from support.architectures import (
    LAYERS,
    attach_fresh,
    attach_random,
    build,
    checkpointed,
    every_architecture,
    random_alive,
    random_ids,
)

COUNT, WIDTH, POSITIONS = 2, 3, 11
GROUPS = Groups(WIDTH, random_alive(COUNT, WIDTH, POSITIONS))
IDS = random_ids(COUNT * WIDTH, POSITIONS)


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    return model(IDS, groups=GROUPS).logits


@every_architecture()
def test_attached_model_is_still_of_its_class(name: str) -> None:
    base = build(name)
    before = {path: type(module) for path, module in base.named_modules()}
    signature = inspect.signature(base.forward)
    model = attach_fresh(base)
    assert model is base
    assert is_attached(model)
    for path, cls in before.items():
        now = type(model.get_submodule(path))
        assert issubclass(now, cls)
        assert (now.__name__, now.__qualname__, now.__module__) == (
            cls.__name__,
            cls.__qualname__,
            cls.__module__,
        )
    names = {type(module).__name__ for module in model.modules()}
    assert model._no_split_modules
    assert set(model._no_split_modules) & names == {
        type(model.get_submodule(layer)).__name__ for layer in get_attachment(model).layer_names
    }
    parameters = list(inspect.signature(model.forward).parameters.values())
    assert [p for p in parameters if p.name != "groups"] == list(signature.parameters.values())
    assert "groups" in [p.name for p in parameters]


@every_architecture()
@torch.no_grad()
def test_detach_restores_classes_keys_weights_and_outputs(name: str) -> None:
    model = build(name)
    before = {path: type(module) for path, module in model.named_modules()}
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    expected = model(IDS).logits
    attach_random(model)
    keys = set(model.state_dict())
    assert keys > set(weights)
    assert all("bridge" in key for key in keys - set(weights))
    assert keys - set(weights) == {key for key, _ in new_parameters(model)}
    detach(model)
    assert not is_attached(model)
    assert {path: type(module) for path, module in model.named_modules()} == before
    after = model.state_dict()
    assert list(after) == list(weights)
    assert all(torch.equal(after[key], weights[key]) for key in weights)
    assert torch.equal(model(IDS).logits, expected)
    attach_random(model, "pmatch")


@every_architecture()
def test_copies_carry_blocks_of_their_own(name: str) -> None:
    model = attach_random(build(name))
    expected = logits(model)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(other) is type(model)
        assert get_attachment(other) == get_attachment(model)
        assert torch.equal(logits(other), expected)
        with torch.no_grad():
            for _, parameter in new_parameters(other):
                parameter.zero_()
        assert not torch.equal(logits(other), expected)
        assert torch.equal(logits(model), expected)
        detach(other)
        assert is_attached(model)


@every_architecture()
@torch.no_grad()
def test_hidden_states_are_those_after_the_blocks(name: str) -> None:
    model = attach_random(build(name))
    seen: list[Tensor] = []
    attachment = get_attachment(model)
    for block in attachment.block_names:
        model.get_submodule(block).register_forward_hook(lambda _, __, out: seen.append(out))
    out = model(IDS, groups=GROUPS, output_hidden_states=True)
    assert torch.equal(out.logits, logits(model))
    assert len(out.hidden_states) == LAYERS + 1
    for index in range(LAYERS - 1):
        assert torch.equal(out.hidden_states[index + 1], seen[index])
    head = model.get_output_embeddings()
    if name not in ("gemma2", "granite", "cohere2", "opt"):  # these scale or project what follows
        assert torch.equal(head(out.hidden_states[-1]), out.logits)


@every_architecture()
def test_loss_with_labels_and_groups(name: str) -> None:
    model = attach_random(build(name))
    labels = IDS.clone()
    labels[:, :4] = -100
    out = model(IDS, labels=labels, groups=GROUPS)
    expected = torch.nn.functional.cross_entropy(
        logits(model)[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    )
    torch.testing.assert_close(out.loss, expected)
    out.loss.backward()
    assert all(parameter.grad is not None for _, parameter in new_parameters(model))


@every_architecture()
@pytest.mark.parametrize("kind", ["bridge", "pmatch"])
def test_width_1_training_leaves_no_parameter_without_gradient(name: str, kind: str) -> None:
    """A parameter without a gradient makes data-parallel training fail or hang."""
    model = attach_random(build(name), kind).train()
    model(IDS, labels=IDS).loss.backward()
    missing = [key for key, parameter in new_parameters(model) if parameter.grad is None]
    assert not missing


@every_architecture()
@pytest.mark.parametrize("reentrant", [False, True], ids=["not-reentrant", "reentrant"])
def test_gradient_checkpointing_changes_no_gradient(name: str, reentrant: bool) -> None:
    def gradients(checkpointing: bool) -> dict[str, Tensor]:
        model = attach_random(build(name)).train()
        passes: list[None] = []
        block = model.get_submodule(get_attachment(model).block_names[0])
        block.register_forward_pre_hook(lambda *_: passes.append(None))
        if checkpointing:
            checkpointed(model, use_reentrant=reentrant)
            model.enable_input_require_grads()
        model(IDS, labels=IDS, groups=GROUPS, use_cache=False).loss.backward()
        assert len(passes) == (2 if checkpointing else 1), "the block is recomputed"
        return {key: p.grad for key, p in model.named_parameters() if p.grad is not None}

    expected, got = gradients(False), gradients(True)
    assert set(got) == set(expected)
    for key, gradient in expected.items():
        torch.testing.assert_close(got[key], gradient, rtol=1e-5, atol=1e-6, msg=key)


@every_architecture()
@torch.no_grad()
def test_blocks_follow_dtype_mode_and_seed(name: str) -> None:
    base = build(name, dtype=torch.bfloat16).train()
    state = torch.get_rng_state()
    model = attach_fresh(base, seed=7)
    assert torch.equal(torch.get_rng_state(), state), "a seed leaves the global generator alone"
    full = dict(new_parameters(attach_fresh(build(name), seed=7)))
    other = dict(new_parameters(attach_fresh(build(name), seed=8)))
    for key, parameter in new_parameters(model):
        assert parameter.dtype == torch.bfloat16
        assert torch.equal(parameter, full[key].bfloat16()), "one seed, one draw, whatever dtype"
        if "qkv_weight" in key:
            assert not torch.equal(full[key], other[key])
    assert all(module.training for module in model.modules())
    assert not any(module.training for module in attach_fresh(build(name)).modules())


@every_architecture()
@torch.no_grad()
def test_rows_that_a_group_lacks_leave_no_trace(name: str) -> None:
    """Ragged groups: a missing row is all padding, and never alive."""
    model = attach_random(build(name))
    lengths = (2, 3)  # living rows of each group, of a width of 3
    alive = torch.zeros(COUNT, WIDTH, POSITIONS, dtype=torch.bool)
    for group, length in enumerate(lengths):
        alive[group, :length] = True
    mask = alive.flatten(0, 1).long()
    ids = IDS * mask
    out = model(ids, attention_mask=mask, groups=Groups(WIDTH, alive)).logits
    assert out.isfinite().all()
    for group, length in enumerate(lengths):
        rows = slice(group * WIDTH, group * WIDTH + length)
        expected = model(ids[rows], groups=Groups(length)).logits
        torch.testing.assert_close(out[rows], expected, rtol=0, atol=2e-5)


@every_architecture()
def test_mixed_precision_computes_blocks_as_layers(name: str) -> None:
    """Under autocast, blocks with weights in fp32 compute in bf16 and train in fp32."""
    model = attach_random(build(name)).train()
    expected = logits(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(IDS, labels=IDS, groups=GROUPS)
    out.loss.backward()
    gap = (out.logits.float() - expected).abs().mean()
    assert 0 < gap < 0.1 * expected.abs().mean()
    for key, parameter in new_parameters(model):
        assert parameter.grad is not None, key
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.isfinite().all()
