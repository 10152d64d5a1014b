"""`interlace.load`: every kind of source, and an error that names what is wrong for the others."""

from __future__ import annotations

import json
import os
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import torch

import interlace
from interlace.attached import is_attached
from interlace.errors import CheckpointError, LoadError
from interlace.models import source
from support.architectures import attach_random, build
from support.saves import LocalHub, assert_same_weights, base_folder, local_hub, outputs, weights
from support.text import tiny_tokenizer
from support.typecheck import unchecked


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return base_folder(tmp_path / "base")


@pytest.fixture
def saved(base: Path, tmp_path: Path) -> Path:
    return interlace.save(attach_random(interlace.load(base)[0]), tmp_path / "out")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalHub:
    return local_hub(monkeypatch, tmp_path / "hub")


# Sources


def test_a_folder_loads_in_eval_mode_without_blocks(base: Path) -> None:
    model, tokenizer = interlace.load(base)
    assert not model.training
    assert not is_attached(model)
    assert_same_weights(weights(model), weights(build("llama")))
    assert tokenizer.chat_template == tiny_tokenizer().chat_template


def test_a_path_may_be_a_string_and_relative(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(base.parent)
    assert torch.equal(outputs(interlace.load("base")[0]), outputs(build("llama")))
    assert torch.equal(outputs(interlace.load("./base/")[0]), outputs(build("llama")))


def test_a_repository_loads_and_its_commit_is_recorded(
    hub: LocalHub, base: Path, tmp_path: Path
) -> None:
    first = hub.commit("org/base", base, ["*"], [])
    model, _ = interlace.load("org/base")
    assert torch.equal(outputs(model), outputs(build("llama")))
    interlace.save(attach_random(model), tmp_path / "out")
    recorded = json.loads((tmp_path / "out" / "interlace.json").read_text())["base"]
    assert (recorded["id"], recorded["revision"]) == ("org/base", first)

    # The repository moves on; the blocks still find the commit that they belong to.
    hub.commit("org/base", base_folder(tmp_path / "later", seed=8), ["*"], [])
    loaded, _ = interlace.load(tmp_path / "out")
    assert torch.equal(outputs(loaded), outputs(model))
    with pytest.raises(CheckpointError, match=f"at revision {first}"):
        interlace.load(tmp_path / "out", base="org/base")


def test_a_description_asks_for_no_weights(
    hub: LocalHub, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = attach_random(interlace.load(base)[0])
    interlace.save(model, tmp_path / "out", full=True, push_to="org/blocks")
    download, asked = source.snapshot_download, []

    def watched(name: str, *, allow_patterns: list[str], **options: object) -> str:
        asked.extend(allow_patterns)
        return download(name, allow_patterns=allow_patterns, **options)

    monkeypatch.setattr(source, "snapshot_download", watched)
    source.resolve("org/blocks", weights=False)
    assert asked
    assert not any(fnmatch(f, p) for f in hub.files("org/blocks") if "safet" in f for p in asked)
    source.resolve("org/blocks")
    assert "base/*" in asked


def test_a_revision_may_be_asked_for(hub: LocalHub, base: Path, tmp_path: Path) -> None:
    first = hub.commit("org/base", base, ["*"], [])
    hub.commit("org/base", base_folder(tmp_path / "later", seed=8), ["*"], [])
    model, _ = interlace.load("org/base", revision=first)
    assert torch.equal(outputs(model), outputs(build("llama")))
    assert not torch.equal(outputs(interlace.load("org/base")[0]), outputs(model))
    with pytest.raises(LoadError, match="at revision v9"):
        interlace.load("org/base", revision="v9")


def test_the_base_may_be_given_as_a_folder_or_a_model(
    base: Path, saved: Path, tmp_path: Path
) -> None:
    expected = outputs(interlace.load(saved)[0])
    moved = tmp_path / "moved"
    base.rename(moved)
    with pytest.raises(LoadError, match=r"cannot be found: There is no file or folder.*base="):
        interlace.load(saved)
    assert torch.equal(outputs(interlace.load(saved, base=moved)[0]), expected)
    mine, tokenizer = build("llama"), tiny_tokenizer()
    loaded, words = interlace.load(saved, base=mine, tokenizer=tokenizer)
    assert loaded is mine
    assert words is tokenizer
    assert torch.equal(outputs(mine), expected)


def test_a_full_save_may_be_the_base_of_others(base: Path, tmp_path: Path) -> None:
    model = attach_random(interlace.load(base)[0])
    full = interlace.save(model, tmp_path / "full", full=True, tokenizer=tiny_tokenizer())
    model, _ = interlace.load(full)
    interlace.detach(model)
    attach_random(model, "pmatch", seed=6)
    blocks = interlace.save(model, tmp_path / "blocks")
    loaded, _ = interlace.load(blocks)
    assert torch.equal(outputs(loaded), outputs(model))
    with pytest.raises(LoadError, match="holds blocks without their base"):
        interlace.load(blocks, base=blocks)


def test_the_data_type_may_be_chosen(base: Path) -> None:
    assert interlace.load(base)[0].dtype == torch.float32
    assert interlace.load(base, dtype="bfloat16")[0].dtype == torch.bfloat16
    assert interlace.load(base, dtype=torch.float16)[0].dtype == torch.float16


def test_options_reach_from_pretrained(base: Path) -> None:
    model, _ = interlace.load(base, attn_implementation="eager", device="cpu")
    assert model.config._attn_implementation == "eager"
    model, _ = interlace.load(base, device_map={"": "cpu"})
    assert model.device.type == "cpu"
    with pytest.raises(LoadError, match="pass one of them"):
        interlace.load(base, device="cpu", device_map="auto")


def test_a_tokenizer_may_come_from_elsewhere(base: Path, tmp_path: Path) -> None:
    (base / "tokenizer.json").unlink()
    (base / "tokenizer_config.json").unlink()
    with pytest.raises(LoadError, match="no tokenizer that can be loaded"):
        interlace.load(base)
    tiny_tokenizer().save_pretrained(tmp_path / "words")
    assert interlace.load(base, tokenizer=tmp_path / "words")[1].chat_template


# What is refused


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dtype": "nonsense"}, r"dtype is one of float32, bfloat16.*got 'nonsense'"),
        ({"dtype": "int8"}, "got 'int8'"),
        ({"dtype": "nn"}, "got 'nn'"),
        ({"device": "cuda:77"}, r"one that torch finds on this machine, cpu.*got 'cuda:77'"),
        ({"device": "tpu"}, "There is no device 'tpu'"),
    ],
)
def test_a_data_type_or_device_that_does_not_exist_is_named(
    base: Path, options: dict[str, str], words: str
) -> None:
    with pytest.raises(LoadError, match=words):
        interlace.load(base, **options)


