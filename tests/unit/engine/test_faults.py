"""What goes wrong in the middle: no memory, no numbers, Ctrl-C, a user's function that raises."""

from __future__ import annotations

import inspect
import pickle
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from interlace import Engine, SamplingParams
from interlace.engine.backends.hf import HFBackend
from interlace.engine.core import EngineCore
from interlace.engine.kv import SharedCache, Store
from interlace.engine.state import Row, RunningGroup
from interlace.engine.types import GroupOutput
from interlace.errors import GenerationError, GenerationInterrupted
from support.architectures import VOCAB, attach_random, build
from support.engine import largest_gap
from support.text import VOCAB as BYTE_VOCAB
from support.text import byte_tokenizer, ids_of

STOPS = tuple(range(VOCAB - 10, VOCAB))
PARAMS = SamplingParams(width=3, max_new_tokens=12, seed=3)
PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12], [13, 14], [15, 16, 17, 18]]
MODEL = attach_random(build("llama"))
NO_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
    MemoryError(),
]


def ids(groups: list[GroupOutput]) -> list[list[list[int]]]:
    return [[c.token_ids for c in group.completions] for group in groups]


EXPECTED = ids(Engine(MODEL, prefill_chunk=5).generate(PROMPTS, PARAMS))


@contextmanager
def failing(
    error: BaseException, *calls: int, model: PreTrainedModel = MODEL, layer: int = 1
) -> Iterator[None]:
    """Raise in the middle of these passes (the first is 1) of the model."""
    passes = 0

    def hook(module: Any, args: Any) -> None:
        nonlocal passes
        passes += 1
        if passes in calls:
            raise error

    handle = model.model.layers[layer].mlp.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


# No memory ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "calls"),
    [
        *((error, (5,)) for error in NO_MEMORY),
        *((NO_MEMORY[0], calls) for calls in [(2,), (4,), (9,), (5, 8), (5, 6, 7)]),
    ],
    ids=str,
)
def test_without_memory_fewer_groups_run_and_nothing_is_lost(
    error: BaseException, calls: tuple[int, ...]
) -> None:
    """Four passes are prefills, since no two prompts make a chunk. Each failure comes in the
    middle of a pass, when some layers have stored the new token already."""
    engine = Engine(MODEL, prefill_chunk=5)
    with failing(error, *calls):
        groups = engine.generate(PROMPTS, PARAMS)
    assert ids(groups) == EXPECTED
    assert largest_gap(MODEL, groups) < 1e-5
    assert len(engine.stats.notes) == len(calls)
    assert "Out of memory at" in engine.stats.notes[0]
    decode_failures = sum(call > 4 for call in calls)
    assert engine.stats.preempted_groups == decode_failures
    assert ids(engine.generate(PROMPTS, PARAMS)) == EXPECTED  # with all rows at once again


