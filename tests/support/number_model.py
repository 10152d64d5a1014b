"""A tiny random model whose words are small numbers, so that its rows have answers, and some of
them are right."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import interlace
from interlace.tasks import Task, get_task
from support.architectures import attach_random, build
from support.text import TEMPLATE

WORDS = ["<pad>", "<unk>", "<end>", *map(str, range(19))]


def number_tokenizer(chat: bool = True) -> PreTrainedTokenizerFast:
    """One token a number from 0 to 18; all other words are unknown."""
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>", eos_token="<end>"
    )
    if chat:
        tokenizer.chat_template = TEMPLATE
    return tokenizer


def number_model(
    blocks: str | None = None, dtype: torch.dtype = torch.float32, seed: int = 1
) -> PreTrainedModel:
    """The model, with random "bridge" or "pmatch" blocks if asked for."""
    model = build(
        "llama",
        seed=seed,
        vocab_size=len(WORDS),
        max_position_embeddings=256,
        eos_token_id=WORDS.index("<end>"),
    )
    if blocks is not None:
        attach_random(model, blocks)
    return model.to(dtype)


def number_engine(
    blocks: str | None = None, dtype: torch.dtype = torch.float32, seed: int = 1
) -> interlace.Engine:
    """An engine with the model; at most 12 rows share a pass, so that calls have a schedule."""
    return interlace.Engine(number_model(blocks, dtype, seed), number_tokenizer(), max_rows=12)


def number_folder(place: Path, blocks: str | None = None, chat: bool = True) -> Path:
    """The model in a folder, as `interlace.load` takes it."""
    base = place / "base"
    number_model().save_pretrained(base)
    number_tokenizer(chat).save_pretrained(base)
    if blocks is None:
        return base
    model, _ = interlace.load(base)
    return Path(interlace.save(attach_random(model, blocks), place / blocks))


def sums(size: int = 10) -> Task:
    """One-digit sums and differences: their answers are words of the model."""
    return get_task("chain-arithmetic", digits=1, steps=1, size=size)
