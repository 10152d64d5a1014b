"""How many operators a decode step and a training step take: on small models they are the time.

A careless change shows here: a copy in each layer, a mask made again, a second forward pass. Counts
of a layer and of the rest are told apart by models of 3 and of 5 layers. Bounds leave a tenth for
other versions of torch and transformers. Whoever makes a step shorter lowers them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import interlace
from interlace import SamplingParams
from interlace.engine.backends.cpu import why_not_packed
from interlace.training.batch import GroupBatch, collate_ids
from support.architectures import attach_random, build
from support.training import grpo

WIDTH, VOCABULARY = 6, 211


class Operators(TorchDispatchMode):
    """Counts what is called under it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.batched: list[torch.Size] = []  # operands of batched products

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[str(func)] += 1
        if func is torch.ops.aten.bmm.default:
            self.batched += [operand.shape for operand in args]
        return func(*args, **(kwargs or {}))


def model_of(layers: int, blocks: str | None, dtype: torch.dtype = torch.float32) -> nn.Module:
    model = build("llama", num_hidden_layers=layers, vocab_size=VOCABULARY, dtype=dtype)
    return model if blocks is None else attach_random(model, blocks)


def per_layer(count: Callable[[int], int]) -> tuple[int, int]:
    """Operators of a layer, and those of the rest."""
    three, five = count(3), count(5)
    assert (five - three) % 2 == 0
    return (five - three) // 2, three - 3 * (five - three) // 2


def decode_step(layers: int, blocks: str | None, backend: str) -> int:
    """Operators of one step more."""
    engine = interlace.Engine(model_of(layers, blocks), backend=backend)

    def of_call(tokens: int) -> int:
        params = SamplingParams(width=WIDTH, max_new_tokens=tokens, ignore_eos=True)
        with Operators() as seen:
            engine.generate([[5, 6, 7]], params)
        return sum(seen.calls.values())

    of_call(2)
    return of_call(9) - of_call(8)


@pytest.mark.parametrize(
    ("backend", "blocks", "layer", "rest"),
    [
        ("cpu", None, 47, 117),
        ("cpu", "bridge", 61, 117),
        ("hf", None, 69, 115),
        ("hf", "bridge", 86, 115),
    ],
)
def test_a_decode_step(backend: str, blocks: str | None, layer: int, rest: int) -> None:
    if backend == "cpu" and why_not_packed(nn.Linear(2, 2)) is not None:
        pytest.skip("torch without oneDNN's private operators")
    found = per_layer(lambda layers: decode_step(layers, blocks, backend))
    assert found[0] <= 1.1 * layer
    assert found[1] <= 1.1 * rest


def groups(count: int = 2) -> GroupBatch:
    prompts = [[3 + p, 4, 5, 6, 7, 8, 9, 10] for p in range(count)]
    rows = [[[11 + w] * (3 + w % 2) for w in range(WIDTH)] for _ in range(count)]
    return collate_ids(prompts, rows, pad_token_id=0)


@pytest.mark.parametrize(("blocks", "layer", "rest"), [(None, 229, 420), ("bridge", 321, 428)])
def test_score_and_backward(blocks: str | None, layer: int, rest: int) -> None:
    def count(layers: int) -> int:
        model = model_of(layers, blocks).train()
        interlace.score(model, groups())  # what a first pass finds out about the model
        with Operators() as seen:
            interlace.score(model, groups(), prompt_once="never").logprobs.sum().backward()
        return sum(seen.calls.values())

    found = per_layer(count)
    assert found[0] <= 1.1 * layer
    assert found[1] <= 1.1 * rest


@pytest.mark.parametrize("once", ["auto", "never"])
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("grads", [False, True])
def test_frozen_heads_are_multiplied_in_one_piece(once: Any, compiled: bool, grads: bool) -> None:
    """Breaks if hidden states reach the head as a slice: torch copies a frozen weight for every row
    of it, and takes up to 80 times as long."""
    model = model_of(2, "bridge", torch.bfloat16).train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("bridge" in name)
    if compiled:  # as such models are scored: from their own logits
        model._compiled_call_impl = model._call_impl
    with torch.set_grad_enabled(grads), Operators() as seen:
        interlace.score(model, groups(5), prompt_once=once)
    assert seen.batched  # of Bridge's attention
    assert not [shape for shape in seen.batched if VOCABULARY in shape]


def test_recomputed_log_probabilities_of_the_first_step_are_its_own(tmp_path: Path) -> None:
    """Breaks if a model that has not changed since it sampled is asked twice."""
    trainer = grpo(tmp_path, old_logprobs="recomputed", max_steps=4, mini_batches=2, passes=2)
    passes: list[bool] = []
    score = trainer._score

    def counting(*args: Any, **options: Any) -> Any:
        passes.append(torch.is_grad_enabled())
        return score(*args, **options)

    trainer._score = counting  # type: ignore[method-assign]
    parts = trainer.parts_of
    fed: list[int] = []

    def noting(step: int) -> Any:
        found = parts(step)
        fed.append(len(found[0]))
        return found

    trainer.parts_of = noting  # type: ignore[method-assign]
    trainer.train()
    assert passes.count(True) == sum(fed)
    assert passes.count(False) == fed[1]  # of the second mini-batch, before the first step
