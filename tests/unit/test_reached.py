"""A block that a forward pass did not reach is an error, never silence; and no false alarm."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from interlace import Groups, detach
from interlace.errors import AttachError
from support.architectures import attach_fresh, attach_random, build, random_alive, random_ids

IDS = random_ids(6, 11)


def test_truncated_layers_are_an_error() -> None:
    model = attach_fresh(build("llama"))
    model.model.layers = model.model.layers[:-1]
    model.config.num_hidden_layers = 2
    message = r"LlamaForCausalLM did not reach 1 of its 3 blocks, first model\.layers\.2\.bridge"
    with pytest.raises(AttachError, match=message):
        model(IDS, groups=Groups(3))
    detach(model)  # the way out that the message names
    assert not any("bridge" in key for key in model.state_dict())
    model(IDS)


def test_replaced_layer_is_an_error() -> None:
    model = attach_fresh(build("llama"))
    model.model.layers[1] = build("llama").model.layers[1]
    with pytest.raises(AttachError, match=r"first model\.layers\.1\.bridge.*replaced"):
        model(IDS, groups=Groups(3))
    detach(model)
    model(IDS)


def test_replaced_forward_of_a_layer_is_an_error() -> None:
    model = attach_fresh(build("llama"))
    layer = model.model.layers[1]
    layer.forward = layer._interlace_base.forward.__get__(layer)
    with pytest.raises(AttachError, match=r"first model\.layers\.1\.bridge"):
        model(IDS, groups=Groups(3))


def test_layer_drop_is_an_error_and_not_silence() -> None:
    model = attach_fresh(build("opt", layerdrop=0.999)).train()
    with pytest.raises(AttachError, match=r"OPTForCausalLM.*model\.decoder\.layers"):
        model(IDS, groups=Groups(3))
    model.eval()
    model(IDS, groups=Groups(3))


def test_one_groups_object_serves_many_passes() -> None:
    """What one pass reached must not vouch for the next."""
    model, groups = attach_fresh(build("llama")), Groups(3)
    model(IDS, groups=groups)
    model.model.layers[1] = build("llama").model.layers[1]
    with pytest.raises(AttachError):
        model(IDS, groups=groups)


def test_wrappers_that_rebuild_what_they_pass_keep_the_pass() -> None:
    """FSDP1 and DDP in mixed precision take dataclasses apart to cast what is in them."""
    from torch.distributed.utils import _cast_forward_inputs

    def cast(_: nn.Module, args: Any, kwargs: Any) -> Any:
        return _cast_forward_inputs(torch.bfloat16, *args, **kwargs)

    model = attach_random(build("llama", dtype=torch.bfloat16))
    groups = Groups(3, random_alive(2, 3, 11))
    expected = model(IDS, groups=groups).logits
    for layer in model.model.layers:
        layer.register_forward_pre_hook(cast, with_kwargs=True)
    assert torch.equal(model(IDS, groups=groups).logits, expected)
