"""Plain `model.generate`: the rows of a prompt are interdependent, and finished rows are masked.

Every case is judged by a teacher-forced pass over the generated tokens, whose alive mask the test
works out for itself (I7). Axes: P = 2 prompts, W = 4 rows, V = 97.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import BPE
from torch import Tensor
from transformers import (
    DynamicCache,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    StoppingCriteria,
    StoppingCriteriaList,
)

import interlace
from interlace import Groups
from interlace.errors import GenerationError
from support.architectures import attach_random, build, every_architecture, random_ids
from support.engine import left_pad, positions_of

WIDTH, NEW = 4, 9
PROMPTS = [[11, 12, 13, 14, 15, 16, 17], [21, 22, 23]]
STOPS = [0, 11, 22, *range(30, 45)]  # pad is EOS, and EOS stands in both prompts
IDS, MASK = left_pad(PROMPTS, 1)


@pytest.fixture
def model() -> PreTrainedModel:
    return attach_random(build("qwen3"))


def sample(model: PreTrainedModel, seed: int = 11, **kwargs: Any) -> Any:
    """Generate with everything that the judge needs."""
    torch.manual_seed(seed)
    settings = {"do_sample": True, "max_new_tokens": NEW, "num_return_sequences": WIDTH}
    settings |= {"input_ids": IDS, "attention_mask": MASK, "pad_token_id": 0, "top_k": 0}
    return model.generate(
        **(settings | {"output_logits": True, "return_dict_in_generate": True} | kwargs)
    )


def finished_by(tokens: Tensor, stops: list[int]) -> Tensor:
    """`[R, T]`, True from the token that finished a row on."""
    return torch.isin(tokens, torch.tensor(stops)).cumsum(1) > 0


@torch.no_grad()
def gap(
    model: PreTrainedModel,
    generated: Any,
    finished: Tensor,
    width: int = WIDTH,
    mask: Tensor = MASK,
) -> float:
    """The largest difference to the teacher-forced logits, over the tokens that count."""
    ids, steps = generated.sequences, finished.shape[1]
    prompt = ids.shape[1] - steps
    mask = MASK.repeat_interleave(ids.shape[0] // len(MASK), 0)
    mask = torch.cat([mask, torch.ones_like(ids[:, prompt:])], 1)
    alive = torch.cat([torch.ones_like(ids[:, :prompt], dtype=torch.bool), ~finished], 1)
    forced = model(
        ids,
        attention_mask=mask,
        position_ids=positions_of(mask, ids.shape[1]),
        groups=Groups(width, alive.unflatten(0, (-1, width))),
    ).logits[:, prompt - 1 : -1]
    counted = torch.ones_like(finished)
    counted[:, 1:] = ~finished[:, :-1]
    return (forced - torch.stack(generated.logits, 1))[counted].abs().max().item()


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"cache_implementation": "static"},
        {"use_cache": False},
        {"prefill_chunk_size": 3},
        {"prefill_chunk_size": 3, "cache_implementation": "static"},
        {"past_key_values": "new"},
    ],
    ids=lambda kwargs: "-".join(map(str, kwargs.values())) or "dynamic",
)
def test_rows_are_interdependent_and_finished_ones_masked(
    model: PreTrainedModel, kwargs: dict[str, Any]
) -> None:
    if "past_key_values" in kwargs:
        kwargs = {"past_key_values": DynamicCache(config=model.config)}
    generated = sample(model, eos_token_id=STOPS, **kwargs)
    finished = finished_by(generated.sequences[:, IDS.shape[1] :], STOPS)
    assert 0 < finished[:, 3].sum() < len(finished), "some rows finish early"
    assert gap(model, generated, finished) < 2e-5
    # The judge would see each of these faults.
    assert gap(model, generated, torch.zeros_like(finished)) > 0.05
    assert gap(model, generated, finished, width=1) > 0.05
    assert gap(model, generated, finished, width=2) > 0.05


@pytest.mark.parametrize("reads", ["finished", "history"])
@pytest.mark.parametrize(
    "kwargs",
    [{}, {"cache_implementation": "static"}, {"use_cache": False}, {"prefill_chunk_size": 3}],
    ids=lambda kwargs: "-".join(map(str, kwargs.values())) or "dynamic",
)
def test_what_siblings_wrote_is_kept_whatever_the_cache(reads: str, kwargs: dict[str, Any]) -> None:
    model = attach_random(build("qwen3"), reads=reads)
    generated = sample(model, eos_token_id=STOPS, output_scores=True, **kwargs)
    finished = finished_by(generated.sequences[:, IDS.shape[1] :], STOPS)
    assert 0 < finished[:, 3].sum() < len(finished), "some rows finish early"
    groups = interlace.last_groups(model)
    assert sampled_gap(model, generated, groups) < 1e-4
    assert sampled_gap(model, generated, Groups(WIDTH, groups.alive)) > (
        0.05 if reads == "history" else -1
    ), "prompts are not read"


def test_same_tokens_as_a_plain_lockstep_loop(model: PreTrainedModel) -> None:
    generated = sample(model, eos_token_id=STOPS).sequences
    torch.manual_seed(11)
    ids, mask = left_pad(PROMPTS, WIDTH)
    alive = torch.ones_like(ids, dtype=torch.bool)
    finished = torch.zeros(len(ids), dtype=torch.bool)
    with torch.no_grad():
        while not finished.all() and ids.shape[1] < IDS.shape[1] + NEW:
            groups = Groups(WIDTH, alive.unflatten(0, (-1, WIDTH)))
            positions = positions_of(mask, ids.shape[1])
            out = model(ids, attention_mask=mask, position_ids=positions, groups=groups)
            token = torch.multinomial(out.logits[:, -1].softmax(-1), 1)
            ids = torch.cat([ids, token.masked_fill(finished[:, None], 0)], 1)
            finished |= torch.isin(ids[:, -1], torch.tensor(STOPS))
            alive = torch.cat([alive, ~finished[:, None]], 1)
            mask = torch.cat([mask, torch.ones_like(token)], 1)
    assert torch.equal(generated, ids)


@every_architecture()
def test_static_cache_everywhere(name: str) -> None:
    model = attach_random(build(name))
    generated = sample(model, eos_token_id=STOPS, cache_implementation="static")
    finished = finished_by(generated.sequences[:, IDS.shape[1] :], STOPS)
    assert gap(model, generated, finished) < 2e-5


def test_width_from_a_generation_config(model: PreTrainedModel) -> None:
    config = GenerationConfig(
        num_return_sequences=WIDTH,
        do_sample=True,
        max_new_tokens=NEW,
        eos_token_id=STOPS,
        pad_token_id=0,
        top_k=0,
        return_dict_in_generate=True,
    )
    torch.manual_seed(11)
    generated = model.generate(IDS, attention_mask=MASK, generation_config=config)
    assert torch.equal(generated.sequences, sample(model, eos_token_id=STOPS).sequences)


def test_without_num_return_sequences_prompts_do_not_meet(model: PreTrainedModel) -> None:
    torch.manual_seed(11)
    generated = model.generate(
        IDS,
        attention_mask=MASK,
        do_sample=True,
        max_new_tokens=NEW,
        eos_token_id=STOPS,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    finished = finished_by(generated.sequences[:, IDS.shape[1] :], STOPS)
    assert len(finished) == len(PROMPTS)
    assert gap(model, generated, finished, width=1) < 2e-5


def test_stop_strings_finish_rows(model: PreTrainedModel) -> None:
    letters = [chr(33 + i) for i in range(94)] + ["ä", "ö", "ü"]
    backend = Tokenizer(BPE({letter: i for i, letter in enumerate(letters)}, []))
    backend.decoder = Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    strings = [letters[i] for i in STOPS]
    generated = sample(model, stop_strings=strings, tokenizer=tokenizer)
    finished = finished_by(generated.sequences[:, IDS.shape[1] :], STOPS)
    assert 0 < finished[:, 3].sum() < len(finished)
    assert gap(model, generated, finished) < 2e-5


class StopRow(StoppingCriteria):
    """Stops row r at length r + 9, once: later it does not say so again."""

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return torch.arange(len(input_ids)) + 9 == input_ids.shape[1]


def test_any_stopping_criterion_finishes_rows_for_good(model: PreTrainedModel) -> None:
    generated = sample(model, stopping_criteria=StoppingCriteriaList([StopRow()]))
    steps = generated.sequences.shape[1] - IDS.shape[1]
    lengths = torch.arange(IDS.shape[1] + 1, IDS.shape[1] + steps + 1)
    finished = torch.arange(len(generated.sequences))[:, None] + 9 <= lengths
    assert gap(model, generated, finished) < 2e-5


def test_prompts_given_as_embeddings(model: PreTrainedModel) -> None:
    embeddings = model.get_input_embeddings()(IDS)
    generated = sample(model, input_ids=None, inputs_embeds=embeddings, eos_token_id=STOPS)
    tokens = generated.sequences
    finished = finished_by(tokens, STOPS)
    prompts = IDS.repeat_interleave(WIDTH, 0)
    generated.sequences = torch.cat([prompts, tokens], 1)
    assert gap(model, generated, finished) < 2e-5


def test_p_match_generates_too() -> None:
    model = attach_random(build("qwen3"), "pmatch")
    generated = sample(model, eos_token_id=STOPS)
    finished = finished_by(generated.sequences[:, IDS.shape[1] :], STOPS)
    assert gap(model, generated, finished, width=1) < 2e-5


def test_beams_and_prompt_look_up_work_at_width_1(model: PreTrainedModel) -> None:
    beams = sample(model, do_sample=False, num_beams=3, num_return_sequences=1, eos_token_id=STOPS)
    for row, prompt in enumerate(PROMPTS):
        alone = model.generate(
            torch.tensor([prompt]), num_beams=3, max_new_tokens=NEW, eos_token_id=STOPS
        )
        made = alone[0, len(prompt) :]
        assert torch.equal(beams.sequences[row, IDS.shape[1] :][: len(made)], made)
    ids = random_ids(1, 8)
    plain = model.generate(ids, do_sample=False, max_new_tokens=NEW)
    looked_up = model.generate(ids, do_sample=False, max_new_tokens=NEW, prompt_lookup_num_tokens=2)
    assert torch.equal(plain, looked_up)


@pytest.mark.parametrize(
    ("kwargs", "reason"),
    [
        ({"groups": Groups(2)}, "generate forms the groups itself: .*num_return_sequences=W"),
        ({"custom_generate": lambda *args, **kwargs: None}, "custom_generate, whose steps"),
        ({"custom_generate": "some/repository"}, "custom_generate, whose steps"),
        ({"penalty_alpha": 0.6, "top_k": 4, "trust_remote_code": True}, "custom_generate, whose"),
        ({"num_beams": 4, "num_return_sequences": 2, "do_sample": False}, "beam search"),
    ],
    ids=["groups", "custom_generate", "custom_repository", "contrastive", "beams"],
)
def test_what_would_break_lockstep_is_refused(
    model: PreTrainedModel, kwargs: dict[str, Any], reason: str
) -> None:
    with pytest.raises(GenerationError, match=reason):
        model.generate(IDS, attention_mask=MASK, max_new_tokens=3, **kwargs)


def test_continuous_batching_is_refused(model: PreTrainedModel) -> None:
    with pytest.raises(GenerationError, match=r"continuous batching.*num_return_sequences=W"):
        model.generate_batch([[1, 2, 3]])
    with pytest.raises(GenerationError, match="continuous batching"):
        model.init_continuous_batching()


def test_hugging_face_refuses_assisted_groups_itself(model: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match="num_return_sequences has to be 1"):
        model.generate(
            IDS[:1],
            do_sample=True,
            num_return_sequences=WIDTH,
            max_new_tokens=3,
            prompt_lookup_num_tokens=2,
        )


def sampled_gap(model: PreTrainedModel, generated: Any, groups: Groups) -> float:
    """The largest difference of sampled log-probabilities to those of one teacher-forced call."""
    ids, steps = generated.sequences, len(generated.scores)
    mask = torch.cat([MASK.repeat_interleave(WIDTH, 0), torch.ones(len(ids), steps).long()], 1)
    with torch.no_grad():
        logits = model(ids, attention_mask=mask, groups=groups).logits[:, -steps - 1 : -1]
    tokens = ids[:, -steps:, None]
    forced = logits.log_softmax(-1).gather(-1, tokens)
    sampled = torch.stack(generated.scores, 1).log_softmax(-1).gather(-1, tokens)
    counted = torch.ones_like(ids[:, -steps:], dtype=torch.bool)
    counted[:, 1:] = ~finished_by(ids[:, -steps:], STOPS)[:, :-1]
    return (forced - sampled)[..., 0][counted].abs().max().item()


def test_I7_last_groups_scores_what_was_sampled(model: PreTrainedModel) -> None:
    generated = sample(model, eos_token_id=STOPS, output_scores=True)
    groups = interlace.last_groups(model)
    finished = finished_by(generated.sequences[:, IDS.shape[1] :], STOPS)
    assert 0 < finished[:, 3].sum() < len(finished), "some rows finish early"
    assert sampled_gap(model, generated, groups) < 1e-4
    assert sampled_gap(model, generated, Groups(WIDTH)) > 0.05, "finished rows count"
    assert groups.alive is not None
    assert groups.alive.shape == (2, WIDTH, generated.sequences.shape[1])
    assert groups.completion_start is not None
    assert groups.completion_start.tolist() == [IDS.shape[1]] * 2


def test_last_groups_are_of_the_last_call_of_that_model(model: PreTrainedModel) -> None:
    with pytest.raises(GenerationError, match=r"has sampled nothing.*num_return_sequences=W"):
        interlace.last_groups(model)
    other = attach_random(build("qwen3"))
    sample(model, eos_token_id=STOPS)
    assert interlace.last_groups(model).width == WIDTH
    sample(model, num_return_sequences=3)
    assert interlace.last_groups(model).width == 3
    with pytest.raises(GenerationError, match="has sampled nothing"):
        interlace.last_groups(other)
    sample(model, do_sample=False, num_beams=3, num_return_sequences=1)
    with pytest.raises(GenerationError, match="has sampled nothing"):
        interlace.last_groups(model)
    sample(model)
    interlace.detach(model)
    with pytest.raises(GenerationError, match="Attach blocks"):
        interlace.last_groups(model)