@pytest.mark.parametrize("call", [1, 2, 4, 5, 6, 7, 8])
def test_without_memory_while_sampling(monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    """Rows of two kinds are sampled in two calls: none may get a token if the second fails. The
    groups are admitted together, in the first two calls, and one by one if that fails."""
    own = [PARAMS.replace(temperature=1 + p % 2, record_attention="mean") for p in range(4)]
    expected = Engine(MODEL, prefill_chunk=5).generate(PROMPTS, own)
    calls, real = 0, HFBackend.sample

    def sample(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(*args)

    monkeypatch.setattr(HFBackend, "sample", sample)
    engine = Engine(MODEL, prefill_chunk=5)
    groups = engine.generate(PROMPTS, own)
    assert len(engine.stats.notes) == 1
    assert ids(groups) == ids(expected)
    assert [len(g.attention or ()) for g in groups] == [len(g.attention or ()) for g in expected]
    for group in groups:
        assert largest_gap(MODEL, [group]) < 1e-5


@pytest.mark.parametrize("call", [1, 2, 5])
def test_one_group_without_memory_is_an_error_with_a_way_out(call: int) -> None:
    engine = Engine(MODEL, prefill_chunk=5)
    cause = torch.OutOfMemoryError("CUDA out of memory.")
    with (
        failing(cause, call),
        pytest.raises(GenerationError, match=r"one group.*smaller width.*fewer.*shorter") as raised,
    ):
        engine.generate(PROMPTS[:1], PARAMS)
    assert raised.value.__cause__ is cause
    assert ids(engine.generate(PROMPTS, PARAMS)) == EXPECTED


def test_other_errors_are_not_taken_for_want_of_memory() -> None:
    engine = Engine(MODEL, prefill_chunk=5)
    with failing(RuntimeError("shapes differ"), 6), pytest.raises(RuntimeError, match="shapes"):
        engine.generate(PROMPTS, PARAMS)
    assert ids(engine.generate(PROMPTS, PARAMS)) == EXPECTED


# No numbers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("vocabulary", [97, 256])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_logits_that_are_no_numbers_name_prompt_row_and_step(
    vocabulary: int, value: float, temperature: float
) -> None:
    """Pass 5 feeds the first tokens of all 4 groups of 3 rows, so it gives tokens of step 1."""
    model = build("llama", vocab_size=vocabulary)
    passes = 0

    def spoil(module: Any, args: Any, out: Any) -> None:
        nonlocal passes
        passes += 1
        if passes == 5:
            out.logits[3 + 2, :, 7] = value

    handle = model.register_forward_hook(spoil)
    engine, params = Engine(model, prefill_chunk=5), PARAMS.replace(temperature=temperature)
    with pytest.raises(
        GenerationError, match=r"not numbers \(NaN or infinite\) at prompt 1, row 2, step 1\."
    ):
        engine.generate(PROMPTS, params)
    handle.remove()
    assert len(engine.generate(PROMPTS, params)) == 4


def test_weights_that_are_nan_are_noticed_at_the_first_token() -> None:
    model = build("llama")
    with torch.no_grad():
        model.lm_head.weight[3, 3] = float("nan")
    with pytest.raises(GenerationError, match="prompt 0, row 0, step 0"):
        Engine(model).generate(PROMPTS, PARAMS)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_processors_that_leave_no_token(temperature: float) -> None:
    def nothing_after_four(tokens: Tensor, scores: Tensor) -> Tensor:
        return scores - float("inf") if tokens.shape[1] == 4 else scores

    params = PARAMS.replace(logits_processors=[nothing_after_four], temperature=temperature)
    with pytest.raises(
        GenerationError, match=r"No token is left .* prompt 0, row 0, step 1.*logits_processors"
    ):
        Engine(MODEL, prefill_chunk=5).generate(PROMPTS[:1], params)


# Ctrl-C -------------------------------------------------------------------------------------------


def assert_beginnings(got: dict[int, GroupOutput], expected: list[list[list[int]]]) -> None:
    """Finished rows are whole, unfinished ones a beginning, and all of a group equally long."""
    for index, group in got.items():
        unfinished = set()
        for completion, whole in zip(group.completions, expected[index], strict=True):
            length = len(completion.token_ids)
            assert completion.token_ids == whole[:length]
            assert len(completion.logprobs) == len(completion.sampled_logprobs) == length
            if completion.finish_reason == "interrupted":
                unfinished.add(length)
            else:
                assert completion.token_ids == whole
        assert len(unfinished) <= 1


@pytest.mark.parametrize("call", [2, 4, 7, 10])
def test_interrupted_groups_keep_their_tokens(call: int) -> None:
    params = PARAMS.replace(stop_token_ids=STOPS)
    expected = ids(Engine(MODEL, prefill_chunk=5).generate(PROMPTS, params))
    engine = Engine(MODEL, prefill_chunk=5)
    with (
        failing(KeyboardInterrupt(), call),
        pytest.raises(GenerationInterrupted, match=r"unfinished and \d not begun") as raised,
    ):
        engine.generate(PROMPTS, params)
    assert isinstance(raised.value, KeyboardInterrupt)
    groups = raised.value.groups
    assert list(groups) == (list(range(4)) if call > 4 else [])  # they are admitted together
    assert_beginnings(groups, expected)
    if groups:
        assert largest_gap(MODEL, list(groups.values())) < 1e-5
    assert ids(engine.generate(PROMPTS, params)) == expected


def test_finished_groups_are_kept_when_interrupted() -> None:
    engine = Engine(MODEL, max_rows=3)  # one group after another: 1 prefill, 11 steps each
    with failing(KeyboardInterrupt(), 30), pytest.raises(GenerationInterrupted) as raised:
        engine.generate(PROMPTS, PARAMS)
    groups = raised.value.groups
    assert ids([groups[0], groups[1]]) == EXPECTED[:2]
    assert [len(c.token_ids) for c in groups[2].completions] == [5, 5, 5]
    assert set(groups) == {0, 1, 2}
    assert "1 groups unfinished and 1 not begun" in str(raised.value)


def test_interrupted_in_the_callers_own_progress() -> None:
    def stop(stats: Any) -> None:
        if stats.decode_steps == 4:
            raise KeyboardInterrupt

    engine = Engine(MODEL, prefill_chunk=5)
    with pytest.raises(GenerationInterrupted) as raised:
        engine.generate(PROMPTS, PARAMS, progress=stop)
    assert_beginnings(raised.value.groups, EXPECTED)
    assert len(raised.value.groups[0].completions[0].token_ids) == 5


def test_as_completed_interrupted_gives_what_was_not_handed_out() -> None:
    own = [PARAMS.replace(max_new_tokens=n) for n in (3, 12, 5, 12)]
    completed, got = Engine(MODEL, prefill_chunk=5).as_completed(PROMPTS, own), []
    with failing(KeyboardInterrupt(), 12), pytest.raises(GenerationInterrupted) as raised:
        got.extend(completed)
    assert [index for index, _ in got] == [0, 2]
    assert set(raised.value.groups) == {1, 3}
    assert_beginnings(raised.value.groups, EXPECTED)


def test_a_stream_interrupted_keeps_its_group() -> None:
    engine, steps = Engine(MODEL, prefill_chunk=5), []
    stream = engine.stream(PROMPTS[0], PARAMS)
    with failing(KeyboardInterrupt(), 6), pytest.raises(GenerationInterrupted) as raised:
        steps.extend(stream)
    assert len(steps) == 5
    assert stream.group is not None
    assert stream.group.completions == raised.value.groups[0].completions
    assert [c.token_ids for c in stream.group.completions] == [t[:5] for t in EXPECTED[0]]
    assert ids(engine.generate(PROMPTS, PARAMS)) == EXPECTED


def test_interrupted_between_the_rows_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then some rows have the step's token and some have not: those that have it give it back."""
    append, calls = Row.append, 0

    def interrupted(self: Row, drawn: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 3 * 4 + 2:  # the second row of the fifth step
            self.tokens.append(drawn.token)  # and of this row, a part
            raise KeyboardInterrupt
        append(self, drawn)

    params = PARAMS.replace(max_new_tokens=[5, 12, 12])  # the first row would have ended
    expected = ids(Engine(MODEL, prefill_chunk=5).generate(PROMPTS[:1], params))
    monkeypatch.setattr(Row, "append", interrupted)
    with pytest.raises(GenerationInterrupted) as raised:
        Engine(MODEL, prefill_chunk=5).generate(PROMPTS[:1], params)
    group = raised.value.groups[0]
    assert [c.token_ids for c in group.completions] == [row[:4] for row in expected[0]]
    assert [c.finish_reason for c in group.completions] == ["interrupted"] * 3
    assert [len(c.logprobs) for c in group.completions] == [4, 4, 4]
    assert largest_gap(MODEL, [group]) < 1e-5


def test_an_interrupt_can_be_sent_between_processes() -> None:
    error = GenerationInterrupted("so far", {3: "group"})
    twin = pickle.loads(pickle.dumps(error))
    assert (str(twin), twin.groups) == ("so far", {3: "group"})


# A user's own functions ---------------------------------------------------------------------------


def raising(*args: Any) -> Any:
    raise ZeroDivisionError("the user's")


@pytest.mark.parametrize("how", ["processor", "consensus", "progress"])
def test_an_error_in_a_users_function_is_theirs_and_leaves_the_engine_usable(how: str) -> None:
    model = attach_random(build("llama", vocab_size=BYTE_VOCAB))
    engine = Engine(model, byte_tokenizer())
    params = PARAMS.replace(max_new_tokens=[2, 5, 7])
    expected = ids(engine.generate([ids_of("ab")], params))
    progress: Callable[..., Any] | None = raising if how == "progress" else None
    failing_params = params.replace(
        logits_processors=[raising] if how == "processor" else (),
        consensus=raising if how == "consensus" else None,
    )
    with pytest.raises(ZeroDivisionError, match="the user's"):
        engine.generate([ids_of("ab")], failing_params, progress=progress)
    assert ids(engine.generate([ids_of("ab")], params)) == expected


class Unreadable:
    """A tokenizer that raises for long completions, as a slow one does for an unknown id."""

    def __init__(self) -> None:
        self._own = byte_tokenizer()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)

    def decode(self, ids: Any, **options: Any) -> Any:
        if len(ids) > 3:
            raise IndexError("piece id is out of range")
        return self._own.decode(ids, **options)


@pytest.mark.parametrize("stop", [(), ("zzz",)])
def test_an_error_of_the_tokenizer_ends_its_group_alone(stop: tuple[str, ...]) -> None:
    """It reached whichever call took the step, and was raised again by every later call."""
    engine = Engine(attach_random(build("llama", vocab_size=BYTE_VOCAB)), Unreadable())
    short = SamplingParams(width=2, max_new_tokens=3, seed=1)
    expected = ids(engine.generate([[5, 6, 7]], short))
    steps = iter(engine.stream([9, 8, 7, 6], PARAMS.replace(stop=stop)))
    for _ in range(3):
        next(steps)
    assert ids(engine.generate([[5, 6, 7]], short)) == expected
    with pytest.raises(IndexError, match="out of range"):
        list(steps)
    with pytest.raises(IndexError, match="out of range"):
        engine.generate([[5, 6, 7]], PARAMS.replace(stop=stop))
    assert ids(engine.generate([[5, 6, 7]], short)) == expected
    assert engine.core.is_idle


@contextmanager
def interrupted_at(function: Callable[..., Any], source: str) -> Iterator[None]:
    """Ctrl-C before a line of a function, whenever it comes there first."""
    lines, first = inspect.getsourcelines(function)
    (wanted,) = [first + n for n, line in enumerate(lines) if line.strip().startswith(source)]
    waits, code = True, inspect.unwrap(function).__code__  # tests check types by wrappers

    def trace(frame: Any, event: str, argument: Any) -> Any:
        nonlocal waits
        if frame.f_code is not code:
            return None
        if event == "line" and frame.f_lineno == wanted and waits:
            waits = False
            raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)
        assert not waits


@pytest.mark.parametrize(
    ("function", "source", "most"),
    [
        (Store.resize, "new[kept]", 5),
        (EngineCore._admit, "for row, slot in", 5),
        (EngineCore._release, "if slot is not None", 5),
        (SharedCache.remove_row, "self.rows.pop()", 5),
        (RunningGroup.result, "params =", 12),
    ],
)
def test_an_interrupt_in_the_middle_of_a_change_leaves_other_calls_whole(
    function: Any, source: str, most: int
) -> None:
    """Rows that nobody held stayed in the backend, rows' keys and values were lost, or a step."""
    engine = Engine(MODEL, prefill_chunk=5)
    stream = engine.stream(PROMPTS[2], PARAMS)
    steps = [next(iter(stream)), next(iter(stream))]
    with interrupted_at(function, source), pytest.raises(GenerationInterrupted):
        engine.generate(PROMPTS[:2], PARAMS.replace(max_new_tokens=most))
    steps += list(stream)
    for w, row in enumerate(EXPECTED[2][: PARAMS.width]):
        assert [s.tokens[w] for s in steps if s.tokens[w] is not None] == row
    assert ids(engine.generate(PROMPTS, PARAMS)) == EXPECTED
    assert engine.core.is_idle
