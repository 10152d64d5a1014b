"""Rewards by name, as a recipe gives them."""

from __future__ import annotations

import functools
import inspect
import pickle
import sys
import threading
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from interlace.answers.normalise import normalise_answer
from interlace.engine.types import Completion, GroupOutput, SamplingParams
from interlace.errors import ConfigError, RewardError
from interlace.jsonl import as_line
from interlace.tasks.base import Example, Verdict
from interlace.training.data import NAMED, NamedReward, RowsTask, given_rewards
from interlace.training.rollout import Judge, RolledGroup, Verdicts, add_up, describe
from interlace.training.trainer import Tally
from support.training import Evens, grpo, metrics

TASK = Evens(4)
TEXTS = ["the answer is 4", "the answer is 3", "the answer is 4", "nothing"]
COLUMNS: dict[str, Any] = {
    "examples": TASK[:],
    "groups": [0, 0, 0, 0],
    "answers": [example.answer for example in TASK],
    "completion_ids": [[1]] * 4,
}
FILE = """
def length(prompts, completions, **columns):
    return [float(len(text)) for text in completions]

def ids(prompts, completions, completion_ids, **columns):
    return [len(row) if len(row) else None for row in completion_ids]
"""


def parts_of(weights: dict[str, float]) -> tuple[list[float], dict[str, list[float | None]]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return add_up(
            given_rewards(list(weights), list(weights.values()), TASK), ["?"] * 4, TEXTS, COLUMNS
        )


@pytest.mark.parametrize("name", NAMED)
def test_every_name_gives_a_value_a_row(name: str) -> None:
    totals, parts = parts_of({name: 2.0})
    assert totals == [2.0 * (value or 0.0) for value in parts[name]]


def test_named_rewards_mean_what_they_say() -> None:
    totals, parts = parts_of({"correctness": 1.0, "pass@k": 0.5, "self-consistency": 0.25})
    assert parts["correctness"] == [1.0, 0.0, 1.0, 0.0]
    assert parts["pass@k"] == [1.0, 1.0, 1.0, 1.0]
    assert parts["self-consistency"] == [1.0, 0.0, 1.0, 0.0]
    assert totals == [1.75, 0.5, 1.75, 0.5]


def test_functions_of_a_file_and_of_a_module(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    totals, parts = parts_of({f"{path}:length": 1.0, "support.training:shorter": 1.0})
    assert parts["length"] == [len(text) for text in TEXTS]
    assert totals == [len(text) * 0.9 for text in TEXTS]
    assert set(parts) == {"length", "shorter"}


def test_two_functions_of_one_name_keep_their_places(tmp_path: Path) -> None:
    names = []
    for folder in ("a", "b"):
        path = tmp_path / f"{folder}.py"
        path.write_text(FILE)
        names.append(f"{path}:length")
    assert set(parts_of(dict.fromkeys(names, 1.0))[1]) == set(names)


def test_a_run_logs_a_function_by_its_short_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    grpo(tmp_path / "run", rewards={f"{path}:ids": 1.0}).run()
    first = metrics(tmp_path / "run")[0]
    assert first["reward/ids"] == first["reward"] == first["completion_length"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("corectness", "There is no reward 'corectness'. Rewards are correctness"),
        ("no_such_module:f", "cannot be imported: ModuleNotFoundError: No module"),
        ("missing.py:f", "cannot be imported: .*No such file"),
        (":f", "cannot be imported"),
        ("support.training:nothing", "support.training has no 'nothing'"),
        ("support.training:QUIET", "is no function, but"),
    ],
)
def test_wrong_names(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        given_rewards([name], None, TASK)


def test_a_file_with_an_error_in_it(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("def f(:\n")
    with pytest.raises(ConfigError, match="cannot be imported"):
        given_rewards([f"{tmp_path / 'bad.py'}:f"], None, TASK)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0, 2.0], "one value a completion, 4 here; own returned"),
        (1.0, "one value a completion"),
        (None, "one value a completion"),
        ([1.0, "much", 0.0, 0.0], "finite numbers, or None .* own returned 'much'"),
        ([1.0, float("nan"), 0.0, 0.0], "finite numbers"),
    ],
)
def test_wrong_values(values: Any, message: str) -> None:
    reward = NamedReward("own", 1.0, lambda **_: values)
    with pytest.raises(RewardError, match=message):
        add_up([reward], ["?"] * 4, TEXTS, COLUMNS)


