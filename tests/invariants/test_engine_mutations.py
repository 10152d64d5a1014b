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
| sets_of_all | the compiled code has rows see their own group alone | I7, I7-mixed, I11 |
| chunks_of_all | ... and read their own prompt | I7, I7-alone |
| parts_averaged | prompt and completion share one softmax | I7, greedy |
| weights_stale | packed weights follow training | I7-trained |
| biases_stale | ... and biases | I7-trained |
| uniforms_by_place | a row's uniforms do not depend on its place in the batch | I11 |
| occurrences_alike | two groups of a prompt differ | I11-differ |
| rows_alike | so do a group's rows | I11-differ |
| logprobs_as_sampled | `logprobs` are the model's own, before forbidden tokens | I7, I7-alone |
| prefill_from_zero | a prompt's chunks go on where the last one ended | I6 |
| chunk_alone | ... and read the chunks before | I6 |
| ended_seen_once_more | a row that the device ends is seen by nobody from then on | I7 |
| prompts_all_seen | a slot reads its own prompt | I7, I7-alone |
| slots_not_masked | ... and its own completion, as far as it has one | I7, I7-alone |
| kept_freed_early | what a finished row wrote is kept as long as its group lives | I7-finished |
| kept_too_long | a group that takes another's place finds nothing of it | I7-finished |
| kept_of_other_group | a row reads its own group's list | I7-finished, I7-history |
| kept_not_moved | a group that takes another's place brings its list | I7-finished, I7-history |
| kept_one_late | the last position that a row wrote counts | I7-finished |
| kept_of_itself | a row reads its siblings, not itself | I7-history |
| queries_ahead | distances are counted from the position in hand | I7-finished |
| keys_ahead | ... to the position that was written | I7-finished, I7-history |
| kept_alone | own and earlier positions share one softmax | I7-finished, I7-history |
| alone_shares_prompt | width 1 has a prompt of its own where it skips blocks | I7-alone-skips |
| left_over_is_alone | a row whose siblings are gone is not alone | I7-alone-skips |
| numbered_by_place | a row's number in its group is not its place among the live ones | I7-gated |
| all_features_turned | positions turn the features of positions only | I7-gated, I7-lanes |
| prompt_in_own_lane | a later lane is farther from the prompt | I7-lanes |
| new_tokens_unseen | lanes see each other's new tokens | I7-lanes |
| sizes_before_the_step | a block counts the tokens of the step in hand | I7-moving |
| prompt_beside | siblings' texts stand between a prompt and its reader | I7-moving |
| default_scale | ... and scores scaled as the model's | I7-lanes |
| mixing_turned | the recorded weights are the reader's | I7-mix |
| mixing_by_place | ... by the rows' numbers, not their places | I7-mix |
| said_by_prompt | distributions are those of the last step | I7-said |
| said_stays_in_place | ... and move with their rows | I7-said |
| streams_reversed | each stream of a row reads its own prompt and prefix | I7-streams |
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
from interlace.coupling import bridge as block_module
from interlace.coupling.hogwild import Hogwild
from interlace.coupling.lanerope import LaneRoPE
from interlace.engine import kept as kept_module
from interlace.engine import kv as cache_module
from interlace.engine import request as requests_module
from interlace.engine import state as state_module
from interlace.engine.backends import BACKENDS
from interlace.engine.backends import graph as graph_module
from interlace.engine.backends import native as native_module
from interlace.engine.backends.cpu import PackedProduct, PackedWeights
from interlace.engine.backends.flat import PromptAttention
from interlace.engine.backends.hf import HFBackend
from interlace.engine.core import EngineCore
from interlace.engine.kept import KeptKeys
from interlace.engine.kv import SharedCache, Slot, StepLayout, Store, StoredPrompt
from interlace.engine.request import Request
from interlace.engine.slots import Fields, SlotAttention
from interlace.engine.state import Drawn, RunningGroup
from interlace.rows import Owners
from invariants import test_engine as engine_invariants
from support.architectures import attach_random, build
from support.engine import largest_gap
from unit.coupling import test_hogwild as moving
from unit.coupling import test_lanerope as lanes
from unit.coupling import test_mix as mix


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
    "I6": lambda b: engine_invariants.test_I6_one_prefill_in_chunks_is_exact(
        "llama", 3, "position", b
    ),
    "I7": lambda b: engine_invariants.test_I7_engine_and_training_agree("qwen3", b),
    "I7-alone": lambda b: engine_invariants.test_I7_engine_and_training_agree_with_nothing_attached(
        "qwen3", b
    ),
    "I7-mixed": lambda b: engine_invariants.test_I7_mixed_widths_in_one_call("qwen3", "bridge", b),
    "I7-gated": lambda b: engine_invariants.test_I7_mixed_widths_in_one_call(
        "llama", "gated-history", b
    ),
    "I7-lanes": lambda b: lanes.test_engine_and_training_agree_with_other_attention(
        "granite", "all", b
    ),
    "I7-moving": lambda b: moving.test_engine_and_training_agree("granite", "all", b),
    "I7-mix": lambda b: engine_invariants.test_I7_mixed_widths_in_one_call("llama", "mix", b),
    "I7-said": lambda b: mix.test_recorded_weights_are_those_of_the_distributions("mix", b),
    "I7-streams": lambda b: engine_invariants.test_I7_mixed_widths_in_one_call(
        "llama", "parscale", b
    ),
    "I7-trained": i7_trained,
    "I7-finished": lambda b: engine_invariants.test_I7_with_another_reach("llama", "finished", b),
    "I7-history": lambda b: engine_invariants.test_I7_with_another_reach("llama", "history", b),
    "I7-alone-skips": lambda b: engine_invariants.test_I7_where_width_1_is_the_base_model(
        "llama", "position", b
    ),
    "I11": lambda b: engine_invariants.test_I11_a_group_is_the_same_alone_and_in_a_batch(
        "llama", "position", b
    ),
    "I11-differ": engine_invariants.test_I11_two_groups_of_a_prompt_differ_and_seeds_matter,
    "greedy": lambda b: engine_invariants.test_greedy_equals_hugging_face("qwen3", b),
}

