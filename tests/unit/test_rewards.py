"""Rewards of rows and of groups, alone and mixed."""

import inspect
import warnings
from collections.abc import Iterator
from math import comb
from typing import Any

import pytest

from interlace.errors import RewardError, TaskError
from interlace.rewards import (
    CombinedReward,
    Correctness,
    Format,
    Length,
    PassAtK,
    Reward,
    SelfConsistency,
    StepVerification,
)
from interlace.tasks import Task, get_task
from support.typecheck import unchecked

W = 4


@pytest.fixture(scope="module")
def task() -> Task:
    return get_task("chain-arithmetic", digits=1, steps=2, size=2)


@pytest.fixture
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def ask(reward: Any, completions: list[Any], **columns: Any) -> list[float | None]:
    return reward(["?"] * len(completions), completions, **columns)


def test_the_problems_are_those_the_tests_speak_of(task: Task) -> None:
    assert [example.answer for example in task] == ["9", "16"]
    assert task[0].data["steps"] == ["5 - 2 = 3", "3 + 6 = 9"]


def test_correctness(task: Task) -> None:
    first, second = task[0], task[1]
    texts = ["Answer: 9", "Answer: 8", "", f"Answer: {second.answer}", "Answer: 9", "9"]
    # an example, its id, its dictionary, and a row of another task
    examples = [first, first.id, first.to_dict(), second, second, None]
    assert ask(Correctness(task), texts, examples=examples) == [1.0, 0.0, 0.0, 1.0, 0.0, None]


def test_partial_credit() -> None:
    gym = get_task("rg:n_queens", size=1)
    board = repr([row.split() for row in gym[0].answer.split("\n")])
    text = f"<answer>{board}</answer>"
    assert ask(Correctness(gym), [text], examples=[gym[0]]) == [0.0]
    assert ask(Correctness(gym, partial=True), [text], examples=[gym[0]]) == [0.5]


def test_chat_completions_are_read(task: Task) -> None:
    chat = [{"role": "assistant", "content": "Answer: 9"}]
    empty = [{"role": "assistant", "content": None}]
    assert ask(Correctness(task), [chat, empty], examples=[task[0]] * 2) == [1.0, 0.0]


@pytest.mark.parametrize(
    ("answers", "rewards"),
    [
        (["9", "9", "8", "9"], [1, 1, 0, 1]),
        (["9", "9.0", "18/2", "8"], [1, 1, 1, 0]),
        (["8", "9", "9", "8"], [1, 0, 0, 1]),  # a tie goes to the first seen
        (["7", "", "8", "9"], [1, 0, 0, 0]),
        (["", "", "", "9"], [0, 0, 0, 1]),
        (["", "", "", ""], [0, 0, 0, 0]),
    ],
)
@pytest.mark.usefixtures("quiet")
def test_self_consistency_is_agreement_with_the_majority(
    task: Task, answers: list[str], rewards: list[int]
) -> None:
    texts = [f"Answer: {answer}" if answer else "no idea" for answer in answers]
    assert ask(SelfConsistency(task), texts, groups=[0] * 4) == rewards
    assert ask(SelfConsistency(), texts, groups=[0] * 4) == rewards


@pytest.mark.usefixtures("quiet")
def test_self_consistency_votes_by_the_tasks_own_form() -> None:
    countdown = get_task("countdown", size=1)
    texts = ["3 + 4*2", "(2*4) + 3", "3*4 + 2", "3*4 + 2 = 14", "4*3 + 2"]
    assert ask(SelfConsistency(countdown), texts, groups=[0] * 5) == [0, 0, 1, 1, 1]


@pytest.mark.usefixtures("quiet")
def test_groups_by_column_or_by_width(task: Task) -> None:
    texts = ["Answer: 1", "Answer: 2", "Answer: 1", "Answer: 2", "Answer: 1", "Answer: 2"]
    apart = ask(SelfConsistency(task), texts, groups=[0, 1, 0, 1, 0, 1])
    assert apart == [1.0] * 6
    assert ask(SelfConsistency(task, width=3), texts) == [1, 0, 1, 1, 0, 1]
    # the column wins over the width; groups may differ in size
    assert ask(SelfConsistency(task, width=3), texts, groups=[7, 7, 7, 7, 7, 3]) == [
        1,
        0,
        1,
        0,
        1,
        1,
    ]


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(
    ("reward", "columns"),
    [
        (SelfConsistency(), {}),
        (SelfConsistency(width=4), {}),
        (SelfConsistency(width=0), {}),
        (SelfConsistency(), {"groups": [0, 0]}),
    ],
)
def test_groups_that_do_not_fit(reward: Reward, columns: dict[str, Any]) -> None:
    with pytest.raises(RewardError, match=r"'groups'"):
        ask(reward, ["a", "b", "c"], **columns)


