"""A group goes on while its answers are compared, and ends where it would have ended had it
waited."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import Any

import pytest
from torch import Tensor

from interlace import Engine, SamplingParams
from interlace.engine import consensus as consensus_module
from interlace.engine.types import GroupOutput
from support.architectures import attach_random, build
from support.engine import largest_gap
from support.text import VOCAB, byte_tokenizer, ids_of

MODEL = attach_random(build("llama", vocab_size=VOCAB))
TOKENIZER = byte_tokenizer()
# Rows end at different steps, and all answer alike: the majority is settled by the fourth.
MAXIMA = [2, 4, 6, 8, 17, 17, 17]
PARAMS = SamplingParams(width=7, max_new_tokens=MAXIMA, seed=3, ignore_eos=True)


def same(text: str) -> str:
    return "same"


def outcome(group: GroupOutput) -> Any:
    rows = [(c.token_ids, c.text, c.finish_reason, len(c.logprobs)) for c in group.completions]
    return rows, group.tokens_saved


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Comparisons that wait for this event."""
    event, classes = threading.Event(), consensus_module.answer_classes

    def answer_classes(answers: Any) -> Any:
        event.wait()
        return classes(answers)

    monkeypatch.setattr(consensus_module, "answer_classes", answer_classes)
    monkeypatch.setattr(consensus_module, "_PATIENCE", 0.0)
    return event


@pytest.mark.parametrize("streaming", [False, True])
def test_an_answer_that_comes_late_cuts_the_rows_to_what_they_had(
    slow: threading.Event, streaming: bool
) -> None:
    """However late: here when all rows have ended by themselves."""
    engine = Engine(MODEL, TOKENIZER)
    slow.set()
    expected = engine.generate(["ab"], PARAMS.replace(consensus=same))[0]
    assert expected.tokens_saved == 3 * (17 - 8)
    assert [c.finish_reason for c in expected.completions][4:] == ["consensus"] * 3
    slow.clear()
    other = engine.stream("other", SamplingParams(width=2, max_new_tokens=40, seed=1))
    late = iter(other)
    params = PARAMS.replace(consensus=same, record_attention="mean")
    stream = iter(engine.stream("ab", params)) if streaming else None
    results: list[Any] = []

    def call() -> None:
        if stream is None:
            results.append(engine.generate(["ab"], params)[0])
        else:
            results.extend(stream)

    thread = threading.Thread(target=call)
    thread.start()
    for _ in range(40):  # it holds nobody up
        next(late)
    slow.set()
    thread.join()
    if stream is None:
        assert outcome(results[0]) == outcome(expected)
        assert len(results[0].attention or ()) == 7
        assert largest_gap(MODEL, results) < 1e-5
        return
    assert len(results) == 8
    for w, completion in enumerate(expected.completions):
        tokens = [step.tokens[w] for step in results if step.tokens[w] is not None]
        assert tokens == completion.token_ids
        assert "".join(step.texts[w] for step in results) == completion.text
        reasons = [s.finish_reasons[w] for s in results if s.finish_reasons[w] is not None]
        assert reasons == [completion.finish_reason]


def test_no_question_where_no_answer_could_settle_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[Any]] = []
    classes = consensus_module.answer_classes

    def answer_classes(answers: Any) -> Any:
        asked.append([a for a in answers if a is not None])
        return classes(answers)

    monkeypatch.setattr(consensus_module, "answer_classes", answer_classes)
    Engine(MODEL, TOKENIZER).generate(["ab"], PARAMS.replace(consensus=same))
    assert [len(answers) for answers in asked] == [4]  # of seven rows, three cannot settle it


def test_a_time_out_of_the_question_itself_is_an_error() -> None:
    def failing(*args: Any) -> Future[bool]:
        future: Future[bool] = Future()
        future.set_exception(TimeoutError("the question's own"))
        return future

    engine = Engine(MODEL, TOKENIZER)
    engine.core._ask = failing  # type: ignore[method-assign]
    with pytest.raises(TimeoutError, match="the question's own"):
        engine.generate(["ab"], PARAMS.replace(consensus=same))


def test_stop_strings_and_a_settled_majority() -> None:
    """The texts of rows that are cut are those of the tokens that they keep."""

    def only_x(tokens: Tensor, scores: Tensor) -> Tensor:
        allowed = scores[:, ids_of("xyz")].clone()
        scores[:] = -float("inf")
        scores[:, ids_of("xyz")] = allowed
        return scores

    engine = Engine(MODEL, TOKENIZER)
    params = PARAMS.replace(consensus=same, stop=["zzzz"], logits_processors=[only_x])
    group = engine.generate(["ab"], params)[0]
    for completion in group.completions:
        if completion.finish_reason == "consensus":
            assert completion.text == TOKENIZER.decode(completion.token_ids)
    assert largest_gap(MODEL, [group]) < 1e-5
