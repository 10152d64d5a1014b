"""Data sets as TRL takes them, and the arguments of its trainers.

Mutations that were seen to fail here: columns in the order of prompts instead of rows; texts where
messages are due; a checkpoint that `train` goes on from without being asked.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import TrainingArguments

import interlace
from interlace.errors import ConfigError, LoadError, TaskError
from interlace.tasks.base import Task
from interlace.training import rollout as drawing
from interlace.training.arguments import GRPOConfig, WarmupConfig
from interlace.training.data import RowsTask, as_task
from interlace.training.grpo import GRPOTrainer
from interlace.training.rollout import columns_of, draw_indices, draw_width, sampling_seed
from interlace.training.warmup import WarmupTrainer
from support.text import number_folder, number_tokenizer
from support.training import QUIET, Evens, grpo, metrics, read_lines, stopping, tiny_model, weights

TEXTS = [{"prompt": f"{n} {n + 1}", "answer": str(n), "hint": [n]} for n in range(7)]
CHAT = [{"prompt": [{"role": "user", "content": f"{n} 3"}], "answer": str(n)} for n in range(7)]
SMALL: dict[str, Any] = {
    "prompts_per_rollout": 3,
    "num_generations": 4,
    "width": 2,
    "max_new_tokens": 5,
    "learning_rate": 1e-3,
}


class Seen:
    """A reward that keeps what it got."""

    __name__ = "seen"

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def __call__(self, prompts: Any, completions: Any, **columns: Any) -> list[float]:
        self.calls.append({"prompts": prompts, "completions": completions, **columns})
        columns["log_metric"]("rows", len(prompts))
        columns["log_extra"]("place", list(range(len(prompts))))
        return [float(place % 3 == 0) for place in range(len(prompts))]


def trained(folder: Path, rows: Any, reward: Any, **options: Any) -> GRPOTrainer:
    args = GRPOConfig(output_dir=str(folder), max_steps=1, **QUIET | SMALL | options)
    trainer = GRPOTrainer(tiny_model(), reward, args, rows, processing_class=number_tokenizer())
    trainer.train()
    return trainer


@pytest.mark.parametrize("kind", [list, Dataset.from_list], ids=["list", "Dataset"])
@pytest.mark.parametrize("rows", [TEXTS, CHAT], ids=["text", "chat"])
def test_columns_and_completions_reach_the_reward_as_in_trl(
    kind: Any, rows: Any, tmp_path: Path
) -> None:
    seen = Seen()
    trained(tmp_path, kind(rows), seen)
    (call,) = seen.calls
    assert len(call["prompts"]) == len(call["completions"]) == 3 * 4
    for row in range(12):  # each prompt's rows, one after the other
        entry = next(e for e in rows if e["prompt"] == call["prompts"][row])
        assert call["prompts"][row] == call["prompts"][row // 4 * 4]
        assert call["answer"][row] == entry["answer"]
        if "hint" in entry:
            assert call["hint"][row] == entry["hint"]
    assert call["groups"] == [row // 2 for row in range(12)]
    assert {"prompt", "completion"}.isdisjoint(call)
    for completion in call["completions"]:
        if rows is CHAT:
            (message,) = completion
            assert message["role"] == "assistant"
            assert isinstance(message["content"], str)
        else:
            assert isinstance(completion, str)
    assert call["trainer_state"].max_steps == 1


def test_metrics_without_a_verifier_and_with_a_reward_in_its_place(tmp_path: Path) -> None:
    trained(tmp_path / "plain", TEXTS, Seen())
    (line,) = metrics(tmp_path / "plain")
    assert line["reward/seen"] == pytest.approx(4 / 12)
    assert line["rows"] == 12
    assert not {"pass@1", "vote", "coverage"} & set(line)
    shown = read_lines(tmp_path / "plain" / "completions.jsonl")
    assert [row["place"] for row in shown[1]["rows"]] == [2, 3]
    assert shown[0]["rows"][0]["correct"] is None
    trained(tmp_path / "judged", TEXTS, Seen(), correct_reward="seen")
    (line,) = metrics(tmp_path / "judged")
    assert line["pass@1"] == pytest.approx(4 / 12)
    assert line["coverage"] == pytest.approx(4 / 6)


def test_weights_of_rewards(tmp_path: Path) -> None:
    def long(completions: Any, **columns: Any) -> list[float]:
        return [float(len(text)) for text in completions]

    trained(tmp_path, TEXTS, [Seen(), long, "format"], reward_weights=[2.0, -0.25, 1.0])
    (line,) = metrics(tmp_path)
    expected = 2 * line["reward/seen"] - line["reward/long"] / 4 + line["reward/format"]
    assert line["reward"] == pytest.approx(expected)


def test_a_task_tells_rewards_what_it_knows(tmp_path: Path) -> None:
    seen = Seen()
    trained(tmp_path, Evens(), [seen, "correctness"])
    (call,) = seen.calls
    assert call["answer"] == call["answers"] == [e.answer for e in call["examples"]]
    assert call["question"] == [e.question for e in call["examples"]]
    assert "pass@1" in metrics(tmp_path)[0]


def test_a_model_by_its_folder_and_a_task_by_its_name(tmp_path: Path) -> None:
    args = GRPOConfig(output_dir=str(tmp_path / "run"), max_steps=1, **QUIET | SMALL)
    folder = str(number_folder(tmp_path))
    trainer = GRPOTrainer(folder, "correctness", args, "tiny-countdown", "tiny-countdown")
    assert isinstance(trainer.task, Task)
    assert (trainer.task.split, trainer.eval_tasks[""].split) == ("train", "test")
    assert trainer.model.dtype == torch.float32
    assert trainer.train().global_step == 1


def test_a_tokenizer_that_is_not_given_is_the_models(tmp_path: Path) -> None:
    model, _ = interlace.load(number_folder(tmp_path))
    args = GRPOConfig(output_dir=str(tmp_path / "run"), max_steps=1, **QUIET | SMALL)
    trainer = GRPOTrainer(stopping(model), Seen(), args, TEXTS)
    assert trainer.tokenizer.get_vocab() == number_tokenizer().get_vocab()
    with pytest.raises(ConfigError, match="Pass processing_class=tokenizer"):
        GRPOTrainer(tiny_model(), Seen(), args, TEXTS)


def test_train_is_hugging_faces_and_save_model_ours(tmp_path: Path) -> None:
    options = {"max_steps": 4, "save_steps": 2}
    trainer = grpo(tmp_path, **options)
    assert trainer.train().global_step == 4
    assert not (tmp_path / "model").exists()
    for place, folder in ((None, "model"), (tmp_path, "model"), (tmp_path / "mine", "mine")):
        assert trainer.save_model(place) == tmp_path / folder
        loaded, _ = interlace.load(tmp_path / folder)
        assert all(torch.equal(a, weights(trainer.model)[n]) for n, a in weights(loaded).items())
    again = grpo(tmp_path, **options)
    assert again.train(resume_from_checkpoint=True).global_step == 4
    assert len(metrics(tmp_path)) == 4
    anew = grpo(tmp_path, **options)
    anew.train()
    assert [line["step"] for line in metrics(tmp_path)] == [1, 2, 3, 4]
    with pytest.raises(ConfigError, match=r"checkpoint-N, or True .* has none"):
        grpo(tmp_path / "other").train(resume_from_checkpoint=True)
    with pytest.raises(ConfigError, match="push_to"):
        trainer.push_to_hub()


def test_an_optimizer_of_the_users_own(tmp_path: Path) -> None:
    model = tiny_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    before = weights(model)
    trainer = grpo(tmp_path, model, optimizers=(optimizer, None))
    trainer.train()
    assert trainer.optimizer.optimizer is optimizer or trainer.optimizer is optimizer
    assert any(not torch.equal(before[n], w) for n, w in weights(model).items())


def test_adapters_as_in_trl(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    trainer = grpo(tmp_path, peft_config=peft.LoraConfig(r=3, target_modules=["q_proj"]))
    assert trainer.args.train == "lora"
    shapes = [p.shape[0] for n, p in trainer.model.named_parameters() if "lora_A" in n]
    assert shapes
    assert set(shapes) == {3}
    with pytest.raises(ConfigError, match="peft_config is a LoraConfig"):
        grpo(tmp_path, peft_config=peft.IA3Config())


def even(completions: Any, **columns: Any) -> list[float]:
    return [float(int((text.split() or ["1"])[0], 36) % 2 == 0) for text in completions]


def test_the_warm_up_learns_what_rewards_call_right(tmp_path: Path) -> None:
    args = WarmupConfig(output_dir=str(tmp_path), max_steps=1, max_new_tokens=5, **QUIET)
    rows = [{"prompt": f"{n} {n}"} for n in range(9)]
    given = {"args": args, "train_dataset": rows, "processing_class": number_tokenizer()}
    trainer = WarmupTrainer(tiny_model(), even, **given)
    assert trainer.train().global_step == 1
    words = number_tokenizer()
    stored = read_lines(next((tmp_path / "responses").glob("*.jsonl")))
    kept = [words.decode(row, skip_special_tokens=True) for e in stored for row in e["completions"]]
    assert kept
    assert even(kept) == [1.0] * len(kept)
    with pytest.raises(ConfigError, match="a plain data set has no verifier"):
        WarmupTrainer(tiny_model(), **given)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "at least one prompt"),
        ([{"question": "x"}], "has the column 'prompt'.*; this one has question"),
        ([{"prompt": ""}], "row-0 has ''"),
        ([{"prompt": "x"}, {"prompt": None}], "row-1 has None"),
        ([{"prompt": [{"role": "user"}]}], "a list of messages such as"),
        ([{"prompt": "x", "groups": 1}], "no column 'groups'.*Rename it"),
        ([{"prompt": "x", "image": 1}], "no column 'image': prompts are text"),
        (iter([]), "got list_iterator"),
        (7, "got int"),
        (["x"], "got list"),
    ],
    ids=lambda value: str(value) if isinstance(value, str | int) else type(value).__name__,
)
def test_rows_that_do_not_fit(rows: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        as_task(rows, "train", None)


def test_rows_are_read_when_they_are_needed() -> None:
    task = RowsTask(Dataset.from_list(TEXTS))
    assert len(task) == 7
    assert task[2:5][1].data["answer"] == "3"
    assert task.find("row-6").answer == "6"
    assert columns_of(task, [task[1], task[1], task[4]])["hint"] == [[1], [1], [4]]
    with pytest.raises(TaskError, match="no task 'countdwon'"):
        as_task("countdwon", "train", None)


OLD: list[tuple[Any, str]] = [
    (lambda m, t, a: GRPOTrainer(m, t, a, Evens()), "second argument of GRPOTrainer is reward_fu"),
    (lambda m, t, a: WarmupTrainer(m, t, a, Evens()), r"WarmupTrainer\(model, reward_funcs, args"),
    (lambda m, t, a: GRPOTrainer(m, tokenizer=t, args=a), "called processing_class"),
    (lambda m, t, a: GRPOTrainer(m, args=a, task=Evens()), "it is called train_dataset"),
    (lambda m, t, a: GRPOTrainer(m, None, a), "needs train_dataset"),
    (lambda m, t, a: GRPOTrainer(m, None, a, Evens(), tools=[len]), "no tools: rows call no tools"),
    (lambda m, t, a: GRPOTrainer(m, 3, a, Evens(), None, t), "A reward is a function"),
    (lambda m, t, a: GRPOTrainer(m, torch.nn.Linear(2, 2), a, Evens(), None, t), "reward model"),
    (lambda m, t, a: GRPOTrainer(m, "corect", a, Evens(), None, t), "no reward 'corect'"),
    (lambda m, t, a: GRPOTrainer(m, None, a, TEXTS, None, t), "needs a task's verifier"),
    (
        lambda m, t, a: GRPOTrainer(m, None, TrainingArguments(a.output_dir), Evens(), None, t),
        "args is an interlace.GRPOConfig",
    ),
]


@pytest.mark.parametrize(("call", "message"), OLD, ids=[message for _, message in OLD])
def test_calls_that_end_in_one_clear_error(call: Any, message: str, tmp_path: Path) -> None:
    args = GRPOConfig(output_dir=str(tmp_path), **QUIET | SMALL)
    with pytest.raises(ConfigError, match=message):
        call(tiny_model(), number_tokenizer(), args)


def test_further_wrong_calls(tmp_path: Path) -> None:
    args = GRPOConfig(output_dir=str(tmp_path), **QUIET | SMALL, correct_reward="right")
    with pytest.raises(ConfigError, match="correct_reward is the name of a reward, seen here"):
        GRPOTrainer(tiny_model(), Seen(), args, TEXTS, processing_class=number_tokenizer())
    args = GRPOConfig(output_dir=str(tmp_path), **QUIET | SMALL, reward_weights=[1.0, 2.0])
    with pytest.raises(ConfigError, match="one number for each; got 1 and 2"):
        GRPOTrainer(tiny_model(), Seen(), args, TEXTS, processing_class=number_tokenizer())
    with pytest.raises(TypeError, match="GRPOTrainer has no argument 'reward'"):
        GRPOTrainer(tiny_model(), reward=len)
    with pytest.raises(LoadError):
        GRPOTrainer("no-such-model", Seen(), args, TEXTS)


def test_an_own_name_for_each_of_two_functions(tmp_path: Path) -> None:
    trained(tmp_path, TEXTS, [Seen(), Seen()])
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert {"reward/seen-1", "reward/seen-2"} <= set(line)


# What is drawn.


def shuffled_each_time(seed: int, count: int, start: int, stop: int) -> list[int]:
    """The stream by its definition: position i is that of a whole shuffle of its epoch."""
    found = []
    for position in range(start, stop):
        order = list(range(count))
        random.Random(f"{seed}:order:{position // count}").shuffle(order)
        found.append(order[position % count])
    return found


@pytest.mark.parametrize("seed", [0, 3, 2**40])
@pytest.mark.parametrize(("count", "step"), [(1, 3), (7, 2), (7, 7), (11, 25), (64, 5)])
def test_indices_are_those_of_whole_shuffles(seed: int, count: int, step: int) -> None:
    for number in [*range(12), 3, 0]:  # also going back, as a resumed run does
        start, stop = number * step, (number + 1) * step
        expected = shuffled_each_time(seed, count, start, stop)
        assert draw_indices(seed, count, start, stop) == expected


def test_streams_do_not_mix() -> None:
    """Fails where what is kept does not know its seed or its size."""
    wanted = [(1, 9), (2, 9), (1, 8), (2, 8), (1, 9)]
    for seed, count in wanted * 2:
        assert draw_indices(seed, count, 2, 13) == shuffled_each_time(seed, count, 2, 13)


def test_a_result_is_the_callers_own() -> None:
    draw_indices(0, 6, 0, 6).clear()
    assert sorted(draw_indices(0, 6, 0, 6)) == list(range(6))


def test_an_epoch_is_shuffled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    shuffles = []

    class Noting(random.Random):
        def shuffle(self, x: object) -> None:
            shuffles.append(x)
            super().shuffle(x)  # type: ignore[arg-type]

    monkeypatch.setattr(drawing.random, "Random", Noting)
    for start in range(0, 40, 4):
        draw_indices(77, 20, start, start + 4)
    assert len(shuffles) == 2


def test_widths_and_seeds_follow_from_the_rollout() -> None:
    assert draw_width(0, 1, 2, [1, 2, 4]) == draw_width(0, 1, 2, [1, 2, 4])
    assert len({draw_width(0, 0, place, [1, 2, 4]) for place in range(40)}) == 3
    assert len({sampling_seed(seed, rollout) for seed in range(5) for rollout in range(7)}) == 35
