"""Hogwild!: its blocks against Hugging Face's own model on each reader's text, and the engine
against the teacher-forced pass. Its equation, invariants and mutations are in tests/invariants."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import interlace
from interlace import Groups, HogwildConfig, SamplingParams
from interlace.coupling.hogwild import how_far
from interlace.errors import AttachError
from support.architectures import attach_fresh, attach_random, build, random_ids
from support.engine import largest_gap

W, PROMPT, T = 3, 4, 5


@torch.no_grad()
def test_a_reader_sees_the_prompt_then_siblings_then_itself() -> None:
    """In a model of one layer, keys depend on their tokens alone: so what a row says at a step is
    what the base model says of the texts in that order, one of which has ended."""
    base = build("llama", num_hidden_layers=1)
    model = attach_fresh(build("llama", num_hidden_layers=1), "hogwild", layers="all")
    ids = torch.cat([random_ids(1, PROMPT).expand(W, -1), random_ids(W, T, seed=8)], dim=1)
    alive = torch.ones(1, W, PROMPT + T, dtype=torch.bool)
    alive[0, 1, PROMPT + 2 :] = False
    got = model(ids, groups=Groups(W, alive, torch.tensor([PROMPT]))).logits
    for reader in (0, 2):
        for step in range(T):
            texts = [ids[row, PROMPT : PROMPT + step + 1] for row in range(W)]
            texts[1] = texts[1][:2]
            siblings = [text for row, text in enumerate(texts) if row != reader]
            whole = torch.cat([ids[0, :PROMPT], *siblings, texts[reader]])
            expected = base(whole[None]).logits[0, -1]
            torch.testing.assert_close(got[reader, PROMPT + step], expected, atol=2e-5, rtol=0)
    alone = base(ids[:1, :PROMPT]).logits
    torch.testing.assert_close(got[:1, :PROMPT], alone, atol=2e-5, rtol=0)


def test_how_far_blocks_are() -> None:
    sizes = torch.tensor([[5, 2, 4, 1]] * 3)
    far = how_far(sizes, torch.tensor([0, 2, 3]))
    assert far.tolist() == [[7, 7, 5, 1], [8, 3, 1, 1], [11, 6, 4, 0]]


@pytest.mark.parametrize(
    ("name", "layers"), [("granite", "all"), ("gemma2", [1]), ("gpt_neox", "all")]
)
def test_engine_and_training_agree(name: str, layers: Any, backend: str) -> None:
    """Groups of several widths at once, rows that end early, other factors and caps of scores."""
    model = attach_random(build(name), "hogwild", layers=layers)
    params = [
        SamplingParams(width=width, max_new_tokens=12, seed=3, stop_token_ids=range(80, 97))
        for width in (4, 1, 3)
    ]
    groups = interlace.Engine(model, backend=backend).generate([[5, 6, 7], [4], [8, 9]], params)
    assert len({len(c.token_ids) for g in groups for c in g.completions}) > 2
    assert all(largest_gap(model, [group]) < 2e-5 for group in groups)


def test_models_without_rotary_positions_are_refused() -> None:
    with pytest.raises(AttachError, match=r"hogwild turns rows as rotary positions turn, and a"):
        attach_fresh(build("gpt2"), "hogwild")
    with pytest.raises(AttachError, match=r"Leave them out by HogwildConfig\(layers=\[\.\.\.\]\)"):
        interlace.attach(build("qwen3"), HogwildConfig())