def broken(completions: Any, **columns: Any) -> list[float]:
    return [1 / len(text[:0]) for text in completions]  # the line that fails


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            broken,
            r"The reward broken failed: .*test_rollout.py, line \d+: ZeroDivisionError: division",
        ),
        (lambda completions: [1.0], r"failed: .*test_rollout.py, line \d+: TypeError: .*prompts"),
        (lambda **_: sys.exit(3), r"failed: .*: SystemExit: 3"),
        (lambda **_: {}["missing"], r"failed: .*: KeyError: 'missing'"),
        (functools.partial(broken), r"failed: .*: ZeroDivisionError"),
    ],
    ids=["raises", "arguments", "exit", "lookup", "partial"],
)
def test_what_a_reward_raises_is_one_error_that_says_where(function: Any, message: str) -> None:
    (reward,) = given_rewards(function, None, TASK)
    with pytest.raises(RewardError, match=message) as caught:
        add_up([reward], ["?"] * 4, TEXTS, COLUMNS)
    assert caught.value.__cause__ is not None
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value)


def test_the_line_is_that_of_the_users_function() -> None:
    line = inspect.getsourcelines(broken)[1] + 1
    with pytest.raises(RewardError, match=f"test_rollout.py, line {line}: "):
        add_up(given_rewards(broken, None, TASK), ["?"] * 4, TEXTS, COLUMNS)


def test_an_interrupt_stays_one() -> None:
    def interrupted(**columns: Any) -> list[float]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        add_up(given_rewards(interrupted, None, TASK), ["?"] * 4, TEXTS, COLUMNS)


def test_a_reward_may_be_a_coroutine() -> None:
    async def later(completions: Any, **columns: Any) -> list[float]:
        return [float(len(text)) for text in completions]

    totals, _ = add_up(given_rewards(later, [0.5], TASK), ["?"] * 4, TEXTS, COLUMNS)
    assert totals == [len(text) / 2 for text in TEXTS]


@pytest.mark.parametrize("kind", [torch.tensor, np.array], ids=["tensor", "array"])
def test_tensors_and_arrays_will_do(kind: Any) -> None:
    mine = NamedReward("mine", 2.0, lambda **columns: kind([1.0, 0.0, 0.5, 1.0]))
    assert add_up([mine], ["?"] * 4, TEXTS, COLUMNS)[0] == [2.0, 0.0, 1.0, 2.0]


def test_none_counts_as_nothing() -> None:
    rewards = [
        NamedReward("some", 1.0, lambda **_: [None, 1.0, None, 2.0]),
        NamedReward("all", 0.5, lambda **_: [1, 1, True, None]),
    ]
    totals, parts = add_up(rewards, ["?"] * 4, TEXTS, COLUMNS)
    assert totals == [0.5, 1.5, 0.5, 2.0]
    assert parts["some"] == [None, 1.0, None, 2.0]


def test_a_text_is_judged_once() -> None:
    asked = []

    class Counting(Evens):
        def verify(self, example: Example, text: str) -> Verdict:
            asked.append(text)
            return super().verify(example, text)

    judge = Verdicts(Counting(4))
    assert [judge.verify(TASK[0], text).correct for text in TEXTS] == [True, False, True, False]
    assert asked == [TEXTS[0], TEXTS[1], TEXTS[3]]
    judge.verify(TASK[1], TEXTS[0])
    judge.forget()
    judge.verify(TASK[1], TEXTS[0])
    assert len(asked) == 5
    assert judge.task.name == "evens"
    assert judge.task.verify(TASK[1], TEXTS[0]).correct
    assert len(asked) == 5
    assert TASK.verify(TASK[1], TEXTS[3]).correct is False


class Meeting(Evens):
    """A task whose verdicts wait until two of them are under way."""

    judges_in_children = True

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.asked: list[tuple[str, str]] = []
        self._two = threading.Barrier(2)

    def verify(self, example: Example, text: str) -> Verdict:
        self.asked.append((example.id, text))
        self._two.wait(timeout=60)
        return super().verify(example, text)


