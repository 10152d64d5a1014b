"""Saving blocks, and putting them back: what is written, and what is refused.

That outputs survive is invariant I9, in tests/invariants/test_saving.py.
"""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path

import huggingface_hub
import pytest
import safetensors.torch
import torch
import yaml
from transformers import AutoTokenizer, PreTrainedModel

import interlace
from interlace.attached import new_parameters
from interlace.errors import AttachError, CheckpointError, LoadError
from interlace.saving.checkpoint import attach_saved, save
from support.architectures import BRIDGE, attach_random, build
from support.saves import (
    assert_same_weights,
    base_folder,
    edit_manifest,
    edit_weights,
    local_hub,
    outputs,
    weights,
)
from support.text import tiny_tokenizer

TESTS = Path(__file__).parents[2]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return base_folder(tmp_path / "base")


@pytest.fixture
def model(base: Path) -> PreTrainedModel:
    return attach_random(interlace.load(base)[0])


@pytest.fixture
def saved(model: PreTrainedModel, tmp_path: Path) -> Path:
    return save(model, tmp_path / "out")


def fresh(base: Path) -> PreTrainedModel:
    return interlace.load(base)[0]


# What is written


def test_a_save_holds_the_new_weights_a_description_and_a_card(
    model: PreTrainedModel, saved: Path
) -> None:
    assert {p.name for p in saved.iterdir()} == {
        "bridge.safetensors",
        "interlace.json",
        "README.md",
    }
    assert_same_weights(
        safetensors.torch.load_file(saved / "bridge.safetensors"),
        {name: p.detach() for name, p in new_parameters(model)},
    )


def test_the_description_is_readable(model: PreTrainedModel, saved: Path, base: Path) -> None:
    values = json.loads((saved / "interlace.json").read_text())
    assert values["format"] == 1
    assert values["interlace"] == interlace.__version__
    assert values["blocks"] == BRIDGE.to_dict() | {"layers": [0, 1, 2]}
    assert values["layers"] == [f"model.layers.{i}" for i in range(3)]
    assert values["hidden_size"] == 24
    assert values["new_parameters"] == sum(p.numel() for _, p in new_parameters(model))
    assert values["base"]["id"] == str(base)
    assert values["base"]["fingerprint"]["architecture"] == "LlamaForCausalLM"
    assert values["base"]["fingerprint"]["sizes"]["vocab_size"] == 97