_attend = SharedCache.attend
_positions = SharedCache.positions
_packed_of = PackedWeights.of
_remove_prompt = SharedCache.remove_prompt
_remove_row = SharedCache.remove_row
_row_keys = requests_module.row_keys
_sampled = state_module._sampled
_uniforms = state_module.uniforms
_take = EngineCore._take
_alone = Owners.alone
_finish, _open, _remove = KeptKeys.finish, KeptKeys.open, KeptKeys._remove
_mask, _new_step, _to_front = KeptKeys._mask, KeptKeys._new_step, KeptKeys._to_front
_turned = kept_module.turned
_kept_init, _read, _sizes = KeptKeys.__init__, KeptKeys.read, KeptKeys.sizes
_attention_step = LaneRoPE.attention_step
_note_attention = RunningGroup.note_attention
_as_heads = cache_module.as_heads
_advance, _release = HFBackend.advance, HFBackend.release


_prompt_mask = PromptAttention._mask
_drawn = graph_module._drawn
_slot_mask = SlotAttention._mask
PORTABLE = ("hf", "cpu")  # whose rows lie in a `SharedCache`, which attends for them
TENSORS = (*PORTABLE, "graph")  # that compute whole steps with tensors
STORED = (*PORTABLE, "native")  # whose rows lie there
_native_chunks = native_module._chunks
_native_sets = native_module._sets


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


def weights_stale(self: PackedWeights, name: Any, weights: Any, make: Any) -> Any:
    kept = self._before.pop(name, None)
    if kept is None:
        return _packed_of(self, name, weights, make)
    self._made[name] = kept
    return kept.what


def biases_stale(self: PackedWeights, name: Any, weights: Any, make: Any) -> Any:
    before = self._before.get(name)
    fresh = _packed_of(self, name, weights, make)
    if before is not None and isinstance(fresh, PackedProduct):
        fresh._bias = before.what._bias
    return fresh


def uniforms_by_place(keys: Any, steps: Any) -> Any:
    return (_uniforms(keys, steps) + 0.1 * np.arange(len(keys))) % 1


def occurrences_alike(seed: int, ids: Any, sample_id: Any, width: int) -> Any:
    return _row_keys(seed, ids, 0, width)


def rows_alike(seed: int, ids: Any, sample_id: Any, width: int) -> Any:
    return np.repeat(_row_keys(seed, ids, sample_id, 1), width)


def logprobs_as_sampled(*args: Any) -> list[Drawn]:
    drawn = _sampled(*args)
    return [dataclasses.replace(one, logprob=one.sampled_logprob) for one in drawn]


def prefill_from_zero(self: DynamicCache, *args: Any, **kwargs: Any) -> int:
    return 0


def chunk_alone(self: PromptAttention, *args: Any) -> Tensor:
    seen = _prompt_mask(self, *args).clone()
    seen[:, : self.start] = False
    return seen


def ended_seen_once_more(part: Fields, *args: Any) -> Any:
    owners = part.owners.clone()
    drawn = _drawn(part, *args)
    part.owners.copy_(owners)
    return drawn


def prompts_all_seen(self: SlotAttention, window: int) -> Tensor:
    mask = _slot_mask(self, window).clone()
    mask[..., self._own.shape[3] :] = 0
    return mask


def slots_not_masked(self: SlotAttention, window: int) -> Tensor:
    mask = _slot_mask(self, window).clone()
    mask[..., : self._own.shape[3]] = 0
    return mask


