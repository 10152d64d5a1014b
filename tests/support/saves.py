"""Saved models for tests: base folders, equal models, and folders with one thing wrong."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from interlace import Groups
from support.architectures import build, random_ids
from support.text import tiny_tokenizer


def base_folder(folder: Path, name: str = "llama", **options: Any) -> Path:
    """A plain Hugging Face folder with a tiny random model and its tokenizer."""
    build(name, **options).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@torch.no_grad()
def outputs(model: PreTrainedModel, width: int = 3) -> Tensor:
    """Logits of six rows of five tokens at a width."""
    ids = random_ids(6, 5).to(model.device)
    extra = {"groups": Groups(width=width)} if hasattr(model, "interlace_attachment") else {}
    return model(ids, **extra).logits


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def assert_same_weights(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Every tensor is there and has the same bits."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change `interlace.json` in place."""
    path = folder / "interlace.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def edit_weights(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    """Change `bridge.safetensors` in place, with a manifest that vouches for the change."""
    path = folder / "bridge.safetensors"
    tensors = safetensors.torch.load_file(path)
    change(tensors)
    data = safetensors.torch.save(tensors)
    path.write_bytes(data)

    def vouch(values: dict[str, Any]) -> None:
        values["weights"]["bytes"] = len(data)
        values["weights"]["sha256"] = hashlib.sha256(data).hexdigest()

    edit_manifest(folder, vouch)