def test_self_consistency_alone_warns_once(task: Task) -> None:
    alone = SelfConsistency(task)
    with pytest.warns(UserWarning, match="maximised by rows that copy one another"):
        ask(alone, ["1", "1"], groups=[0, 0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ask(alone, ["1", "1"], groups=[0, 0])
        ask(SelfConsistency(task, mixed=True), ["1", "1"], groups=[0, 0])


def test_self_consistency_with_correctness_does_not_warn(task: Task) -> None:
    columns = {"groups": [0, 0], "examples": [task[0]] * 2}
    inner = CombinedReward([SelfConsistency(task), Format()])
    for mix in (
        CombinedReward([Correctness(task), SelfConsistency(task)]),
        CombinedReward([SelfConsistency(task), PassAtK(task)]),
        CombinedReward([Correctness(task), inner]),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            ask(mix, ["9", "9"], **columns)


@pytest.mark.parametrize("weight", [0.0, -1.0])
def test_correctness_without_weight_is_no_correctness(task: Task, weight: float) -> None:
    mix = CombinedReward([Correctness(task), SelfConsistency(task)], weights=[weight, 1.0])
    with pytest.warns(UserWarning, match="copy one another"):
        ask(mix, ["9", "9"], groups=[0, 0], examples=[task[0]] * 2)


def test_steps_of_a_task(task: Task) -> None:
    texts = [
        "5 - 2 = 3\n3 + 6 = 9\nAnswer: 9",
        "5 - 2 = 3\n3 + 6 = 8",
        "1 + 1 = 2\n" * 9,
        "",
    ]
    reward = StepVerification(task)
    assert ask(reward, texts, examples=[task[0]] * 4) == [1.0, pytest.approx(1 / 3), 0.0, 0.0]
    assert ask(reward, texts[:1], examples=[None]) == [None]


def test_steps_of_free_text() -> None:
    texts = ["12 + 7 = 19, 19*2 = 39", "12 + 7 = 19", "12+7=19\n" * 9 + "1+1=3", "none", ""]
    assert ask(StepVerification(), texts) == [0.5, 1.0, 0.5, 0.0, 0.0]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("#### Step 2: Add 30 and 42, which is 72", 0.0),
        ("#### Conclusion", 0.0),
        (r"so \boxed{4}", 1.0),
        ("<answer>4</answer>", 1.0),
        ("#### 4", 1.0),
        ("The answer is 4.", 1.0),
        ("Answer: 4", 1.0),
        ("it is 4", 0.0),
        (r"\boxed{4", 0.0),
        ("Answer:", 0.0),
        ("<answer></answer>", 0.0),
        ("", 0.0),
        (r"<think>\boxed{4}</think> hm", 0.0),
    ],
)
def test_format(text: str, value: float) -> None:
    assert ask(Format(), [text]) == [value]


def test_length_is_the_soft_punishment() -> None:
    lengths = [0, 60, 61, 80, 99, 100, 5000]
    ids = [[7] * length for length in lengths]
    expected = [0.0, 0.0, -1 / 40, -0.5, -39 / 40, -1.0, -1.0]
    tokens = ask(Length(100, 40), ["?"] * 7, completion_ids=ids)
    assert tokens == pytest.approx(expected)
    characters = ask(Length(100, 40, unit="characters"), ["x" * length for length in lengths])
    assert characters == pytest.approx(expected)
    with pytest.raises(RewardError, match=r"needs the column 'completion_ids'.*got none"):
        ask(Length(100, 40), ["?"])
    with pytest.raises(RewardError, match="from 1 to 100; got 101"):
        Length(100, 101)


@pytest.mark.parametrize("k", [None, 1, 2, 3, 4])
@pytest.mark.parametrize("correct", range(W + 1))
def test_pass_at_k_goes_to_the_whole_group(task: Task, k: int | None, correct: int) -> None:
    texts = ["Answer: 9"] * correct + ["Answer: 8"] * (W - correct)
    expected = 1 - comb(W - correct, k or W) / comb(W, k or W)
    reward = PassAtK(task, k=k, width=W)
    assert ask(reward, texts, examples=[task[0]] * W) == [expected] * W


def test_pass_at_k_of_several_groups(task: Task) -> None:
    texts = ["Answer: 9", "Answer: 8", "Answer: 8", "Answer: 8", "Answer: 9", "Answer: 9"]
    columns = {"examples": [task[0]] * 4 + [task[0], None], "groups": [0, 1, 0, 1, 2, 2]}
    assert ask(PassAtK(task), texts, **columns) == [1.0, 0.0, 1.0, 0.0, None, None]
    with pytest.raises(RewardError, match="got k = 3 and W = 2"):
        ask(PassAtK(task, k=3), texts, **columns)


def test_a_sum_of_rewards(task: Task) -> None:
    mix = CombinedReward(
        [Correctness(task), SelfConsistency(task), Format(), Length(10, 5, unit="characters")],
        weights=[1.0, 0.5, 0.25, 2.0],
    )
    texts = ["Answer: 9", "Answer: 8", "8", "8"]
    assert ask(mix, texts, examples=[task[0]] * 4, groups=[0] * 4) == pytest.approx(
        [1.25 - 2 * 4 / 5, 0.5 + 0.25 - 2 * 4 / 5, 0.5, 0.5]
    )


def test_what_does_not_apply_counts_as_nothing(task: Task) -> None:
    mix = CombinedReward([Correctness(task), Format()], weights=[1.0, 0.25])
    assert ask(mix, ["Answer: 9"], examples=[None]) == [0.25]
    assert ask(CombinedReward([Correctness(task)]), ["Answer: 9"], examples=[None]) == [None]


def test_functions_of_ones_own_join_in() -> None:
    def shout(prompts: list[Any], completions: list[str], **columns: Any) -> list[float | None]:
        return [float(text.isupper()) for text in completions]

    assert ask(CombinedReward([shout], weights=[3]), ["A", "a"]) == [3.0, 0.0]
    with pytest.raises(RewardError, match=r"one value a completion.* returned 1 for 2"):
        ask(CombinedReward([lambda prompts, completions, **columns: [1.0]]), ["A", "a"])


@pytest.mark.parametrize(
    ("rewards", "weights"),
    [([], None), ([Format()], [1.0, 2.0]), ([Format()], []), ([Format()], [float("nan")])],
)
def test_weights_that_do_not_fit(rewards: list[Reward], weights: list[float] | None) -> None:
    with pytest.raises(RewardError, match=r"weight|Weights"):
        CombinedReward(rewards, weights)


def test_examples_that_do_not_fit(task: Task) -> None:
    reward = Correctness(task)
    with pytest.raises(RewardError, match=r"needs the column 'examples'.*2 in all; got none"):
        ask(reward, ["a", "b"])
    with pytest.raises(RewardError, match="2 in all; got 1"):
        ask(reward, ["a", "b"], examples=[task[0]])
    with pytest.raises(TaskError, match="has the id 'nobody'"):
        ask(reward, ["a"], examples=["nobody"])
    with unchecked(), pytest.raises(RewardError, match=r"its to_dict\(\) or id; got 7"):
        ask(reward, ["a"], examples=[7])


def test_the_signature_is_trls(task: Task) -> None:
    """TRL calls rewards by keyword, with further columns, and logs them by `__name__`."""
    for reward in (
        Correctness(task),
        SelfConsistency(task, mixed=True),
        StepVerification(task),
        Format(),
        Length(9, 3),
        PassAtK(task),
        CombinedReward([Correctness(task)]),
    ):
        values = reward(
            prompts=["?"] * 2,
            completions=["Answer: 9", "Answer: 8"],
            completion_ids=[[1], [2]],
            examples=[task[0]] * 2,
            groups=[0, 0],
            trainer_state=None,
            another_column=["x", "y"],
        )
        assert all(isinstance(value, float) for value in values)
        assert reward.__name__ == type(reward).__name__
        assert list(inspect.signature(reward).parameters) == ["prompts", "completions", "columns"]
