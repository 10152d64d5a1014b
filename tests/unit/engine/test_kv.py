"""The shared cache against attention written down in full, in float64.

Axes: R live rows, H query heads, G key-value heads, C head dim, U prompt positions, T completion
positions.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from interlace.engine import kv as partial
from interlace.engine.kv import SharedCache, Slot, attend_partially, merge

HEADS = 4
# Layers of two shapes: G, C. The second has a sliding window, and keeps no more than it needs.
SHAPES = [(2, 5), (2, 5), (1, 3)]
WINDOW = 4
WINDOWS = [0, WINDOW, 0]


def normal(*shape: int, generator: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def dense(
    query: Tensor, keys: Tensor, values: Tensor, window: int, softcap: float | None, sinks: Any
) -> Tensor:
    """One row's `[H, C]` from its query `[H, C]` and all keys and values `[G, S, C]` so far."""
    per_kv = query.shape[0] // keys.shape[0]
    keys, values = (t.repeat_interleave(per_kv, dim=0) for t in (keys, values))
    scores = torch.einsum("hc,hsc->hs", query, keys) * query.shape[-1] ** -0.5
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if window:
        scores[:, : max(0, keys.shape[1] - window)] = -torch.inf
    if sinks is not None:
        scores = torch.cat([scores, sinks[:, None]], dim=1)
    weights = scores.softmax(-1)[:, : keys.shape[1]]
    return torch.einsum("hs,hsc->hc", weights, values)


@dataclass
class Story:
    """A cache, and beside it every row's keys and values as a plain list."""

    dtype: torch.dtype
    softcap: float | None = None
    with_sinks: bool = False
    seed: int = 0
    maximum: int = 10**6
    cache: SharedCache = field(default_factory=SharedCache)
    prompts: list[list[tuple[Tensor, Tensor]]] = field(default_factory=list)
    rows: list[tuple[list[tuple[Tensor, Tensor]], int]] = field(default_factory=list)
    largest: float = 0.0

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)

    def random(self, *shape: int) -> Tensor:
        return normal(*shape, generator=self.generator)

    def prompt(self, length: int, rows: int) -> None:
        """Admit a group: a prompt and its rows."""
        stored = [(self.random(g, length, c), self.random(g, length, c)) for g, c in SHAPES]
        given = []
        for (keys, values), window in zip(stored, WINDOWS, strict=True):
            kept = length if not window else min(length, window - 1 or 1)
            given.append(tuple(t[None, :, length - kept :].to(self.dtype) for t in (keys, values)))
        prompt = self.cache.add_prompt(given, length, torch.zeros(3))
        self.cache.add_rows(prompt, len(self.prompts), [self.maximum] * rows)
        self.prompts.append(stored)
        self.rows += [(list(stored), len(self.prompts) - 1)] * rows

    def step(self) -> None:
        """Feed one token of every row, and compare what each row's attention gives."""
        self.cache.begin_step()
        count = len(self.rows)
        new: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(count)]
        for layer, (g, c) in enumerate(SHAPES):
            keys, values = self.random(count, g, 1, c), self.random(count, g, 1, c)
            query = 2 * self.random(count, HEADS, 1, c)
            sinks = self.random(HEADS) if self.with_sinks else None
            self.cache.update(keys.to(self.dtype), values.to(self.dtype), layer)
            got = self.cache.attend(
                layer,
                query.to(self.dtype),
                c**-0.5,
                WINDOWS[layer],
                self.softcap,
                None if sinks is None else sinks.to(self.dtype),
            )
            assert got.shape == (count, 1, HEADS, c)
            for r, (stored, _) in enumerate(self.rows):
                both = tuple(
                    torch.cat([old, fresh[r]], dim=1)
                    for old, fresh in zip(stored[layer], (keys, values), strict=True)
                )
                new[r].append(both)
                expected = dense(query[r, :, 0], *both, WINDOWS[layer], self.softcap, sinks)
                gap = (got[r, 0].double() - expected).abs().max().item()
                self.largest = max(self.largest, gap)
        self.cache.end_step()
        self.rows = [(n, p) for n, (_, p) in zip(new, self.rows, strict=True)]

    def finish(self, row: int) -> None:
        """A row ends; its prompt goes with its last row."""
        _, prompt = self.rows[row]
        slot: Slot = self.cache.rows[row]
        self.cache.remove_row(slot)
        self.rows[row] = self.rows[-1]
        self.rows.pop()
        assert (slot.prompt.users == 0) == (prompt not in [p for _, p in self.rows])
        if slot.prompt.users == 0:
            self.cache.remove_prompt(slot.prompt)


