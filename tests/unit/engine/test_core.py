"""The core as a server uses it: requests come and go while it runs, and each ends alone."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

from interlace import Engine, SamplingParams
from interlace.engine import core as core_module
from interlace.engine.core import EngineCore, Event
from interlace.engine.kv import SharedCache
from interlace.engine.request import Request, make_requests
from interlace.engine.types import EngineStats, GroupOutput
from interlace.errors import GenerationError
from support.architectures import VOCAB, attach_random, build
from support.engine import largest_gap
from support.text import VOCAB as BYTE_VOCAB
from support.text import byte_tokenizer, ids_of

STOPS = tuple(range(VOCAB - 10, VOCAB))
PARAMS = SamplingParams(width=3, max_new_tokens=12, seed=3)
PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12], [13, 14], [15, 16, 17, 18]]
MODEL = attach_random(build("llama"))


def requests(core: EngineCore, prompts: Any, params: Any = PARAMS) -> list[Request]:
    return make_requests(core.backend, None, prompts, params, None, EngineStats())


def test_an_engine_makes_the_requests_of_its_core() -> None:
    engine = Engine(MODEL)
    made = engine.requests(PROMPTS, PARAMS)
    numbers = [engine.core.add(request) for request in made]
    events = drain(engine.core)
    assert [ids(events[n][0].group) for n in numbers] == EXPECTED
    assert made[0].stats is made[3].stats
    assert made[0].stats.sampled_tokens == 144


def drain(core: EngineCore) -> dict[int, list[Event]]:
    events: dict[int, list[Event]] = {}
    while not core.is_idle:
        for event in core.step():
            events.setdefault(event.id, []).append(event)
    return events


def ids(group: GroupOutput | None) -> list[list[int]]:
    assert group is not None
    return [c.token_ids for c in group.completions]


EXPECTED = [ids(group) for group in Engine(MODEL).generate(PROMPTS, PARAMS)]


def test_requests_are_added_while_it_runs() -> None:
    core = Engine(MODEL).core
    first, second, third, fourth = requests(core, PROMPTS)
    numbers = [core.add(first)]
    for request in (second, third, fourth):
        assert core.step() == core.step() == []
        numbers.append(core.add(request))
    events = drain(core)
    assert [len(events[n]) for n in numbers] == [1, 1, 1, 1]
    assert [ids(events[n][0].group) for n in numbers] == EXPECTED
    assert core.step() == []


def test_a_request_that_streams_gets_every_step_and_then_its_group() -> None:
    core = Engine(MODEL).core
    one, other = requests(core, PROMPTS[:2], PARAMS.replace(max_new_tokens=[3, 5, 1]))
    number = core.add(one, streaming=True)
    core.add(other)
    events = drain(core)[number]
    assert [event.group is None for event in events] == [True] * 4 + [False]
    tokens = [event.step.tokens for event in events if event.step is not None]
    assert [[t[w] for t in tokens if t[w] is not None] for w in range(3)] == ids(events[-1].group)


@pytest.mark.parametrize("steps", [0, 1, 4])
def test_after_abort_everything_is_returned(steps: int) -> None:
    core = Engine(MODEL).core
    number = core.add(requests(core, PROMPTS[:1])[0])
    for _ in range(steps):
        core.step()
    partial = core.abort(number)
    assert (partial is None) == (steps == 0)
    if partial is not None:
        assert ids(partial) == [row[:steps] for row in EXPECTED[0]]
        assert {c.finish_reason for c in partial.completions} == {"interrupted"}
    assert core.is_idle
    assert core.backend.nbytes == 0
    assert core.backend._workspace._store is None  # a thread kept what sampling had taken
    assert core.backend._cache.rows == core.backend._cache.prompts == []
    assert core.abort(number) is None
    assert core.step() == []


@pytest.mark.parametrize("how", ["ends", "is aborted"])
def test_a_group_is_let_go_without_the_garbage_collector(how: str) -> None:
    """Its rows know it and it knows them: a server kept hundreds of MiB of likely tokens of groups
    that were over, until Python happened to look for cycles."""
    core = Engine(MODEL).core
    number = core.add(requests(core, PROMPTS[:1])[0], streaming=True)
    gc.collect()
    gc.disable()
    try:
        core.step()
        group = weakref.ref(core._running[0])
        core.abort(number) if how == "is aborted" else drain(core)
        assert core.is_idle
        assert group() is None
    finally:
        gc.enable()


def test_abort_of_one_leaves_no_row_and_no_prompt_of_it_behind() -> None:
    core = Engine(MODEL, max_rows=9).core
    numbers = [core.add(request) for request in requests(core, PROMPTS)]
    core.step()
    core.step()
    cache = core.backend._cache
    assert (len(cache.rows), len(cache.prompts)) == (9, 3)
    core.abort(numbers[1])
    assert (len(cache.rows), len(cache.prompts)) == (6, 2)
    assert sorted(prompt.length for prompt in cache.prompts) == [2, 3]
    core.abort(numbers[3])  # which has not begun
    events = drain(core)
    assert {n: ids(e[0].group) for n, e in events.items()} == {
        numbers[0]: EXPECTED[0],
        numbers[2]: EXPECTED[2],
    }


def test_a_prompt_kept_for_a_request_that_is_aborted_goes_with_it() -> None:
    core = Engine(MODEL, max_rows=6).core
    a, b = PROMPTS[:2]
    short = PARAMS.replace(max_new_tokens=2)
    numbers = [core.add(r) for r in requests(core, [a, b, a], [short, PARAMS, PARAMS])]
    while core.step() == []:  # until the first has ended
        pass
    core.abort(numbers[1])
    core.abort(numbers[2])
    assert core.backend.nbytes == 0


def nan_at(place: int) -> Any:
    """Not-a-number logits for the rows of one prompt, in its second step."""

    def spoil(module: Any, args: Any, out: Any) -> None:
        if out.logits.shape[0] == 12:
            out.logits[3 * place + 1, :, 7] = float("nan")

    return spoil


def raising(*args: Any) -> Any:
    raise ZeroDivisionError("the user's")


@pytest.mark.parametrize("how", ["nan", "processor", "shared processor", "prefill"])
def test_a_request_that_fails_ends_alone(how: str) -> None:
    model = attach_random(build("llama"))
    core = Engine(model).core

    def second_prompt_raises(tokens: Tensor, scores: Tensor) -> Tensor:
        if any(row[: len(PROMPTS[1])] == PROMPTS[1] for row in tokens.tolist()):
            raising()
        return scores

    def refuses_second(module: Any, args: Any) -> None:
        if args[0].shape[1] == len(PROMPTS[1]):
            raising()

    own = [PARAMS] * 4
    if how == "processor":
        own[1] = PARAMS.replace(logits_processors=[raising])
    if how == "shared processor":
        own = [PARAMS.replace(logits_processors=[second_prompt_raises])] * 4
    if how == "nan":
        model.register_forward_hook(nan_at(1))
    if how == "prefill":
        model.model.embed_tokens.register_forward_pre_hook(refuses_second)
    core.backend.refresh()
    numbers = [core.add(request) for request in requests(core, PROMPTS, own)]
    events = {number: each[-1] for number, each in drain(core).items()}
    for place in (0, 2, 3):
        assert ids(events[numbers[place]].group) == EXPECTED[place]
    error = events[numbers[1]].error
    assert isinstance(error, GenerationError if how == "nan" else ZeroDivisionError)
    if how == "nan":
        assert "prompt 1, row 1, step 1" in str(error)
    assert core.backend.nbytes == 0


def test_a_consensus_that_raises_ends_its_group_alone() -> None:
    model = attach_random(build("llama", vocab_size=BYTE_VOCAB))
    engine = Engine(model, byte_tokenizer())
    own = [PARAMS.replace(max_new_tokens=[2, 5, 7])] * 3
    expected = engine.generate([ids_of("ab")] * 3, own)
    own[1] = own[1].replace(consensus=raising)
    core = engine.core
    made = make_requests(
        core.backend, byte_tokenizer(), [ids_of("ab")] * 3, own, None, EngineStats()
    )
    numbers = [core.add(request) for request in made]
    events = {number: each[-1] for number, each in drain(core).items()}
    assert isinstance(events[numbers[1]].error, ZeroDivisionError)
    for place in (0, 2):
        assert ids(events[numbers[place]].group) == ids(expected[place])


def test_one_group_without_memory_ends_alone() -> None:
    """The others, which come after it, have memory enough."""
    core = Engine(MODEL, max_rows=3).core
    numbers = [core.add(request) for request in requests(core, PROMPTS)]
    prefill, calls = core.backend.prefill, 0

    def failing(prompts: Any, alone: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return prefill(prompts, alone)

    core.backend.prefill = failing  # type: ignore[method-assign]
    core._admits_several = False
    events = {number: each[-1] for number, each in drain(core).items()}
    assert "Not enough memory for one group" in str(events[numbers[1]].error)
    for place in (0, 2, 3):
        assert ids(events[numbers[place]].group) == EXPECTED[place]


def test_an_error_of_the_pass_ends_all_that_were_in_it_and_no_more() -> None:
    model = attach_random(build("llama"))
    core = Engine(model, max_rows=6).core
    passes = 0

    def hook(module: Any, args: Any) -> None:
        nonlocal passes
        passes += 1
        if passes == 4:
            raise RuntimeError("shapes differ")

    model.model.layers[1].mlp.register_forward_pre_hook(hook)
    core.backend.refresh()
    numbers = [core.add(request) for request in requests(core, PROMPTS)]
    events = {number: each[-1] for number, each in drain(core).items()}
    assert [type(events[n].error) for n in numbers[:2]] == [RuntimeError, RuntimeError]
    assert [ids(events[n].group) for n in numbers[2:]] == EXPECTED[2:]


def test_two_callers_of_the_core_have_statistics_of_their_own() -> None:
    core = Engine(MODEL).core
    one, other = requests(core, PROMPTS[:2]), requests(core, PROMPTS[2:3])
    for request in one + other:
        core.add(request)
    drain(core)
    assert (one[0].stats.sampled_tokens, other[0].stats.sampled_tokens) == (72, 36)
    assert (one[0].stats.prefill_tokens, other[0].stats.prefill_tokens) == (8, 2)
    assert one[0].stats.decode_steps == other[0].stats.decode_steps == 11
    assert one[0].stats.alive_row_steps == 66


@pytest.mark.parametrize("backend", ["hf", "cpu"])
def test_a_long_prompt_is_computed_between_the_steps_of_others(backend: str) -> None:
    """Chunk by chunk; it stalled all running rows until it was done."""
    long = [5 + n % 20 for n in range(23)]
    (expected,) = Engine(MODEL, backend=backend).generate([long], PARAMS)
    core = Engine(MODEL, backend=backend, prefill_chunk=5).core
    first, second = requests(core, [PROMPTS[0], long])
    running = core.add(first, streaming=True)
    assert [event.id for event in core.step()] == [running]
    number = core.add(second, streaming=True)
    told: list[int] = []
    while number not in told:
        told += [event.id for event in core.step()]
    assert told == [running] * 4 + [number]  # five chunks, and a step between each two
    events = drain(core)
    assert ids(events[running][-1].group) == EXPECTED[0]
    assert ids(events[number][-1].group) == ids(expected)


@pytest.mark.parametrize("what", ["abort", "refresh", "memory"])
def test_a_prefill_that_has_begun_can_end(what: str) -> None:
    """Its request leaves, weights change, or memory runs out in the middle of it."""
    model, long = attach_random(build("llama")), [5 + n % 20 for n in range(23)]
    core = Engine(model, prefill_chunk=5, backend="hf").core  # which calls the hook below
    first, second, third = requests(core, [PROMPTS[0], long, PROMPTS[2]])
    running = core.add(first)
    core.step()
    leaving, last = core.add(second), core.add(third)
    core.step()
    core.step()
    if what == "abort":
        assert core.abort(leaving) is None
    elif what == "refresh":
        for parameter in model.parameters():
            parameter.data.mul_(1.1)
        core.refresh()
    else:

        def short(module: Any, args: Any) -> None:
            handle.remove()
            raise torch.OutOfMemoryError("CUDA out of memory.")

        handle = model.model.norm.register_forward_pre_hook(short)
    events = drain(core)
    if what == "memory":
        assert not model.model.norm._forward_pre_hooks  # memory did run out
        assert ids(events[running][-1].group) == EXPECTED[0]
    if what == "refresh":  # weights changed under running rows; those that begin later are whole
        groups = [event.group for n in (leaving, last) for event in events[n] if event.group]
        assert largest_gap(model, groups) < 2e-5
    else:
        assert ids(events[last][-1].group) == EXPECTED[2]
        assert (leaving in events) == (what == "memory")
    assert core.backend.nbytes == 0


@pytest.mark.parametrize("is_shared", [False, True])
def test_a_prefill_that_somebody_has_left_harms_nobody(is_shared: bool) -> None:
    """It went on though nobody wanted it, and where memory ran out in it, the step raised."""
    model, long = attach_random(build("llama")), [5 + n % 20 for n in range(43)]
    core = Engine(model, prefill_chunk=5, backend="hf").core
    prompts = [PROMPTS[0], PROMPTS[1], long] if is_shared else [PROMPTS[0], long, PROMPTS[2]]
    params = [PARAMS.replace(max_new_tokens=4), PARAMS, PARAMS]
    first, second, third = requests(core, prompts, params)
    running = core.add(first)
    core.step()
    leaving, last = core.add(second), core.add(third)
    core.step()
    core.abort(leaving)
    chunks = 0

    def count(module: Any, args: Any) -> None:
        nonlocal chunks
        if args[0].shape[1] == 5:
            chunks += 1
            if not core._live_rows():
                raise torch.OutOfMemoryError("CUDA out of memory.")

    model.model.norm.register_forward_pre_hook(count)
    events = drain(core)
    assert events.keys() == {running, last}
    assert events[running][-1].error is None
    assert (chunks > 0) == is_shared
    if is_shared:
        assert isinstance(events[last][-1].error, GenerationError)
    else:
        assert ids(events[last][-1].group) == EXPECTED[2]
    assert core.backend.nbytes == 0


def test_row_limits_come_back_while_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """They came back only when all was done, and a server is never idle."""
    monkeypatch.setattr(core_module, "_CALM", 3)
    model = attach_random(build("llama"))
    expected = Engine(model).generate(PROMPTS * 2, PARAMS)
    core = Engine(model, max_rows=9).core
    passes = 0

    def short(module: Any, args: Any) -> None:
        nonlocal passes
        passes += 1
        if passes in (6, 9):
            raise torch.OutOfMemoryError("CUDA out of memory.")

    model.model.layers[1].mlp.register_forward_pre_hook(short)
    numbers = [core.add(request) for request in requests(core, PROMPTS * 2)]
    events: dict[int, list[Event]] = {}
    most = [core._most_rows]
    while not core.is_idle:
        for event in core.step():
            events.setdefault(event.id, []).append(event)
        most.append(core._most_rows)
    assert min(most) < 9
    assert most[-1] == 9
    for place, number in enumerate(numbers):
        assert len(events[number]) == 1
        assert ids(events[number][0].group) == ids(expected[place])


def test_no_memory_for_the_copy_that_gives_room_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was raised out of the core's step, past every caller."""

    def trim(self: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(SharedCache, "trim", trim)
    core = Engine(MODEL, memory_budget=1).core
    numbers = [core.add(request) for request in requests(core, PROMPTS)]
    events = drain(core)
    assert [ids(events[n][-1].group) for n in numbers] == EXPECTED