@pytest.mark.parametrize("source", ["", None, 3, b"tiny"])
def test_what_names_no_model_is_refused(source: Any) -> None:
    with unchecked(), pytest.raises(LoadError, match="A model is a name, a path or a hub id"):
        interlace.load(source)


def test_a_device_is_no_file() -> None:
    with pytest.raises(LoadError, match=r"^/dev/null is neither a file nor a folder\.$"):
        interlace.load("/dev/null")


@pytest.mark.parametrize("shard", ["/dev/zero", "../base/model.safetensors", "gone", 3])
def test_an_index_names_files_of_its_folder(base: Path, shard: object) -> None:
    """Or a reader of /dev/zero takes all memory."""
    index = {"metadata": {}, "weight_map": {"lm_head.weight": shard}}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(LoadError, match=r"index\.json"):
        interlace.load(base)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
@pytest.mark.parametrize("target", ["/dev/zero", "pipe"])
def test_a_device_or_a_pipe_is_not_read(base: Path, name: str, target: str) -> None:
    (base / name).unlink()
    if target == "pipe":
        os.mkfifo(base / name)
    else:
        (base / name).symlink_to(target)
    with pytest.raises(LoadError, match=r"is a device or a pipe|no weights"):
        interlace.load(base)


def test_a_configuration_far_larger_than_its_weights_is_not_built(base: Path) -> None:
    values = json.loads((base / "config.json").read_text())
    for name in ("num_hidden_layers", "vocab_size", "num_labels"):
        (base / "config.json").write_text(json.dumps(values | {name: 10**9}))
        with pytest.raises(LoadError, match=rf"{name} 1e\+09.*do not belong together"):
            interlace.load(base)


