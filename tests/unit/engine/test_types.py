"""What SamplingParams takes and what it says to the rest, and the results' own arithmetic."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import numpy as np
import pytest
import torch

from interlace import SamplingParams
from interlace.engine.types import Completion, EngineStats, GroupOutput
from interlace.errors import GenerationError
from support.typecheck import unchecked


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 0}, r"width is a whole number, at least 1; got 0\."),
        ({"width": -3}, "width is .* got -3"),
        ({"width": True}, "width is .* got True"),
        ({"width": 2.0}, r"width is .* got 2\.0"),
        ({"width": "8"}, "width is .* got '8'"),
        ({"max_new_tokens": 0}, "max_new_tokens is a whole number, at least 1; got 0"),
        ({"max_new_tokens": 16.0}, r"max_new_tokens is a whole number.* got 16\.0"),
        ({"max_new_tokens": None}, "max_new_tokens is a whole number.* got None"),
        ({"max_new_tokens": "16"}, "max_new_tokens is a whole number.* got '16'"),
        ({"width": 2, "max_new_tokens": [3]}, "one number a row: 2 of them; got 1"),
        ({"width": 2, "max_new_tokens": [3, 0]}, "max_new_tokens is .* got 0"),
        ({"temperature": -0.1}, r"temperature is 0 \(greedy\) or a number .* got -0\.1"),
        ({"temperature": float("nan")}, "temperature is .* got nan"),
        ({"temperature": float("inf")}, "temperature is .* got inf"),
        ({"temperature": 1e-40}, "temperature is .* got 1e-40"),
        ({"temperature": True}, "temperature is .* got True"),
        ({"temperature": "hot"}, "temperature is .* got 'hot'"),
        ({"top_k": -1}, "top_k is a whole number, at least 0; got -1"),
        ({"top_p": 0}, r"top_p is a number in \(0, 1\]; got 0"),
        ({"top_p": 1.01}, r"top_p is .* got 1\.01"),
        ({"min_p": -0.1}, r"min_p is a number in \[0, 1\]; got -0\.1"),
        ({"repetition_penalty": 0}, r"repetition_penalty is a number in \(0, inf\); got 0"),
        ({"repetition_penalty": float("inf")}, "repetition_penalty is .* got inf"),
        ({"top_logprobs": -1}, "top_logprobs is .* got -1"),
        ({"seed": 1.5}, r"seed is a whole number; got 1\.5"),
        ({"seed": None}, "seed is a whole number; got None"),
        ({"ignore_eos": "no"}, "ignore_eos is True or False; got 'no'"),
        ({"stop": ["a", ""]}, "stop holds strings that are not empty; got"),
        ({"stop": [3]}, "stop holds strings that are not empty; got"),
        ({"stop": 3}, "stop holds strings that are not empty; got 3"),
        ({"stop_token_ids": [-1]}, "stop_token_ids holds token ids.* got"),
        ({"stop_token_ids": ["</s>"]}, "stop_token_ids holds token ids.* got"),
        ({"stop_token_ids": 7}, "stop_token_ids holds token ids.* got 7"),
        ({"stop_token_ids": "</s>"}, "stop_token_ids holds token ids.* got"),
        ({"logits_processors": [3]}, "logits_processors is a list of .* got"),
        ({"consensus": "7"}, "consensus is a function .* got '7'"),
        ({"record_attention": "all"}, "record_attention is None, 'mean' or 'layers'; got 'all'"),
        ({"record_attention": True}, "record_attention is None, 'mean' or 'layers'; got True"),
    ],
)
def test_out_of_range(changes: dict[str, Any], message: str) -> None:
    with unchecked(), pytest.raises(GenerationError, match=message) as raised:
        SamplingParams(**changes)
    assert isinstance(raised.value, ValueError)
    with unchecked(), pytest.raises(GenerationError, match=message):
        SamplingParams(width=changes.get("width", 1)).replace(**changes)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("temprature", "temperature"),
        ("widht", "width"),
        ("n", "width"),
        ("num_return_sequences", "width"),
        ("max_tokens", "max_new_tokens"),
        ("max_length", "max_new_tokens"),
        ("do_sample", "temperature"),
        ("eos_token_id", "stop_token_ids"),
        ("stop_strings", "stop"),
        ("logits_processor", "logits_processors"),
        ("logprobs", "top_logprobs"),
    ],
)
def test_unknown_options_name_the_right_one(wrong: str, right: str) -> None:
    for make in (SamplingParams, SamplingParams().replace):
        with pytest.raises(GenerationError, match=rf"no option '{wrong}'.*\b{right}\b") as error:
            make(**{wrong: 1})
        assert isinstance(error.value, GenerationError | TypeError)


def test_unknown_options_without_a_near_name_get_the_list() -> None:
    with pytest.raises(GenerationError, match=r"no option 'beam'.*width, max_new_tokens, temp"):
        SamplingParams(beam=4)  # type: ignore[call-arg]


def test_the_signature_is_still_to_be_read() -> None:
    parameters = inspect.signature(SamplingParams).parameters
    assert list(parameters)[:3] == ["width", "max_new_tokens", "temperature"]
    assert parameters["top_p"].default == 1.0


def test_numbers_of_numpy_and_torch_become_plain_ones() -> None:
    with unchecked():
        params = SamplingParams(
            width=np.int64(3),
            max_new_tokens=np.array([4, 5, 6]),
            temperature=np.float32(0.5),
            top_p=torch.tensor(0.25),
            seed=np.int32(7),
            stop_token_ids=torch.tensor([8, 9]),
        )
    plain = SamplingParams(
        width=3,
        max_new_tokens=[4, 5, 6],
        temperature=0.5,
        top_p=0.25,
        seed=7,
        stop_token_ids=[8, 9],
    )
    assert params == plain
    assert hash(params) == hash(plain)
    assert type(params.width) is int
    assert type(params.top_p) is float
    assert [type(n) for n in params.max_new_tokens] == [int] * 3  # type: ignore[union-attr]


def test_one_stop_string_is_a_list_of_one() -> None:
    assert SamplingParams(stop="END").stop == ("END",)


def test_a_callers_list_can_change_without_the_params() -> None:
    maxima = [3, 4]
    params = SamplingParams(width=2, max_new_tokens=maxima)
    maxima[0] = 99
    assert params.longest == 4
    assert SamplingParams(width=9, max_new_tokens=5).longest == 5


def test_params_can_be_copied_compared_and_pickled() -> None:
    params = SamplingParams(width=2, stop=["a"], max_new_tokens=[1, 2])
    for twin in (copy.copy(params), copy.deepcopy(params), pickle.loads(pickle.dumps(params))):
        assert twin == params
    assert params.replace(seed=1) != params
    with pytest.raises(AttributeError):
        params.width = 3  # type: ignore[misc]


def completion(*logprobs: float) -> Completion:
    return Completion("", list(range(len(logprobs))), list(logprobs), list(logprobs), "length")


def test_group_arithmetic() -> None:
    group = GroupOutput(
        "p", [1, 2, 3], [completion(-1.0, -0.5), completion()], SamplingParams(width=2)
    )
    assert group.completions[0].cumulative_logprob == -1.5
    assert group.num_tokens == 2
    assert group.texts == ["", ""]
    assert group.alive_positions() == [4, 3]  # the last token of a row is not fed


def test_utilisation() -> None:
    assert EngineStats().utilisation == 1.0
    assert EngineStats(computed_row_steps=8, alive_row_steps=6).utilisation == 0.75


def test_a_group_votes() -> None:
    rows = [completion(-0.5), completion(-1.0), completion(-0.25), completion(-2.0), completion()]
    for row, text in zip(rows, ["so 7", "it is 5", "7.0", "no idea", "5 or 8"], strict=True):
        row.text = text
    group = GroupOutput("p", [1, 2, 3], rows, SamplingParams(width=5))
    vote = group.vote()
    assert (vote.winner, vote.index, vote.counts) == ("7", 0, {"7": 2, "5": 1, "8": 1})
    assert group.vote(weights=[0.1, 0.9, 0.3, 1.0, None]).winner == "5"
    assert group.vote(extract=lambda text: text[0]).winner == "s"
    assert group.vote(normalise=lambda answer: len(answer), equal=None).counts == {"7": 3, "7.0": 1}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 10**9}, "width is a whole number of at most 10000; got 1000000000"),
        ({"width": 10**5000}, "at most 10000; got an int too long to show"),
        ({"seed": 10**5000}, "seed is a whole number of at most 9223372036854775807"),
        ({"top_p": 10**5000}, "top_p is a number in .*; got an int too long to show"),
        ({"consensus": 10**5000}, "consensus is a function .*; got an int too long to show"),
        ({"stop": ["a" * 10**6, 1]}, "characters left out"),
    ],
)
def test_numbers_of_any_size_are_refused_at_once(options: dict[str, Any], message: str) -> None:
    """A width of 1,000,000,000 hung; 5,000 digits were a ValueError of Python's."""
    with unchecked(), pytest.raises(GenerationError, match=message) as raised:
        SamplingParams(**options)
    assert len(str(raised.value)) < 1000
