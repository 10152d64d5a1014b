"""PEFT's LoRA on the base model, with blocks attached before it or after."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from interlace import Groups, detach
from interlace.attached import get_attachment, is_attached, new_parameters
from support.architectures import (
    attach_random,
    build,
    random_alive,
    random_ids,
    randomise,
)

WIDTH, IDS = 3, random_ids(6, 11)
GROUPS = Groups(WIDTH, random_alive(2, WIDTH, 11))

pytestmark = [
    pytest.mark.slow,
    # PEFT reads properties that transformers has renamed.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:PEFT saves its adapters alone:UserWarning"),
]
architectures = pytest.mark.parametrize("name", ["llama", "gemma3"])


def with_lora(model: nn.Module) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(target_modules="all-linear", r=3, lora_alpha=7, init_lora_weights=False)
    wrapped = get_peft_model(model, config)
    randomise(((k, p) for k, p in wrapped.named_parameters() if "lora_" in k), seed=4)
    return wrapped.eval()


def before(name: str) -> nn.Module:
    return with_lora(attach_random(build(name)))


def after(name: str) -> nn.Module:
    model = with_lora(build(name))
    attach_random(model)
    return model


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model(input_ids=IDS, groups=GROUPS).logits


@architectures
def test_attaching_before_and_after_is_the_same(name: str) -> None:
    one, other = before(name), after(name)
    assert torch.equal(logits(one), logits(other))
    with torch.no_grad():
        alone = one(input_ids=IDS).logits
    assert (logits(one) - alone).abs().max() > 0.05, "groups pass through PeftModel.forward"
    with one.disable_adapter():
        assert torch.equal(logits(one), logits(attach_random(build(name))))


@architectures
@pytest.mark.parametrize("make", [before, after])
def test_adapters_keep_off_the_blocks(name: str, make: object) -> None:
    model = make(name)  # type: ignore[operator]
    adapters = [key for key, _ in model.named_parameters() if "lora_" in key]
    assert adapters
    assert not any("bridge" in key for key in adapters)
    base = model.get_base_model()
    assert len(get_attachment(model).block_names) == 3
    assert [key for key, _ in new_parameters(model)] == [
        key for key, _ in base.named_parameters() if "bridge" in key
    ]


@architectures
@pytest.mark.parametrize("make", [before, after])
def test_gradients_reach_adapters_and_blocks(name: str, make: object) -> None:
    model = make(name).train()  # type: ignore[operator]
    for _, parameter in new_parameters(model):  # PEFT freezes what it finds
        parameter.requires_grad_()
    model(input_ids=IDS, labels=IDS, groups=GROUPS).loss.backward()
    trained = {key for key, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert any("lora_" in key for key in trained)
    assert any("bridge" in key for key in trained)
    assert not any("lora_" not in key and "bridge" not in key for key in trained)


@architectures
@pytest.mark.parametrize("make", [before, after])
def test_generate_through_the_wrapper_is_interdependent(name: str, make: object) -> None:
    model = make(name)  # type: ignore[operator]
    settings = {"do_sample": True, "max_new_tokens": 6, "num_return_sequences": WIDTH, "top_k": 0}
    torch.manual_seed(1)
    out = model.generate(
        input_ids=random_ids(2, 7), **settings, output_logits=True, return_dict_in_generate=True
    )
    with torch.no_grad():
        together = model(input_ids=out.sequences, groups=Groups(WIDTH)).logits[:, 6:-1]
        apart = model(input_ids=out.sequences).logits[:, 6:-1]
    seen = torch.stack(out.logits, 1)
    torch.testing.assert_close(together, seen, rtol=0, atol=5e-5)
    assert (apart - seen).abs().max() > 0.05


@architectures
def test_merged_adapters_leave_the_blocks_where_they_are(name: str) -> None:
    model = before(name)
    expected = logits(model)
    merged = model.merge_and_unload()
    assert is_attached(merged)
    torch.testing.assert_close(logits(merged), expected, rtol=0, atol=1e-4)
    detach(merged)
    assert not any("bridge" in key for key in merged.state_dict())
