"""Models that accelerate dispatched: each block computes where its layer does, and is reached."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload, dispatch_model
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from interlace import Groups, detach
from interlace.attached import new_parameters
from interlace.errors import AttachError
from support.architectures import attach_random, build, random_alive, random_ids

IDS = random_ids(6, 11)
GROUPS = Groups(3, random_alive(2, 3, 11))
SOME_LAYERS_ON_DISK = {
    "model.embed_tokens": "cpu",
    "model.layers.0": "cpu",
    "model.layers.1": "disk",
    "model.layers.2": "disk",
    "model.norm": "disk",
    "model.rotary_emb": "cpu",
    "lm_head": "cpu",
}
ALL_ON_DISK = {"model": "disk", "lm_head": "cpu"}

# Accelerate opens the offloaded files without closing them.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")
maps = pytest.mark.parametrize(
    "device_map", [SOME_LAYERS_ON_DISK, ALL_ON_DISK], ids=["layers", "all"]
)


def plain() -> PreTrainedModel:
    return build("llama", tie_word_embeddings=False)


def dispatched(model: PreTrainedModel, device_map: dict[str, str], folder: Path) -> PreTrainedModel:
    dispatch_model(model, device_map, main_device="cpu", offload_dir=folder, force_hooks=True)
    assert any(parameter.device.type == "meta" for parameter in model.parameters())
    return model


def hooks(model: PreTrainedModel) -> dict[str, object]:
    """The hook of every module whose calls go through one."""
    return {
        path: module._hf_hook
        for path, module in model.named_modules()
        if hasattr(module, "_hf_hook") and "forward" in module.__dict__
    }


@torch.no_grad()
def logits(model: PreTrainedModel, groups: Groups | None = GROUPS) -> Tensor:
    return model(IDS, groups=groups).logits


@maps
def test_attach_after_dispatch(device_map: dict[str, str], tmp_path: Path) -> None:
    model = dispatched(plain(), device_map, tmp_path)
    before = hooks(model)
    attach_random(model)
    assert hooks(model) == before
    assert {parameter.device.type for _, parameter in new_parameters(model)} == {"cpu"}
    assert torch.equal(logits(model), logits(attach_random(plain())))
    detach(model)
    assert hooks(model) == before
    assert torch.equal(model(IDS).logits, plain()(IDS).logits)


@maps
def test_dispatch_after_attach(device_map: dict[str, str], tmp_path: Path) -> None:
    model = dispatched(attach_random(plain()), device_map, tmp_path)
    assert torch.equal(logits(model), logits(attach_random(plain())))
    detach(model)
    assert torch.equal(model(IDS).logits, plain()(IDS).logits)


def test_device_map_at_loading(tmp_path: Path) -> None:
    plain().save_pretrained(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "base", device_map=SOME_LAYERS_ON_DISK, offload_folder=tmp_path / "disk"
    )
    assert model.hf_device_map == SOME_LAYERS_ON_DISK
    assert torch.equal(logits(attach_random(model)), logits(attach_random(plain())))


def test_offload_of_every_module_on_its_own() -> None:
    model = attach_random(cpu_offload(plain(), execution_device=torch.device("cpu")))
    assert {parameter.device.type for _, parameter in new_parameters(model)} == {"cpu"}
    assert torch.equal(logits(model), logits(attach_random(plain())))


def test_generate_on_a_dispatched_model(tmp_path: Path) -> None:
    settings = {"do_sample": True, "max_new_tokens": 4, "num_return_sequences": 3}
    outs = []
    for model in (plain(), dispatched(plain(), SOME_LAYERS_ON_DISK, tmp_path)):
        attach_random(model)
        torch.manual_seed(2)
        outs.append(model.generate(random_ids(2, 7), **settings))
    assert torch.equal(*outs)


def test_a_skipped_block_of_a_dispatched_model_is_an_error(tmp_path: Path) -> None:
    model = attach_random(dispatched(plain(), SOME_LAYERS_ON_DISK, tmp_path))
    model.model.layers[1] = plain().model.layers[1]
    with pytest.raises(AttachError, match=r"first model\.layers\.1\.bridge"):
        logits(model)
