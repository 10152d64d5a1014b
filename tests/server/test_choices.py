"""The n choices of a request are one group: the engine's to the token, streamed or not, whatever
else is running. No public suite tests n > 1, so these are ours."""

from __future__ import annotations

from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
import torch

import interlace
from interlace import SamplingParams
from support.server import byte_engine, running
from support.text import BYTES

PROMPT = "A prompt: "
ASKED = {"model": "bytes", "prompt": PROMPT}


def streamed(client: openai.OpenAI, **fields: Any) -> tuple[dict[int, dict[str, Any]], list[Any]]:
    """What a stream says of each choice, joined, and its chunks."""
    found: dict[int, dict[str, Any]] = defaultdict(
        lambda: {"text": "", "reasons": [], "logprobs": [], "tokens": [], "offsets": []}
    )
    chunks = list(client.completions.create(model="bytes", stream=True, **fields))
    for chunk in chunks:
        for choice in chunk.choices:
            one = found[choice.index]
            one["text"] += choice.text
            if choice.finish_reason is not None:
                one["reasons"].append(choice.finish_reason)
            if choice.logprobs is not None:
                one["logprobs"] += choice.logprobs.token_logprobs
                one["tokens"] += choice.logprobs.tokens
                one["offsets"] += choice.logprobs.text_offset
    return dict(found), chunks


@pytest.mark.parametrize("width", [1, 2, 3, 5, 8, 17, 32, 64])
def test_choices_are_the_engines_group_to_the_token(
    client: openai.OpenAI, twin: interlace.Engine, width: int
) -> None:
    reply = client.completions.create(
        model="bytes", prompt=PROMPT, n=width, seed=3, max_tokens=11, logprobs=0,
        extra_body={"return_token_ids": True},
    )  # fmt: skip
    group = twin.generate([PROMPT], SamplingParams(width=width, seed=3, max_new_tokens=11))[0]
    assert [choice.index for choice in reply.choices] == list(range(width))
    for choice, completion in zip(reply.choices, group.completions, strict=True):
        assert choice.model_extra["token_ids"] == completion.token_ids
        assert choice.finish_reason == completion.finish_reason
        assert choice.logprobs.token_logprobs == pytest.approx(completion.logprobs, abs=1e-5)


def test_rows_read_each_other_unless_they_are_to_be_alone(
    client: openai.OpenAI, twin: interlace.Engine
) -> None:
    fields: dict[str, Any] = {
        "model": "bytes",
        "prompt": PROMPT,
        "n": 6,
        "seed": 1,
        "max_tokens": 24,
    }
    ids = {}
    for coupled in (True, False):
        body = {"coupled": coupled, "return_token_ids": True}
        reply = client.completions.create(**fields, extra_body=body)
        ids[coupled] = [choice.model_extra["token_ids"] for choice in reply.choices]
        assert reply.usage.prompt_tokens == len(PROMPT)
    assert ids[True] != ids[False]
    # The first tokens come from the prompt alone, with the same uniforms.
    assert [row[0] for row in ids[True]] == [row[0] for row in ids[False]]
    alone = twin.generate([PROMPT], SamplingParams(width=1, seed=1, max_new_tokens=24))[0]
    assert ids[False][0] == alone.completions[0].token_ids


def test_rows_alone_are_the_base_models_where_blocks_say_so() -> None:
    """Their prompt went through the blocks, which the rows themselves went by."""
    with running(byte_engine(alone="skip")) as server:
        fields = {"prompt": PROMPT, "seed": 1, "max_tokens": 24, "return_token_ids": True}
        rows = [
            httpx.post(f"{server.address}/v1/completions", json=fields | more).json()["choices"][0]
            for more in ({"n": 1}, {"n": 3, "coupled": False})
        ]
    assert rows[0] == rows[1]


