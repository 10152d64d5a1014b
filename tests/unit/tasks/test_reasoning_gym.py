"""reasoning-gym's tasks through the bounded process."""

import hashlib

import pytest

import interlace.errors
from interlace.errors import MissingDependencyError, TaskError
from interlace.tasks import get_task
from interlace.tasks.drawn import split_of
from interlace.tasks.reasoning_gym import FLAWED
from interlace.verifier_pool import verifier_pool

# They give no reference answer, only rules.
WITHOUT_REFERENCE = {"boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"}


def test_full_marks_only() -> None:
    task = get_task("rg:n_queens", size=4)
    for example in task:
        assert task.verify(example, task.reference_text(example) or "").correct
    as_list = repr([row.split() for row in task[0].answer.split("\n")])
    partial = task.verify(task[0], f"<answer>{as_list}</answer>")
    assert (partial.correct, partial.score) == (False, 0.5)
    assert partial.reason == "reasoning-gym's score is 0.5"
    nothing = task.verify(task[0], "I give\nup")
    assert (nothing.correct, nothing.score, nothing.answer) == (False, 0.0, None)


def test_which_answer_counts() -> None:
    task = get_task("rg:gcd", size=1)
    right = task[0].answer
    for text in (
        f"<answer>1000003</answer> no: <answer> {right} </answer>",
        f"\\boxed{{{right}}}",
        f"Answer: {right}",
        right,
    ):
        assert task.verify(task[0], text).correct
    assert not task.verify(task[0], f"<answer>{right}</answer><answer>1000003</answer>").correct


def test_problems_are_distinct_the_same_everywhere_and_split_by_hash() -> None:
    # Its problems depend on the order of a set of strings, so on the hash seed of the process.
    task = get_task("rg:ransom_note", size=20)
    text = "\n".join(example.question for example in task)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "c3e618a62806bbc4"
    assert len({example.question for example in task}) == 20
    assert {split_of(" ".join(example.question.split())) for example in task} == {"test"}
    train = get_task("rg:ransom_note", size=20, split="train")
    assert not {e.question for e in train} & {e.question for e in task}


def test_options_go_to_the_data_set() -> None:
    task = get_task("rg:chain_sum", size=2, options={"min_terms": 9, "max_terms": 9})
    assert all(sum(example.question.count(sign) for sign in "+-") == 8 for example in task)
    with pytest.raises(TaskError, match=r"cannot prepare this.*no_such_option"):
        get_task("rg:chain_sum", options={"no_such_option": 1})


def test_a_flawed_scorer_is_called_that() -> None:
    with pytest.warns(UserWarning, match="gives full marks to any text"):
        task = get_task("rg:game_of_life_halting", size=1)
    assert task.verify(task[0], "whatever").correct  # as the warning says; else drop it


def test_unknown_names_and_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TaskError, match=r"no task 'sudoko'\. Did you mean 'sudoku'"):
        get_task("rg:sudoko")
    monkeypatch.setattr(interlace.errors, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r'reasoning-gym.*"interlace\[tasks\]"'):
        get_task("rg:sudoku")


def test_a_task_with_few_problems_says_so() -> None:
    with pytest.raises(TaskError, match=r"distinct problems in the split 'test' out of"):
        get_task("rg:coin_flip", size=40, options={"min_trials": 1, "max_trials": 1})


@pytest.mark.slow
def test_every_data_set_accepts_its_own_reference() -> None:
    # "composite" is a mix of the others, given by option
    names = set(verifier_pool().ask("interlace.tasks.reasoning_gym:names")) - {"composite", *FLAWED}
    assert len(names) > 100
    for name in sorted(names):
        task = get_task(f"rg:{name}", size=2, split="all")
        for example in task:
            text = task.reference_text(example)
            assert (text is None) is (name in WITHOUT_REFERENCE), name
            assert text is None or task.verify(example, text).correct, name
            wrong = task.verify(example, "<answer>no such answer</answer>")
            assert not wrong.correct, name
