"""The engine as its users meet it: what it takes, what it gives, and what it answers to bad input.

Axes: W width, T tokens of a completion, L layers.
"""

from __future__ import annotations

import dataclasses
import threading
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import BatchEncoding

import interlace
from interlace import Engine, SamplingParams, attach
from interlace.attached import new_parameters
from interlace.engine.types import GroupOutput, Step
from interlace.errors import AggregationError, AttachError, GenerationError
from support.architectures import BRIDGE, LAYERS, attach_random, build, randomise
from support.engine import attention_by_teacher_forcing, largest_gap
from support.text import BOS, END, EOS, PAD, VOCAB, byte_tokenizer, ids_of
from support.typecheck import unchecked

TOKENIZER = byte_tokenizer()
MODEL = attach_random(build("llama", vocab_size=VOCAB))
ENGINE = Engine(MODEL, TOKENIZER)
PROMPTS = ["ab", "a longer one", "c"]
PARAMS = SamplingParams(width=3, max_new_tokens=12, seed=3)


def ids(groups: list[GroupOutput]) -> list[list[list[int]]]:
    return [[c.token_ids for c in group.completions] for group in groups]


def only(*texts: str, also: tuple[int, ...] = ()) -> Any:
    """A logits processor that leaves nothing but the bytes of these texts, and some tokens."""
    allowed = torch.tensor(sorted({i for text in texts for i in ids_of(text)} | set(also)))

    def processor(tokens: Tensor, scores: Tensor) -> Tensor:
        return torch.full_like(scores, -torch.inf).index_copy_(1, allowed, scores[:, allowed])

    return processor


# What goes in -------------------------------------------------------------------------------------


def test_texts_ids_and_messages_in_one_call() -> None:
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    groups = ENGINE.generate(["ab", ids_of("ab"), messages], PARAMS)
    assert groups[0].prompt == "ab"
    assert groups[0].prompt_token_ids == groups[1].prompt_token_ids == ids_of("ab")
    assert TOKENIZER.decode(groups[2].prompt_token_ids).startswith("system: s<|end|>")
    assert ids(groups)[0] != ids(groups)[1]  # the same prompt's second occurrence


def test_any_iterable_of_prompts() -> None:
    expected = ids(ENGINE.generate(PROMPTS, PARAMS))
    assert ids(ENGINE.generate(tuple(PROMPTS), PARAMS)) == expected
    with unchecked():
        assert ids(ENGINE.generate((p for p in PROMPTS), PARAMS)) == expected
        assert ids(ENGINE.generate(np.array(PROMPTS, dtype=object), PARAMS)) == expected
        assert ids(ENGINE.generate([np.array(ids_of("ab"))], PARAMS)) == expected[:1]


def test_default_params() -> None:
    group = ENGINE.generate(["ab"])[0]
    assert group.params == SamplingParams()
    assert len(group.completions) == 1


