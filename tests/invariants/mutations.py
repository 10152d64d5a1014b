"""Faults, one at a time, that an invariant must notice: what the tests of the invariants are worth.

Each mutation breaks one rule in the running library; test_mutations.py applies it and asserts that
the named checks fail.

| mutation | the broken rule | caught by |
| --- | --- | --- |
| w_o_not_zero | W_O starts at zero | I1 |
| residual_dropped | X + Bridge(Norm(X)), not Bridge(Norm(X)) | I1 |
| output_normalised | the residual stream itself is not normalised | I1 |
| position_term | no positional encoding: a row's number must not matter | I2, I5 |
| first_row_leads | every row asks for itself, none for its siblings | I2 |
| rows_interleaved | rows are group-major, r = p W + w | I3, I7, I8 |
| batch_statistics | the norm is per token, not over the batch | I3, I4 |
| finished_visible | a finished row is hidden | I3, I7, I8 |
| alive_late | the token that finished a row is not alive | I3, I7, I8 |
| softmax_over_positions | attention runs over rows, not positions | I4, I7, I8 |
| next_position | a row reads its siblings at the same position, not the next | I4, I8 |
| previous_position | ... nor the one before, which a decode step does not have | I4, I7 |
| block_skipped | the block is there | I2, I4, I8 |
| not_normalised | softmax weights sum to 1 | I5 |
| self_hidden | a row sees itself, also when no sibling lives | I5 |
| short_path_wrong | width 1 takes a shorter way to the same result | I5 |
| cache_tiled | one prefill is expanded group-major | I6 |
| group_split | a micro-batch holds whole groups | I7 |
| completion_mask_as_alive | alive is not the completion mask | I7 |
| groups_lost_in_decode | every decode step carries its groups | I7, I7-generate |
| generate_without_groups | generate hands groups to the model | I7-generate |
| generate_all_alive | generate records which rows have finished | I7-generate |
| generate_alive_late | ... with the token that finished them | I7-generate |
| generate_scans_prompt | EOS inside a prompt finishes nothing | I7-generate |
| siblings_detached | gradients flow into siblings | I8, I8-differences |
| start_forgotten | earlier positions are those of completions | I3-reach, I7-generate |
| start_late | ... from the first one on | I3-reach, I7-generate |
| ended_late | a sibling is finished where it is not alive, not one position later | I3-reach |
| feed_position_read | the position that feeds the finishing token is not alive | I3, I3-reach |
| ended_read_early | a finished sibling is read after it has ended, not before | I3-reach |
| future_read | only earlier positions are read | I4, I3-reach |
| itself_read | of siblings, not of itself | I3-reach |
| other_group_read | ... of the own group | I3, I3-reach |
| turned_backwards | a score depends on the distance back, not ahead | I3-reach |
| keys_not_turned | ... and not on the position | I3-reach |
| parts_apart | own and earlier positions share one softmax | I3-reach |
| earlier_detached | gradients flow into earlier positions, too | I8-differences |
| kept_late | generate keeps what a row wrote, each position in its place | I7-generate |
| kept_freed_early | ... as long as its group lives | I7-generate |
| side_path_not_zero | of a gated side path, too, U starts at zero | I1 |
| gate_open | ... whose gate is learned | I3-reach |
| rows_alike | ... which tells rows apart | I3-reach |
| rows_turn_positions | ... by features that positions do not turn | I3-reach |
| side_path_detached | ... and through which gradients flow | I8-differences |
| finished_stay_in_lanes | lanes show what a row wrote while alive | I3, I3-reach, I8 |
| lanes_see_ahead | ... and nothing after the position in hand | I3-reach, I4, I8 |
| prompts_in_lanes | ... nor the prompts of siblings | I3-reach, I7-generate |
| lanes_alike | lanes are told apart | I3-reach |
| lanes_of_queries_only | ... by queries and keys | I3-reach |
| siblings_at_no_distance | what stands between a block and its reader counts | I3-reach |
| order_reversed | blocks stand in the order of their rows | I3-reach |
| own_block_counted | ... without the reader's own | I3-reach |
| lane_of_generate_late | generate knows where completions begin | I7-generate |
| mixed_of_neighbour | a weight is of the row that it names | I3, I3-reach |
| mixed_position_before | ... and of the position at which it was found | I3, I7, I7-generate |
| finished_mixed_in | finished rows are not mixed in | I3-reach |
| nothing_mixed | a row is fed a share of its siblings' | I2, I3-reach, I4 |
| share_twice | ... which is lambda | I3-reach |
| own_forgotten | ... and the rest is its own | I5 |
| streams_interleaved | the streams of a row lie side by side | I3, I3-reach, I4 |
| prefix_of_next_stream | each has its own prefix | I3-reach |
| prefix_only | ... which has values | I3-reach |
| streams_averaged | the aggregate weighs them | I3-reach |
| mixing_late | generate keeps weights at their positions | I7-generate |
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache

import interlace.rows as rows_module
from interlace.coupling import bridge as block_module
from interlace.coupling import gated as gated_module
from interlace.coupling import hogwild as hogwild_module
from interlace.coupling import joint as joint_module
from interlace.coupling import reach as reach_module
from interlace.coupling.bridge import BridgeBlock
from interlace.coupling.gated import GatedBlock
from interlace.coupling.lanerope import LaneRoPE
from interlace.coupling.mix import Mix
from interlace.coupling.parscale import Aggregate, ParScale
from interlace.generate_hf import ContinuedGroups, GenerationRecord
from interlace.rows import Earlier, Groups
from invariants import checks
from invariants.subject import REACHES
from support.architectures import HEADS

_forward = BridgeBlock.forward
_seen, _joined = Earlier.seen, ContinuedGroups.joined
_find_earlier, _attend_with_earlier = rows_module.find_earlier, block_module.attend_with_earlier
_turned, _gathered = reach_module.turned, reach_module._gathered
_attend = block_module._attend
_reset = BridgeBlock.reset_parameters
_visible = Groups.visible
_record_init = GenerationRecord.__init__
_expand = DynamicCache.batch_repeat_interleave
_reset_gated, _attended = GatedBlock.reset_parameters, GatedBlock.attended
_turns = gated_module.turns
_written, _continued = Groups.written, ContinuedGroups.written
_in_lane, _with_own = LaneRoPE._in_lane, joint_module._with_own
_mixed, _weights, _all_groups = Mix.mixed, Mix.weights, GenerationRecord.all_groups
_prefixed, _how_far = ParScale.attention, hogwild_module.how_far
_teacher_force = checks.teacher_force


@dataclass(frozen=True)
class Mutation:
    """A fault: what it replaces, by what, and the checks that must notice."""

    owner: Any
    attribute: str
    fault: Callable[..., Any]
    caught_by: tuple[str, ...]
    reads: tuple[str, ...] = ("position",)
    kinds: tuple[str, ...] = ("bridge",)

    def __call__(self) -> AbstractContextManager[Any]:
        return patch.object(self.owner, self.attribute, self.fault)


def w_o_not_zero(self: BridgeBlock) -> None:
    _reset(self)
    nn.init.normal_(self.o_weight, std=0.02)


def residual_dropped(self: BridgeBlock, x: Tensor, groups: Groups) -> Tensor:
    return _forward(self, x, groups) - x


def output_normalised(self: BridgeBlock, x: Tensor, groups: Groups) -> Tensor:
    return self.norm(_forward(self, x, groups))


def position_term(self: BridgeBlock, x: Tensor, groups: Groups) -> Tensor:
    number = torch.arange(x.shape[0], device=x.device) % groups.width
    return _forward(self, x + 0.1 * number[:, None, None].to(x.dtype), groups)


def first_row_leads(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
    return _attend(q[:, :1].expand_as(q).contiguous(), k, v, visible)


def rows_interleaved(self: BridgeBlock, x: Tensor, groups: Groups) -> Tensor:
    order = torch.arange(x.shape[0]).view(groups.width, -1).T.flatten()
    return _forward(self, x[order], groups)[order.argsort()]


def batch_statistics(self: BridgeBlock, x: Tensor, groups: Groups) -> Tensor:
    return _forward(self, x - x.mean((0, 1)), groups) + x.mean((0, 1))


def finished_visible(self: Groups) -> Tensor | None:
    return None


def alive_late(self: Groups) -> Tensor | None:
    if self.alive is None:
        return None
    before = torch.cat([torch.ones_like(self.alive[..., :1]), self.alive[..., :-1]], -1)
    return _visible(Groups(self.width, before))


def softmax_over_positions(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
    query, key, value = (t.flatten(0, 1).transpose(1, 2) for t in (q, k, v))
    mixed = F.scaled_dot_product_attention(query, key, value, enable_gqa=True)
    return mixed.transpose(1, 2).flatten(2)


def next_position(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
    return _attend(q, k.roll(-1, 2), v.roll(-1, 2), visible)


def previous_position(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
    return _attend(q, k.roll(1, 2), v.roll(1, 2), visible)


def block_skipped(self: BridgeBlock, x: Tensor, groups: Groups) -> Tensor:
    return x


def not_normalised(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
    return _attend(q, k, v, visible) * q.shape[1]


def self_hidden(self: Groups) -> Tensor | None:
    if self.alive is None:
        return None
    return self.alive.transpose(1, 2).unsqueeze(2).expand(-1, -1, self.width, -1)


def short_path_wrong(self: BridgeBlock, x: Tensor, groups: Groups) -> Tensor:
    if groups.width > 1:
        return _forward(self, x, groups)
    values = F.linear(self.norm(x), self.qkv_weight[-self.kv_size :])
    return x + F.linear(values.repeat(1, 1, self.num_heads // self.num_kv_heads), self.o_weight)


def cache_tiled(self: DynamicCache, repeats: int) -> None:
    count = self.layers[0].keys.shape[0]
    _expand(self, repeats)
    self.reorder_cache(torch.arange(count * repeats).view(count, repeats).T.flatten())


def group_split(self: Groups, rows: int, size: int) -> Iterator[tuple[slice, Groups]]:
    at = self.width // 2
    for first in range(0, rows, self.width):
        for start, stop in ((0, at), (at, self.width)):
            alive = self.alive[first // self.width, None, start:stop]
            yield slice(first + start, first + stop), Groups(stop - start, alive)


def completion_mask_as_alive(model: Any, sampled: Any) -> Tensor:
    alive = sampled.alive.flatten(0, 1).clone()
    alive[:, sampled.prompt_length :] = sampled.completion_mask
    return _teacher_force(model, sampled, alive=alive.unflatten(0, (-1, sampled.width)))


def groups_lost_in_decode(self: BridgeBlock, x: Tensor, groups: Groups) -> Tensor:
    return _forward(self, x, Groups(1) if x.shape[1] == 1 else groups)


def generate_without_groups(self: GenerationRecord, positions: int) -> Groups:
    return Groups(1)


def generate_all_alive(self: GenerationRecord, positions: int) -> Groups:
    return Groups(self.width)


def generate_alive_late(self: GenerationRecord, ids: Any, scores: Any, **kwargs: Any) -> Tensor:
    before = self.finished
    stopped = super(GenerationRecord, self).__call__(ids, scores, **kwargs)
    self.finished = before | stopped
    self.alive = torch.cat([self.alive, ~before[:, None]], dim=1)
    return stopped


def generate_scans_prompt(
    self: GenerationRecord, criteria: Any, width: int, prompt: Any, reads: Any
) -> None:
    _record_init(self, criteria, width, prompt, reads)
    for length in range(1, prompt.shape[1] + 1):
        self.finished = self.finished | criteria(prompt[:, :length], None)


def siblings_detached(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
    return _attend(q, k.detach(), v.detach(), visible)


# Blocks with another reach than the paper's ------------------------------------------------------


def start_forgotten(reads: Any, alive: Tensor, start: Tensor, *rest: Any) -> Earlier | None:
    return _find_earlier(reads, alive, torch.zeros_like(start), *rest)


def start_late(reads: Any, alive: Tensor, start: Tensor, *rest: Any) -> Earlier | None:
    return _find_earlier(reads, alive, start + 1, *rest)


def ended_late(self: Earlier, start: int, stop: int) -> Tensor:
    before = torch.cat([torch.ones_like(self.alive[..., :1]), self.alive[..., :-1]], -1)
    return _seen(dataclasses.replace(self, alive=before), start, stop)


def feed_position_read(reads: Any, alive: Tensor, *rest: Any) -> Earlier | None:
    longer = torch.cat([alive[..., :1], alive[..., :-1] | alive[..., 1:]], -1)
    found = _find_earlier(reads, longer, *rest)
    return None if found is None else dataclasses.replace(found, alive=alive)


def ended_read_early(self: Earlier, start: int, stop: int) -> Tensor:
    return _seen(dataclasses.replace(self, ended_only=False), start, stop)


def future_read(self: Earlier, start: int, stop: int) -> Tensor:
    seen = _seen(self, start, stop)
    return seen[:, :, -1:].expand_as(seen)


def itself_read(self: Earlier, start: int, stop: int) -> Tensor:
    return _seen(self, start, stop).any(1, keepdim=True).expand(-1, self.alive.shape[1], -1, -1)


def other_group_read(x: Tensor, pairs: Tensor) -> Tensor:
    return _gathered(x.roll(1, 0), pairs)


def turned_backwards(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return _turned(x, cos, -sin)


def keys_not_turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return x if x.shape[3] == 1 else _turned(x, cos, sin)


def parts_apart(
    q: Tensor, keys: Tensor, values: Tensor, visible: Any, earlier: Earlier, *rest: Any
) -> Tensor:
    both = _attend_with_earlier(q, keys, values, visible, earlier, *rest)
    own = slice(earlier.first, None)
    k, v = (t[:, :, -q.shape[2] :][:, :, own] for t in (keys, values))
    same = _attend(q[:, :, own], k, v, None if visible is None else visible[:, own])
    return (both + same) / 2


def earlier_detached(x: Tensor, pairs: Tensor) -> Tensor:
    return _gathered(x, pairs).detach()


def kept_late(self: ContinuedGroups, place: int, keys: Tensor, values: Tensor) -> Any:
    keys, values = _joined(self, place, keys, values)
    return keys.roll(1, 2), values.roll(1, 2)


def kept_freed_early(self: ContinuedGroups, place: int, keys: Tensor, values: Tensor) -> Any:
    keys, values = _joined(self, place, keys, values)
    lives = self.alive[:, :, -1, None, None, None]
    return keys * lives, values * lives


# Gated side paths --------------------------------------------------------------------------------


def side_path_not_zero(self: GatedBlock) -> None:
    _reset_gated(self)
    nn.init.normal_(self.up_weight, std=0.02)


def gate_open(x: Tensor) -> Tensor:
    return torch.ones_like(x)


def rows_alike(self: Groups, device: Any) -> Tensor:
    return torch.zeros(self.width, dtype=torch.long, device=device)


def rows_turn_positions(*args: Any) -> Any:
    return _turns(*args[:4])


def side_path_detached(self: GatedBlock, x: Tensor, groups: Groups) -> Tensor:
    return x + (_attended(self, x, groups) - x).detach()


def _on_gated(owner: Any, attribute: str, fault: Any, *caught_by: str) -> Mutation:
    return Mutation(owner, attribute, fault, caught_by, kinds=("gated", "gated-history"))


# Lanes -----------------------------------------------------------------------------------------


def finished_stay_in_lanes(self: Groups, *args: Any) -> Any:
    alive, start = _written(self, *args)
    return torch.ones_like(alive), start


def lanes_see_ahead(seen: Tensor, own: Tensor, width: int) -> Tensor:
    return _with_own(seen.any(dim=2, keepdim=True).expand_as(seen), own, width)


def prompts_in_lanes(self: Groups, *args: Any) -> Any:
    alive, start = _written(self, *args)
    return alive, torch.zeros_like(start)


def lanes_alike(self: LaneRoPE, x: Tensor, lanes: Tensor) -> Tensor:
    return x


def lanes_of_queries_only(self: LaneRoPE, x: Tensor, lanes: Tensor) -> Tensor:
    return _in_lane(self, x, lanes) if x.shape[1] in (4, HEADS) else x


def siblings_at_no_distance(sizes: Tensor, reader: Tensor) -> Tensor:
    return torch.zeros_like(_how_far(sizes, reader))


def order_reversed(sizes: Tensor, reader: Tensor) -> Tensor:
    return _how_far(sizes.flip(-1), sizes.shape[-1] - 1 - reader).flip(-1)


def own_block_counted(sizes: Tensor, reader: Tensor) -> Tensor:
    found = sizes.flip(-1).cumsum(dim=-1).flip(-1)
    return found.expand(_how_far(sizes, reader).shape)


def lane_of_generate_late(self: ContinuedGroups, *args: Any) -> Any:
    alive, start = _continued(self, *args)
    return alive, start + 2


# Mixed inputs ----------------------------------------------------------------------------------


def mixed_of_neighbour(self: Mix, x: Tensor, weights: Tensor) -> Tensor:
    return _mixed(self, x, weights.roll(1, -1))


def mixed_position_before(self: Mix, x: Tensor, weights: Tensor) -> Tensor:
    return _mixed(self, x, weights.roll(1, 1) if x.shape[1] > 1 else weights)


def finished_mixed_in(self: Mix, said: Tensor, visible: Tensor | None) -> Tensor:
    return _weights(self, said, None)


def nothing_mixed(self: Mix, x: Tensor, weights: Tensor) -> Tensor:
    return x


def share_twice(self: Mix, x: Tensor, weights: Tensor) -> Tensor:
    return _mixed(self, x, 2 * weights)


def own_forgotten(self: Mix, x: Tensor, weights: Tensor) -> Tensor:
    return _mixed(self, x, weights) - (1 - self.share) * x


def mixing_late(self: GenerationRecord) -> Groups:
    found = _all_groups(self)
    assert found.mixing is not None
    found.mixing = found.mixing.roll(1, 1)
    return found


def _on_mix(owner: Any, attribute: str, fault: Any, *caught_by: str) -> Mutation:
    return Mutation(owner, attribute, fault, caught_by, kinds=("mix", "mix-others"))


# Streams ---------------------------------------------------------------------------------------


def streams_interleaved(self: ParScale, given: Tensor) -> Tensor:
    return given.repeat(self.streams, *[1] * (given.ndim - 1))


def prefix_of_next_stream(self: ParScale, *args: Any) -> Any:
    with torch.no_grad():
        self.prefix_keys.copy_(self.prefix_keys.roll(1, 0))
    return _prefixed(self, *args)


def prefix_only(self: ParScale, query: Tensor, key: Tensor, *args: Any) -> Any:
    q, k, v, mask = _prefixed(self, query, key, *args)
    return q, k, torch.cat([v[:, :, : self.prefix_keys.shape[2]] * 0, v[:, :, 5:]], 2), mask


def streams_averaged(self: Aggregate, hidden: Tensor) -> Tensor:
    return hidden.unflatten(0, (-1, self.streams)).mean(dim=1)


def _on_streams(owner: Any, attribute: str, fault: Any, *caught_by: str) -> Mutation:
    return Mutation(owner, attribute, fault, caught_by, kinds=("parscale",))


def _on_lanes(owner: Any, attribute: str, fault: Any, *caught_by: str) -> Mutation:
    return Mutation(owner, attribute, fault, caught_by, kinds=("lanerope",))


def _on_moving(fault: Any, *caught_by: str) -> Mutation:
    return Mutation(hogwild_module, "how_far", fault, caught_by, kinds=("hogwild",))


def _on_block(fault: Callable[..., Any], *caught_by: str) -> Mutation:
    return Mutation(BridgeBlock, "forward", fault, caught_by)


def _on_attention(fault: Callable[..., Any], *caught_by: str) -> Mutation:
    return Mutation(block_module, "_attend", fault, caught_by)


def _on_mask(fault: Callable[..., Any], *caught_by: str) -> Mutation:
    return Mutation(Groups, "visible", fault, caught_by)


def _on_record(attribute: str, fault: Callable[..., Any]) -> Mutation:
    return Mutation(GenerationRecord, attribute, fault, ("I7-generate",))


def _on_reach(
    owner: Any, attribute: str, fault: Any, *caught_by: str, reads: Any = tuple(REACHES)
) -> Mutation:
    return Mutation(owner, attribute, fault, caught_by, reads)


_ALL = [
    Mutation(BridgeBlock, "reset_parameters", w_o_not_zero, ("I1",)),
    _on_block(residual_dropped, "I1"),
    _on_block(output_normalised, "I1"),
    _on_block(position_term, "I2", "I5"),
    _on_attention(first_row_leads, "I2"),
    _on_block(rows_interleaved, "I3", "I7", "I8"),
    _on_block(batch_statistics, "I3", "I4"),
    _on_mask(finished_visible, "I3", "I7", "I8"),
    _on_mask(alive_late, "I3", "I7", "I8"),
    _on_attention(softmax_over_positions, "I4", "I7", "I8"),
    _on_attention(next_position, "I4", "I8"),
    _on_attention(previous_position, "I4", "I7"),
    _on_block(block_skipped, "I2", "I4", "I8"),
    _on_attention(not_normalised, "I5"),
    _on_mask(self_hidden, "I5"),
    _on_block(short_path_wrong, "I5"),
    Mutation(DynamicCache, "batch_repeat_interleave", cache_tiled, ("I6",)),
    Mutation(Groups, "micro_batches", group_split, ("I7",)),
    Mutation(checks, "teacher_force", completion_mask_as_alive, ("I7",)),
    _on_block(groups_lost_in_decode, "I7", "I7-generate"),
    _on_record("groups", generate_without_groups),
    _on_record("groups", generate_all_alive),
    _on_record("__call__", generate_alive_late),
    _on_record("__init__", generate_scans_prompt),
    _on_attention(siblings_detached, "I8", "I8-differences"),
    _on_reach(rows_module, "find_earlier", start_forgotten, "I3-reach", "I7-generate"),
    _on_reach(rows_module, "find_earlier", start_late, "I3-reach", "I7-generate"),
    _on_reach(Earlier, "seen", ended_late, "I3-reach", reads=("finished",)),
    _on_reach(rows_module, "find_earlier", feed_position_read, "I3", "I3-reach"),
    _on_reach(Earlier, "seen", ended_read_early, "I3-reach", reads=("finished",)),
    _on_reach(Earlier, "seen", future_read, "I4", "I3-reach", reads=("history",)),
    _on_reach(Earlier, "seen", itself_read, "I3-reach"),
    _on_reach(reach_module, "_gathered", other_group_read, "I3", "I3-reach"),
    _on_reach(reach_module, "turned", turned_backwards, "I3-reach"),
    _on_reach(reach_module, "turned", keys_not_turned, "I3-reach"),
    _on_reach(block_module, "attend_with_earlier", parts_apart, "I3-reach"),
    _on_reach(reach_module, "_gathered", earlier_detached, "I8-differences"),
    _on_reach(ContinuedGroups, "joined", kept_late, "I7-generate"),
    _on_reach(ContinuedGroups, "joined", kept_freed_early, "I7-generate"),
    _on_gated(GatedBlock, "reset_parameters", side_path_not_zero, "I1"),
    _on_gated(gated_module.torch, "sigmoid", gate_open, "I3-reach"),
    _on_gated(Groups, "numbers", rows_alike, "I3-reach"),
    _on_gated(gated_module, "turns", rows_turn_positions, "I3-reach"),
    _on_gated(GatedBlock, "attended", side_path_detached, "I8-differences"),
    _on_lanes(Groups, "written", finished_stay_in_lanes, "I3", "I3-reach", "I8"),
    _on_lanes(joint_module, "_with_own", lanes_see_ahead, "I3-reach", "I4", "I8"),
    _on_lanes(Groups, "written", prompts_in_lanes, "I3-reach", "I7-generate"),
    _on_moving(siblings_at_no_distance, "I3-reach"),
    _on_moving(order_reversed, "I3-reach"),
    _on_moving(own_block_counted, "I3-reach"),
    _on_lanes(LaneRoPE, "_in_lane", lanes_alike, "I3-reach"),
    _on_lanes(LaneRoPE, "_in_lane", lanes_of_queries_only, "I3-reach"),
    _on_lanes(ContinuedGroups, "written", lane_of_generate_late, "I7-generate"),
    _on_mix(Mix, "mixed", mixed_of_neighbour, "I3", "I3-reach"),
    _on_mix(Mix, "mixed", mixed_position_before, "I3", "I7", "I7-generate"),
    _on_mix(Mix, "weights", finished_mixed_in, "I3-reach"),
    _on_mix(Mix, "mixed", nothing_mixed, "I2", "I3-reach", "I4"),
    _on_mix(Mix, "mixed", share_twice, "I3-reach"),
    _on_mix(Mix, "mixed", own_forgotten, "I5"),
    _on_mix(GenerationRecord, "all_groups", mixing_late, "I7-generate"),
    _on_streams(ParScale, "spread", streams_interleaved, "I3", "I3-reach", "I4"),
    _on_streams(ParScale, "attention", prefix_of_next_stream, "I3-reach"),
    _on_streams(ParScale, "attention", prefix_only, "I3-reach"),
    _on_streams(Aggregate, "together", streams_averaged, "I3-reach"),
]
MUTATIONS = {mutation.fault.__name__: mutation for mutation in _ALL}