def test_the_card_names_the_base_and_how_to_load(
    model: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = local_hub(monkeypatch, tmp_path / "hub")
    hub.commit("org/base", tmp_path / "base", ["*"], [])
    model, _ = interlace.load("org/base")
    save(attach_random(model), tmp_path / "card")
    text = (tmp_path / "card" / "README.md").read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert front["base_model"] == "org/base"
    assert front["library_name"] == "interlace"
    assert "bridge" in front["tags"]
    assert 'interlace.load("card")' in text
    assert hub.head("org/base") in text


def test_a_local_base_stays_out_of_the_card(saved: Path, base: Path) -> None:
    text = (saved / "README.md").read_text()
    assert "base_model:" not in text
    assert str(base) not in text


def test_an_edited_card_is_kept(model: PreTrainedModel, saved: Path) -> None:
    save(model, saved)
    assert "interlace.load" in (saved / "README.md").read_text()
    (saved / "README.md").write_text("# Mine\n")
    save(model, saved)
    assert (saved / "README.md").read_text() == "# Mine\n"


def test_a_tokenizer_is_saved_beside_the_blocks_and_preferred(
    model: PreTrainedModel, tmp_path: Path
) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "changed"
    save(model, tmp_path / "out", tokenizer=tokenizer)
    assert interlace.load(tmp_path / "out")[1].chat_template == "changed"
    save(model, tmp_path / "out")
    assert interlace.load(tmp_path / "out")[1].chat_template == tiny_tokenizer().chat_template


def test_a_full_save_holds_a_plain_base_without_blocks(
    model: PreTrainedModel, tmp_path: Path
) -> None:
    save(model, tmp_path / "out", full=True, tokenizer=tiny_tokenizer())
    plain, report = type(model)._interlace_base.from_pretrained(
        tmp_path / "out" / "base", output_loading_info=True
    )
    assert not any(report.values())
    interlace.detach(model)
    assert_same_weights(weights(plain), weights(model))
    assert AutoTokenizer.from_pretrained(tmp_path / "out" / "base").chat_template


def test_other_files_in_the_folder_stay(model: PreTrainedModel, saved: Path) -> None:
    (saved / "notes.txt").write_text("mine")
    (saved / "logs").mkdir()
    save(model, saved)
    assert (saved / "notes.txt").read_text() == "mine"
    assert (saved / "logs").is_dir()


def test_another_kind_replaces_the_first(model: PreTrainedModel, saved: Path) -> None:
    interlace.detach(model)
    attach_random(model, "pmatch")
    save(model, saved)
    assert not (saved / "bridge.safetensors").exists()
    loaded, _ = interlace.load(saved)
    assert torch.equal(outputs(loaded), outputs(model))


# What saving refuses


def test_a_model_without_blocks_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(AttachError, match="has no blocks"):
        save(fresh(base), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_blocks_alone_are_refused_when_the_base_was_trained(
    model: PreTrainedModel, tmp_path: Path
) -> None:
    with torch.no_grad():
        model.get_parameter("model.layers.1.mlp.up_proj.weight").mul_(1.001)
    with pytest.raises(CheckpointError, match=r"has changed since it was loaded.*full=True"):
        save(model, tmp_path / "out")
    save(model, tmp_path / "out", full=True)


def test_blocks_alone_do_not_replace_a_full_save(model: PreTrainedModel, tmp_path: Path) -> None:
    save(model, tmp_path / "out", full=True)
    with pytest.raises(CheckpointError, match="would throw those weights away"):
        save(model, tmp_path / "out")
    assert (tmp_path / "out" / "base" / "model.safetensors").exists()


@pytest.mark.parametrize("name", ["base", "tokenizer"])
def test_a_folder_of_someone_else_is_not_overwritten(
    model: PreTrainedModel, tmp_path: Path, name: str
) -> None:
    (tmp_path / "work" / name).mkdir(parents=True)
    with pytest.raises(CheckpointError, match="no earlier save put there"):
        save(model, tmp_path / "work", full=True)


def test_a_file_is_no_folder(model: PreTrainedModel, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(CheckpointError, match="is a file"):
        save(model, tmp_path / "out")


def test_a_base_from_memory_is_asked_for_again(tmp_path: Path) -> None:
    model = attach_random(build("llama"))
    with pytest.warns(UserWarning, match="came from memory"):
        save(model, tmp_path / "out")
    with pytest.raises(LoadError, match="so pass it"):
        interlace.load(tmp_path / "out")
    with pytest.raises(LoadError, match="no tokenizer was saved"):
        interlace.load(tmp_path / "out", base=build("llama"))
    loaded, tokenizer = interlace.load(
        tmp_path / "out", base=build("llama"), tokenizer=tiny_tokenizer()
    )
    assert tokenizer.chat_template
    assert torch.equal(outputs(loaded), outputs(model))


def test_a_base_from_memory_saved_in_full_loads_alone(tmp_path: Path) -> None:
    model = attach_random(build("llama"))
    save(model, tmp_path / "out", full=True, tokenizer=tiny_tokenizer())
    assert torch.equal(outputs(interlace.load(tmp_path / "out")[0]), outputs(model))


def test_push_to_hub_leaves_not_even_an_empty_repository(
    model: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = local_hub(monkeypatch, tmp_path / "hub")
    with pytest.raises(AttachError, match=r"interlace\.save"):
        model.push_to_hub("someone/blocks")
    assert not hub.calls


# LoRA


# PEFT still asks transformers by an old name.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:PEFT saves its adapters alone:UserWarning")
def test_blocks_on_a_base_with_lora_are_saved_with_a_warning(base: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    wrapped = peft.get_peft_model(fresh(base), peft.LoraConfig(target_modules=["q_proj"]))
    attach_random(wrapped.get_base_model())
    with pytest.warns(UserWarning, match="not PEFT's adapters"):
        save(wrapped, tmp_path / "out")
    with pytest.raises(CheckpointError, match="Merge them"):
        save(wrapped, tmp_path / "full", full=True)
    loaded, _ = interlace.load(tmp_path / "out")  # the fingerprint sees through the wrapping
    found = dict(new_parameters(loaded))
    assert_same_weights(found, dict(new_parameters(wrapped)))


# What loading refuses: each error names what differs


def test_another_architecture_is_named(saved: Path) -> None:
    with pytest.raises(CheckpointError, match="'LlamaForCausalLM' expected, 'GPT2LMHeadModel'"):
        attach_saved(build("gpt2"), saved)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"vocab_size": 101}, "vocab_size: 97 expected, 101 found"),
        ({"num_hidden_layers": 2}, "num_hidden_layers: 3 expected, 2 found"),
        ({"intermediate_size": 41}, "intermediate_size: 37 expected, 41 found"),
        ({"tie_word_embeddings": False}, "parameters: "),
    ],
)
def test_other_sizes_are_named(saved: Path, change: dict[str, object], named: str) -> None:
    other = build("llama", **change)
    before = weights(other)
    with pytest.raises(CheckpointError, match=named):
        attach_saved(other, saved)
    assert_same_weights(weights(other), before)  # nothing was attached


def test_other_weights_are_named(saved: Path) -> None:
    with pytest.raises(CheckpointError, match=r"weight model\..* expected, .* found"):
        attach_saved(build("llama", seed=9), saved)


def test_one_slightly_trained_weight_is_noticed(base: Path, saved: Path) -> None:
    other = fresh(base)
    with torch.no_grad():
        other.get_parameter("model.layers.2.mlp.down_proj.weight").mul_(1 + 1e-6)
    with pytest.raises(CheckpointError, match="sampled values differ"):
        attach_saved(other, saved)


def test_the_same_base_in_another_data_type_is_accepted(base: Path, saved: Path) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        loaded, _ = interlace.load(saved, dtype=dtype)
        assert loaded.dtype == loaded.get_submodule("model.layers.0.bridge").o_weight.dtype == dtype


def test_another_base_in_another_data_type_is_named(saved: Path) -> None:
    with pytest.raises(CheckpointError, match=r"weight model\."):
        attach_saved(build("llama", seed=9, dtype=torch.bfloat16), saved)


def test_blocks_go_onto_a_sibling_when_told_to(saved: Path) -> None:
    other = build("llama", seed=9)
    attach_saved(other, saved, check_base=False)
    assert interlace.attached.is_attached(other)
    with pytest.raises(CheckpointError, match=r"\[.*, 24\]|\[24, .*\]"):
        attach_saved(build("llama", hidden_size=30), saved, check_base=False)


def test_a_truncated_file_is_named(base: Path, saved: Path) -> None:
    path = saved / "bridge.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"truncated.*bytes expected"):
        attach_saved(fresh(base), saved)


def test_a_tampered_file_is_named(base: Path, saved: Path) -> None:
    path = saved / "bridge.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match=r"changed after it was saved.*sha256"):
        attach_saved(fresh(base), saved)


def test_missing_weights_are_named(base: Path, saved: Path) -> None:
    edit_weights(saved, lambda tensors: tensors.pop("model.layers.1.bridge.o_weight"))
    with pytest.raises(CheckpointError, match=r"missing model\.layers\.1\.bridge\.o_weight"):
        attach_saved(fresh(base), saved)


def test_surplus_weights_are_named(base: Path, saved: Path) -> None:
    edit_weights(saved, lambda tensors: tensors.update({"model.extra": torch.ones(1)}))
    with pytest.raises(CheckpointError, match=r"surplus model\.extra"):
        attach_saved(fresh(base), saved)


def test_wrong_shapes_are_named(base: Path, saved: Path) -> None:
    name = "model.layers.0.bridge.norm.weight"
    edit_weights(saved, lambda tensors: tensors.update({name: torch.ones(23)}))
    with pytest.raises(CheckpointError, match=r"norm\.weight: \[24\] expected, \[23\] found"):
        attach_saved(fresh(base), saved)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_not_finite_are_named(base: Path, saved: Path, value: float) -> None:
    # A fused attention swallows them: the logits are finite, and wrong.
    name = "model.layers.1.bridge.qkv_weight"
    edit_weights(saved, lambda tensors: tensors[name].view(-1)[5:6].fill_(value))
    with pytest.raises(CheckpointError, match=r"not finite, first in model.*qkv_weight"):
        attach_saved(fresh(base), saved)


HOSTILE = {
    "null": b"null",
    "a list": b"[]",
    "a number": b"1e999",
    "deep": b"[" * 100_000 + b"]" * 100_000,
    "deep values": b'{"format": ' + b"[" * 900 + b"]" * 900 + b"}",
    "invalid UTF-8": b'{"format": 1, "blocks": "\xff"}',
    "a long number": b'{"format": 1' + b"0" * 5_000 + b"}",
    "empty": b"",
    "half a pair": b'{"format": 1, "weights": {}, "base": {"id": "\\ud800"}}',
    "long text": b'{"format": 1, "weights": "' + b"x" * 5_000_000 + b'"}',
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_damaged_description_is_one_error(saved: Path, name: str) -> None:
    (saved / "interlace.json").write_bytes(HOSTILE[name])
    with pytest.raises(CheckpointError) as caught:
        interlace.load(saved)
    text = str(caught.value)
    assert "interlace.json" in text
    assert "\n" not in text
    assert len(text) < 4_000


def test_a_missing_weights_file_is_named(base: Path, saved: Path) -> None:
    (saved / "bridge.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no bridge\.safetensors"):
        attach_saved(fresh(base), saved)


def test_a_newer_format_says_upgrade(base: Path, saved: Path) -> None:
    edit_manifest(saved, lambda values: values.update(format=2, interlace="9.0"))
    with pytest.raises(CheckpointError, match=r"format 2, written by interlace 9\.0.*--upgrade"):
        attach_saved(fresh(base), saved)


def test_json_that_does_not_parse_is_named(base: Path, saved: Path) -> None:
    path = saved / "interlace.json"
    path.write_text(path.read_text()[:200])
    with pytest.raises(CheckpointError, match=r"interlace\.json is not readable JSON"):
        attach_saved(fresh(base), saved)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda v: v.pop("format"), "names no format version"),
        (lambda v: v.update(layers="all"), "'layers' should be list"),
        (lambda v: v.pop("base"), "'base' should be dict, found None"),
        (lambda v: v["layers"].pop(), "'layers' names 2 layers"),
        (lambda v: v["blocks"].update(kind="tower"), "Unknown kind of block 'tower'"),
        (lambda v: v["blocks"].update(heads=3), "Unknown keys"),
        (lambda v: v["weights"].update(bytes=True), "'bytes' should be int, found True"),
        (lambda v: v["base"]["fingerprint"]["values"].update(x=["a"]), "not readable"),
    ],
)
def test_an_edited_description_is_named(saved: Path, change: object, named: str) -> None:
    edit_manifest(saved, change)
    with pytest.raises(CheckpointError, match=named):
        attach_saved(build("llama"), saved)