ARRAY = torch.tensor([[5, 6], [7, 8]])


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ("ab", r"single one: write \[prompt\]"),
        (b"ab", r"single one: write \[prompt\]"),
        ([5, 6], r"single one: write \[prompt\]"),
        ([np.int64(5)], r"single one: write \[prompt\]"),
        (torch.tensor([5, 6]), r"single one: write \[prompt\]"),
        ([{"role": "user", "content": "a"}], r"single one: write \[prompt\]"),
        ({"role": "user", "content": "a"}, r"single one: write \[prompt\]"),
        (ARRAY, r"array of shape \(2, 2\).*padded.*without padding"),
        (BatchEncoding({"input_ids": ARRAY}), r"got BatchEncoding.*\['input_ids'\]"),
        (None, "list of prompts; got NoneType"),
        (7, "list of prompts; got int"),
        (["ab", 7], "Prompt 1 is a text, .* got int"),
        (["ab", ""], r"Prompt 1 is empty.*\[tokenizer.bos_token_id\]"),
        (
            ["ab", [3, VOCAB]],
            rf"Prompt 1 has token ids outside .* vocabulary of {VOCAB}: \[{VOCAB}",
        ),
        ([[-1]], r"Prompt 0 has token ids outside .*: \[-1\]"),
        (["a" * 64], "Prompt 0 has 64 tokens, and the model's context is 64.*Shorten"),
        (["ab", "a" * 70], "Prompt 1 has 70 tokens, and the model's context is 64"),
    ],
)
@pytest.mark.parametrize("method", ["generate", "as_completed"])
def test_what_is_no_list_of_prompts(method: str, prompts: Any, message: str) -> None:
    """Before anything is computed, and at the call, not at the first `next`."""
    with unchecked(), pytest.raises(GenerationError, match=message):
        getattr(ENGINE, method)(prompts, PARAMS)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [("", "empty"), (["a", "b"], "one prompt each"), ("a" * 64, "context is 64"), (7, "got int")],
)
def test_what_a_stream_does_not_take(prompt: Any, message: str) -> None:
    with unchecked(), pytest.raises(GenerationError, match=message):
        ENGINE.stream(prompt, PARAMS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"params": [PARAMS]}, "params has one entry for each prompt: 3; got 1"),
        ({"params": {"width": 3}}, r"got dict. Write SamplingParams\(width=8, ...\)"),
        ({"params": [PARAMS, PARAMS, None]}, "params is a SamplingParams, or a list"),
        ({"params": 8}, "params is a SamplingParams, or a list"),
        ({"sample_ids": [1]}, "sample_ids has one entry for each prompt: 3; got 1"),
        ({"sample_ids": "abc"}, "sample_ids is a list .* got 'abc'"),
        ({"sample_ids": 3}, "sample_ids is a list .* got 3"),
        ({"sample_ids": [0, 1.5, 2]}, "sample_ids is a list"),
        (
            {"params": PARAMS.replace(stop_token_ids=[VOCAB])},
            "stop_token_ids has token ids outside",
        ),
    ],
)
def test_what_does_not_fit_the_prompts(arguments: Any, message: str) -> None:
    with unchecked(), pytest.raises(GenerationError, match=message):
        ENGINE.generate(PROMPTS, **({"params": PARAMS} | arguments))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_rows": 0}, "max_rows is a whole number, at least 1; got 0"),
        ({"memory_budget": -5}, "memory_budget is a whole number, at least 1; got -5"),
        ({"prefill_chunk": 0}, "prefill_chunk is a whole number, at least 1; got 0"),
        ({"prefill_chunk": 1.5}, r"prefill_chunk is a whole number, at least 1; got 1\.5"),
        (
            {"backend": "gpu"},
            "backend is 'auto' or one of 'hf', 'cpu', 'graph', 'native'; got 'gpu'",
        ),
        ({"packed": True}, "packed is now backend: write backend='cpu' for packed=True"),
        ({"rows": 5}, "Engine has no option 'rows'. There are memory_budget"),
    ],
)
def test_limits_of_an_engine(options: Any, message: str) -> None:
    with unchecked(), pytest.raises(GenerationError, match=message):
        Engine(MODEL, TOKENIZER, **options)


def test_a_model_that_is_none() -> None:
    with pytest.raises((AttachError, GenerationError), match="Linear"):
        Engine(nn.Linear(2, 2))


def test_without_a_tokenizer() -> None:
    engine = Engine(MODEL)
    groups = engine.generate([ids_of("ab")], PARAMS)
    assert groups[0].texts == ["", "", ""]
    assert [[*step.texts] for step in engine.stream(ids_of("ab"), PARAMS)] == [["", "", ""]] * 12
    for changes in ({"stop": "x"}, {"consensus": str.strip}):
        with pytest.raises(GenerationError, match="give the Engine a tokenizer"):
            engine.generate([[5]], PARAMS.replace(**changes))


def test_sample_ids_of_any_integer_type_are_the_same() -> None:
    plain = ENGINE.generate(PROMPTS, PARAMS, sample_ids=[3, 4, 5])
    with unchecked():
        assert ids(ENGINE.generate(PROMPTS, PARAMS, sample_ids=np.arange(3, 6))) == ids(plain)
    assert ids(ENGINE.generate(PROMPTS, PARAMS, sample_ids=["3", "4", "5"])) != ids(plain)


# How rows end -------------------------------------------------------------------------------------