def test_nothing_is_unpickled(base: Path) -> None:
    (base / "model.safetensors").unlink()
    torch.save(build("llama").state_dict(), base / "pytorch_model.bin")
    with pytest.raises(LoadError, match=r"pickled form \(pytorch_model\.bin\).*never unpickles"):
        interlace.load(base)


def test_nothing_is_unpickled_from_a_repository(hub: LocalHub, base: Path) -> None:
    (base / "model.safetensors").unlink()
    torch.save(build("llama").state_dict(), base / "pytorch_model.bin")
    hub.commit("org/old", base, ["*"], [])
    with pytest.raises(LoadError, match="never unpickles"):
        interlace.load("org/old")


def test_missing_weights_are_never_random(base: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(base / "model.safetensors")
    del tensors["model.layers.2.mlp.up_proj.weight"]
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(LoadError, match=r"lacks 1 weights.*up_proj\.weight; they would be random"):
        interlace.load(base)


def test_a_truncated_base_is_named(base: Path) -> None:
    path = base / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(LoadError, match="cannot be loaded"):
        interlace.load(base)


def test_an_adapter_is_not_a_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(LoadError, match=r"PeftModel\.from_pretrained"):
        interlace.load(tmp_path)


def test_a_folder_of_something_else_lists_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(LoadError, match=r"holds no model.*It holds notes\.txt"):
        interlace.load(tmp_path)


def test_a_folder_without_weights_is_named(base: Path) -> None:
    (base / "model.safetensors").unlink()
    with pytest.raises(LoadError, match="but no weights"):
        interlace.load(base)


def test_several_gguf_files_ask_for_one(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(LoadError, match=r"holds 2 GGUF files.*gguf_file=: a\.gguf, b\.gguf"):
        interlace.load(tmp_path)
    with pytest.raises(LoadError, match="holds 2 GGUF files"):
        interlace.load(tmp_path, gguf_file="c.gguf")


def test_a_file_that_is_not_gguf_points_to_its_folder(base: Path) -> None:
    with pytest.raises(LoadError, match=f"Pass its folder, {base}"):
        interlace.load(base / "model.safetensors")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("smollm2-135", "Did you mean 'smollm2-135m'"),
        ("SmolLM2-135M-Instruct", "Did you mean 'smollm2-135m'"),
        ("./nowhere", "There is no file or folder"),
        ("a/b/c", "There is no file or folder"),
        ("weights.gguf", "There is no file or folder"),
        ("org/nothing", "neither a folder here nor in the local cache"),
        ("bad--name", "neither a folder here nor a model"),
    ],
)
def test_an_unknown_name_is_answered_with_help(hub: LocalHub, name: str, hint: str) -> None:
    with pytest.raises(LoadError, match=hint):
        interlace.load(name)


def test_a_misspelled_path_is_corrected(base: Path) -> None:
    with pytest.raises(LoadError, match=f"Did you mean {base.name!r}"):
        interlace.load(base.parent / "bas")


def test_base_is_for_saved_blocks(base: Path) -> None:
    with pytest.raises(LoadError, match="is for saved blocks"):
        interlace.load(base, base=base)


def test_a_repository_without_a_model_is_named(hub: LocalHub, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("")
    hub.commit("org/data", tmp_path / "empty", ["*"], [])
    with pytest.raises(LoadError, match="holds no model"):
        interlace.load("org/data")
