"""`interlace info`: the table, and what it is asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import interlace
from interlace.cli.main import main
from support.architectures import attach_random, tiny_config
from support.saves import base_folder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COLUMNS", "120")
    tiny_config("llama").save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"")
    return tmp_path / "model"


def info(capsys: pytest.CaptureFixture, *arguments: object) -> dict[str, str]:
    """The rows of the printed table."""
    assert main(["info", *map(str, arguments)]) == 0
    lines = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    rows = [[part.strip() for part in line if part.strip()] for line in lines]
    return {row[0]: row[1] for row in rows if len(row) == 2}


def info_json(capsys: pytest.CaptureFixture, *arguments: object) -> dict[str, object]:
    assert main(["info", "--json", *map(str, arguments)]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_table_tells_base_blocks_and_memory(
    folder: Path, capsys: pytest.CaptureFixture
) -> None:
    rows = info(capsys, folder, "--num-heads", 8, "--head-dim", 7, "--width", 5)
    assert rows["architecture"] == "LlamaForCausalLM"
    assert rows["layers"] == "3"
    assert rows["hidden size D"] == "24"
    assert rows["base parameters"] == "22,008"
    assert rows["blocks"] == "bridge, if attached"
    assert rows["layers with a block"] == "3 of 3"
    assert rows["new parameters"] == "12,168"
    assert rows["share"] == "55.29%"
    assert rows["memory at width"] == "5, prompt 512 of 1,024 positions, float32"
    assert rows["base weights"] == "86.0 KiB"
    assert rows["cache, prompt stored once"] == "1.4 MiB"
    assert rows["cache, prompt copied"] == "2.3 MiB"


def test_options_change_what_is_described(folder: Path, capsys: pytest.CaptureFixture) -> None:
    assert info(capsys, folder, "--kind", "pmatch")["MLP size"] == "1,056"
    assert "MLP size" not in info(capsys, folder)
    gated = info(capsys, folder, "--kind", "gated")
    assert (gated["rank"], gated["layers with a block"]) == ("64", "1 of 3")
    lanes = info(capsys, folder, "--kind", "lanerope")
    assert (lanes["Omega"], lanes["learned"]) == ("ntk, 4,096 positions", "yes")
    assert info(capsys, folder, "--kind", "hogwild")["learned"] == "no"
    mix = info(capsys, folder, "--kind", "mix")
    assert (mix["mixed share"], mix["temperature"]) == ("0.1", "0.1")
    streams = info(capsys, folder, "--kind", "parscale")
    assert (streams["streams"], streams["prefix"]) == ("8", "48 positions")
    assert info(capsys, folder, "--layers", "2")["layers with a block"] == "2 of 3"
    assert info_json(capsys, folder, "--layers", "0,2")["blocks"]["layers"] == [0, 2]
    assert info_json(capsys, folder, "--layers", "all")["blocks"]["layers"] == [0, 1, 2]
    assert info_json(capsys, folder, "--share", "0.4")["share"] == pytest.approx(0.4, rel=0.2)
    half = info_json(capsys, folder, "--dtype", "bfloat16", "--length", 64, "--prompt-length", 16)
    assert half["dtype"] == "bfloat16"
    assert half["memory"]["prompt_length"] == 16
    assert half["memory"]["base_weights"] == 2 * half["base_parameters"]


def test_saved_blocks_are_told_as_attached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    model, _ = interlace.load(base_folder(tmp_path / "base"))
    out = interlace.save(attach_random(model), tmp_path / "out")
    capsys.readouterr()
    monkeypatch.setenv("COLUMNS", "400")
    rows = info(capsys, out)
    assert rows["blocks"] == "bridge, attached"
    assert rows["base model"] == str(tmp_path / "base")
    assert main(["info", str(out), "--share", "0.1"]) == 2
    assert "has bridge blocks already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layers", "one"], "got 'one'"),
        (["--layers", "7"], "1 <= k <= 3"),
        (["--share", "5"], "For five percent write 0.05"),
        (["--share", "0.05", "--head-dim", "8"], "leave out"),
        (["--width", "0"], "at least one"),
        (["--length", "10", "--prompt-length", "11"], "A context holds its prompt"),
    ],
)
def test_impossible_requests_are_explained(
    folder: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    assert main(["info", str(folder), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_an_unknown_model_is_explained(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["info", str(tmp_path / "nowhere")]) == 2
    assert "There is no file or folder" in capsys.readouterr().err