@pytest.mark.parametrize(
    ("width", "stop"), [(7, None), (7, ["e", "\n"]), (7, "zq"), (1, None), (2, None), (64, "e")]
)
def test_a_joined_stream_is_the_unstreamed_text_to_the_byte(
    client: openai.OpenAI, loose: openai.OpenAI, width: int, stop: Any
) -> None:
    fields: dict[str, Any] = {
        "prompt": PROMPT,
        "n": width,
        "seed": 5,
        "max_tokens": 40,
        "stop": stop,
        "logprobs": 1,
        "temperature": 1.3,
    }
    whole = client.completions.create(model="bytes", **fields)
    options = {"include_usage": True}
    parts, chunks = streamed(loose, **fields, stream_options=options)
    assert sorted(parts) == list(range(width))
    for choice in whole.choices:
        part = parts[choice.index]
        assert part["text"] == choice.text
        assert part["reasons"] == [choice.finish_reason]  # once
        assert part["logprobs"] == choice.logprobs.token_logprobs
        assert part["tokens"] == choice.logprobs.tokens
        assert part["offsets"] == choice.logprobs.text_offset
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_each_chunk_is_one_choice_of_one_step(loose: openai.OpenAI) -> None:
    _, chunks = streamed(loose, prompt=PROMPT, n=3, seed=2, max_tokens=5)
    assert all(len(chunk.choices) == 1 for chunk in chunks)
    assert [chunk.choices[0].index for chunk in chunks[:6]] == [0, 1, 2, 0, 1, 2]
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_stop_string_across_tokens_ends_its_choice_only(
    client: openai.OpenAI, loose: openai.OpenAI, twin: interlace.Engine
) -> None:
    params = SamplingParams(width=4, seed=8, max_new_tokens=30, temperature=0.7)
    texts = [c.text for c in twin.generate([PROMPT], params)[0].completions]
    stop = texts[1][3:6]
    if "\N{REPLACEMENT CHARACTER}" in stop:
        stop = texts[1][3]
    fields: dict[str, Any] = {
        "prompt": PROMPT,
        "n": 4,
        "seed": 8,
        "max_tokens": 30,
        "temperature": 0.7,
    }
    whole = client.completions.create(model="bytes", stop=stop, **fields)
    parts, _ = streamed(loose, stop=stop, **fields)
    for choice in whole.choices:
        assert stop not in choice.text
        assert parts[choice.index]["text"] == choice.text


def test_lists_of_prompts_are_one_group_each(
    client: openai.OpenAI, loose: openai.OpenAI, twin: interlace.Engine
) -> None:
    prompts = ["One: ", "Another one: "]
    reply = client.completions.create(
        model="bytes", prompt=prompts, n=3, seed=4, max_tokens=6,
        extra_body={"return_token_ids": True},
    )  # fmt: skip
    groups = twin.generate(prompts, SamplingParams(width=3, seed=4, max_new_tokens=6))
    rows = [completion.token_ids for group in groups for completion in group.completions]
    assert [choice.index for choice in reply.choices] == list(range(6))
    assert [choice.model_extra["token_ids"] for choice in reply.choices] == rows
    assert reply.usage.prompt_tokens == sum(map(len, prompts))
    parts, _ = streamed(loose, prompt=prompts, n=3, seed=4, max_tokens=6)
    assert [parts[i]["text"] for i in range(6)] == [choice.text for choice in reply.choices]


def test_equal_seeds_give_equal_texts_whatever_else_is_running(client: openai.OpenAI) -> None:
    def ask(number: int) -> list[str]:
        fields = {"n": 1 + number % 4, "seed": number % 5, "max_tokens": 20, "temperature": 1.0}
        prompt = PROMPT * (1 + number % 3)
        reply = client.completions.create(model="bytes", prompt=prompt, **fields)
        return [choice.text for choice in reply.choices]

    alone = [ask(number) for number in range(20)]
    with ThreadPoolExecutor(20) as pool:
        together = list(pool.map(ask, range(20)))
    assert together == alone


def test_chat_counts_and_streams_like_completions(client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "Hello"}]
    fields: dict[str, Any] = {
        "model": "bytes",
        "messages": messages,
        "n": 3,
        "seed": 9,
        "max_tokens": 12,
        "logprobs": True,
        "top_logprobs": 2,
    }
    whole = client.chat.completions.create(**fields)
    assert [choice.message.role for choice in whole.choices] == ["assistant"] * 3
    texts: dict[int, str] = defaultdict(str)
    logprobs: dict[int, list[Any]] = defaultdict(list)
    for chunk in client.chat.completions.create(stream=True, **fields):
        (choice,) = chunk.choices
        texts[choice.index] += choice.delta.content or ""
        logprobs[choice.index] += choice.logprobs.content if choice.logprobs else []
    for choice in whole.choices:
        assert texts[choice.index] == choice.message.content
        assert logprobs[choice.index] == choice.logprobs.content
        assert all(len(token.top_logprobs) == 2 for token in choice.logprobs.content)
        raw = bytes(byte for token in choice.logprobs.content for byte in token.bytes)
        assert raw.decode(errors="replace").startswith(choice.message.content[:3])


