"""The packaged tiny model: there offline, small, and good enough at its task to be trained on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import interlace
from interlace.attached import is_attached
from interlace.engine.types import GroupOutput
from interlace.errors import LoadError
from interlace.models import source
from interlace.tasks import Task, get_task
from interlace.tasks.tiny_countdown import tries_of

FOLDER = source.PACKAGED["tiny"]
TRY = 10  # tokens: seven of the expression, "=", the value, and the verdict or the end
PROBLEMS, WIDTH = 32, 8


@pytest.fixture(scope="module")
def tiny() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    return interlace.load("tiny")


@pytest.fixture(scope="module")
def task() -> Task:
    return get_task("tiny-countdown")


@pytest.fixture(scope="module")
def sampled(tiny: tuple[PreTrainedModel, PreTrainedTokenizerBase], task: Task) -> list[GroupOutput]:
    prompts = [task.prompt(example) for example in task[:PROBLEMS]]
    params = interlace.SamplingParams(width=WIDTH, max_new_tokens=4 * TRY, seed=0)
    return interlace.Engine(*tiny).generate(prompts, params)


def test_it_loads_by_name_from_the_package(
    tiny: tuple[PreTrainedModel, PreTrainedTokenizerBase],
) -> None:
    model, _ = tiny
    assert not model.training
    assert not is_attached(model)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert 0.3e6 < sum(weight.numel() for weight in model.parameters()) < 0.5e6
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 4 * 2**20
    assert {file.suffix for file in FOLDER.iterdir()} == {".json", ".safetensors"}


def test_its_name_goes_before_a_folder_of_the_same_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny").mkdir()
    monkeypatch.chdir(tmp_path)
    assert source.resolve("tiny") == source.HubModel("tiny", str(FOLDER))
    with pytest.raises(LoadError, match="holds no model"):
        source.resolve("./tiny")


def test_saved_blocks_remember_it_by_name(
    tiny: tuple[PreTrainedModel, PreTrainedTokenizerBase], tmp_path: Path
) -> None:
    model, _ = interlace.load("tiny")
    interlace.attach(model, interlace.BridgeConfig(parameter_share=0.05))
    folder = interlace.save(model, tmp_path / "out")
    again, tokenizer = interlace.load(folder)
    assert is_attached(again)
    assert tokenizer.get_vocab() == tiny[1].get_vocab()


def test_a_packaged_name_may_hold_blocks_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = interlace.load("tiny")
    interlace.attach(model, interlace.BridgeConfig(parameter_share=0.05))
    folder = interlace.save(model, tmp_path / "out")
    monkeypatch.setitem(source.PACKAGED, "tiny-bridge", folder)
    assert is_attached(interlace.load("tiny-bridge")[0])


@pytest.mark.parametrize("name", ["tinny", "Tiny"])
def test_a_name_that_is_nearly_right_gets_a_hint(name: str) -> None:
    with pytest.raises(LoadError, match="Did you mean 'tiny"):
        source.resolve(name)


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_prompt_and_reference_is_in_its_vocabulary(
    tiny: tuple[PreTrainedModel, PreTrainedTokenizerBase], split: str
) -> None:
    tokenizer = tiny[1]
    task = get_task("tiny-countdown", split=split)
    texts = [task.prompt(example) for example in task]
    texts += [str(task.reference_text(example)) for example in task]
    for text, ids in zip(texts, tokenizer(texts).input_ids, strict=True):
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == text


def test_spaces_do_not_matter(
    tiny: tuple[PreTrainedModel, PreTrainedTokenizerBase],
) -> None:
    tokenizer = tiny[1]
    assert tokenizer("3 7 8->45:").input_ids == tokenizer("3 7 8 -> 45 :").input_ids
    assert tokenizer.decode(tokenizer("(7+8)*3=frac;").input_ids) == "( 7 + 8 ) * 3 = frac ;"


def test_rows_are_four_tries_in_the_same_columns(
    tiny: tuple[PreTrainedModel, PreTrainedTokenizerBase], sampled: list[GroupOutput]
) -> None:
    equals, miss, hit, end = tiny[1].convert_tokens_to_ids(["=", ";", "yes", "<eos>"])
    rows = [completion.token_ids for group in sampled for completion in group.completions]
    shaped = 0
    for ids in rows:
        signs = [index % TRY for index, token in enumerate(ids) if token == equals]
        verdicts = {ids[index] for index in range(TRY - 1, len(ids) - 1, TRY)}
        shaped += (
            len(ids) == 4 * TRY
            and ids[-1] == end
            and signs == [TRY - 3] * 4
            and verdicts <= {miss, hit}
        )
    assert shaped > 0.98 * len(rows)


def test_texts_come_back_from_their_tokens(
    tiny: tuple[PreTrainedModel, PreTrainedTokenizerBase], sampled: list[GroupOutput]
) -> None:
    tokenizer = tiny[1]
    for row in sampled[0].completions:
        ended = row.finish_reason == "stop"
        assert (row.token_ids[-1] == tokenizer.eos_token_id) == ended
        assert tokenizer(row.text).input_ids == row.token_ids[: -1 if ended else None]


def test_training_has_room_on_held_out_problems(task: Task, sampled: list[GroupOutput]) -> None:
    correct = torch.tensor(
        [
            [task.verify(example, row.text).correct for row in group.completions]
            for example, group in zip(task, sampled, strict=False)
        ]
    ).float()
    assert 0.15 < correct.mean() < 0.45
    assert correct.amax(dim=1).mean() > 0.65


def test_it_recognises_a_hit_and_keeps_it(task: Task, sampled: list[GroupOutput]) -> None:
    after_hit = kept = 0
    for example, group in zip(task, sampled, strict=False):
        for row in group.completions:
            hit = None
            for one in tries_of(row.text):
                after_hit += hit is not None
                kept += one == hit
                if hit is None and task.verify(example, one).correct:
                    hit = one
    assert after_hit > 50
    assert kept > 0.9 * after_hit  # a fifth, without a verdict of its own


def test_greedy_rows_are_answers(
    tiny: tuple[PreTrainedModel, PreTrainedTokenizerBase], task: Task
) -> None:
    params = interlace.SamplingParams(width=1, max_new_tokens=4 * TRY, temperature=0)
    groups = interlace.Engine(*tiny).generate([task.prompt(e) for e in task[:20]], params)
    verdicts = [
        task.verify(example, group.completions[0].text)
        for example, group in zip(task, groups, strict=False)
    ]
    assert all(verdict.answer is not None for verdict in verdicts)
    assert sum(verdict.correct for verdict in verdicts) >= 2