def test_a_row_ends_with_the_context_at_the_latest() -> None:
    """As in Hugging Face, prompt and completion together have the context's length."""
    groups = ENGINE.generate(["a" * 60, "a" * 63], PARAMS.replace(max_new_tokens=500))
    for group, room in zip(groups, (4, 1), strict=True):
        assert [len(c.token_ids) for c in group.completions] == [room] * 3
        assert {c.finish_reason for c in group.completions} == {"length"}
    assert largest_gap(MODEL, groups) < 1e-5


def test_every_row_has_its_own_maximum() -> None:
    group = ENGINE.generate(["ab"], PARAMS.replace(max_new_tokens=[1, 7, 4]))[0]
    assert [len(c.token_ids) for c in group.completions] == [1, 7, 4]
    assert largest_gap(MODEL, [group]) < 1e-5


def test_stop_ids_end_a_row_and_leave_no_text() -> None:
    params = PARAMS.replace(
        width=20, max_new_tokens=40, logits_processors=[only("xyz", also=(EOS, END))]
    )
    stops = params.replace(stop_token_ids=[END, ids_of("z")[0]])
    for asked, enders in ((params, {EOS}), (stops, {EOS, END, ids_of("z")[0]})):
        group = ENGINE.generate(["ab"], asked)[0]
        ended = [c for c in group.completions if c.finish_reason == "stop"]
        assert len(ended) > 10
        for c in ended:
            assert c.token_ids[-1] in enders
            assert not enders & set(c.token_ids[:-1])
            assert c.text == TOKENIZER.decode(c.token_ids[:-1], skip_special_tokens=True)
    ignoring = ENGINE.generate(["ab"], params.replace(ignore_eos=True))[0]
    assert {c.finish_reason for c in ignoring.completions} == {"length"}
    assert any(EOS in c.token_ids for c in ignoring.completions)


def test_stop_strings_end_a_row_and_its_text() -> None:
    params = PARAMS.replace(
        width=20, max_new_tokens=40, stop=["xy", "zzz"], logits_processors=[only("xyz")]
    )
    group = ENGINE.generate(["ab"], params)[0]
    reasons = Counter(c.finish_reason for c in group.completions)
    assert reasons["stop"] > 10
    for c in group.completions:
        whole = TOKENIZER.decode(c.token_ids)
        if c.finish_reason == "stop":
            assert whole.endswith(("xy", "zzz"))
            assert c.text == whole.removesuffix("xy").removesuffix("zzz")
        else:
            assert c.text == whole
        assert "xy" not in c.text
        assert "zzz" not in c.text
    assert largest_gap(MODEL, [group]) < 1e-5


def test_pad_and_bos_are_never_sampled() -> None:
    model = attach_random(build("llama", vocab_size=VOCAB))
    with torch.no_grad():  # make them likely
        model.lm_head.weight[[PAD, BOS]] = 5 * model.lm_head.weight[[20, 30]]
    model.generation_config.pad_token_id = PAD
    groups = Engine(model, TOKENIZER).generate(PROMPTS, PARAMS.replace(width=30))
    assert not {PAD, BOS} & {t for g in groups for c in g.completions for t in c.token_ids}
    # `logprobs` are the model's own, of which these two hold a good part.
    forced = [c.logprobs[0] for c in groups[0].completions]
    sampled = [c.sampled_logprobs[0] for c in groups[0].completions]
    gap = np.array(sampled) - np.array(forced)
    assert (gap > 0.01).all()
    assert np.ptp(gap) < 1e-5  # the same factor for all tokens
    allowed = Engine(model, TOKENIZER).generate(
        PROMPTS, PARAMS.replace(width=30, stop_token_ids=[PAD, BOS])
    )
    assert {PAD, BOS} & {t for g in allowed for c in g.completions for t in c.token_ids}


def test_end_tokens_inside_a_prompt_end_nothing() -> None:
    """Chat templates put them there, and few-shot prompts stop strings."""
    params = PARAMS.replace(stop="b", logits_processors=[only("xyz")])
    group = ENGINE.generate([[*ids_of("ab"), EOS, *ids_of("b"), EOS]], params)[0]
    assert [len(c.token_ids) for c in group.completions] == [12, 12, 12]
    assert largest_gap(MODEL, [group]) < 1e-5