def test_echo_gives_the_prompts_own_log_probabilities(
    loose: openai.OpenAI, twin: interlace.Engine
) -> None:
    """As lm-eval asks for a log-likelihood."""
    reply = loose.completions.create(
        model="bytes", prompt=PROMPT, max_tokens=1, logprobs=1, echo=True, temperature=0
    )
    found = reply.choices[0].logprobs
    ids = torch.tensor([twin.tokenizer(PROMPT)["input_ids"]])
    with torch.inference_mode():
        logits = twin.model.eval()(ids).logits[0].log_softmax(-1)
    wanted = logits[:-1].gather(1, ids[0, 1:, None])[:, 0].tolist()
    assert found.token_logprobs[0] is None
    assert found.token_logprobs[1 : ids.shape[1]] == pytest.approx(wanted, abs=1e-4)
    best = logits[:-1].max(-1).values.tolist()
    tops = [max(top.values()) for top in found.top_logprobs[1 : ids.shape[1]]]
    assert tops == pytest.approx(best, abs=1e-4)
    assert reply.choices[0].text.startswith(PROMPT)
    only = loose.completions.create(
        model="bytes", prompt=PROMPT, max_tokens=0, logprobs=1, echo=True
    )
    assert only.choices[0].text == PROMPT
    assert only.usage.completion_tokens == 0


def test_penalties_and_biases_change_what_is_sampled(
    client: openai.OpenAI, twin: interlace.Engine
) -> None:
    """The oracle is the rule in plain loops."""

    def penalised(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.clone()
        for row, history in enumerate(ids.tolist()):
            sampled = history[len(PROMPT) :]
            for token in set(sampled):
                scores[row, token] -= 1.5 + 0.7 * sampled.count(token)
            scores[row, letter] += 3
        return scores

    letter = BYTES + ord("m")
    params = SamplingParams(width=3, seed=0, max_new_tokens=20, logits_processors=[penalised])
    group = twin.generate([PROMPT], params)[0]
    fields: dict[str, Any] = ASKED | {"n": 3, "seed": 0, "max_tokens": 20}
    fields["extra_body"] = {"return_token_ids": True}
    reply = client.completions.create(
        **fields, logit_bias={str(letter): 3}, presence_penalty=1.5, frequency_penalty=0.7
    )
    ids = [choice.model_extra["token_ids"] for choice in reply.choices]
    assert ids == [completion.token_ids for completion in group.completions]
    plain = client.completions.create(**fields)
    assert ids != [choice.model_extra["token_ids"] for choice in plain.choices]


def test_an_aggregate_stands_beside_the_choices(client: openai.OpenAI) -> None:
    fields: dict[str, Any] = {
        "model": "bytes",
        "prompt": PROMPT,
        "n": 5,
        "seed": 2,
        "max_tokens": 9,
    }
    plain = client.completions.create(**fields)
    best = client.completions.create(**fields, extra_body={"aggregate": "best_of_n"})
    assert [c.text for c in best.choices] == [c.text for c in plain.choices]
    (aggregate,) = best.model_extra["aggregate"]
    assert aggregate["method"] == "best-of-n"
    assert aggregate["text"] == plain.choices[aggregate["index"]].text
    scores = aggregate["details"]["scores"]
    assert scores[aggregate["index"]] == max(scores)


def test_who_listened_to_whom_comes_with_the_choices(client: openai.OpenAI) -> None:
    fields: dict[str, Any] = {
        "model": "bytes",
        "prompt": PROMPT,
        "n": 3,
        "seed": 2,
        "max_tokens": 4,
    }
    reply = client.completions.create(**fields, extra_body={"record_attention": "layers"})
    (steps,) = reply.model_extra["attention"]
    assert len(steps) == 3  # the first tokens come from the prompt alone
    for layers in steps:
        for weights in layers:
            assert [sum(row) for row in weights] == pytest.approx([1.0] * 3, abs=1e-3)
