"""Tokenizers built in-process: nothing is downloaded."""

from __future__ import annotations

import tokenizers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from support import architectures

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
