"""The folder that vLLM serves: what is in it, who may not read it, and what is refused.

That vLLM gives from it what the engine gives is tested in plugins/vllm/tests, with vLLM.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import interlace
from interlace.attaching import attach
from interlace.cli.main import main
from interlace.coupling.registry import COUPLINGS, config_from_dict
from interlace.errors import AttachError, CheckpointError, LoadError
from interlace.saving import vllm
from support.architectures import attach_random, build
from support.saves import assert_same_weights, base_folder, outputs, weights
from support.text import tiny_tokenizer
from support.toy_couplings import ToyInputConfig

WIDE = {"hidden_size": 96, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 32}


def export(folder: Path, name: str = "llama", kind: str = "bridge", **options: Any) -> Any:
    """An attached random model, and the folder it is exported to."""
    model = attach_random(build(name, **WIDE), kind, **options)
    vllm.export_for_vllm(model, folder, tiny_tokenizer())
    return model


def tensors_of(folder: Path) -> dict[str, Tensor]:
    """What vLLM reads: every safetensors file of the folder."""
    found: dict[str, Tensor] = {}
    for path in folder.glob("*.safetensors"):
        found |= safetensors.torch.load_file(path)
    return found


def section_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())["interlace"]


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "olmo2"])
@pytest.mark.parametrize("kind", ["bridge", "pmatch"])
def test_base_and_blocks_are_rebuilt_from_the_folder_alone(
    tmp_path: Path, name: str, kind: str
) -> None:
    model = export(tmp_path, name, kind)
    config = AutoConfig.from_pretrained(tmp_path)
    assert config.architectures == ["InterlaceForCausalLM"]
    section = section_of(tmp_path)
    assert section["base"] == [type(model).__name__]
    assert section["layers"] == list(model.interlace_attachment.layer_names)
    rebuilt = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The blocks add")
        attach(rebuilt, config_from_dict(section["blocks"]), seed=5)
    missing, surplus = rebuilt.load_state_dict(tensors_of(tmp_path), strict=False)
    assert set(missing) <= {"lm_head.weight"}  # tied
    assert not surplus
    rebuilt.tie_weights()
    assert_same_weights(weights(rebuilt), weights(model))
    assert torch.equal(outputs(rebuilt.eval()), outputs(model))


def test_the_tokenizer_and_the_ends_of_a_text_come_along(tmp_path: Path) -> None:
    model = attach_random(build("llama", **WIDE))
    model.generation_config.eos_token_id = [11, 13]
    vllm.export_for_vllm(model, tmp_path, tiny_tokenizer())
    assert AutoTokenizer.from_pretrained(tmp_path)("2 + 3") == tiny_tokenizer()("2 + 3")
    ends = json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"]
    assert ends == [11, 13]


def test_the_model_is_as_it_was(tmp_path: Path) -> None:
    model = attach_random(build("llama", **WIDE))
    before, logits = weights(model), outputs(model)
    vllm.export_for_vllm(model, tmp_path)
    assert_same_weights(weights(model), before)
    assert torch.equal(outputs(model), logits)


def test_nobody_loads_the_base_without_its_blocks(tmp_path: Path) -> None:
    """Named model.safetensors, the base would load, and its blocks would be missing in silence."""
    export(tmp_path)
    with pytest.raises(OSError, match=r"model\.safetensors"):
        AutoModelForCausalLM.from_pretrained(tmp_path)
    with pytest.raises(LoadError, match=r"is an export for vLLM.*what it was exported from"):
        interlace.load(tmp_path)


def test_a_smaller_export_leaves_nothing_of_a_larger_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM reads every safetensors file: an old shard, or blocks of another kind, would count."""
    model = attach_random(build("llama", **WIDE))
    original = vllm.write_base

    def in_shards(base: Any, folder: Path) -> None:
        original(base, folder)
        whole = safetensors.torch.load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        for number, (name, tensor) in enumerate(whole.items(), 1):
            part = f"model-{number:05}-of-{len(whole):05}.safetensors"
            safetensors.torch.save_file({name: tensor}, folder / part)
        (folder / "model.safetensors.index.json").write_text("{}")

    with monkeypatch.context() as patch:
        patch.setattr(vllm, "write_base", in_shards)
        vllm.export_for_vllm(model, tmp_path)
    assert len(list(tmp_path.glob("base-*.safetensors"))) > 3
    assert not (tmp_path / "model.safetensors.index.json").exists()
    sharded = tensors_of(tmp_path)
    other = attach_random(build("llama", **WIDE), "pmatch")
    vllm.export_for_vllm(other, tmp_path)
    files = {path.name for path in tmp_path.glob("*.safetensors")}
    assert files == {"base.safetensors", "pmatch.safetensors"}
    assert {n for n in sharded if "bridge" not in n} == {
        n for n in tensors_of(tmp_path) if "pmatch" not in n
    }


