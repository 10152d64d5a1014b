"""From a prompt, in any of its forms, to the ids that the model is fed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import BatchEncoding

from interlace.engine.request import encode
from interlace.errors import GenerationError
from support.text import BOS, END, byte_tokenizer, ids_of
from support.typecheck import unchecked

TOKENIZER = byte_tokenizer()
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "1+1?"},
]


def test_a_text_is_used_verbatim() -> None:
    assert encode(" né\n", 0, TOKENIZER) == ids_of(" né\n")
    assert encode("a", 0, byte_tokenizer(begins=True)) == [BOS, *ids_of("a")]
    assert encode(MESSAGES[1]["content"] + "<|end|>", 0, TOKENIZER) == [*ids_of("1+1?"), END]


def test_token_ids_are_fed_as_they_are() -> None:
    for ids in ([5, 6], (5, 6), np.array([5, 6]), torch.tensor([5, 6]), [np.int64(5), 6]):
        with unchecked():
            got = encode(ids, 0, None)
        assert got == [5, 6]
        assert [type(i) for i in got] == [int, int]
    assert encode([5, 6], 0, byte_tokenizer(begins=True)) == [5, 6]  # no BOS is added
    with unchecked():
        assert encode(list(torch.tensor([5, 6])), 0, None) == [5, 6]


def test_messages_go_through_the_chat_template_with_their_system_prompt() -> None:
    ids = encode(MESSAGES, 0, TOKENIZER)
    expected = [*ids_of("system: Be brief."), END, *ids_of("\nuser: 1+1?"), END]
    assert ids == [*expected, *ids_of("\nassistant:")]
    assert encode(tuple(MESSAGES), 0, TOKENIZER) == ids


@pytest.mark.parametrize("tokenizer", [TOKENIZER, byte_tokenizer(begins=True)])
@pytest.mark.parametrize("prompt", ["", [], (), np.array([], dtype=int)])
def test_an_empty_prompt(prompt: Any, tokenizer: Any) -> None:
    """Also with a tokenizer that would put its beginning-of-sequence token there."""
    with unchecked(), pytest.raises(GenerationError, match=r"Prompt 4 is empty.*bos_token_id"):
        encode(prompt, 4, tokenizer)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (7, "got int"),
        (None, "got NoneType"),
        (b"bytes", "got bytes"),
        ({"role": "user", "content": "a"}, r"single message.*write \[message\]"),
        (BatchEncoding({"input_ids": [5, 6]}), r"got BatchEncoding.*\['input_ids'\]"),
        ({"input_ids": [5, 6]}, r"got dict.*\['input_ids'\]"),
        ([5, "a"], r"mixed.*got \[5, 'a'\]"),
        ([5, 6.0], r"mixed.*got \[5, 6\.0\]"),
        ([True, False], r"mixed.*got \[True, False\]"),
        ([{"role": "user", "content": "a"}, 5], "mixed.*got"),
        (["a", "b"], r"list of texts.*one prompt each"),
        ([[5, 6]], r"mixed.*got \[\[5, 6\]\]"),
        (torch.tensor([[5, 6]]), r"shape \(1, 2\).*one row at a time"),
        (torch.tensor(5), r"shape \(\).*one row at a time"),
        (torch.tensor([5.0]), r"mixed.*got \[5\.0\]"),
    ],
)
def test_what_is_no_prompt(prompt: Any, message: str) -> None:
    with unchecked(), pytest.raises(GenerationError, match=f"(?s)Prompt 4.*{message}"):
        encode(prompt, 4, TOKENIZER)


def test_long_values_are_cut_in_messages() -> None:
    with unchecked(), pytest.raises(GenerationError) as raised:
        encode([*range(5000), "a"], 0, None)
    assert len(str(raised.value)) < 300


@pytest.mark.parametrize("prompt", ["a", MESSAGES])
def test_without_a_tokenizer(prompt: Any) -> None:
    with pytest.raises(GenerationError, match=r"no tokenizer.*Engine\(model, tokenizer\)"):
        encode(prompt, 0, None)


def test_without_a_chat_template() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(GenerationError, match=r"Prompt 2 .*no chat template.*chat_template"):
        encode(MESSAGES, 2, tokenizer)


def test_messages_that_the_template_refuses() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(GenerationError, match=r"prompt 2, \[\{'role'.*System role not supported"):
        encode(MESSAGES, 2, tokenizer)


def test_a_text_that_is_no_unicode() -> None:
    """JSON may hold half a surrogate pair."""
    with pytest.raises(GenerationError, match=r"tokenizer does not take prompt 3, '\\ud800'"):
        encode("\ud800", 3, TOKENIZER)


def test_a_text_of_which_the_tokenizer_leaves_nothing() -> None:
    with pytest.raises(GenerationError, match="Prompt 0 is empty"):
        encode("a", 0, lambda text: {"input_ids": []})


@pytest.mark.parametrize("begun", ["It is", "e", "end|> ", "  two lines\n", "{{ x }}"])
def test_a_turn_that_the_assistant_began_goes_on(begun: str) -> None:
    """It was closed, and another turn opened."""
    messages = [*MESSAGES, {"role": "assistant", "content": begun}]
    expected = [*ids_of("system: Be brief."), END, *ids_of("\nuser: 1+1?"), END]
    assert encode(messages, 0, TOKENIZER) == [*expected, *ids_of(f"\nassistant: {begun}")]


@pytest.mark.parametrize("empty", ["", None])
def test_an_empty_turn_is_yet_to_begin(empty: str | None) -> None:
    with unchecked():
        begun = encode([*MESSAGES, {"role": "assistant", "content": empty}], 0, TOKENIZER)
    assert begun == encode(MESSAGES, 0, TOKENIZER)


def test_a_template_that_leaves_out_the_assistants_words_refuses_to_go_on() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    with pytest.raises(GenerationError, match="does not appear in the chat"):
        encode([*MESSAGES, {"role": "assistant", "content": "Well"}], 0, tokenizer)


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 'a' * 10**10 }}",
        "{{ 'a'.ljust(10**10) }}",
        "{{ '%10000000000d' % 1 }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% for a in range(99999) %}{{ 'a' * 99999 }}{% endfor %}",
        "{{ 9**(9**9) }}",
        "{{ ('a' * 30000000) }}",
        "{{ messages.__class__.__mro__ }}",
        "{% if %}",
    ],
)
def test_a_template_has_bounds(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It hung, or took the machine's memory."""
    monkeypatch.setattr("interlace.chat.CPU_SECONDS", 1.0)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(GenerationError, match="The chat template does not take prompt 0") as raised:
        encode(MESSAGES, 0, tokenizer)
    assert len(str(raised.value)) < 1000
    assert encode(MESSAGES, 0, TOKENIZER)


def test_content_that_is_no_json() -> None:
    with unchecked(), pytest.raises(GenerationError, match="messages are JSON values"):
        encode([{"role": "user", "content": torch.tensor([1])}], 0, TOKENIZER)
