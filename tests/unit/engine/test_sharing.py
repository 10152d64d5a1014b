"""Several callers of one engine: each gets what it would get alone, and nobody is held up."""

from __future__ import annotations

import functools
import gc
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
import torch

from interlace import Engine, SamplingParams
from interlace.engine.core import Event
from interlace.engine.state import Row, RunningGroup
from interlace.engine.types import GroupOutput
from interlace.errors import GenerationError, GenerationInterrupted
from support.architectures import VOCAB, attach_random, build
from support.engine import largest_gap
from support.text import VOCAB as BYTE_VOCAB
from support.text import byte_tokenizer

STOPS = tuple(range(VOCAB - 10, VOCAB))
PARAMS = SamplingParams(width=3, max_new_tokens=14, stop_token_ids=STOPS, seed=3)
PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12], [13, 14], [15, 16, 17, 18]]
MODEL = attach_random(build("qwen3"))


def ids(groups: list[GroupOutput]) -> list[list[list[int]]]:
    return [[c.token_ids for c in group.completions] for group in groups]


def in_threads(*functions: Callable[[], Any]) -> list[Any]:
    """What the functions return, each in a thread of its own, all at once."""
    results: list[Any] = [None] * len(functions)
    start = threading.Barrier(len(functions))

    def run(place: int) -> None:
        start.wait()
        results[place] = functions[place]()

    threads = [threading.Thread(target=run, args=(n,)) for n in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


EXPECTED = ids(Engine(MODEL).generate(PROMPTS, PARAMS))


def test_threads_share_an_engine_and_get_what_they_would_get_alone() -> None:
    engine, own = Engine(MODEL, max_rows=7), [PARAMS.replace(seed=s, width=2 + s) for s in range(3)]
    expected = [ids(Engine(MODEL).generate(PROMPTS, params)) for params in own]

    def caller(params: SamplingParams) -> Callable[[], Any]:
        def call() -> Any:
            rounds = [ids(engine.generate(PROMPTS, params)) for _ in range(2)]
            return rounds, engine.stats.sampled_tokens

        return call

    for params, (rounds, sampled), wanted in zip(
        own, in_threads(*map(caller, own)), expected, strict=True
    ):
        assert rounds == [wanted, wanted], params
        assert sampled == sum(len(row) for group in wanted for row in group)
    assert engine.core.is_idle
    assert engine.core.backend.nbytes == 0


def test_a_half_read_stream_and_another_call_in_the_same_thread() -> None:
    """The stream's steps wait to be read; neither call waits for the other."""
    engine = Engine(MODEL)
    stream = engine.stream(PROMPTS[0], PARAMS.replace(stop_token_ids=()))
    steps = [next(iter(stream))]
    assert ids(engine.generate(PROMPTS[1:], PARAMS)) == EXPECTED[1:]
    assert engine.stats.decode_steps > 0
    steps += list(stream)
    expected = Engine(MODEL).generate(PROMPTS[:1], PARAMS.replace(stop_token_ids=()))
    assert [[step.tokens[w] for step in steps] for w in range(3)] == ids(expected)[0]
    assert stream.group is not None
    assert ids([stream.group]) == ids(expected)


def test_a_stream_that_is_never_read_on_holds_nobody_up() -> None:
    """Though no row is free beside it: its group advances with every step, and ends."""
    engine = Engine(MODEL, max_rows=3)
    stream = engine.stream(PROMPTS[0], PARAMS)
    next(iter(stream))
    assert ids(engine.generate(PROMPTS[1:], PARAMS)) == EXPECTED[1:]
    stream.close()
    assert stream.group is not None
    assert ids([stream.group]) == EXPECTED[:1]  # it was finished by then
    assert engine.core.backend.nbytes == 0


def test_streams_side_by_side_and_one_thrown_away() -> None:
    engine = Engine(MODEL)
    streams = [engine.stream(prompt, PARAMS) for prompt in PROMPTS]
    for stream in streams:
        next(iter(stream))
    del stream
    del streams[2]
    for place in (2, 0, 1):
        rest = list(streams[place])
        assert rest or len(EXPECTED[(0, 1, 3)[place]][0]) == 1
        group = streams[place].group
        assert group is not None
        assert ids([group])[0] == EXPECTED[(0, 1, 3)[place]]
    assert engine.core.is_idle


def test_two_streams_read_in_two_threads() -> None:
    engine = Engine(MODEL)

    def read(prompt: list[int]) -> Callable[[], Any]:
        def call() -> Any:
            stream = engine.stream(prompt, PARAMS)
            return list(stream), stream.group

        return call

    for (steps, group), wanted in zip(in_threads(*map(read, PROMPTS)), EXPECTED, strict=True):
        assert ids([group])[0] == wanted
        for w, row in enumerate(wanted):
            assert [s.tokens[w] for s in steps if s.tokens[w] is not None] == row


def test_a_call_that_fails_leaves_the_others_alone() -> None:
    engine = Engine(MODEL)

    def raising(*args: Any) -> Any:
        raise ZeroDivisionError("the user's")

    stream = engine.stream(PROMPTS[0], PARAMS)
    steps = [next(iter(stream))]
    with pytest.raises(ZeroDivisionError, match="the user's"):
        engine.generate(PROMPTS[1:], PARAMS.replace(logits_processors=[raising]))
    steps += list(stream)
    assert stream.group is not None
    assert ids([stream.group])[0] == EXPECTED[0]
    assert engine.core.is_idle


@pytest.mark.parametrize("call", range(2, 9))
def test_an_interrupt_in_one_call_leaves_the_others_whole(
    call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it comes in a step, between the tokens of rows of both calls too."""
    engine, append, calls = Engine(MODEL), Row.append, 0
    stream = engine.stream(PROMPTS[0], PARAMS)
    steps = [next(iter(stream))]

    def interrupted(self: Row, drawn: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 2 * call:
            raise KeyboardInterrupt
        append(self, drawn)

    monkeypatch.setattr(Row, "append", interrupted)
    with pytest.raises(GenerationInterrupted) as raised:
        engine.generate(PROMPTS[1:], PARAMS)
    monkeypatch.undo()
    for index, group in raised.value.groups.items():
        for got, whole in zip(ids([group])[0], EXPECTED[1 + index], strict=True):
            assert got == whole[: len(got)]
    steps += list(stream)
    assert stream.group is not None
    assert ids([stream.group])[0] == EXPECTED[0]
    for w, row in enumerate(EXPECTED[0]):  # no step was shown twice, and none is missing
        assert [s.tokens[w] for s in steps if s.tokens[w] is not None] == row
    assert engine.core.is_idle
    assert ids(engine.generate(PROMPTS, PARAMS)) == EXPECTED


def test_weights_are_followed_while_a_stream_is_half_read() -> None:
    model = attach_random(build("qwen2"))
    engine = Engine(model)
    stream = engine.stream(PROMPTS[0], PARAMS)
    next(iter(stream))
    for parameter in model.parameters():
        parameter.data.mul_(1.1)
    assert largest_gap(model, engine.generate(PROMPTS[1:], PARAMS)) < 2e-5
    stream.close()


def test_a_caller_that_was_brought_its_event_does_not_wait_for_the_holder() -> None:
    """The holder may wait for a vote's comparison after it has stepped the others to their end; a
    caller that had asked for the core before then waited with its event in its box."""
    engine = Engine(MODEL)
    sharing = engine._sharing
    requests = engine.requests([PROMPTS[0]], PARAMS)
    with sharing.call(requests) as call:
        (number,) = call.open
        found: list[Event] = []
        with sharing._held():
            reader = threading.Thread(target=lambda: found.extend(call.events()))
            reader.start()
            while reader.ident not in sharing._wanting:
                assert reader.is_alive()
            call.box.append(Event(number))
            reader.join()
        assert found == [Event(number)]


@pytest.mark.parametrize("backend", ["hf", "cpu"])
def test_a_stored_prompt_is_not_used_once_weights_have_changed(backend: str) -> None:
    """A half-read stream keeps its prompt stored; a later call of the same prompt took its keys,
    values and first logits, which were computed with the weights before."""
    model = attach_random(build("llama"))
    engine = Engine(model, backend=backend)
    stream = engine.stream(PROMPTS[0], PARAMS)
    next(iter(stream))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.3)
    assert largest_gap(model, engine.generate(PROMPTS[:1], PARAMS)) < 2e-5
    stream.close()
    assert engine.core.is_idle


def interrupting(monkeypatch: pytest.MonkeyPatch, when: Callable[[Any], bool]) -> None:
    """Raise KeyboardInterrupt before the first bytecode of the engine's at which `when` holds, as
    Ctrl-C does."""
    done = False

    def trace(frame: Any, event: str, argument: Any) -> Any:
        nonlocal done
        if not frame.f_code.co_filename.endswith("engine/engine.py"):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode" and not done and when(frame):
            done = True
            sys.settrace(None)
            raise KeyboardInterrupt
        return trace

    sys.settrace(trace)


@pytest.mark.parametrize("function", ["_held", "advance_for", "call", "_free", "_let_go", "events"])
def test_an_interrupt_before_any_instruction_leaves_the_engine_usable(
    function: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between taking the lock and the `try` after it, the lock stayed taken for ever."""
    before, hits, params = sys.gettrace(), 0, PARAMS.replace(max_new_tokens=2)
    expected = ids(Engine(MODEL).generate(PROMPTS[:1], params))
    for place in range(0, 400, 7):
        engine, passed = Engine(MODEL), 0

        def when(frame: Any, place: int = place) -> bool:
            nonlocal passed
            if frame.f_code.co_name == function:
                passed += 1
            return frame.f_code.co_name == function and passed > place

        interrupting(monkeypatch, when)
        try:
            engine.generate(PROMPTS[:1], params)
        except KeyboardInterrupt:
            hits += 1
        finally:
            sys.settrace(before)
        if passed <= place:
            break
        (again,) = in_threads(functools.partial(engine.generate, PROMPTS[:1], params))
        assert ids(again) == expected
        assert engine.core.is_idle
    assert hits


@pytest.mark.parametrize("how", ["processor", "hook", "stream"])
def test_a_call_from_within_a_step_is_refused(how: str) -> None:
    """It waited for itself, for ever."""
    model = attach_random(build("qwen3"))
    engine = Engine(model)
    stream = iter(engine.stream(PROMPTS[1], PARAMS))
    next(stream)

    def again(*args: Any) -> Any:
        return next(stream) if how == "stream" else engine.generate(PROMPTS[:1], PARAMS)

    params = PARAMS
    if how == "hook":
        model.model.layers[0].mlp.register_forward_pre_hook(again)
    else:
        params = PARAMS.replace(logits_processors=[again])
    with pytest.raises(GenerationError, match="from within its own step"):
        engine.generate(PROMPTS[:1], params)


def test_a_stream_that_the_garbage_collector_ends_within_a_step_is_let_go() -> None:
    engine, streams = Engine(MODEL), []
    for prompt in PROMPTS[:2]:
        streams.append(iter(engine.stream(prompt, PARAMS)))
        next(streams[-1])

    def dropping(ids: Any, scores: Any) -> Any:
        if streams:
            streams.clear()
            gc.collect()
        return scores

    params = PARAMS.replace(logits_processors=[dropping])
    assert ids(engine.generate(PROMPTS, params)) == EXPECTED
    assert engine.core.is_idle


@pytest.mark.parametrize("place", ["after the event", "within a step", "after delivery"])
def test_a_step_is_shown_once_whatever_an_interrupt_hits(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream of another caller had a step twice, or its text."""
    tokenizer = byte_tokenizer()
    model = attach_random(build("llama", vocab_size=BYTE_VOCAB))
    engine, calls = Engine(model, tokenizer), 0
    whole = [s.texts for s in Engine(model, tokenizer).stream("abc", PARAMS)]
    stream = engine.stream("abc", PARAMS)
    steps = [next(iter(stream))]

    class Outbox(deque[Event]):
        def append(self, event: Event) -> None:
            nonlocal calls
            super().append(event)
            calls += event.step is not None
            if calls == 3 and place == "after the event":
                calls += 1
                raise KeyboardInterrupt

        def popleft(self) -> Event:
            nonlocal calls
            if calls == 3 and place == "after delivery":
                calls += 1
                raise KeyboardInterrupt
            return super().popleft()

    real = RunningGroup._step

    def interrupted(self: RunningGroup, number: int, seen: Any) -> Any:
        nonlocal calls
        step = real(self, number, seen)
        if calls == 3 and place == "within a step":
            calls += 1
            raise KeyboardInterrupt
        return step

    engine.core.outbox = Outbox()
    monkeypatch.setattr(RunningGroup, "_step", interrupted)
    with pytest.raises(GenerationInterrupted):
        engine.generate(["xy"], PARAMS)
    steps += list(stream)
    assert [s.texts for s in steps] == whole
