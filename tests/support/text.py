"""Tokenizers built in-process, and a tiny random model whose words are small numbers, so that its
rows have answers, and some of them are right. Nothing is downloaded."""

from __future__ import annotations

from pathlib import Path

import tokenizers
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import interlace
from interlace.tasks import Task, get_task
from support import architectures
from support.architectures import attach_random, build

PAD, BOS, EOS, END = range(4)
BYTES = 4  # the first of the 256 tokens that are single bytes
VOCAB = BYTES + 256
CHAT = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def byte_tokenizer(begins: bool = False) -> PreTrainedTokenizerFast:
    """One token a byte of UTF-8, so that every boundary lies between tokens, and four special ones.

    Args:
        begins: put the beginning-of-sequence token before a text, as Llama's tokenizer does.
    """
    special = ["<pad>", "<bos>", "<eos>", "<|end|>"]
    alphabet = _byte_characters()
    vocabulary = {token: i for i, token in enumerate(special + alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    if begins:
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", BOS)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        additional_special_tokens=["<|end|>"],
        chat_template=CHAT,
    )


def piece_tokenizer() -> PreTrainedTokenizerFast:
    """A SentencePiece-like one, as Llama 2's: blanks are "▁", unknown bytes fall back to byte
    tokens, and decoding drops the first blank."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    pieces += [f"▁{c}" for c in "abcdefg"] + list("abcdefg▁")
    tokenizer = Tokenizer(
        models.BPE(
            vocab={p: i for i, p in enumerate(pieces)},
            merges=[],
            byte_fallback=True,
            unk_token="<unk>",
        )
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def ids_of(text: str) -> list[int]:
    """What `byte_tokenizer` makes of a text."""
    return [BYTES + b for b in text.encode()]


def _byte_characters() -> list[str]:
    """GPT-2's printable stand-in for each byte, in the order of the bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(b) if b in printable else chr(next(others)) for b in range(256)]


WORDS = ["<pad>", "<unk>", "<end>", *(f"w{i}" for i in range(3, architectures.VOCAB))]
TEMPLATE = "{% for m in messages %}{{ m['content'] }} <end> {% endfor %}"


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer whose token i is the word `w{i}`, with a chat template."""
    model = models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>")
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>", eos_token="<end>"
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


NUMBERS = ["<pad>", "<unk>", "<end>", *map(str, range(19))]


def number_tokenizer(chat: bool = True) -> PreTrainedTokenizerFast:
    """One token a number from 0 to 18; all other words are unknown."""
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(NUMBERS)}, unk_token="<unk>"))
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
        vocab_size=len(NUMBERS),
        max_position_embeddings=256,
        eos_token_id=NUMBERS.index("<end>"),
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
