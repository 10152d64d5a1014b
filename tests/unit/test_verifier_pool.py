"""The pool of child processes: one question, one identity, one answer, at any load."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from interlace.answers import majority_vote, symbolically_equal
from interlace.answers.equal import _ask
from interlace.errors import WorkerError
from interlace.verifier_pool import MEMORY_BYTES, Refusal, VerifierPool, verifier_pool

ECHO = "interlace.verifier_child:echo"
POSIX = pytest.mark.skipif(os.name != "posix", reason="ids and signals of POSIX")


@pytest.fixture
def pool() -> Iterator[VerifierPool]:
    started = VerifierPool(2, cpu_seconds=0.5)
    yield started
    started.close()


def test_answers_come_in_the_order_of_the_questions(pool: VerifierPool) -> None:
    many = [{"value": [number, "\u2028\u00b2"]} for number in range(37)]
    assert pool.map(ECHO, many) == [one["value"] for one in many]
    assert len(pool.processes()) == 2


def test_children_start_when_they_are_needed(pool: VerifierPool) -> None:
    assert pool.processes() == []
    for number in range(5):
        assert pool.ask(ECHO, value=number) == number
    assert len(pool.processes()) == 1


def test_a_question_that_takes_too_long_is_refused_and_the_next_is_answered(
    pool: VerifierPool,
) -> None:
    slow = pool.submit("interlace.answers.equal:formulas_equal", left="9^{9^{9^{9}}}", right="2")
    others = pool.map(ECHO, [{"value": number} for number in range(7)])
    assert slow.result() == Refusal("not decided within 0.5 s of processor time")
    assert others == list(range(7))
    assert pool.ask(ECHO, value="next") == "next"


def test_a_child_that_sleeps_is_ended() -> None:
    pool = VerifierPool(1, stalled_seconds=0.3)
    asked = pool.submit("interlace.verifier_child:sleep")
    assert asked.result() == Refusal("not decided within 0.3 s")
    pool.close()


@POSIX
def test_a_child_that_others_end_is_replaced(pool: VerifierPool) -> None:
    assert pool.ask(ECHO, value=1) == 1
    (first,) = pool.processes()
    os.kill(first, signal.SIGKILL)
    assert pool.ask(ECHO, value=2) == 2
    assert first not in pool.processes()


@POSIX
def test_an_interrupted_caller_does_not_shift_later_answers(pool: VerifierPool) -> None:
    """Expected F T T F; a reply left in the pipe gave F T T T. When the wait was for a `Future`,
    one in 300 left its lock taken, so that no later answer came, and some came as errors."""

    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for number in range(1000):
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.0001 + 0.000006 * (number % 100))
                while True:
                    pool.ask(ECHO, value="before")
            except KeyboardInterrupt:
                pass
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            assert pool.map(ECHO, [{"value": n} for n in (number, -1)]) == [number, -1]
    finally:
        signal.signal(signal.SIGALRM, before)


def test_a_child_whose_start_was_interrupted_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(child: object) -> None:
        raise KeyboardInterrupt

    pool = VerifierPool(1)
    with monkeypatch.context() as patch:
        patch.setattr("interlace.verifier_pool._Child.start", interrupt)
        with pytest.raises(KeyboardInterrupt):
            pool.submit(ECHO, value=1)
    asked = pool.submit(ECHO, value=2)
    assert any(child.serves for child in pool._children)  # else nobody would answer
    assert asked.result() == 2
    pool.close()


def test_a_reply_to_another_question_is_no_answer(pool: VerifierPool) -> None:
    """Catches a pipe that is read without looking at whom a reply belongs to."""
    assert pool.ask(ECHO, value=1) == 1
    child = pool._children[0]
    assert child._process is not None
    assert child._process.stdin is not None
    stale = {"identity": 999, "operation": ECHO, "arguments": {"value": "stale"}}
    stale |= {"cpu_seconds": 1.0, "stalled_seconds": 60.0}
    child._process.stdin.write(json.dumps(stale) + "\n")
    child._process.stdin.flush()
    with pytest.raises(WorkerError, match="another question"):
        pool.ask(ECHO, value=2)
    assert pool.ask(ECHO, value=3) == 3


def test_what_cannot_be_prepared_is_no_answer(pool: VerifierPool) -> None:
    with pytest.raises(WorkerError, match="cannot prepare this: AttributeError"):
        pool.ask("interlace.verifier_child:no_such_operation")
    with pytest.raises(WorkerError, match="a function of Interlace"):
        pool.ask("os:system", command="true")


def test_a_closed_pool_raises_in_who_waits_and_can_be_used_again(pool: VerifierPool) -> None:
    assert pool.ask(ECHO, value=1) == 1
    asleep = pool.submit("interlace.verifier_child:sleep")
    while not pool._questions.empty():  # until the child has it
        time.sleep(0.01)
    pool.close()
    with pytest.raises(WorkerError, match="closed"):
        asleep.result()
    assert pool.ask(ECHO, value=2) == 2


@pytest.mark.skipif(not os.path.exists("/proc/self/limits"), reason="reads the limits of Linux")
def test_memory_is_bounded(pool: VerifierPool) -> None:
    assert pool.ask(ECHO, value=1) == 1
    (pid,) = pool.processes()
    with open(f"/proc/{pid}/limits", encoding="ascii") as file:
        limits = dict(line.rsplit(maxsplit=3)[:2] for line in file if "address space" in line)
    assert limits == {"Max address space": str(MEMORY_BYTES)}


@POSIX
@pytest.mark.parametrize(
    ("operation", "arguments"), [(ECHO, {"value": 2}), ("interlace.verifier_child:sleep", {})]
)
def test_children_end_with_a_killed_parent(operation: str, arguments: dict[str, int]) -> None:
    """A child at work must not wait for its next question to see that nobody asks any more."""
    program = (
        "import sys\n"
        "from interlace.verifier_pool import VerifierPool\n"
        "pool = VerifierPool(1)\n"
        f"pool.ask({ECHO!r}, value=1)\n"
        f"pool.submit({operation!r}, **{arguments!r})\n"
        "print(*pool.processes(), flush=True)\n"
        "sys.stdin.read()\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
    while _runs(pid):
        time.sleep(0.05)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")  # an orphan that nobody waits for
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_file_of_the_current_folder_is_not_the_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", ".", os.environ.get("PYTHONPATH", "")]))
    pool = VerifierPool(1)
    assert pool.ask(ECHO, value=1) == 1
    pool.close()
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("act", "refused"),
    [
        ("write", True),
        ("run", True),
        ("connect", True),
        ("remove", True),
        ("read", False),
    ],
)
def test_who_judges_text_changes_nothing(act: str, refused: bool, tmp_path: Path) -> None:
    place = tmp_path / "kept"
    place.write_text("kept")
    program = (
        "import os, socket, subprocess, sys\n"
        "from interlace.verifier_child import GUARD\n"
        "acts = {'write': lambda: open(sys.argv[2], 'w'), 'run': lambda: os.system('true'),\n"
        "  'connect': lambda: socket.create_connection(('localhost', 9)),\n"
        "  'remove': lambda: os.remove(sys.argv[2]), 'read': lambda: open(sys.argv[2]).close()}\n"
        "sys.addaudithook(GUARD.hook)\n"
        "GUARD.armed = True\n"
        "try:\n  acts[sys.argv[1]]()\n"
        "except PermissionError:\n  sys.exit(3)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, act, str(place)], check=False)
    assert done.returncode == (3 if refused else 0)
    assert place.read_text() == "kept"


FORMULAS = [r"\sqrt{8}", "3", r"2\sqrt{2}", "x+1", "1+x", "(x+1)^2", "x^2+2x+1", r"\sqrt{9}"]


def test_i12_equality_and_votes_are_the_same_on_any_thread_at_any_load_in_any_order() -> None:
    """I12. SIGALRM could be set on the main thread only: there \\sqrt{8} won, elsewhere 3."""
    pytest.importorskip("math_verify")
    pairs = [(left, right) for left in FORMULAS for right in FORMULAS if left != right]
    votes = [r"\sqrt{8}", "3", r"2\sqrt{2}", "5", "7"]

    def look(seed: int) -> tuple[dict[tuple[str, str], object], object]:
        order = pairs[:]
        random.Random(seed).shuffle(order)
        return {pair: symbolically_equal(*pair) for pair in order}, majority_vote(votes)

    _ask.cache_clear()
    expected, vote = look(0)
    assert sum(map(bool, expected.values())) == 8
    assert getattr(vote, "winner", None) == r"\sqrt{8}"
    burners = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"])
        for _ in range(4 * (os.cpu_count() or 1))
    ]
    try:
        _ask.cache_clear()
        seen: list[object] = []
        threads = [
            threading.Thread(target=lambda seed=seed: seen.append(look(seed)))
            for seed in range(1, 4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        _ask.cache_clear()
        seen.append(look(5))
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()
    assert seen == [(expected, vote)] * 4


def test_what_was_not_decided_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("math_verify")
    hasty = VerifierPool(1, cpu_seconds=0.0001)
    pair = r"\sqrt{12345}+x", r"x+\sqrt{12345}"
    monkeypatch.setattr("interlace.answers.equal.verifier_pool", lambda: hasty)
    assert symbolically_equal(*pair) is None
    monkeypatch.setattr("interlace.answers.equal.verifier_pool", verifier_pool)
    assert symbolically_equal(*pair) is True
    hasty.close()
