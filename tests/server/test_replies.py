"""Texts, bytes and places of single tokens."""

from __future__ import annotations

from typing import Any

import pytest

from interlace.engine.types import Completion, GroupOutput, SamplingParams, Step
from interlace.server.logits import Scored, Token
from interlace.server.protocol import CompletionRequest
from interlace.server.replies import Replier, TokenTexts
from support.text import BOS, EOS, byte_tokenizer, ids_of, piece_tokenizer


def logprobs_of(tokenizer: Any, ids: list[int], text: str, prompt: Any = None) -> list[Any]:
    """What a reply says of a choice's tokens: unstreamed, and streamed."""
    asked: dict[str, Any] = {"logprobs": 1, "echo": prompt is not None}
    request = CompletionRequest(prompt="p", **asked)
    row = Completion(
        text=text, token_ids=ids, logprobs=[-1.0] * len(ids), sampled_logprobs=[],
        finish_reason="stop", top_logprobs=[[(ids[0], -1.0)]] * len(ids),
    )  # fmt: skip
    group = GroupOutput(
        prompt="p", prompt_token_ids=[5], completions=[row], params=SamplingParams(), seconds=0.0
    )
    texts = TokenTexts(tokenizer)
    scored = None if prompt is None else [prompt]
    whole = Replier(request, "m", texts).complete_reply([group], scored)["choices"][0]["logprobs"]
    replier = Replier(request, "m", texts)
    parts = list(replier.echo(0, prompt)) if prompt else []
    for token in ids:
        step = Step(
            tokens=[token], alive=[True], texts=[""], finish_reasons=[None], logprobs=[-1.0],
            top_logprobs=[[(ids[0], -1.0)]],
        )  # fmt: skip
        parts += replier.step(0, step)
    joined: dict[str, list[Any]] = {name: [] for name in whole}
    for part in parts:
        for name, values in part["logprobs"].items():
            joined[name] += values
    return [whole, joined]


def test_tokens_that_are_parts_of_a_character_stand_where_it_stands() -> None:
    """Each was counted as a character of its own, so that later places lay behind their text."""
    text = "a\N{EURO SIGN}b\N{GRINNING FACE}c"
    for found in logprobs_of(byte_tokenizer(), [*ids_of(text), EOS], text):
        assert found["text_offset"] == [0, 1, 1, 1, 2, 3, 3, 3, 3, 4, 5]


def test_a_blank_belongs_to_the_text_of_its_token() -> None:
    """SentencePiece's tokens were shown without it, and their places fell behind the text."""
    tokenizer = piece_tokenizer()
    ids = tokenizer.convert_tokens_to_ids(["\N{LOWER ONE EIGHTH BLOCK}a", "b"])
    assert None not in ids
    for found in logprobs_of(tokenizer, [*ids, ids[0], ids[1]], "ab ab"):
        assert found["tokens"] == [" a", "b", " a", "b"]
        assert found["text_offset"] == [0, 1, 2, 4]
        assert found["top_logprobs"][2] == {" a": -1.0}


def test_an_echoed_prompt_comes_before_its_choice_and_special_tokens_have_no_text() -> None:
    ids = ids_of("xy")
    prompt = Scored("x\N{EURO SIGN}", [Token(BOS, None), *(
        Token(i, -1.0) for i in ids_of("x\N{EURO SIGN}")
    )])  # fmt: skip
    for found in logprobs_of(byte_tokenizer(), ids, "xy", prompt):
        assert found["text_offset"] == [0, 0, 1, 1, 1, 2, 3]
        assert found["token_logprobs"] == [None, *[-1.0] * 6]
        assert found["tokens"][0] == "<bos>"


@pytest.mark.parametrize("tokenizer", [byte_tokenizer(), piece_tokenizer()])
def test_bytes_of_tokens_join_to_the_text(tokenizer: Any) -> None:
    texts = TokenTexts(tokenizer)
    text = "ab a\N{EURO SIGN}c"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert b"".join(map(texts.raw, ids)).decode().strip() == text.strip()