def kept_freed_early(self: KeptKeys, row: Slot) -> None:
    group = self._groups.get(row.owner)
    _finish(self, row)
    if group is not None and group.live:
        for data in self._layers.values():
            data[group.place, : group.readable] = 0


def kept_too_long(self: KeptKeys, rows: Any) -> None:
    before = len(self._groups)
    _open(self, rows)
    if len(self._groups) > before > 0:
        first, *_, last = self._groups.values()
        last.writers, last.readable = [99] * first.readable, first.readable


def kept_of_other_group(self: KeptKeys, like: Tensor) -> Any:
    step = _new_step(self, like)
    return dataclasses.replace(step, places=step.places.flip(0))


def kept_not_moved(self: KeptKeys, owner: int) -> None:
    layers, self._layers = self._layers, {}
    _remove(self, owner)
    self._layers = layers


def kept_one_late(self: KeptKeys, group: Any, number: int) -> None:
    _to_front(self, group, number)
    group.readable -= 1


def kept_of_itself(self: KeptKeys, groups: Any, numbers: Any, *rest: Any) -> Tensor:
    return _mask(self, groups, [[n - 1 for n in own] for own in numbers], *rest)


def queries_ahead(self: KeptKeys, like: Tensor) -> Any:
    step = _new_step(self, like)
    if step.turns is None:
        return step
    cos, sin = step.turns
    ahead = kept_module.turns(torch.ones(1, 1, dtype=torch.long), like.shape[-1], like.dtype)
    turns = cos * ahead[0] - sin * ahead[1], sin * ahead[0] + cos * ahead[1]
    return dataclasses.replace(step, turns=turns)