CASES: list[dict[str, Any]] = [
    {"dtype": torch.float64},
    {"dtype": torch.float64, "softcap": 1.5},
    {"dtype": torch.float64, "with_sinks": True},
    {"dtype": torch.float32},
    {"dtype": torch.float32, "with_sinks": True},
    {"dtype": torch.float32, "softcap": 1.5},
    {"dtype": torch.bfloat16},
]
ALLOWED = {torch.float64: 1e-12, torch.float32: 3e-6, torch.bfloat16: 0.06}


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("fused", [True, False])
def test_attention_is_that_over_prompt_and_completion(
    case: dict[str, Any], fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ragged rows of prompts of different lengths, under windows, soft-capping and sinks."""
    if not fused:
        monkeypatch.setattr(partial, "fused_cpu", None)
    story = Story(**case)
    story.prompt(6, rows=3)
    story.step()
    story.step()
    story.prompt(1, rows=2)
    story.step()
    story.prompt(9, rows=1)
    for _ in range(6):
        story.step()
    story.finish(1)
    story.step()
    story.finish(0)
    story.finish(len(story.rows) - 1)
    story.step()
    assert story.largest < ALLOWED[case["dtype"]]


def test_one_prompt_takes_the_short_way() -> None:
    story = Story(torch.float64)
    story.prompt(5, rows=4)
    for _ in range(3):
        story.step()
    for _ in range(3):
        story.finish(0)
        story.step()
    assert story.largest < 1e-12


@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_rows_that_come_and_go_in_any_order_are_never_mixed_up(data: st.DataObject) -> None:
    seed, maximum = data.draw(st.integers(0, 999)), data.draw(st.sampled_from([1, 70, 500]))
    story = Story(torch.float64, seed=seed, maximum=maximum)
    for _ in range(data.draw(st.integers(3, 10))):
        act = data.draw(st.sampled_from(["prompt", "step", "step", "finish", "trim"]))
        if act == "prompt" or not story.rows:
            story.prompt(data.draw(st.integers(1, 9)), data.draw(st.integers(1, 4)))
        elif act == "step":
            story.step()
        elif act == "trim":
            story.cache.trim()
        else:
            story.finish(data.draw(st.integers(0, len(story.rows) - 1)))
    if story.rows:
        story.step()
    assert story.largest < 1e-12
    rows, prompts = story.cache.rows, story.cache.prompts
    assert [prompt.users for prompt in prompts] == [
        sum(row.prompt is prompt for row in rows) for prompt in prompts
    ]
    assert [row.place for row in rows] == list(range(len(rows)))
    assert [prompt.place for prompt in prompts] == list(range(len(prompts)))


def test_stores_grow_over_their_first_room() -> None:
    story = Story(torch.float64)
    story.prompt(3, rows=2)
    for _ in range(70):
        story.step()
    story.prompt(66, rows=1)
    story.step()
    assert story.largest < 1e-12


def test_positions_and_bytes() -> None:
    story = Story(torch.float32, maximum=10)
    story.prompt(6, rows=2)
    story.step()
    story.prompt(70, rows=1)
    cache = story.cache
    assert cache.positions == [7, 7, 70]
    assert cache.get_seq_length() == 70
    per_position = sum(2 * g * c * 4 for g, c in SHAPES)
    assert cache.bytes_per_position == per_position
    assert cache.nbytes == per_position * (2 * 64 + 2 * 128)  # 2 rows of 64, 2 prompts of 128
    assert cache.bytes_with([10] * 2, [6]) == (per_position * (5 * 64 + 3 * 128),) * 2
    for _ in range(3):
        story.finish(0)
    assert cache.bytes_with([10], [6]) == (per_position * (64 + 64), cache.nbytes)
    assert cache.nbytes == per_position * (2 * 64 + 2 * 128)
    cache.trim()
    assert cache.nbytes == 0


def test_a_step_begins_with_begin_step() -> None:
    story = Story(torch.float32)
    story.prompt(3, rows=1)
    with pytest.raises(RuntimeError, match="begin_step comes before"):
        story.cache.update(torch.zeros(1, 2, 1, 5), torch.zeros(1, 2, 1, 5), 0)


def test_parts_merge_exactly_whatever_they_see() -> None:
    """A part of which nothing is seen adds nothing, however its masked scores come out."""
    generator = torch.Generator().manual_seed(0)
    query, keys = normal(2, 2, 3, 5, generator=generator), normal(2, 2, 7, 5, generator=generator)
    values = normal(2, 2, 7, 5, generator=generator)
    whole, whole_lse = attend_partially(query, keys, values, None, 0.4)
    for cut in range(1, 7):
        parts = [
            attend_partially(query, keys[:, :, part], values[:, :, part], None, 0.4)
            for part in (slice(cut), slice(cut, None))
        ]
        torch.testing.assert_close(merge(*parts[0], *parts[1]), whole)
        torch.testing.assert_close(torch.logaddexp(parts[0][1], parts[1][1]), whole_lse)
    hidden = torch.full((2, 1, 1, 7), torch.finfo(torch.float64).min / 4, dtype=torch.float64)
    nothing = attend_partially(query, keys, values, hidden, 0.4)
    assert torch.equal(merge(whole, whole_lse, *nothing), whole)
    torch.testing.assert_close(merge(*nothing, whole, whole_lse), whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masked", [False, True])
def test_the_fused_operator_and_the_portable_way_agree(
    dtype: torch.dtype, masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert partial.fused_cpu is not None
    generator = torch.Generator().manual_seed(0)
    query, keys, values = (normal(3, 2, n, 8, generator=generator).to(dtype) for n in (5, 130, 130))
    mask = torch.zeros(3, 1, 1, 130, dtype=dtype) if masked else None
    if mask is not None:
        mask[1, ..., 20:] = torch.finfo(dtype).min / 4
        mask[2] = torch.finfo(dtype).min / 4  # of this one nothing is seen
    fused, fused_lse = attend_partially(query, keys, values, mask, 0.3)
    monkeypatch.setattr(partial, "fused_cpu", None)
    portable, portable_lse = attend_partially(query, keys, values, mask, 0.3)
    allowed = {torch.float32: 1e-5, torch.bfloat16: 0.02}[dtype]
    seen = slice(2) if masked else slice(3)
    torch.testing.assert_close(fused[seen], portable[seen], atol=allowed, rtol=0)
    torch.testing.assert_close(fused_lse[seen], portable_lse[seen], atol=allowed, rtol=0)
    if masked:
        assert (fused_lse[2] < -1e30).all()
        assert fused.isfinite().all()
