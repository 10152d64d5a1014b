"""The front end: children of a request learn their group, and what cannot be served is refused
where it is an error of the request (400), not of the engine."""

from __future__ import annotations

import functools
from copy import copy
from dataclasses import asdict, dataclass
from typing import Any

from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import BeamSearchParams
from vllm.v1.engine.core_client import DPLBAsyncMPClient
from vllm.v1.engine.input_processor import InputProcessor
from vllm.v1.engine.parallel_sampling import ParentRequest

from interlace_vllm.supported import ARCHITECTURE

KEY = "interlace"  # of a request's extra_args
GROUP_SALT = "interlace-group"


@dataclass(frozen=True)
class Membership:
    """Which row of which group a request is.

    Args:
        group: Name of the group: its parent's request id.
        width: Number of rows of the group.
        row: Number of this row.
    """

    group: str
    width: int
    row: int


def membership(request_id: str, sampling_params: Any) -> Membership:
    """The membership of a request, as the front end wrote it; a group of its own otherwise."""
    found = _mark(sampling_params)
    return Membership(**found) if found else Membership(request_id, 1, 0)


def is_marked(sampling_params: Any) -> bool:
    """Whether this front end saw a request. Another one would send the rows of a group as requests
    without a tie, and they would be sampled alone."""
    return _mark(sampling_params) is not None


def _mark(sampling_params: Any) -> dict[str, Any] | None:
    return ((sampling_params and sampling_params.extra_args) or {}).get(KEY)


def install() -> None:
    """Have vLLM's front end do it; twice is once."""
    if getattr(InputProcessor.process_inputs, "_interlace", False):
        return
    InputProcessor.process_inputs = _checking(InputProcessor.process_inputs)
    InputProcessor.resolve_watermarking = _without_beams(InputProcessor.resolve_watermarking)
    ParentRequest.get_child_info = _telling(ParentRequest.get_child_info)
    DPLBAsyncMPClient.get_core_engine_for_request = _together(
        DPLBAsyncMPClient.get_core_engine_for_request
    )


def _is_ours(processor: Any) -> bool:
    return ARCHITECTURE in (processor.model_config.hf_config.architectures or ())


def _without_beams(before: Any) -> Any:
    """Beams are requests of one token each, so that nothing says which of them are siblings. Each
    search comes by here before it begins, by the server or in the process."""

    @functools.wraps(before)
    def resolve_watermarking(self: Any, params: Any) -> Any:
        if isinstance(params, BeamSearchParams) and _is_ours(self):
            raise VLLMValidationError(
                "Beams would read none of their siblings: a model with blocks has no beam search. "
                "Leave it out; n choices are one group.",
                parameter="use_beam_search",
            )
        return before(self, params)

    return resolve_watermarking


def _checking(before: Any) -> Any:
    @functools.wraps(before)
    def process_inputs(self: Any, *args: Any, **kwargs: Any) -> Any:
        request = before(self, *args, **kwargs)
        if _is_ours(self):
            _check(self.vllm_config, request)
        return request

    process_inputs._interlace = True  # type: ignore[attr-defined]
    return process_inputs


def _check(config: Any, request: Any) -> None:
    """Mark a request as one that was seen here.

    Raises:
        VLLMValidationError: if it cannot be served.
    """
    params = request.sampling_params
    if KEY in (params.extra_args or {}):
        raise VLLMValidationError(
            f"extra_args[{KEY!r}] is the server's own; leave it out.", parameter="extra_args"
        )
    if request.resumable:
        raise VLLMValidationError("A model with blocks takes no streams of prompts.")
    params.extra_args = {**(params.extra_args or {}), KEY: {}}
    if params.n == 1:
        return
    if params.stop:
        raise VLLMValidationError(
            "Stop strings are found some steps after the text that holds them, and until then the "
            f"other rows of a group would read a row that has ended. With n > 1 (here "
            f"{params.n}) pass stop_token_ids.",
            parameter="stop",
        )
    scheduler = config.scheduler_config
    rows = min(scheduler.max_num_seqs, scheduler.max_num_active_seqs or scheduler.max_num_seqs)
    if params.n > rows:
        raise VLLMValidationError(
            f"A group of n rows takes a step together, and a step has at most {rows} rows here "
            f"(max_num_seqs, max_num_active_seqs); got n = {params.n}.",
            parameter="n",
        )
    _check_length(config, request)
    if config.model_config.hf_config.interlace["blocks"].get("alone") == "skip":
        # Prompts of groups go through the blocks, others do not: they share no prefix.
        request.cache_salt = (request.cache_salt or "") + GROUP_SALT


def _check_length(config: Any, request: Any) -> None:
    """Groups are given room up to max_tokens before they begin, since a part of one cannot be
    computed again."""
    params, cache = request.sampling_params, config.cache_config
    prompt = len(request.prompt_token_ids)
    tokens = min(prompt + params.max_tokens, config.model_config.max_model_len)
    block = cache.block_size
    needed = params.n * -(-tokens // block) * block
    if cache.kv_cache_size_tokens is None:
        return
    room = cache.kv_cache_size_tokens - block  # one block is vLLM's own
    if needed > room:
        raise VLLMValidationError(
            f"A group of n rows needs room for all its tokens: {params.n} x {tokens} (prompt "
            f"{prompt}, max_tokens {params.max_tokens}), and the KV cache has "
            f"{room}. Ask for fewer rows or a smaller max_tokens.",
            parameter="max_tokens",
        )


def _telling(before: Any) -> Any:
    @functools.wraps(before)
    def get_child_info(self: Any, index: int) -> tuple[str, Any]:
        name, params = before(self, index)
        if KEY in (params.extra_args or {}):
            params = copy(params)  # children without a seed share one object
            member = Membership(self.request_id, self.n, index)
            params.extra_args = {**params.extra_args, KEY: asdict(member)}
        return name, params

    return get_child_info


def _together(before: Any) -> Any:
    """Under data parallelism all rows of a group go where its first one went."""

    @functools.wraps(before)
    def get_core_engine_for_request(self: Any, request: Any) -> Any:
        member = membership(request.request_id, request.sampling_params)
        first = self.reqs_in_flight.get(f"0_{member.group}")  # as get_child_info names it
        if first is not None:
            request.data_parallel_rank = self.core_engines.index(first)
        return before(self, request)

    return get_core_engine_for_request