def keys_ahead(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return _turned(x, cos, -sin if x.shape[1] == 4 else sin)


def kept_alone(out: Tensor, lse: Tensor, part: Tensor, part_lse: Tensor) -> Tensor:
    return part


def alone_shares_prompt(self: Request) -> bytes:
    return np.asarray(self.token_ids, dtype=np.int64).tobytes()


def left_over_is_alone(self: Owners) -> Any:
    sizes = (self.owners[:, None] == self.owners).sum(1)
    return _alone(self) if isinstance(_alone(self), bool) and _alone(self) else sizes == 1


def _on_kept(attribute: str, fault: Any, *caught_by: str) -> Mutation:
    return Mutation(KeptKeys, attribute, fault, caught_by, PORTABLE)


def numbered_by_place(self: Owners, device: torch.device) -> Tensor:
    return torch.arange(len(self.owners), device=device)


def all_features_turned(self: KeptKeys, reads: Any, size: int, features: Any) -> None:
    _kept_init(self, reads, size, None)


def prompt_in_own_lane(self: LaneRoPE, query: Tensor, rows: Owners) -> Tensor:
    return query


def sizes_before_the_step(self: KeptKeys, like: Tensor) -> Any:
    found = _sizes(self, like)
    return found if found is None else found - 1


def prompt_beside(self: Hogwild, query: Tensor, rows: Owners) -> Tensor:
    return query


def new_tokens_unseen(self: LaneRoPE, *args: Any) -> Any:
    strict = self.strict
    try:
        self.strict = True
        return _attention_step(self, *args)
    finally:
        self.strict = strict


def default_scale(self: KeptKeys, place: int, q: Tensor, k: Tensor, v: Tensor, *_: Any) -> Any:
    return _read(self, place, q, k, v)


def mixing_turned(self: RunningGroup, weights: Any, *rest: Any) -> None:
    _note_attention(self, weights.swapaxes(1, 2), *rest)


def mixing_by_place(self: RunningGroup, weights: Any, live: Any, places: Any) -> None:
    ranked = list(live)
    for n, place in enumerate(places):
        ranked[place] = dataclasses.replace(live[place], index=n)
    _note_attention(self, weights, ranked, places)


def said_by_prompt(self: HFBackend) -> None:
    _advance(self)
    self._said = {}


def said_stays_in_place(self: HFBackend, gone: Any) -> None:
    rows = list(self._cache.rows)
    _release(self, gone)
    said = [self._said[row] for row in rows if row in self._said]
    self._said |= dict(zip(self._cache.rows, said, strict=False))


def streams_reversed(of_streams: Tensor, streams: int) -> Tensor:
    reversed_ = of_streams.unflatten(0, (-1, streams)).flip(1).flatten(0, 1)
    return _as_heads(reversed_, streams)


def _on_cache(attribute: str, fault: Any, *caught_by: str) -> Mutation:
    return Mutation(SharedCache, attribute, fault, caught_by, STORED)


def sets_of_all(rows: Any) -> Any:
    readers, _ = _native_sets(rows)
    return readers, [[row.place for row in rows]] * len(readers)


def chunks_of_all(prompts: list[int], threads: int) -> Any:
    return _native_chunks([0] * len(prompts), threads)


_ALL = [
    Mutation(EngineCore, "_take", finished_rows_stay, ("I7",), STORED),
    Mutation(Owners, "visible", groups_see_each_other, ("I7", "I7-mixed", "I11"), TENSORS),
    _on_cache("remove_row", row_not_moved, "I7", "I7-alone"),
    _on_cache("remove_row", row_keeps_old_length, "I7", "I7-alone"),
    _on_cache("remove_prompt", prompt_not_moved, "I7", "I7-alone"),
    _on_cache("remove_prompt", prompt_place_kept, "I7", "I7-mixed"),
    _on_cache("positions", property(position_late), "I7", "greedy"),
    Mutation(SharedCache, "attend", window_forgotten, ("I7", "greedy"), PORTABLE),
    Mutation(native_module, "_sets", sets_of_all, ("I7", "I7-mixed", "I11"), ("native",)),
    Mutation(native_module, "_chunks", chunks_of_all, ("I7", "I7-alone"), ("native",)),
    Mutation(StepLayout, "own_mask", own_padding_seen, ("I7", "I7-alone"), PORTABLE),
    Mutation(StepLayout, "shared_mask", prompt_padding_seen, ("I7", "I7-alone"), PORTABLE),
    Mutation(cache_module, "merge", parts_averaged, ("I7", "greedy"), PORTABLE),
    Mutation(PackedWeights, "of", weights_stale, ("I7-trained",), ("cpu", "native")),
    Mutation(PackedWeights, "of", biases_stale, ("I7-trained",), ("cpu",)),
    Mutation(state_module, "uniforms", uniforms_by_place, ("I11",), STORED),
    Mutation(requests_module, "row_keys", occurrences_alike, ("I11-differ",)),
    Mutation(requests_module, "row_keys", rows_alike, ("I11-differ",)),
    Mutation(state_module, "_sampled", logprobs_as_sampled, ("I7", "I7-alone")),
    Mutation(DynamicCache, "get_seq_length", prefill_from_zero, ("I6",), ("hf",)),
    Mutation(PromptAttention, "_mask", chunk_alone, ("I6",), ("cpu", "graph", "native")),
    Mutation(graph_module, "_drawn", ended_seen_once_more, ("I7",), ("graph",)),
    Mutation(SlotAttention, "_mask", prompts_all_seen, ("I7", "I7-alone"), ("graph",)),
    Mutation(SlotAttention, "_mask", slots_not_masked, ("I7", "I7-alone"), ("graph",)),
    _on_kept("finish", kept_freed_early, "I7-finished"),
    _on_kept("open", kept_too_long, "I7-finished"),
    _on_kept("_new_step", kept_of_other_group, "I7-finished", "I7-history"),
    _on_kept("_remove", kept_not_moved, "I7-finished", "I7-history"),
    _on_kept("_to_front", kept_one_late, "I7-finished"),
    _on_kept("_mask", kept_of_itself, "I7-history"),
    _on_kept("_new_step", queries_ahead, "I7-finished"),
    Mutation(kept_module, "turned", keys_ahead, ("I7-finished", "I7-history"), PORTABLE),
    Mutation(block_module, "merged", kept_alone, ("I7-finished", "I7-history"), PORTABLE),
    Mutation(Request, "prompt_key", property(alone_shares_prompt), ("I7-alone-skips",)),
    Mutation(Owners, "alone", left_over_is_alone, ("I7-alone-skips",)),
    Mutation(Owners, "numbers", numbered_by_place, ("I7-gated",), PORTABLE),
    _on_kept("__init__", all_features_turned, "I7-gated", "I7-lanes"),
    Mutation(LaneRoPE, "prompt_query", prompt_in_own_lane, ("I7-lanes",), PORTABLE),
    Mutation(LaneRoPE, "attention_step", new_tokens_unseen, ("I7-lanes",), PORTABLE),
    _on_kept("sizes", sizes_before_the_step, "I7-moving"),
    Mutation(Hogwild, "prompt_query", prompt_beside, ("I7-moving",), PORTABLE),
    _on_kept("read", default_scale, "I7-lanes"),
    Mutation(RunningGroup, "note_attention", mixing_turned, ("I7-mix",), PORTABLE),
    Mutation(RunningGroup, "note_attention", mixing_by_place, ("I7-mix",), PORTABLE),
    Mutation(HFBackend, "advance", said_by_prompt, ("I7-said",), PORTABLE),
    Mutation(HFBackend, "release", said_stays_in_place, ("I7-said",), PORTABLE),
    Mutation(cache_module, "as_heads", streams_reversed, ("I7-streams",), PORTABLE),
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
