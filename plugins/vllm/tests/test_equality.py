"""vLLM gives every sampled token the log-probability that Interlace gives it in one pass over the
whole group (I7), whatever else is in the batch.

The engine takes 64 tokens a step, so that prompts come in chunks beside rows that are decoded.
Requests are unseeded: vLLM's CPU runner cannot sample a seeded one beside a part of a prompt.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from compare import apart, largest_gap
from served import ENDS, TOLERANCE, exported, prompts, sampled, scheduler_of, served

WIDTHS = [1, 8, 2, 4, 1, 8, 4, 2, 8, 1]


def test_groups_of_every_width_at_once(llama: tuple[Any, Any]) -> None:
    model, llm = llama
    outputs = sampled(llm, prompts(len(WIDTHS), longest=150), WIDTHS)
    assert [len(output.outputs) for output in outputs] == WIDTHS
    lengths = [{len(choice.token_ids) for choice in output.outputs} for output in outputs]
    assert max(map(len, lengths)) > 4  # rows of a group end at different steps
    assert largest_gap(model, outputs) < TOLERANCE
    assert largest_gap(model, outputs, blind_to_ends=True) > 0.01  # and the test would see it


def test_rows_do_read_their_siblings(llama: tuple[Any, Any]) -> None:
    """Else equality with independent rows would pass, too."""
    model, llm = llama
    output = sampled(llm, prompts(1), [8])[0]
    alone = largest_gap(model, apart(output))
    assert alone > 0.1


def test_prefixes_are_shared_and_answers_are_not(llama: tuple[Any, Any]) -> None:
    """A follow-up prompt that begins with a row's answer finds the prompt in the cache, and
    computes the answer anew: the row wrote it under its siblings' influence."""
    model, llm = llama
    first = prompts(2, 100, 120, seed=5)
    answers = sampled(llm, first, [4, 8], max_tokens=80, stop_token_ids=[])
    again = sampled(llm, first, [8, 4])
    assert [output.num_cached_tokens for output in again] == [96, 96]  # whole blocks of 32
    assert largest_gap(model, again) < TOLERANCE
    follow_up = [
        list(output.prompt_token_ids) + list(output.outputs[1].token_ids)[:-1] for output in answers
    ]
    later = sampled(llm, follow_up, [1, 1])
    assert [output.num_cached_tokens for output in later] == [96, 96]
    later += sampled(llm, follow_up, [4, 8])
    assert largest_gap(model, later) < TOLERANCE


def test_answers_of_rows_alone_are_reused(llama: tuple[Any, Any]) -> None:
    model, llm = llama
    output = sampled(llm, prompts(1, 40, 40, seed=6), [1], max_tokens=60, stop_token_ids=[])[0]
    follow_up = list(output.prompt_token_ids) + list(output.outputs[0].token_ids)
    later = sampled(llm, [follow_up], [4])
    assert later[0].num_cached_tokens == 96  # 64 of them are answers
    assert largest_gap(model, later) < TOLERANCE


def test_nothing_is_left_when_all_have_ended(llama: tuple[Any, Any]) -> None:
    _, llm = llama
    scheduler = scheduler_of(llm)
    sampled(llm, prompts(3), [4, 1, 8])
    assert not scheduler.groups
    assert not scheduler.requests
    assert scheduler.get_kv_cache_usage() == 0.0


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        ("qwen3", {}),
        ("gemma3", {}),
        ("gpt_neox", {}),
        ("llama", {"alone": "skip", "layers": [0, 2]}),
        ("llama", {"kind": "pmatch"}),
    ],
)
def test_other_models_and_blocks(tmp_path: Path, name: str, blocks: dict[str, Any]) -> None:
    """Sliding windows, four norms a layer, layers under another path; rows alone that go by the
    blocks, blocks at some layers, blocks that do not couple."""
    model = exported(tmp_path, name, **blocks)
    llm = served(tmp_path)
    asked = prompts(5, longest=100, seed=7)
    outputs = sampled(llm, asked, [4, 1, 8, 2, 1])
    # The same prompts at other widths: what the cache holds of them must be right for these.
    outputs += sampled(llm, asked, [1, 4, 1, 1, 2])
    assert largest_gap(model, outputs) < TOLERANCE
    assert any(choice.token_ids[-1] in ENDS for output in outputs for choice in output.outputs)


def test_two_ranks_of_tensor_parallelism(tmp_path: Path) -> None:
    """Each rank has the blocks whole, and hears of the rows by itself."""
    model = exported(tmp_path, sizes={"intermediate_size": 38})
    llm = served(tmp_path, tensor_parallel_size=2, distributed_executor_backend="mp")
    outputs = sampled(llm, prompts(5, longest=100, seed=7), [4, 1, 8, 2, 1])
    assert largest_gap(model, outputs) < TOLERANCE
    assert largest_gap(model, outputs, blind_to_ends=True) > 0.01


def test_a_deep_model(tmp_path: Path) -> None:
    """SmolLM2-135M's layers, where rounding adds up: 30 of them, and heads of 64."""
    sizes = {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
    }
    model = exported(tmp_path, sizes=sizes, layers=[0, 7, 15, 22, 29])
    llm = served(tmp_path, kv_cache_memory_bytes=2**27)
    outputs = sampled(llm, prompts(2, 40, 90, seed=8), [8, 8])
    lengths = {len(row.token_ids) for output in outputs for row in output.outputs}
    assert len(lengths) > 4  # rows end at different steps
    assert largest_gap(model, outputs) < TOLERANCE
    assert largest_gap(model, outputs, blind_to_ends=True) > 0.01
