"""Whatever a request asks for, its rows are one group: options change what is sampled from the
scores, or when a row ends, and never what rows read.

Shapes: [W, T, V] for scores.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import pytest
from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import (
    BeamSearchParams,
    RepetitionDetectionParams,
    StructuredOutputsParams,
)

import served
from compare import largest_gap, narrowed_gap, scores_of
from served import TOLERANCE, params, prompts, sampled
from support.text import WORDS

TEXT = {  # how an answer is shown
    "detokenize",
    "flat_logprobs",
    "include_stop_str_in_output",
    "output_kind",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "stream_interval",
}
ELSEWHERE = {  # other tests, or options that vLLM refuses without a setting that no test has
    "extra_args",  # test_refusals.py
    "ignore_eos",  # test_rollouts.py
    "logprobs",
    "max_tokens",
    "n",
    "routed_experts_prompt_start",  # of mixtures of experts, refused
    "seed",  # test_server.py
    "skip_clone",
    "stop",  # test_refusals.py
    "stop_token_ids",
    "structured_outputs",  # below
    "temperature",
    "trace_decode_token_ids",  # with --enable-trace-replay
    "watermarking",  # with --watermark-config, refused
}
OPTIONS: dict[str, Any] = {
    "presence_penalty": 1.5,
    "frequency_penalty": 1.5,
    "repetition_penalty": 3.0,
    "top_p": 0.7,
    "top_k": 5,
    "min_p": 0.1,
    "min_tokens": 9,
    "logit_bias": {17: 30.0, 18: 30.0},
    "allowed_token_ids": [5, 17, 18, 19],
    "bad_words": ["w17", "w18 w19"],
    "prompt_logprobs": 0,
    "logprob_token_ids": [11, 12],
    "skip_reading_prefix_cache": True,
    "thinking_token_budget": 3,
    "repetition_detection": RepetitionDetectionParams(max_pattern_size=2, min_count=2),
}


def test_every_option_of_a_request_is_looked_at() -> None:
    """For the next minor version: a new one wants a test, or to be refused."""
    fields = {name for name in SamplingParams.__struct_fields__ if not name.startswith("_")}
    assert fields - {"output_text_buffer_length", "prompt_logprob_start"} == {
        *TEXT,
        *ELSEWHERE,
        *OPTIONS,
        "prompt_logprob_token_ids",  # of Runner V2; for prompts alone
    }


@pytest.mark.parametrize("name", OPTIONS)
def test_rows_are_one_group_under_every_option(llama: tuple[Any, Any], name: str) -> None:
    model, llm = llama
    asked = prompts(3, longest=90, seed=20)  # prompts come in chunks
    asked = [[*ids, served.THINKS] for ids in asked]
    also = {"logprobs": 2} if name == "logprob_token_ids" else {}
    outputs = sampled(llm, asked, [4, 1, 8], **{name: OPTIONS[name]}, **also)
    outputs += sampled(llm, asked[:1], [3])  # beside one that is without
    assert [len(output.outputs) for output in outputs] == [4, 1, 8, 3]
    assert largest_gap(model, outputs) < TOLERANCE
    rows = [list(row.token_ids) for output in outputs[:3] for row in output.outputs]
    if name == "min_tokens":
        assert min(map(len, rows)) >= 9
    if name in ("logit_bias", "allowed_token_ids"):
        assert {token for row in rows for token in row} <= {5, 17, 18, 19}
    if name == "thinking_token_budget":  # begun by the prompt
        assert all(row.index(served.THOUGHT) <= 4 for row in rows if len(row) > 4)
    if name == "bad_words":
        assert not any(17 in row or (18, 19) in pairwise(row) for row in rows)
    if name == "repetition_detection":
        reasons = {row.finish_reason for output in outputs for row in output.outputs}
        assert "repetition" in reasons, reasons


def test_prompts_are_scored_without_siblings(llama: tuple[Any, Any]) -> None:
    model, llm = llama
    asked = prompts(2, 70, 90, seed=21)
    for output in sampled(llm, asked, [4, 1], prompt_logprobs=0):
        prompt = list(output.prompt_token_ids)
        wanted = scores_of(model, prompt[:1], [prompt[1:]])[0]
        for at, (token, step) in enumerate(
            zip(prompt[1:], output.prompt_logprobs[1:], strict=True)
        ):
            assert abs(step[token].logprob - float(wanted[at, token])) < TOLERANCE


@pytest.mark.parametrize(
    ("grammar", "pattern"),
    [
        ({"choice": ["w9w10", "w9w11w12", "w20"]}, r"w9w10|w9w11w12|w20"),
        ({"regex": r"(w1[0-9]){3,9}"}, r"(w1\d){3,9}"),
        ({"grammar": 'root ::= ("w9" | "w10" | "w11")+'}, r"(w9|w10|w11)+"),
    ],
)
def test_rows_of_structured_outputs_are_one_group(
    llama: tuple[Any, Any], grammar: dict[str, Any], pattern: str
) -> None:
    """Log-probabilities are those among the tokens that the grammar allows."""
    model, llm = llama
    asked = prompts(3, longest=90, seed=22)
    options: dict[str, Any] = {"logprobs": -1, "temperature": 1.0}
    options |= {"stop_token_ids": [], "ignore_eos": False}
    options["structured_outputs"] = StructuredOutputsParams(**grammar)
    outputs = sampled(llm, asked, [8, 1, 4], **options)
    for output in outputs:
        for row in output.outputs:
            if row.finish_reason == "stop":
                text = "".join(WORDS[token] for token in row.token_ids).removesuffix("<end>")
                assert re.fullmatch(pattern, text), text
        rows = [list(row.token_ids) for row in output.outputs]
        steps = [
            [{token: value.logprob for token, value in step.items()} for step in row.logprobs]
            for row in output.outputs
        ]
        assert narrowed_gap(model, list(output.prompt_token_ids), rows, steps) < TOLERANCE
    assert len({len(row.token_ids) for output in outputs for row in output.outputs}) > 1


def test_one_object_serves_many_prompts(llama: tuple[Any, Any]) -> None:
    """Its mark belongs to a request, and must not stay on what the caller holds."""
    model, llm = llama
    one = params(3)
    asked = [{"prompt_token_ids": ids} for ids in prompts(3, seed=23)]
    outputs = llm.generate(asked, one, use_tqdm=False) + llm.generate(asked, one, use_tqdm=False)
    assert largest_gap(model, outputs) < TOLERANCE
    assert one.extra_args is None


def test_beams_are_refused(llama: tuple[Any, Any]) -> None:
    _, llm = llama
    beams = BeamSearchParams(beam_width=3, max_tokens=4)
    with pytest.raises(VLLMValidationError, match="Beams would read none of their siblings"):
        llm.beam_search([{"prompt_token_ids": prompts(1)[0]}], beams)


def test_greedy_rows_are_refused_by_vllm() -> None:
    with pytest.raises(VLLMValidationError, match="n must be 1 when using greedy sampling"):
        params(2, temperature=0.0)
