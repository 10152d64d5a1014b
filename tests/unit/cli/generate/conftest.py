"""The command on a tiny model that speaks numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import interlace
from interlace.cli.main import main
from support.architectures import VOCAB, attach_random
from support.saves import base_folder
from support.text import TEMPLATE

Generate = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="package")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Saved Bridge blocks on a tiny Llama whose words are numbers, so that rows have answers."""
    place = tmp_path_factory.mktemp("models")
    base = base_folder(place / "base", max_position_embeddings=512)
    words = ["<pad>", "<unk>", "<end>", *map(str, range(VOCAB - 3))]
    vocabulary = {word: i for i, word in enumerate(words)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>", eos_token="<end>"
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(base)
    model, _ = interlace.load(base)
    return Path(interlace.save(attach_random(model), place / "out"))


@pytest.fixture
def generate(folder: Path, capfd: pytest.CaptureFixture) -> Generate:
    """Runs the command on that model; gives its status, standard output and standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        status = main(["generate", "--model", str(folder), *map(str, arguments)])
        out, err = capfd.readouterr()
        return status, out, err

    return run
