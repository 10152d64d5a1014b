"""Model Runner V2: before each pass it tells the blocks who sees whom, in buffers that graphs read.

Tested on a CPU, where Triton's interpreter runs V2's kernels. Graphs have not been run yet:
`gpu_check.py` is the first thing to run on a GPU.

Axes: T tokens of the step, padding included, N slots: as many as a step may have rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from vllm.v1.worker.gpu.model_states.default import DefaultModelState

from interlace.rows import NOBODY, Groups, Owners
from interlace_vllm.model import LayerInStep
from interlace_vllm.requests import Membership, membership
from interlace_vllm.rows import Fed, StepRows, padded, rows_past_their_prompt


class _Slots(Owners):
    """Rows in slots, whose masks lie where they lay when a graph was captured."""

    def __init__(self, owners: Tensor, seen: Tensor, alone: Tensor) -> None:
        super().__init__(owners)
        self._seen_here, self._alone_here = seen, alone

    def visible(self) -> Tensor:
        return self._seen_here[None, None]

    def alone(self) -> Tensor:
        return self._alone_here


class _Tokens(Groups):
    """All tokens of a step, each without siblings."""

    def __init__(self, alone: Tensor) -> None:
        super().__init__(width=1)
        self._alone_here = alone

    def alone(self) -> Tensor:
        return self._alone_here


class SlotRows(StepRows):
    """Who sees whom, in buffers of one size: an operator has the same shapes in every step of T
    tokens, and reads the same places in memory.

    Args:
        slots: N.
        tokens: Number of tokens of a step, at most.
        device: Device of the model.
    """

    def __init__(self, slots: int, tokens: int, device: torch.device) -> None:
        self.places = torch.arange(slots, device=device)
        self.owners = torch.full((slots,), NOBODY, device=device)
        self.seen = torch.eye(slots, dtype=torch.bool, device=device)
        self.slots_alone = torch.ones(slots, dtype=torch.bool, device=device)
        self.tokens_alone = torch.ones(tokens, dtype=torch.bool, device=device)
        super().__init__()

    def set(self, step: Iterable[Fed], tokens: int, device: torch.device) -> None:
        """Take what a step feeds."""
        step = list(step)
        rows = rows_past_their_prompt(step)
        slots = len(self.places)
        places, owners = padded(rows, slots)
        alone = torch.ones(len(self.tokens_alone), dtype=torch.bool)
        for fed in step:
            alone[fed.first : fed.first + fed.count] = fed.member.width == 1
        self.tokens_alone.copy_(alone)
        at = torch.tensor(places)
        self.slots_alone.copy_(alone[at])
        self.places.copy_(at)
        self.owners.copy_(torch.tensor(owners))
        same = self.owners[:, None] == self.owners
        own = torch.eye(slots, dtype=torch.bool, device=self.seen.device)
        self.seen.copy_((same & (self.owners != NOBODY)) | own)

    def apply(self, block: Any, hidden: Tensor) -> Tensor:
        """What a block makes of `[T, D]`."""
        flat = hidden.unsqueeze(1)
        count = min(len(self.places), len(flat))
        at = self.places[:count]
        rows = _Slots(self.owners[:count], self.seen[:count, :count], self.slots_alone[:count])
        coupled = block(flat[at], rows)
        # With a slot for every token, those without siblings have theirs, too.
        if count == len(flat):
            out = torch.empty_like(flat)
        else:
            out = block(flat, _Tokens(self.tokens_alone[: len(flat)]))
        out[at] = coupled
        return out.squeeze(1)


class GroupState(DefaultModelState):
    """vLLM's state of a model's requests, with their groups."""

    def __init__(
        self, vllm_config: Any, model: Any, encoder_cache: Any, device: torch.device
    ) -> None:
        super().__init__(vllm_config, model, encoder_cache, device)
        self.rows = SlotRows(self.max_num_reqs, self.max_num_tokens, device)
        self.members: dict[str, Membership] = {}
        for layer in model.modules():
            if isinstance(layer, LayerInStep):
                layer.interlace_rows = self.rows

    def add_request(self, req_index: int, new_req_data: Any) -> None:
        super().add_request(req_index, new_req_data)
        name = new_req_data.req_id
        self.members[name] = membership(name, new_req_data.sampling_params)

    def remove_request(self, req_id: str) -> None:
        super().remove_request(req_id)
        self.members.pop(req_id, None)

    def _member(self, name: str) -> Membership:
        return self.members.get(name) or Membership(name, 1, 0)  # those of a dummy run

    def prepare_inputs(self, input_batch: Any, req_states: Any) -> dict[str, Any]:
        step = [
            Fed(self._member(name), int(first), int(count), int(computed), int(prompt))
            for name, first, count, computed, prompt in zip(
                input_batch.req_ids,
                input_batch.query_start_loc_np,
                input_batch.num_scheduled_tokens,
                input_batch.num_computed_tokens_np,
                input_batch.prefill_len_np,
                strict=False,  # the starts have an end
            )
        ]
        self.rows.set(step, input_batch.num_tokens_after_padding, self.device)
        return super().prepare_inputs(input_batch, req_states)

    def prepare_dummy_inputs(self, num_reqs: int, num_tokens: int) -> dict[str, Any]:
        self.rows.set([], num_tokens, self.device)
        return super().prepare_dummy_inputs(num_reqs, num_tokens)
