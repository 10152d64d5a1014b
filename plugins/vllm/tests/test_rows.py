"""Who sees whom in a step: both runners' forms give what whole groups give in one pass, and rows
that came apart are an error."""

from __future__ import annotations

import random

import pytest
import torch

import served  # noqa: F401  (sets the environment before anything imports vLLM)
from interlace.coupling.bridge import BridgeBlock, BridgeConfig
from interlace_vllm.requests import Membership
from interlace_vllm.rows import Fed, GroupSplitError, StepRows, padded
from interlace_vllm.state import SlotRows
from support.reference import bridge_reference

HIDDEN = 24


def a_block(alone: str = "block") -> BridgeBlock:
    torch.manual_seed(0)
    block = BridgeBlock(BridgeConfig(num_heads=4, num_kv_heads=2, head_dim=8, alone=alone), HIDDEN)
    torch.nn.init.normal_(block.o_weight, std=0.3)
    return block


def a_step(seed: int) -> tuple[list[Fed], int]:
    """A step of groups of several widths, some of whose rows have ended, amid parts of prompts."""
    draw = random.Random(seed)
    requests = []
    for group in range(draw.randint(1, 5)):
        width, position = draw.choice([1, 2, 5]), draw.randint(9, 30)
        rows = draw.sample(range(width), draw.randint(1, width))
        requests += [(Membership(f"g{group}", width, row), 1, position, 9) for row in rows]
    for prompt in range(draw.randint(0, 3)):
        member = Membership(f"p{prompt}", draw.choice([1, 3]), 0)
        requests.append((member, draw.randint(1, 6), 0, 9))
    draw.shuffle(requests)
    step, first = [], 0
    for member, count, computed, prompt in requests:
        step.append(Fed(member, first, count, computed, prompt))
        first += count
    return step, first


@torch.no_grad()
def one_by_one(block: BridgeBlock, step: list[Fed], hidden: torch.Tensor) -> torch.Tensor:
    """The block's own plain loops, for each group's rows alone."""
    skips, out = block.skips_alone, hidden.clone()
    for fed in step:
        if skips and fed.member.width == 1:
            continue
        coupled = fed.computed + fed.count > fed.prompt
        same = [o for o in step if o.member.group == fed.member.group] if coupled else []
        for at in range(fed.first, fed.first + fed.count):
            rows = [at, *(o.first for o in same if o.first != at)]
            out[at] = bridge_reference(block, hidden[rows].unsqueeze(1), len(rows))[0, 0]
    return out


@pytest.mark.parametrize("alone", ["block", "skip"])
@pytest.mark.parametrize("seed", range(8))
@torch.no_grad()
def test_both_forms_are_the_reference(seed: int, alone: str) -> None:
    block, (step, tokens) = a_block(alone), a_step(seed)
    hidden = torch.randn(tokens, HIDDEN)
    expected = one_by_one(block, step, hidden)
    rows = StepRows(tells_alone=alone == "skip")
    rows.set(step, tokens, torch.device("cpu"))
    torch.testing.assert_close(rows.apply(block, hidden), expected)
    for slots in (16, 64):  # fewer than tokens, and more
        fixed = SlotRows(slots, 128, torch.device("cpu"))
        fixed.set(step, tokens, torch.device("cpu"))
        wide = torch.cat([hidden, torch.randn(5, HIDDEN)])  # a graph's padding
        torch.testing.assert_close(fixed.apply(block, wide)[:tokens], expected)


@torch.no_grad()
def test_buffers_stay_where_they_are() -> None:
    """A graph reads the places in memory that it saw when it was captured."""
    rows = SlotRows(16, 128, torch.device("cpu"))
    before = [t.data_ptr() for t in (rows.places, rows.seen, rows.slots_alone, rows.tokens_alone)]
    for seed in range(3):
        step, tokens = a_step(seed)
        rows.set(step, tokens, torch.device("cpu"))
    after = [t.data_ptr() for t in (rows.places, rows.seen, rows.slots_alone, rows.tokens_alone)]
    assert before == after


@pytest.mark.parametrize("alone", ["block", "skip"])
@pytest.mark.parametrize("tokens", [16, 40])  # as many as slots, and more
@torch.no_grad()
def test_a_graph_can_capture_it(alone: str, tokens: int) -> None:
    """Nothing on the way asks a tensor for a value, as no capture allows: these have none."""
    empty = torch.device("meta")
    rows, block = SlotRows(16, 64, empty), a_block(alone).to(empty)
    out = rows.apply(block, torch.empty(tokens, HIDDEN, device=empty))
    assert out.shape == (tokens, HIDDEN)


def test_every_number_of_tokens_finds_its_slots() -> None:
    for seed in range(20):
        step, tokens = a_step(seed)
        rows = [fed for fed in step if fed.computed >= fed.prompt]
        places, _ = padded(rows, 32)
        for padded_tokens in range(tokens, 40):
            first = places[: min(32, padded_tokens)]
            assert len(set(first)) == len(first)
            assert max(first) < padded_tokens


@pytest.mark.parametrize(
    "apart",
    [
        [Fed(Membership("g", 2, 0), 0, 1, 9, 9), Fed(Membership("g", 2, 1), 1, 1, 10, 9)],
        [Fed(Membership("g", 2, 0), 0, 2, 9, 9)],
        [Fed(Membership("g", 2, 0), 0, 3, 7, 9)],
    ],
)
def test_rows_that_came_apart_are_an_error(apart: list[Fed]) -> None:
    with pytest.raises(GroupSplitError, match="take each step together"):
        StepRows().set(apart, 3, torch.device("cpu"))
    with pytest.raises(GroupSplitError, match="take each step together"):
        SlotRows(8, 16, torch.device("cpu")).set(apart, 3, torch.device("cpu"))


@torch.no_grad()
def test_the_operator_reads_the_rows_when_it_runs() -> None:
    """vLLM drops Dynamo's guards: what is read while tracing stays as it was then, and every row
    would be alone for ever. The operator is not traced."""
    from vllm.forward_context import ForwardContext, override_forward_context

    class Layer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.interlace_rows, self.interlace_block = StepRows(), a_block()

    layer = Layer()
    context = ForwardContext(no_compile_layers={"here": layer}, attn_metadata={}, slot_mapping={})
    step = [Fed(Membership("g", 3, row), row, 1, 9, 9) for row in range(3)]
    hidden = torch.randn(3, HIDDEN)

    def through_operator(x: torch.Tensor) -> torch.Tensor:
        return torch.ops.interlace.couple(x, "here")

    def baked_in(x: torch.Tensor) -> torch.Tensor:
        return layer.interlace_rows.apply(layer.interlace_block, x)

    with override_forward_context(context):
        results = {}
        for call in (through_operator, baked_in):
            layer.interlace_rows.clear()  # as in vLLM's warm-up
            options = {"guard_filter_fn": lambda guards: [False for _ in guards]}
            compiled = torch.compile(call, backend="aot_eager", options=options)
            alone = compiled(hidden)
            layer.interlace_rows.set(step, 3, torch.device("cpu"))
            results[call.__name__] = (alone, compiled(hidden), call(hidden))
    alone, found, expected = results["through_operator"]
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, alone, atol=1e-2)
    _, found, expected = results["baked_in"]
    assert not torch.allclose(found, expected, atol=1e-2)  # what the operator is for
