"""The scheduler: groups enter, run and end whole.

vLLM schedules requests one by one, and each row of a group is one. Around its `schedule` this one
sees to it that

- a group enters when all its rows have arrived, and fits: rows, and KV blocks up to max_tokens.
  Nothing is preempted then. A part of a group could not be computed again: it would need the tokens
  of siblings that have ended;
- a row past its prompt waits until its siblings are;
- rows past their prompt come before prompts, so that no prompt takes the token of one of them;
- what coupled rows write never enters the prefix cache: it depends on siblings, and a later prompt
  with the same tokens has none;
- after each step's schedule every group is in it whole, at one position, or ends with an error.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from vllm.logger import init_logger
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.request_queue import create_request_queue
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.request import Request, RequestStatus

from interlace_vllm.requests import is_marked, membership

logger = init_logger(__name__)


@dataclass
class Group:
    """The rows of one prompt; a request without siblings is a group of one.

    Args:
        width: Number of rows.
        blocks: Number of KV blocks that a row may take, at most.
        arrived: Number of rows that have come, whatever has become of them.
        live: Rows that have not ended, by request id.
        entered: Whether its rows are scheduled.
    """

    width: int
    blocks: int
    arrived: int = 0
    live: dict[str, Request] = field(default_factory=dict)
    entered: bool = False

    def waiting_for_siblings(self) -> list[Request]:
        """Rows past their prompt, while any is not."""
        past = [row for row in self.live.values() if row.num_output_tokens]
        return [] if len(past) == len(self.live) else past


class GroupScheduler(Scheduler):
    """vLLM's scheduler, for groups."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.groups: dict[str, Group] = {}
        self._complete: deque[str] = deque()  # groups that may enter, first come first
        self._failed: list[Request] = []
        self._room = self.kv_cache_manager.block_pool.num_gpu_blocks - 1  # one is vLLM's own
        self._seats = min(self.max_num_running_reqs, self.max_num_active_reqs)
        coordinator: Any = self.kv_cache_manager.coordinator
        coordinator.cache_blocks = functools.partial(_cache_prompts, coordinator.cache_blocks)

    # Coming and going -----------------------------------------------------------------------------

    def add_request(self, request: Request) -> None:
        """Take a row; its group may enter once all have come."""
        super().add_request(request)
        member = _member(request)
        group = self.groups.setdefault(member.group, Group(member.width, self._blocks_of(request)))
        group.live[request.request_id] = request
        group.arrived += 1
        if not is_marked(request.sampling_params):
            self._fail([request], "came from another front end, which does not say who is a group")
        elif group.arrived == group.width:
            self._complete.append(member.group)

    def _free_request(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        name = _member(request).group
        group = self.groups[name]
        del group.live[request.request_id]
        if not group.live:
            del self.groups[name]
        return super()._free_request(request, *args, **kwargs)

    def _blocks_of(self, request: Request) -> int:
        """KV blocks that a request may take, at most; fewer where windows let go of old ones."""
        tokens = min(request.num_prompt_tokens + request.max_tokens, self.max_model_len)
        managers = self.kv_cache_manager.coordinator.single_type_managers
        return sum(
            min(
                -(-tokens // manager.block_size),
                manager.max_admission_blocks_per_request or tokens,
            )
            for manager in managers
        )

    # One step -------------------------------------------------------------------------------------

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        """What the next step feeds to whom."""
        if self._pause_state == PauseState.UNPAUSED:
            self._let_groups_enter()
        held = {
            row.request_id
            for group in self.groups.values()
            if group.entered and group.width > 1
            for row in group.waiting_for_siblings()
        }
        waiting_rows = [row for row in self.running if row.request_id in held]
        self.running = [row for row in self.running if row.request_id not in held]
        self.running.sort(key=lambda row: not row.num_output_tokens)
        outside, self.waiting = self.waiting, create_request_queue(self.policy)
        try:
            output = super().schedule(throttle_prefills)
        finally:
            for row in self.waiting:  # passed over, as those whose grammar is not ready
                self.kv_holding_waiting.add_request(row)
            self.waiting = outside
            self.running += waiting_rows
        self._end_split_groups(output)
        return output

    def _let_groups_enter(self) -> None:
        """Move groups to vLLM's queue of those that come first, while they fit."""
        entered = [group for group in self.groups.values() if group.entered]
        seats = self._seats - sum(len(group.live) for group in entered)
        room = self._room - sum(len(group.live) * group.blocks for group in entered)
        while self._complete:
            group = self.groups.get(self._complete[0])
            if group is None or group.entered or group.arrived < group.width:
                self._complete.popleft()  # it was aborted; its name may have come anew
                continue
            rows = len(group.live)
            if rows > seats or rows * group.blocks > room:
                if entered:
                    return
                if group.width > 1:  # it never will
                    self._fail(group.live.values(), "has no room in the KV cache")
                    continue
            self._complete.popleft()
            group.entered = True
            entered.append(group)
            seats, room = seats - rows, room - rows * group.blocks
            self.waiting.remove_requests(group.live.values())
            for row in group.live.values():
                self.kv_holding_waiting.add_request(row)

    def _end_split_groups(self, output: SchedulerOutput) -> None:
        """End every group that is in a step in part, and take it out of the step."""
        for name, group in list(self.groups.items()):
            if group.width == 1 or not group.entered:
                continue
            past = [row for row in group.live.values() if row.num_output_tokens]
            fed = {row.request_id: output.num_scheduled_tokens.get(row.request_id) for row in past}
            if not any(fed.values()):
                continue
            positions = {row.num_computed_tokens for row in past}
            whole = len(past) == len(group.live) and set(fed.values()) == {1}
            if not whole or len(positions) > 1:
                _take_out(output, {row for row, count in fed.items() if count})
                self._fail(group.live.values(), f"came apart: {name} at {sorted(positions)}")

    # What must not happen -------------------------------------------------------------------------

    def _fail(self, rows: Iterable[Request], why: str) -> None:
        rows = list(rows)
        logger.error("A group of %d rows ends: it %s.", len(rows), why)
        self._failed += rows
        self.finish_requests([row.request_id for row in rows], RequestStatus.FINISHED_ERROR)

    def update_from_output(self, *args: Any, **kwargs: Any) -> dict[int, EngineCoreOutputs]:
        """What the step gave, and the ends of groups that failed."""
        outputs = super().update_from_output(*args, **kwargs)
        for row in self._failed:
            end = EngineCoreOutput(row.request_id, [], finish_reason=FinishReason.ERROR)
            outputs.setdefault(row.client_index, EngineCoreOutputs()).outputs.append(end)
        self._failed.clear()
        return outputs

    def reset_prefix_cache(
        self, reset_running_requests: bool = False, reset_connector: bool = False
    ) -> bool:
        """As vLLM's; running requests are not preempted for it."""
        if reset_running_requests and any(group.entered for group in self.groups.values()):
            logger.warning("Groups cannot be preempted: the prefix cache stays until they end.")
            return False
        return super().reset_prefix_cache(reset_running_requests, reset_connector)

    def _preempt_request(self, request: Request, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError(
            f"Room was reserved for {request.request_id}, and yet vLLM would preempt it. This is a "
            "fault of interlace-vllm."
        )


def _member(request: Request) -> Any:
    return membership(request.request_id, request.sampling_params)


def _cache_prompts(cache_blocks: Any, request: Request, tokens: int, **kwargs: Any) -> None:
    if _member(request).width > 1:
        tokens = min(tokens, request.num_prompt_tokens)
    cache_blocks(request, tokens, **kwargs)


def _take_out(output: SchedulerOutput, names: set[str]) -> None:
    """Feed nothing to some requests that have been fed before."""
    for name in names:
        output.total_num_scheduled_tokens -= output.num_scheduled_tokens.pop(name)
    cached = output.scheduled_cached_reqs
    kept = [at for at, name in enumerate(cached.req_ids) if name not in names]
    for column in (
        "req_ids",
        "new_token_ids",
        "new_block_ids",
        "num_computed_tokens",
        "num_output_tokens",
    ):
        values = getattr(cached, column)
        setattr(cached, column, [values[at] for at in kept] if values else values)
