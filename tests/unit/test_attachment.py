"""An attachment switches its blocks off, and counts.

Axes: W = 3, R = 6, S = 7, V = 97. W_O is random, so that a block that runs is seen.
"""

from __future__ import annotations

import copy
import gc
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import interlace
from interlace import Groups
from interlace.attached import get_attachment
from interlace.errors import AttachError, GroupError
from support.architectures import attach_fresh, attach_random, build, every_architecture, random_ids

WIDTH = 3
IDS = random_ids(6, 7)


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    extra = {"groups": Groups(WIDTH)} if hasattr(model, "interlace_attachment") else {}
    return model(IDS, **extra).logits


@every_architecture()
@pytest.mark.parametrize("kind", ["bridge", "pmatch"])
def test_disabled_is_the_base_model_bit_for_bit(name: str, kind: str) -> None:
    model, base = attach_random(build(name), kind), logits(build(name))
    attached = logits(model)
    assert not torch.allclose(attached, base, atol=1e-2)
    with get_attachment(model).disabled():
        assert torch.equal(logits(model), base)
    assert torch.equal(logits(model), attached)


def test_contexts_nest_and_end_with_an_error() -> None:
    model, base = attach_random(build("llama")), logits(build("llama"))
    attachment, attached = get_attachment(model), logits(model)
    with pytest.raises(ZeroDivisionError), attachment.disabled():  # noqa: PT012
        with attachment.disabled():
            pass
        assert torch.equal(logits(model), base), "the outer context still holds"
        with pytest.raises(GroupError):  # wrong groups stay wrong
            model(IDS, groups=Groups(4))
        raise ZeroDivisionError
    assert torch.equal(logits(model), attached)


def test_other_models_and_copies_keep_their_blocks() -> None:
    model, other = attach_random(build("llama")), attach_random(build("llama"))
    attached = logits(model)
    with get_attachment(model).disabled():
        copied, again = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
        for kept in (other, copied, again):
            assert torch.equal(logits(kept), attached)
    with get_attachment(copied).disabled():
        assert torch.equal(logits(model), attached)
        assert torch.equal(logits(copied), logits(build("llama")))


@torch.no_grad()
def test_the_decoder_alone_and_generate_go_by_it() -> None:
    model, base = attach_random(build("llama")), build("llama")
    options: dict[str, Any] = {"num_return_sequences": WIDTH, "do_sample": True, "top_k": 0}
    with get_attachment(model).disabled():
        hidden = model.model(IDS, groups=Groups(WIDTH)).last_hidden_state
        torch.manual_seed(5)
        rows = model.generate(IDS[:2], max_new_tokens=9, **options)
    assert torch.equal(hidden, base.model(IDS).last_hidden_state)
    torch.manual_seed(5)
    assert torch.equal(rows, base.generate(IDS[:2], max_new_tokens=9, **options))


def test_engines_go_by_it() -> None:
    model = attach_random(build("llama"))
    params = interlace.SamplingParams(width=WIDTH, max_new_tokens=9, seed=4)
    plain = interlace.Engine(build("llama"))
    engine = interlace.Engine(model)
    prompts = [[11, 12, 13, 14], [21, 22]]

    def sampled(which: interlace.Engine) -> list[list[list[int]]]:
        return [[c.token_ids for c in g.completions] for g in which.generate(prompts, params)]

    attached = sampled(engine)
    with get_attachment(model).disabled():
        assert sampled(engine) == sampled(plain)
        assert sampled(interlace.Engine(model)) == sampled(plain)
    assert sampled(engine) == attached != sampled(plain)


def test_gradients_do_not_reach_disabled_blocks() -> None:
    model = attach_random(build("llama"))
    with get_attachment(model).disabled():
        model(IDS, labels=IDS, groups=Groups(WIDTH)).loss.backward()
    assert all(p.grad is None for _, p in interlace.new_parameters(model))
    assert model.get_input_embeddings().weight.grad is not None


def test_threads_that_switch_off_and_on_leave_it_on() -> None:
    model = attach_random(build("llama"))
    attachment, attached = get_attachment(model), logits(model)

    def often(_: int) -> None:
        for _ in range(2000):
            with attachment.disabled():
                pass

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(often, range(4)))
    assert torch.equal(logits(model), attached)


def test_a_detached_model_knows_nothing_of_it() -> None:
    model = attach_random(build("llama"))
    attachment = get_attachment(model)
    with attachment.disabled():
        interlace.detach(model)
        attach_random(model)
        assert torch.equal(logits(model), logits(attach_random(build("llama"))))


def test_parameters_are_printed_as_peft_prints_them(capsys: pytest.CaptureFixture[str]) -> None:
    model = attach_fresh(build("llama"))
    model.requires_grad_(False)
    for _, parameter in interlace.new_parameters(model):
        parameter.requires_grad_(True)
    attachment = get_attachment(model)
    attachment.print_trainable_parameters()
    new = sum(p.numel() for _, p in interlace.new_parameters(model))
    every = sum(p.numel() for p in model.parameters())
    line = f"trainable params: {new:,d} || all params: {every:,d} || trainable%: "
    assert capsys.readouterr().out == f"{line}{100 * new / every:.4f}\n"
    copied = copy.deepcopy(model).requires_grad_(False)
    get_attachment(copied).print_trainable_parameters()
    assert capsys.readouterr().out.startswith("trainable params: 0 || ")
    del model, copied
    gc.collect()
    with pytest.raises(AttachError, match="is gone"):
        attachment.print_trainable_parameters()
