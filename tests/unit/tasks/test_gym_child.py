"""reasoning-gym's scorers in a child process: they execute nothing, and keep their meaning."""

import os
import subprocess
import sys

import pytest

from interlace.verifier_pool import Refusal, VerifierPool, verifier_pool

COSTLY = "9**9**9**9"  # to SymPy a number of 369,693,100 digits to some power


def gym(name: str, answer: str, index: int = 0) -> object:
    config = {"seed": 0, "size": 4}
    return verifier_pool().ask(
        "interlace.tasks.reasoning_gym:score", name=name, config=config, index=index, answer=answer
    )


def reference(name: str) -> str:
    config = {"seed": 0, "size": 4}
    rows = verifier_pool().ask(
        "interlace.tasks.reasoning_gym:examples", name=name, config=config, start=0, stop=1
    )
    return rows[0][1]


def test_a_costly_answer_ends_the_process_and_not_the_next_verdict() -> None:
    pool = VerifierPool(1, cpu_seconds=0.5)
    config = {"seed": 0, "size": 4}
    answers = [
        pool.ask(
            "interlace.tasks.reasoning_gym:score",
            name="countdown",
            config=config,
            index=0,
            answer=text,
        )
        for text in ("1 + 1", COSTLY, "1 + 1")
    ]
    pool.close()
    assert answers == [0.05, Refusal("not decided within 0.5 s of processor time"), 0.05]


@pytest.mark.parametrize(
    "name",
    [
        # each of these scorers hands the answer to eval, or to SymPy's parser, which does
        "string_insertion",
        "spiral_matrix",
        "binary_matrix",
        "n_queens",
        "simple_integration",
        "intermediate_integration",
        "polynomial_multiplication",
        "puzzle24",
        "countdown",
        "bitwise_arithmetic",
        "number_sorting",
    ],
)
def test_no_answer_is_executed(name: str, tmp_path: os.PathLike[str]) -> None:
    assert gym(name, reference(name)) == 1.0
    mark = os.path.join(tmp_path, "executed")
    for answer in (
        f"open({mark!r}, 'w')",
        f"__import__('os').system('touch {mark}')",
        f"[open({mark!r}, 'w')]",
        f"sympify(\"open({mark!r}, 'w')\")",
        f"(lambda: open({mark!r}, 'w'))()",
    ):
        score = gym(name, answer)
        assert isinstance(score, Refusal) or score < 0.1
    assert not os.path.exists(mark)


LATER_SCORER = """
import sys, types
from sympy.parsing.sympy_parser import parse_expr
import interlace.tasks.reasoning_gym
from interlace.verifier_child import GUARD

later = types.ModuleType("reasoning_gym.later")
exec("def score(text): return eval(text)", vars(later))
sys.addaudithook(GUARD.hook)
assert later.score("1 + 1") == 2
GUARD.armed = True
for judge in (later.score, parse_expr):
    try:
        judge(f"open({sys.argv[1]!r}, 'w')")
    except PermissionError:
        continue
    raise AssertionError(judge)
assert parse_expr("12") == 12
"""


def test_a_scorer_of_a_later_version_may_not_execute_either(tmp_path: os.PathLike[str]) -> None:
    mark = os.path.join(tmp_path, "executed")
    subprocess.run([sys.executable, "-c", LATER_SCORER, mark], check=True)
    assert not os.path.exists(mark)


def test_partial_credit_for_a_literal_is_kept() -> None:
    board = reference("n_queens")
    as_list = repr([row.split() for row in board.split("\n")])
    assert gym("n_queens", as_list) == 0.5


def test_formulas_are_read_without_being_executed() -> None:
    # The reference is X-squared over two and such: other ways to write an antiderivative count.
    assert gym("simple_integration", reference("simple_integration") + " + 5") == 1.0
    assert gym("simple_integration", reference("simple_integration") + " + X") == 0.0