# Streams ------------------------------------------------------------------------------------------


def replayed(steps: list[Step], width: int) -> tuple[list[list[int]], list[str], list[Any]]:
    tokens: list[list[int]] = [[] for _ in range(width)]
    texts, reasons = [""] * width, [None] * width
    for step in steps:
        assert len(step.tokens) == len(step.alive) == len(step.texts) == width
        for w in range(width):
            assert step.alive[w] == (step.tokens[w] is not None)
            assert step.alive[w] == (reasons[w] is None)
            token, reason = step.tokens[w], step.finish_reasons[w]
            if token is not None:
                tokens[w].append(token)
            texts[w] += step.texts[w]
            reasons[w] = reasons[w] or reason
    return tokens, texts, reasons


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"stop": ["xy", "zzz"], "logits_processors": [only("xyz")], "max_new_tokens": 40},
        {"stop": "é", "logits_processors": [only("é😀")], "max_new_tokens": 40},
        {"max_new_tokens": [3, 9, 1]},
        {"logits_processors": [only("é😀")]},
    ],
    ids=["bytes", "stop", "multi-byte stop", "maxima", "multi-byte"],
)
def test_steps_add_up_to_the_group(changes: dict[str, Any]) -> None:
    params = PARAMS.replace(**changes)
    stream = ENGINE.stream("ab", params)
    assert stream.group is None
    tokens, texts, reasons = replayed(list(stream), 3)
    group = stream.group
    assert group is not None
    expected = ENGINE.generate(["ab"], params)[0]
    assert [c.token_ids for c in group.completions] == tokens == ids([expected])[0]
    assert group.texts == texts == expected.texts
    assert [c.finish_reason for c in group.completions] == reasons
    assert [c.finish_reason for c in expected.completions] == reasons


def test_a_stream_takes_a_sample_id() -> None:
    second = ENGINE.generate(["ab", "ab"], PARAMS)[1]
    stream = ENGINE.stream("ab", PARAMS, sample_id=1)
    assert replayed(list(stream), 3)[0] == ids([second])[0]


def test_a_stream_closed_early_keeps_what_there_is() -> None:
    stream = ENGINE.stream("ab", PARAMS)
    first = next(iter(stream))
    stream.close()
    assert stream.group is not None
    assert [c.token_ids for c in stream.group.completions] == [[t] for t in first.tokens]
    assert {c.finish_reason for c in stream.group.completions} == {"interrupted"}
    stream.close()
    assert list(stream) == []
    assert len(ENGINE.generate(["ab"], PARAMS)) == 1


def test_a_stream_can_be_left_and_gone_on_with() -> None:
    expected = ids(ENGINE.generate(["ab"], PARAMS))[0]
    with ENGINE.stream("ab", PARAMS) as stream:
        steps = []
        for step in stream:
            steps.append(step)
            if len(steps) == 4:
                break
        steps += list(stream)
        assert replayed(steps, 3)[0] == expected
    with ENGINE.stream("ab", PARAMS) as stream:
        for _ in stream:
            break
    assert len(ENGINE.generate(["ab"], PARAMS)) == 1


def test_a_stream_never_read_or_thrown_away_holds_nothing() -> None:
    ENGINE.stream("ab", PARAMS)
    unread = ENGINE.stream("ab", PARAMS)
    begun = ENGINE.stream("ab", PARAMS)
    next(iter(begun))
    del begun
    assert len(ENGINE.generate(["ab"], PARAMS)) == 1
    unread.close()


def test_groups_as_completed_can_be_left() -> None:
    for _, _ in ENGINE.as_completed(PROMPTS, PARAMS):
        break
    assert len(ENGINE.generate(["ab"], PARAMS)) == 1


def test_a_stream_in_one_thread_and_closed_in_another() -> None:
    stream = ENGINE.stream("ab", PARAMS)
    next(iter(stream))
    thread = threading.Thread(target=stream.close)
    thread.start()
    thread.join()
    assert len(ENGINE.generate(["ab"], PARAMS)) == 1


# Consensus ----------------------------------------------------------------------------------------


def first_digit(text: str) -> str | None:
    return next((c for c in text if c.isdigit()), None)