def test_a_failure_leaves_the_model_as_it_was(base: Path, saved: Path) -> None:
    edit_weights(saved, lambda tensors: tensors.update({"model.extra": torch.ones(1)}))
    model = fresh(base)
    with pytest.raises(CheckpointError):
        attach_saved(model, saved)
    attach_random(model)


def test_loading_draws_no_random_numbers(saved: Path) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    interlace.load(saved)
    assert torch.equal(torch.rand(3), expected)


def test_a_large_share_is_warned_about_once_only(model: PreTrainedModel, saved: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        interlace.load(saved)


# Whatever stops a save


def test_a_kill_or_a_full_disk_leaves_an_earlier_save_as_it_was(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "support.save_faults", str(tmp_path)],
        cwd=TESTS,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    outcomes = json.loads(result.stdout.splitlines()[-1])
    kills = outcomes["kills"]
    assert len(kills) > 15
    assert set(kills) == {"old", "new"}, "old and new files were mixed"
    assert kills == sorted(kills, reverse=True), "a later moment gave an older state"
    for note, held in outcomes["full"]:
        assert "an earlier save there is as it was" in note
        assert held == "1"
    plain = outcomes["plain"]
    assert set(plain) == {"nothing", "old", "new"}, "a finished model was not seen, or mixed"
    first = plain.index("old")
    for order, found in (("nothing new", plain[:first]), ("old new", plain[first:])):
        assert len(found) > 8
        assert found == sorted(found, key=order.split().index), "a later moment gave an older state"


@pytest.mark.slow
def test_a_model_that_fsdp_shards_is_saved_whole(base: Path, tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    result = subprocess.run(
        [*launcher, "-m", "support.saves", str(tmp_path)],
        cwd=TESTS,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert "both saves are whole" in result.stdout


# The hub

offline_loading = pytest.mark.skipif(
    huggingface_hub.__version__.startswith("1."),
    reason="huggingface-hub 1 asks the hub for a repository's files before its cache",
)


@offline_loading
def test_a_push_uploads_the_save_alone(
    model: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = local_hub(monkeypatch, tmp_path / "hub")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "secret.txt").write_text("mine")
    with pytest.warns(UserWarning, match="cannot load it"):  # the base is a local folder
        save(model, tmp_path / "out", tokenizer=tiny_tokenizer(), push_to="blocks", private=True)
    assert hub.calls[0] == (
        "create_repo",
        {"repo_id": "blocks", "private": True, "exist_ok": True},
    )
    files = hub.files("someone/blocks")
    assert {"bridge.safetensors", "interlace.json", "README.md"} < files
    assert "secret.txt" not in files
    assert any(f.startswith("tokenizer/") for f in files)
    loaded, _ = interlace.load("someone/blocks")
    assert torch.equal(outputs(loaded), outputs(model))


@offline_loading
def test_a_push_replaces_what_an_earlier_one_left(
    model: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = local_hub(monkeypatch, tmp_path / "hub")
    save(model, tmp_path / "a", full=True, tokenizer=tiny_tokenizer(), push_to="someone/blocks")
    first = hub.head("someone/blocks")
    expected = outputs(model)
    assert "base/model.safetensors" in hub.files("someone/blocks")
    interlace.detach(model)
    attach_random(model, "pmatch")
    with pytest.warns(UserWarning, match="cannot load it"):
        save(model, tmp_path / "b", push_to="someone/blocks")
    assert hub.files("someone/blocks") == {"pmatch.safetensors", "interlace.json", "README.md"}
    loaded, _ = interlace.load("someone/blocks", revision=first)
    assert torch.equal(outputs(loaded), expected)
