"""What a model is and takes, from its configuration, against the real thing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import DynamicCache

import interlace
from interlace import BridgeConfig, PMatchConfig
from interlace.attached import new_parameters
from interlace.attaching import count_parameters
from interlace.errors import ConfigError, LoadError
from interlace.models.describe import cache_bytes, describe, memory
from interlace.models.source import resolve
from support.architectures import (
    BRIDGE,
    HIDDEN,
    LAYERS,
    attach_random,
    build,
    every_architecture,
    random_ids,
    tiny_config,
)
from support.saves import base_folder

pytestmark = pytest.mark.filterwarnings("ignore:The blocks add")


def config_folder(folder: Path, name: str = "llama") -> Path:
    """A Hugging Face folder with a configuration and no weights worth the name."""
    tiny_config(name).save_pretrained(folder)
    (folder / "model.safetensors").write_bytes(b"")
    return folder


@every_architecture()
def test_the_description_is_that_of_the_real_model(name: str, tmp_path: Path) -> None:
    found, model = describe(resolve(config_folder(tmp_path, name)), BRIDGE)
    real = build(name)
    assert found.base_parameters == count_parameters(real)
    interlace.attach(real, BRIDGE)
    assert found.new_parameters == sum(p.numel() for _, p in new_parameters(real))
    assert found.architecture == type(real).__name__
    assert found.sizes["hidden_size"] == HIDDEN
    assert not found.attached
    assert all(p.device.type == "meta" for p in model.parameters())


@every_architecture()
@torch.no_grad()
def test_the_cache_is_measured_as_it_is(name: str, tmp_path: Path) -> None:
    _, model = describe(resolve(config_folder(tmp_path, name)), BRIDGE)
    real, length = build(name), 13  # longer than the sliding windows
    cache = DynamicCache(config=real.config)
    real(random_ids(1, length), past_key_values=cache, use_cache=True)
    expected = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert cache_bytes(model, length) == expected


def test_memory_at_a_width(tmp_path: Path) -> None:
    found, model = describe(resolve(config_folder(tmp_path)), BRIDGE, dtype="bfloat16")
    needed = memory(model, width=5, prompt=7, length=30)
    a_position = LAYERS * 2 * 2 * 10 * 2  # layers, keys and values, heads, head dim, bytes
    assert needed.base_weights == 2 * found.base_parameters
    assert needed.new_weights == 2 * found.new_parameters
    assert needed.cache_shared == (7 + 5 * 23) * a_position
    assert needed.cache_copied == 5 * 30 * a_position
    assert memory(model, 1, 30, 30).cache_shared == memory(model, 1, 30, 30).cache_copied


@pytest.mark.parametrize(("width", "prompt", "length"), [(0, 1, 2), (1, 0, 2), (1, 3, 2)])
def test_impossible_sizes_are_refused(tmp_path: Path, width: int, prompt: int, length: int) -> None:
    _, model = describe(resolve(config_folder(tmp_path)), BRIDGE)
    with pytest.raises(ConfigError, match=f"width {width}, prompt {prompt}, length {length}"):
        memory(model, width, prompt, length)


def test_saved_blocks_are_described_as_attached(tmp_path: Path) -> None:
    model, _ = interlace.load(base_folder(tmp_path / "base"), dtype="bfloat16")
    interlace.save(attach_random(model, "pmatch"), tmp_path / "out")
    source = resolve(tmp_path / "out")
    found, _ = describe(source)
    assert found.attached
    assert found.blocks == interlace.attached.get_attachment(model).config
    assert found.base_id == str(tmp_path / "base")
    assert found.dtype == "bfloat16"
    assert not found.notes  # who trained them has seen the warning about their share
    with pytest.raises(ConfigError, match="has pmatch blocks already"):
        describe(source, BridgeConfig())


def test_a_share_sets_the_dimensions(tmp_path: Path) -> None:
    found, _ = describe(resolve(config_folder(tmp_path)), PMatchConfig(parameter_share=0.5))
    assert found.share == pytest.approx(0.5, rel=0.2)
    assert found.to_dict()["blocks"]["kind"] == "pmatch"
    found, _ = describe(resolve(config_folder(tmp_path)))
    assert "parameter_share=0.05" in found.notes[0]


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        ({}, {"dtype": "nonsense"}, "dtype is one of float32"),
        ({"num_hidden_layers": 10**9}, {}, r"1e\+09 layers; a description builds at most 2,000"),
        ({"hidden_size": "x"}, {}, "cannot be described"),
        ({"num_attention_heads": 0}, {}, "cannot be described"),
    ],
)
def test_what_cannot_be_described_is_one_error(
    tmp_path: Path, change: dict[str, object], options: dict[str, str], words: str
) -> None:
    folder = config_folder(tmp_path)
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | change))
    with pytest.raises(LoadError, match=words):
        describe(resolve(folder), **options)


def test_a_quantised_base_is_noted(tmp_path: Path) -> None:
    config = tiny_config("llama")
    config.quantization_config = {"quant_method": "fp8"}
    config.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert "quantised (fp8)" in describe(resolve(tmp_path), BRIDGE)[0].notes[-1]


def test_an_unknown_architecture_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "tower"}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(LoadError, match="cannot be described"):
        describe(resolve(tmp_path))


def test_a_gguf_file_is_described_without_converting_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gguf")
    from support.saves import reference, write_gguf

    monkeypatch.setenv("INTERLACE_CACHE", str(tmp_path / "cache"))
    path = write_gguf(tmp_path / "tiny.gguf")
    before, _ = describe(resolve(path), BRIDGE)
    assert not (tmp_path / "cache").exists()
    assert before.base_parameters == count_parameters(reference())
    assert "dequantised from Q4_1" in before.notes[0]
    assert before.dtype == "float32"
    interlace.load(path)
    assert describe(resolve(path), BRIDGE)[0] == before
