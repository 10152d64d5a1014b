"""The engine's invariants fail when its rules are broken: faults, and the checks that notice them.

| mutation | the broken rule | caught by |
| --- | --- | --- |
| finished_rows_stay | a row that has finished is seen by nobody | I7 |
| groups_see_each_other | rows see their own group alone | I7, I7-mixed, I11 |
| row_not_moved | the row that takes another's place brings what it has stored | I7, I7-alone |
| row_keeps_old_length | ... and its length | I7, I7-alone |
| prompt_not_moved | so does the prompt that takes another's place | I7, I7-alone |
| prompt_place_kept | ... and its rows find it there | I7, I7-mixed |
| position_late | a row's next token has the next position | I7, greedy |
| window_forgotten | a sliding window counts prompt and completion together | I7, greedy |
| own_padding_seen | a row's completion ends where it ends | I7, I7-alone |
| prompt_padding_seen | a prompt ends where it ends | I7, I7-alone |
| parts_averaged | prompt and completion share one softmax | I7, greedy |
| weights_stale | packed weights follow training | I7-trained |
| biases_stale | ... and biases | I7-trained |
| uniforms_by_place | a row's uniforms do not depend on its place in the batch | I11 |
| occurrences_alike | two groups of a prompt differ | I11-differ |
| rows_alike | so do a group's rows | I11-differ |
| logprobs_as_sampled | `logprobs` are the model's own, before forbidden tokens | I7, I7-alone |
| prefill_from_zero | a prompt's chunks go on where the last one ended | I6 |
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from interlace import Engine, SamplingParams
from interlace.engine import drawing as drawing_module
from interlace.engine import kv as cache_module
from interlace.engine import request as requests_module
from interlace.engine.backends import BACKENDS
from interlace.engine.backends.packed import PackedWeights
from interlace.engine.core import EngineCore
from interlace.engine.kv import SharedCache, Slot, StoredPrompt
from interlace.engine.layout import StepLayout
from interlace.engine.sampling import Sampled
from interlace.engine.stores import Store
from interlace.rows import Owners
from invariants import test_engine as engine_invariants
from support.architectures import attach_random, build
from support.engine import largest_gap


@torch.no_grad()
def i7_trained(backend: str) -> None:
    """I7 for a model that was trained after the engine had used it."""
    model = attach_random(build("qwen2"))
    engine = Engine(model, backend=backend)
    prompts, params = [[5, 6, 7], [8, 9]], SamplingParams(width=4, max_new_tokens=6)
    engine.generate(prompts, params)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.SGD(model.parameters(), lr=0.05).step()
    assert largest_gap(model, engine.generate(prompts, params)) < 2e-5


# One architecture with sliding windows and grouped queries.
CHECKS: dict[str, Callable[[str], None]] = {
    "I6": lambda b: engine_invariants.test_I6_one_prefill_in_chunks_is_exact("llama", 3, b),
    "I7": lambda b: engine_invariants.test_I7_engine_and_training_agree("qwen3", b),
    "I7-alone": lambda b: engine_invariants.test_I7_engine_and_training_agree_with_nothing_attached(
        "qwen3", b
    ),
    "I7-mixed": lambda b: engine_invariants.test_I7_mixed_widths_in_one_call("qwen3", "bridge", b),
    "I7-trained": i7_trained,
    "I11": lambda b: engine_invariants.test_I11_a_group_is_the_same_alone_and_in_a_batch(
        "llama", b
    ),
    "I11-differ": engine_invariants.test_I11_two_groups_of_a_prompt_differ_and_seeds_matter,
    "greedy": lambda b: engine_invariants.test_greedy_equals_hugging_face("qwen3", b),
}

_attend = SharedCache.attend
_positions = SharedCache.positions
_fresh = PackedWeights._fresh
_remove_prompt = SharedCache.remove_prompt
_remove_row = SharedCache.remove_row
_row_keys = requests_module.row_keys
_sample = drawing_module.sample
_uniforms = drawing_module.uniforms
_take = EngineCore._take


@dataclass(frozen=True)
class Mutation:
    """A fault: what it replaces, by what, and the checks that must notice."""

    owner: Any
    attribute: str
    fault: Any
    caught_by: tuple[str, ...]
    backends: tuple[str, ...] = tuple(BACKENDS)

    def __call__(self) -> AbstractContextManager[Any]:
        return patch.object(self.owner, self.attribute, self.fault)


def finished_rows_stay(self: EngineCore, drawing: Any, wait: bool) -> None:
    release = self._release

    def only_with_the_whole_group(rows: Any) -> None:
        groups = {row.group for row in rows}
        release([row for group in groups if group.is_finished for row in group.rows])

    live = {row: drawn for row, drawn in drawing.tokens.items() if row.finish_reason is None}
    drawing.tokens = live
    with patch.object(self, "_release", only_with_the_whole_group):
        _take(self, drawing, wait)


def groups_see_each_other(self: Owners) -> None:
    return None


def row_not_moved(self: SharedCache, row: Slot) -> None:
    with patch.object(Store, "move", lambda *args: None):
        _remove_row(self, row)


def row_keeps_old_length(self: SharedCache, row: Slot) -> None:
    last = self.rows[-1]
    _remove_row(self, row)
    if last is not row:
        last.length = row.length


def prompt_not_moved(self: SharedCache, prompt: StoredPrompt) -> None:
    with patch.object(Store, "move", lambda *args: None):
        _remove_prompt(self, prompt)


def prompt_place_kept(self: SharedCache, prompt: StoredPrompt) -> None:
    last = self.prompts[-1]
    _remove_prompt(self, prompt)
    if last is not prompt and len(self.prompts) > 1:  # it is looked for where another lies
        other = self.prompts[last.place - 1]
        last.place, other.place = other.place, last.place
        self.prompts[last.place], self.prompts[other.place] = last, other


def position_late(self: SharedCache) -> list[int]:
    positions: list[int] = _positions.fget(self)  # type: ignore[attr-defined]
    return [p + 1 for p in positions]


def window_forgotten(
    self: SharedCache, layer: int, query: Tensor, scale: float, window: int, *rest: Any
) -> Tensor:
    return _attend(self, layer, query, scale, 0, *rest)


def own_padding_seen(self: StepLayout, window: int, dtype: torch.dtype) -> None:
    return None


def prompt_padding_seen(self: StepLayout, window: int, dtype: torch.dtype, per_kv: int) -> None:
    return None


def parts_averaged(a: Tensor, a_lse: Tensor, b: Tensor, b_lse: Tensor) -> Tensor:
    return (a + b) / 2


def weights_stale(self: PackedWeights, path: str, module: Any, name: str) -> Any:
    return self._packed.get((path, name)) or _fresh(self, path, module, name)


def biases_stale(self: PackedWeights, path: str, module: Any, name: str) -> Any:
    kept = self._packed.get((path, name))
    bias = None if kept is None else kept.bias
    fresh = _fresh(self, path, module, name)
    if fresh.bias is not None:
        fresh.bias = fresh.bias.detach().clone() if bias is None else bias
    return fresh


def uniforms_by_place(keys: Any, steps: Any) -> Any:
    return (_uniforms(keys, steps) + 0.1 * np.arange(len(keys))) % 1


def occurrences_alike(seed: int, ids: Any, sample_id: Any, width: int) -> Any:
    return _row_keys(seed, ids, 0, width)


def rows_alike(seed: int, ids: Any, sample_id: Any, width: int) -> Any:
    return np.repeat(_row_keys(seed, ids, sample_id, 1), width)


def logprobs_as_sampled(*args: Any) -> Sampled:
    sampled = _sample(*args)
    return dataclasses.replace(sampled, logprobs=sampled.sampled_logprobs)


def prefill_from_zero(self: DynamicCache, *args: Any, **kwargs: Any) -> int:
    return 0


def _on_cache(attribute: str, fault: Any, *caught_by: str) -> Mutation:
    return Mutation(SharedCache, attribute, fault, caught_by)


_ALL = [
    Mutation(EngineCore, "_take", finished_rows_stay, ("I7",)),
    Mutation(Owners, "visible", groups_see_each_other, ("I7", "I7-mixed", "I11")),
    _on_cache("remove_row", row_not_moved, "I7", "I7-alone"),
    _on_cache("remove_row", row_keeps_old_length, "I7", "I7-alone"),
    _on_cache("remove_prompt", prompt_not_moved, "I7", "I7-alone"),
    _on_cache("remove_prompt", prompt_place_kept, "I7", "I7-mixed"),
    _on_cache("positions", property(position_late), "I7", "greedy"),
    _on_cache("attend", window_forgotten, "I7", "greedy"),
    Mutation(StepLayout, "own_mask", own_padding_seen, ("I7", "I7-alone")),
    Mutation(StepLayout, "shared_mask", prompt_padding_seen, ("I7", "I7-alone")),
    Mutation(cache_module, "merge", parts_averaged, ("I7", "greedy")),
    Mutation(PackedWeights, "_fresh", weights_stale, ("I7-trained",), ("cpu",)),
    Mutation(PackedWeights, "_fresh", biases_stale, ("I7-trained",), ("cpu",)),
    Mutation(drawing_module, "uniforms", uniforms_by_place, ("I11",)),
    Mutation(requests_module, "row_keys", occurrences_alike, ("I11-differ",)),
    Mutation(requests_module, "row_keys", rows_alike, ("I11-differ",)),
    Mutation(drawing_module, "sample", logprobs_as_sampled, ("I7", "I7-alone")),
    Mutation(DynamicCache, "get_seq_length", prefill_from_zero, ("I6",)),
]
MUTATIONS = {(m.fault.fget if isinstance(m.fault, property) else m.fault).__name__: m for m in _ALL}
PAIRS = [(name, check) for name, m in MUTATIONS.items() for check in m.caught_by]


@pytest.mark.parametrize(("mutation", "check"), PAIRS)
def test_mutation_is_caught(mutation: str, check: str, backend: str) -> None:
    if backend not in MUTATIONS[mutation].backends:
        pytest.skip(f"{backend} has no part that {mutation} breaks")
    with MUTATIONS[mutation](), pytest.raises(AssertionError):
        CHECKS[check](backend)


@pytest.mark.parametrize("check", CHECKS)
def test_check_passes_without_mutation(check: str, backend: str) -> None:
    CHECKS[check](backend)


def test_every_check_has_a_mutation() -> None:
    assert {check for _, check in PAIRS} == set(CHECKS)


def test_docs_list_every_mutation_with_its_checks() -> None:
    rows = re.findall(r"^\| (\w+) \|.*\| ((?:I[0-9]+|greedy)[I0-9, a-z-]*) \|$", __doc__, re.M)
    assert {name: tuple(caught.split(", ")) for name, caught in rows} == {
        name: mutation.caught_by for name, mutation in MUTATIONS.items()
    }