def with_consensus(seed: int, width: int = 7) -> tuple[GroupOutput, GroupOutput]:
    maxima = np.random.default_rng(seed).integers(1, 25, width).tolist()
    full = SamplingParams(
        width=width, max_new_tokens=maxima, seed=seed, logits_processors=[only("12x")]
    )
    short = full.replace(consensus=first_digit)
    return ENGINE.generate(["ab"], full)[0], ENGINE.generate(["ab"], short)[0]


def test_consensus_ends_a_group_early_with_the_same_majority() -> None:
    ended = 0
    for seed in range(12):
        full, short = with_consensus(seed)
        majority = interlace.majority_vote([first_digit(t) for t in full.texts])
        cut = [w for w, c in enumerate(short.completions) if c.finish_reason == "consensus"]
        answers = [
            None if c.finish_reason == "consensus" else first_digit(c.text)
            for c in short.completions
        ]
        assert interlace.majority_vote(answers).winner == majority.winner
        ended += bool(cut)
        assert (short.tokens_saved > 0) == bool(cut)
        # Here every row would have gone on to its maximum.
        assert short.tokens_saved == full.num_tokens - short.num_tokens
        for a, b in zip(full.completions, short.completions, strict=True):
            assert b.token_ids == a.token_ids[: len(b.token_ids)]
        assert largest_gap(MODEL, [short]) < 1e-5
    assert ended >= 6


def test_consensus_reads_each_text_once() -> None:
    read: list[str] = []

    def reading(text: str) -> str:
        read.append(text)
        return text[:1]

    params = PARAMS.replace(consensus=reading, max_new_tokens=[3, 6, 9])
    group = ENGINE.generate(["ab"], params)[0]
    finished = [c.text for c in group.completions if c.finish_reason != "consensus"]
    assert sorted(read) == sorted(finished)


def test_consensus_counts_answers_as_the_vote_does() -> None:
    """ "1/2" and "0.5" are one answer: two of three rows have settled it."""
    words = iter(["1/2", "0.5", "7"])
    params = PARAMS.replace(consensus=lambda text: next(words), max_new_tokens=[2, 4, 12])
    group = ENGINE.generate(["ab"], params)[0]
    assert [c.finish_reason for c in group.completions] == ["length", "length", "consensus"]
    assert group.tokens_saved == 12 - 4


def test_an_answer_that_is_no_text() -> None:
    params = PARAMS.replace(consensus=lambda text: 7, max_new_tokens=[2, 4, 12])
    with unchecked(), pytest.raises(AggregationError, match="row 0 has 7"):
        ENGINE.generate(["ab"], params)


def test_consensus_in_a_stream() -> None:
    params = PARAMS.replace(consensus=lambda text: "same", max_new_tokens=[2, 4, 12])
    stream = ENGINE.stream("ab", params)
    tokens, texts, reasons = replayed(list(stream), 3)
    assert reasons == ["length", "length", "consensus"]
    assert [len(t) for t in tokens] == [2, 4, 4]
    assert stream.group is not None
    assert texts == stream.group.texts


# Who attended to whom -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["layers", "mean"])
def test_recorded_attention_is_the_blocks(kind: Any) -> None:
    """In a batch with another group that is not recorded, and rows that finish early."""
    params = PARAMS.replace(width=4, max_new_tokens=[9, 2, 5, 7], record_attention=kind)
    other = PARAMS.replace(width=2)
    _, group, none = ENGINE.generate(["x", "ab", "a longer one"], [other, params, other])
    assert none.attention is None
    assert group.attention is not None
    assert len(group.attention) == 8  # the first tokens come from the prompt alone
    expected = attention_by_teacher_forcing(MODEL, group)
    for t, got in enumerate(group.attention):
        live = [w for w in range(4) if t + 1 < len(group.completions[w].token_ids)]
        dead = [w for w in range(4) if w not in live]
        layers = got if kind == "layers" else got[None]
        assert layers.shape == ((LAYERS if kind == "layers" else 1), 4, 4)
        np.testing.assert_allclose(layers[:, live].sum(-1), 1, atol=1e-5)
        assert (layers[:, dead] == 0).all()
        assert (layers[:, :, dead] == 0).all()
        wanted = expected[t] if kind == "layers" else expected[t].mean(dim=0, keepdim=True)
        np.testing.assert_allclose(layers[:, live], wanted[:, live], atol=1e-5)