@pytest.mark.parametrize("reads", ["finished", "history"])
def test_blocks_that_read_earlier_positions_are_refused(tmp_path: Path, reads: str) -> None:
    with pytest.raises(CheckpointError, match=rf"these blocks read '{reads}'.*interlace serve"):
        export(tmp_path / "out", reads=reads)
    assert not (tmp_path / "out").exists()


def test_blocks_that_go_by_rows_alone_are_carried(tmp_path: Path) -> None:
    export(tmp_path, alone="skip")
    assert section_of(tmp_path)["blocks"]["alone"] == "skip"


def test_a_coupling_with_another_seat_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(COUPLINGS, "toyinput", "support.toy_couplings.ToyInput")
    model = build("llama", **WIDE)
    attach(model, ToyInputConfig())
    with pytest.raises(CheckpointError, match="toyinput stands at input"):
        vllm.export_for_vllm(model, tmp_path / "out")


def test_a_base_that_is_no_plain_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AttachError, match="has no blocks"):
        vllm.export_for_vllm(build("llama", **WIDE), tmp_path / "out")
    model = attach_random(build("llama", **WIDE))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that PEFT saves no blocks is not the matter here
        adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(CheckpointError, match=r"3 layers carry PEFT adapters.*merge_and_unload"):
        vllm.export_for_vllm(adapted, tmp_path / "out")


def test_a_base_that_vllm_computes_otherwise_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="leaves out the logits_scaling of Granite"):
        export(tmp_path / "out", "granite")
    with pytest.warns(UserWarning, match="GPT2LMHeadModel has not been compared"):
        vllm.export_for_vllm(
            attach_random(build("gpt2", hidden_size=96, num_attention_heads=3)), tmp_path / "out"
        )


def test_a_folder_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    folder = base_folder(tmp_path / "plain")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(CheckpointError, match="holds a model that is no export"):
        export(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    with pytest.raises(CheckpointError, match="is a file"):
        export(folder / "config.json")


def test_a_head_dim_that_no_cpu_runs_is_told(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"no attention for heads of 10 .*only a GPU"):
        vllm.export_for_vllm(attach_random(build("llama")), tmp_path)


def test_the_command_exports_what_a_save_holds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = attach_random(build("llama", **WIDE))
    interlace.save(model, tmp_path / "saved", full=True, tokenizer=tiny_tokenizer())
    assert main(["export", str(tmp_path / "saved"), str(tmp_path / "out"), "--to", "vllm"]) == 0
    assert f"vllm serve {tmp_path / 'out'}" in capsys.readouterr().out
    vllm.export_for_vllm(model, tmp_path / "direct")
    assert_same_weights(tensors_of(tmp_path / "out"), tensors_of(tmp_path / "direct"))
    assert (tmp_path / "out" / "tokenizer.json").exists()
    assert main(["export", str(tmp_path / "saved")]) == 2
    assert "interlace export MODEL OUT" in capsys.readouterr().err
