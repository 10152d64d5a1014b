"""Texts that grow token by token, stop strings, and when a majority is settled."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interlace import SamplingParams
from interlace.engine.consensus import majority_is_settled
from interlace.engine.request import end_token_ids, forbidden_token_ids, stop_ids_of
from interlace.engine.state import RowText, end_of_row
from support.architectures import build
from support.text import BOS, BYTES, END, EOS, PAD, VOCAB, byte_tokenizer, ids_of, piece_tokenizer

TOKENIZER = byte_tokenizer()
PIECES = piece_tokenizer()


def fed(
    tokens: Sequence[int], stop: Sequence[str] = (), tokenizer: Any = TOKENIZER
) -> tuple[RowText, list[str]]:
    """A row fed to its end or its stop string, and what each token adds to the stream."""
    row, added = RowText(tokenizer, tuple(stop)), []
    for i, token in enumerate(tokens):
        row.add(token)
        if row.stopped or i == len(tokens) - 1:
            row.finish()
        added.append(row.emit())
        if row.stopped:
            break
    return row, added


# Text ---------------------------------------------------------------------------------------------


def test_a_character_of_several_tokens_comes_whole() -> None:
    row, added = fed(ids_of("né😀!"))
    assert added == ["n", "", "é", "", "", "", "😀", "!"]
    assert row.text == "né😀!"


def test_an_incomplete_character_at_the_end_is_in_text_and_stream() -> None:
    row, added = fed(ids_of("a😀")[:-1])
    assert row.text == TOKENIZER.decode(ids_of("a😀")[:-1]) == "a\N{REPLACEMENT CHARACTER}"
    assert "".join(added) == row.text


def test_bytes_that_are_no_character_do_not_hold_back_the_rest() -> None:
    """A model that writes bytes at random must not silence the stream, nor hide a stop string."""
    broken = [BYTES + 0xFF] * 5
    row, added = fed([*broken, *ids_of("ab"), *broken, *ids_of("stop")], ["stop"])
    assert row.stopped
    assert "ab" in "".join(added[:8])
    long, _ = fed([BYTES + 0xFF] * 400)
    assert long._read - long._from <= 4  # and no token is decoded again and again


@settings(deadline=None)
@given(st.lists(st.integers(BYTES, VOCAB - 1), min_size=1, max_size=30))
def test_any_bytes_stream_to_what_decoding_gives(tokens: list[int]) -> None:
    row, added = fed(tokens)
    assert "".join(added) == row.text == TOKENIZER.decode(tokens)


@settings(deadline=None)
@given(st.text(min_size=1, max_size=20))
def test_any_text_streams_as_itself(text: str) -> None:
    row, added = fed(ids_of(text))
    assert "".join(added) == row.text == text


@settings(deadline=None)
@given(st.lists(st.integers(259, len(PIECES) - 1), min_size=1, max_size=12))
def test_blanks_of_a_piece_tokenizer(tokens: list[int]) -> None:
    row, added = fed(tokens, tokenizer=PIECES)
    assert "".join(added) == row.text == PIECES.decode(tokens)


@settings(deadline=None)
@given(st.lists(st.integers(3, len(PIECES) - 1), min_size=1, max_size=12))
def test_byte_pieces_stream_to_the_text(tokens: list[int]) -> None:
    """Such a tokenizer may later take back a character (it decodes runs of bytes as a whole); the
    stream cannot, but it stays what the text says."""
    row, added = fed(tokens, tokenizer=PIECES)
    assert "".join(added) == row.text


def test_special_tokens_leave_no_text() -> None:
    row, added = fed([*ids_of("a"), END, *ids_of("b"), BOS])
    assert (row.text, "".join(added)) == ("ab", "ab")


# Stop strings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "stop", "left"),
    [
        ("one two", ["two"], "one "),
        ("one two", ["x"], "one two"),
        ("aab", ["ab"], "a"),  # overlaps with a false start
        ("ababac", ["abac"], "ab"),
        ("abc", ["bc", "abc"], ""),  # both complete with one token: the text ends before both
        ("abc", ["c", "b"], "a"),  # the first to be complete
        ("né😀 é", ["😀"], "né"),
        ("\n\nQ:", ["\n\n", "Q:"], ""),
        ("stop", ["stop"], ""),
        ("sto", ["stop"], "sto"),
    ],
)
def test_text_ends_before_the_stop_string(text: str, stop: list[str], left: str) -> None:
    row, added = fed(ids_of(text), stop)
    assert row.text == "".join(added) == left
    assert row.stopped == (left != text)


def test_several_tokens_in_one_step_of_text() -> None:
    """One token may hold a stop string, its middle, or the end of one and more."""

    class Words:
        words = ("The ", "ans", "wer is 7. Qu", "estion: b", "Question:", "x")

        def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
            return "".join(self.words[i] for i in ids)

    stop = ["Question:"]
    assert fed([0, 1, 2, 3], stop, Words())[0].text == "The answer is 7. "
    assert fed([4], stop, Words())[0].text == ""
    assert fed([0, 2, 5, 3], stop, Words())[0].stopped is False


def test_only_what_may_become_a_stop_string_is_held_back() -> None:
    _, added = fed(ids_of("ab<xy<|e"), ["<|end"])
    assert added == ["a", "b", "", "<x", "y", "", "", "<|e"]


@settings(deadline=None)
@given(
    text=st.text("ab<é", max_size=14),
    stop=st.lists(st.text("ab<é", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_stop_strings_against_the_definition(text: str, stop: list[str]) -> None:
    """Character by character: the row ends when its text ends with a stop string."""
    tokens, sofar = ids_of(text), ""
    expected, stopped = text, False
    for character in text:
        sofar += character
        ends = [sofar[: -len(s)] for s in stop if sofar.endswith(s)]
        if ends:
            expected, stopped = min(ends, key=len), True
            break
    row, added = fed(tokens, stop)
    assert (row.text, row.stopped) == (expected, stopped)
    assert "".join(added) == expected
    seen = ""
    for piece in added:  # nothing that is shown is taken back
        seen += piece
        assert expected.startswith(seen)


# Ends of rows -------------------------------------------------------------------------------------


def test_end_of_row() -> None:
    ends = frozenset([EOS])
    stopped = RowText(TOKENIZER, ("x",))
    stopped.add(ids_of("x")[0])
    assert end_of_row(EOS, 1, 5, ends, None) == "stop"
    assert end_of_row(7, 1, 5, ends, stopped) == "stop"
    assert end_of_row(7, 4, 5, ends, None) is None
    assert end_of_row(7, 5, 5, ends, None) == "length"
    assert end_of_row(EOS, 5, 5, ends, None) == "stop"  # the end token says more


def model_with(eos: Any = None, pad: int | None = PAD, bos: int | None = BOS) -> Any:
    model = build("llama", vocab_size=VOCAB)
    model.config.pad_token_id, model.config.bos_token_id = pad, bos
    model.generation_config.pad_token_id, model.generation_config.bos_token_id = pad, bos
    model.config.eos_token_id = model.generation_config.eos_token_id = None
    if eos is not None:
        model.generation_config.eos_token_id = eos
    return model


def test_stop_ids_come_from_generation_config_then_config_then_tokenizer() -> None:
    model = model_with()
    assert end_token_ids(model, TOKENIZER) == {EOS}
    model.config.eos_token_id = 50
    assert end_token_ids(model, TOKENIZER) == {50}
    model.generation_config.eos_token_id = [60, 61]
    assert end_token_ids(model, TOKENIZER) == {60, 61}
    assert end_token_ids(model_with(), None) == frozenset()
    assert stop_ids_of(model, TOKENIZER, SamplingParams(stop_token_ids=[5])) == {5, 60, 61}
    ignoring = SamplingParams(stop_token_ids=[5], ignore_eos=True)
    assert stop_ids_of(model, TOKENIZER, ignoring) == {5}


def test_a_stop_string_that_is_a_special_token_is_its_id() -> None:
    """Decoding leaves special tokens out, so as a string it would never be seen."""
    params = SamplingParams(stop=["<|end|>", "x"])
    assert stop_ids_of(model_with(), TOKENIZER, params) == {EOS, END}


def test_pad_and_bos_are_forbidden_unless_they_end_rows() -> None:
    def forbidden(model: Any, params: SamplingParams, tokenizer: Any = TOKENIZER) -> list[int]:
        return forbidden_token_ids(model, tokenizer, stop_ids_of(model, tokenizer, params))

    plain = SamplingParams()
    assert forbidden(model_with(eos=EOS), plain) == [PAD, BOS]
    assert forbidden(model_with(eos=[EOS, PAD]), plain) == [BOS]
    assert forbidden(model_with(eos=[PAD]), SamplingParams(ignore_eos=True)) == [BOS]
    assert forbidden(model_with(eos=EOS), SamplingParams(stop_token_ids=[BOS])) == [PAD]
    nothing = SimpleNamespace(pad_token_id=None, bos_token_id=None, eos_token_id=None)
    assert forbidden(model_with(pad=None, bos=None), plain, nothing) == []
    assert forbidden(model_with(pad=VOCAB + 3, bos=-1), plain, None) == []


def test_a_pad_token_that_is_ordinary_text_is_warned_of() -> None:
    """It was left out of every response in silence."""
    letter = ids_of("x")[0]
    with pytest.warns(UserWarning, match=rf"Token {letter}, 'x', is the model's pad_token_id"):
        ids = forbidden_token_ids(model_with(eos=EOS, pad=letter), TOKENIZER, frozenset())
    assert ids == [PAD, BOS, letter]


# Consensus ----------------------------------------------------------------------------------------


def majority(answers: Sequence[str | None]) -> str | None:
    """Most frequent, ties by first seen; written down again to judge the rule."""
    counts = Counter(a for a in answers if a is not None)
    return max(counts, key=lambda a: (counts[a], -answers.index(a)), default=None)


@settings(deadline=None, max_examples=300)
@given(
    rows=st.lists(st.sampled_from(["a", "b", "c", None, "?"]), min_size=1, max_size=6)
)  # "?" is an unfinished row
def test_settled_means_that_no_answers_of_the_rest_change_the_majority(rows: list[Any]) -> None:
    unfinished = [i for i, row in enumerate(rows) if row == "?"]
    answers = [None if row == "?" else row for row in rows]
    outcomes = set()
    for rest in itertools.product(["a", "b", "c", "new", None], repeat=len(unfinished)):
        completed = list(answers)
        for i, answer in zip(unfinished, rest, strict=True):
            completed[i] = answer
        outcomes.add(majority(completed))
    settled = majority_is_settled(answers, unfinished)
    assert settled == (len(outcomes) == 1)
    if settled and any(a is not None for a in answers):
        assert outcomes == {majority(answers)}