@pytest.mark.filterwarnings("ignore:The blocks add")
def test_blocks_on_some_layers() -> None:
    model = build("llama", vocab_size=VOCAB)
    config = dataclasses.replace(BRIDGE, layers=[1])
    attach(model, config, seed=1)
    randomise(new_parameters(model), seed=2)
    group = Engine(model).generate([[5, 6]], PARAMS.replace(record_attention="layers"))[0]
    assert largest_gap(model, [group]) < 1e-5
    assert group.attention is not None
    assert {a.shape for a in group.attention} == {(1, 3, 3)}


@pytest.mark.parametrize("kind", [None, "pmatch"])
def test_a_model_without_bridge_has_no_attention_to_record(kind: str | None) -> None:
    model = build("llama", vocab_size=VOCAB)
    if kind:
        attach_random(model, kind)
    group = Engine(model).generate([[5, 6]], PARAMS.replace(record_attention="mean"))[0]
    assert group.attention == []


def test_recording_changes_nothing() -> None:
    recorded = ENGINE.generate(PROMPTS, PARAMS.replace(record_attention="layers"))
    assert ids(recorded) == ids(ENGINE.generate(PROMPTS, PARAMS))


# Types --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "dtype", "allowed"),
    [
        ("llama", torch.bfloat16, 0.3),
        ("qwen3", torch.bfloat16, 0.3),
        ("gemma2", torch.bfloat16, 0.3),
        ("qwen3", torch.float16, 0.05),
        ("qwen3", torch.float64, 1e-6),
    ],
)
def test_types_of_models(name: str, dtype: torch.dtype, allowed: float) -> None:
    model = attach_random(build(name, dtype=dtype))
    groups = Engine(model).generate([[5, 6, 7], [8, 9, 10, 11]], PARAMS.replace(width=5))
    assert largest_gap(model, groups) < allowed
    assert all(type(v) is float for g in groups for c in g.completions for v in c.logprobs)


def test_the_default_type_of_tensors_does_not_matter() -> None:
    """Loading models, or a user's own code, may have changed it."""
    params = PARAMS.replace(temperature=0.8, top_p=0.9, repetition_penalty=1.2)
    expected = ENGINE.generate(PROMPTS, params)
    torch.set_default_dtype(torch.bfloat16)
    try:
        got = Engine(MODEL, TOKENIZER).generate(PROMPTS, params)
    finally:
        torch.set_default_dtype(torch.float32)
    assert [g.completions for g in got] == [g.completions for g in expected]


def test_names_are_there() -> None:
    assert interlace.Engine is Engine
    assert interlace.SamplingParams is SamplingParams


def test_an_engine_for_what_load_reads() -> None:
    engine = Engine.from_pretrained("tiny", max_rows=5, backend="hf", dtype="float32")
    assert engine.core.backend.name == "hf"
    group = engine.generate(["3 5 7 = 15"], PARAMS)[0]
    model, tokenizer = interlace.load("tiny", dtype="float32")
    assert ids([group]) == ids(Engine(model, tokenizer).generate(["3 5 7 = 15"], PARAMS))
    with pytest.raises(GenerationError, match="packed is now backend"):
        Engine.from_pretrained("tiny", packed=True)


def test_a_head_whose_weight_is_no_tensor_is_asked_for_its_size() -> None:
    """Failed for torch's dynamic quantisation, whose linears have a method `weight`."""

    class Head(nn.Module):
        def __init__(self, linear: nn.Linear) -> None:
            super().__init__()
            self.inner, self.out_features = linear, linear.out_features

        def weight(self) -> Tensor:
            return self.inner.weight

        def forward(self, x: Tensor) -> Any:
            return self.inner(x)

    model = build("llama")
    plain = Engine(model, backend="hf").generate([[5, 6, 7]], PARAMS)
    model.lm_head = Head(model.lm_head)
    assert ids(Engine(model, backend="hf").generate([[5, 6, 7]], PARAMS)) == ids(plain)