def test_verdicts_of_a_rollout_are_reached_side_by_side_and_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Hangs, and then fails, if they are reached one after the other."""
    monkeypatch.setattr("interlace.tasks.base.verifier_pool", lambda: SimpleNamespace(size=2))
    task = Meeting(5)
    judge = Verdicts(task)
    pairs = [(task[i % 5], f"The answer is {i % 4}") for i in range(20)]
    judge.reach([*pairs, *pairs])
    assert len(task.asked) == 20
    expected = [Evens(5).verify(example, text) for example, text in pairs]
    assert [judge.verify(example, text) for example, text in pairs] == expected
    assert len(task.asked) == 20
    assert len({verdict.correct for verdict in expected}) == 2


def test_a_rollout_has_its_verdicts_reached_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    reach = Verdicts.reach

    def noting(self: Verdicts, pairs: Any) -> None:
        listed = list(pairs)
        seen.append(len(listed))
        reach(self, listed)

    monkeypatch.setattr(Verdicts, "reach", noting)
    grpo(tmp_path, max_steps=1).train()
    assert seen == [24]


def rolled_of(
    rows: Any, texts: list[str], reward: Any, tally: Tally, correct: str | None = None
) -> list[RolledGroup]:
    """One group of these texts on a plain data set's first row, judged by a reward."""
    task = RowsTask(rows)
    completions = [
        Completion(
            text, token_ids=[1], logprobs=[0.0], sampled_logprobs=[0.0], finish_reason="stop"
        )
        for text in texts
    ]
    params = SamplingParams(width=len(texts))
    group = GroupOutput(
        prompt=rows[0]["prompt"],
        prompt_token_ids=[1],
        completions=completions,
        params=params,
        seconds=0.0,
    )
    judge = Judge(Verdicts(task), [NamedReward("own", 1.0, reward)], correct)
    return judge([group], [(0, task[0])], tally)


def test_a_data_sets_own_answers_reach_the_rewards() -> None:
    """They were replaced by the column `answer`, or by blanks where there is none."""
    seen = []

    def reward(completions: Any, answers: Any, **columns: Any) -> list[float]:
        seen.extend(answers)
        return [1.0] * len(completions)

    rolled_of([{"prompt": "1 + 1?", "answers": ["2", "two"]}], ["2", "3"], reward, Tally())
    assert seen == [["2", "two"], ["2", "two"]]


def test_whatever_a_reward_logs_is_a_line() -> None:
    """Numbers of numpy ended the run, in the writing of completions.jsonl."""

    def reward(completions: Any, log_extra: Any, **columns: Any) -> list[float]:
        log_extra("array", np.array([1, 2], dtype=np.float32))
        log_extra("tensor", [torch.tensor(3), torch.tensor([4, 5])])
        log_extra("other", [Path("a"), None])
        return [1.0] * len(completions)

    (group,) = rolled_of([{"prompt": "1 + 1?"}], ["2", "3"], reward, Tally())
    assert group.extras == {"array": [1.0, 2.0], "tensor": [3, [4, 5]], "other": ["a", None]}
    as_line(group.to_dict())


def test_answers_of_one_normal_form_are_one_vote() -> None:
    """As in an evaluation: "Blue" and "blue" were two answers, so that "red" won."""
    texts = [f"The answer is {what}" for what in ("red", "Blue", "red.", "blue", "blue.")]

    def reward(completions: Any, **columns: Any) -> list[float]:
        return [float("blue" in text.lower()) for text in completions]

    tally = Tally()
    rolled = rolled_of([{"prompt": "which?"}], [*texts, "none"], reward, tally, correct="own")
    describe(rolled, (), normalise_answer, tally)
    found = tally.collect(lambda values, how: values)
    assert found["vote"] == 1
    assert found["distinct_answers"] == 2


def test_processes_note_the_same_names_without_a_verifier() -> None:
    """One that had no group of a width noted that width's metrics, and the others did not: what
    they add up over processes no longer fitted together."""

    def reward(completions: Any, **columns: Any) -> list[float]:
        return [1.0] * len(completions)

    names = []
    for width in (1, 2):
        tally = Tally()
        rolled = rolled_of([{"prompt": "1 + 1?"}], ["2"] * width, reward, tally)
        describe(rolled, [1, 2], normalise_answer, tally)
        names.append(set(tally.collect(lambda values, how: values + 1)))
    assert names[0] == names[1]
