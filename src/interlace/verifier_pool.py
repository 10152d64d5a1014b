"""Child processes for every question that may hang: one pool, one identity a question, one answer.

SymPy, math-verify and reasoning-gym's scorers may take any time and any memory on hostile text, and
a single multiplication cannot be interrupted from within. So they run in children (see
`verifier_child`), which the operating system ends at a bound:

- `CPU_SECONDS` of processor time a question, so that neither load nor thread changes an answer;
- `STALLED_SECONDS` of time in any case, for a child that sleeps: a busy machine is far below it;
- `MEMORY_BYTES` of address space.

Preparing (an import, a data set) is not part of a question and only has the second bound.

Each child has a thread here, and only that thread touches its pipes: an interrupt or an alarm in
whoever waits cannot leave a reply behind. Nor can it leave a lock taken: who asks meets locks and
queues written in C alone. A `Future` or a semaphore takes and gives back its lock in Python code,
and an interrupt between two of its lines can leave it taken for good. Should an exchange break all
the same, its child is ended. Requests and replies are lines of JSON; nothing is pickled, no signal
is set in this process, and any thread may ask. Children end with this process, even where it is
killed.
"""

from __future__ import annotations

import atexit
import functools
import itertools
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interlace.errors import WorkerError

CPU_SECONDS = 2.0
STALLED_SECONDS = 900.0
MEMORY_BYTES = 4 * 2**30
MOST_CHILDREN = 8

_PASSED_ON = (
    "PATH",
    "HOME",
    "TMPDIR",
    "SYSTEMROOT",
    "LD_LIBRARY_PATH",
    "VIRTUAL_ENV",
    "PYTHONDONTWRITEBYTECODE",
)
# -P, and not -m: a file json.py in the current folder must not stand in for the library's.
_PROGRAM = (sys.executable, "-P", "-c", "from interlace.verifier_child import main; main()")


@dataclass(frozen=True)
class Refusal:
    """No answer: the question took too long, or failed.

    Attributes:
        reason: Why, in a few words.
    """

    reason: str


@dataclass(frozen=True)
class Question:
    """A question that was asked.

    Attributes:
        line: What the child reads.
        identity: Of all questions of the pool.
        cpu_seconds: Processor time that the answer may take.
        outcome: The answer or what was raised, once there is one.
    """

    line: str
    identity: int
    cpu_seconds: float
    outcome: queue.SimpleQueue[tuple[Any, BaseException | None]]

    def result(self) -> Any:
        """Wait for the answer; once, since it is taken."""
        answer, error = self.outcome.get()
        if error is not None:
            raise error
        return answer


class VerifierPool:
    r"""Children that answer questions; see this module's head.

    Args:
        size: Number of children at most; None for one a processor, at most `MOST_CHILDREN`. They
            are started when they are needed.
        cpu_seconds: Processor time of one question.
        stalled_seconds: Time after which a child counts as asleep.

    >>> pool = VerifierPool(size=1)
    >>> pool.ask("interlace.verifier_child:echo", value=[1, "\u00b2"])
    [1, '²']
    >>> pool.close()
    """

    def __init__(
        self,
        size: int | None = None,
        *,
        cpu_seconds: float = CPU_SECONDS,
        stalled_seconds: float = STALLED_SECONDS,
    ) -> None:
        self.size = size or min(os.cpu_count() or 1, MOST_CHILDREN)
        self.cpu_seconds = cpu_seconds
        self.stalled_seconds = stalled_seconds
        self._identities = itertools.count()
        self._questions: queue.SimpleQueue[Question | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._free: queue.SimpleQueue[None] = queue.SimpleQueue()  # an item a child that waits
        self._children: list[_Child] = []

    def submit(
        self, operation: str, /, *, cpu_seconds: float | None = None, **arguments: Any
    ) -> Question:
        """Ask without waiting.

        Args:
            operation: A function of Interlace as "module:name". It prepares the question and
                returns a function of no argument, which answers it.
            cpu_seconds: Processor time of this question; None for the pool's.
            arguments: JSON values that the function takes.

        Returns:
            The question. Its `result` is a JSON value, or a `Refusal` where a bound was met or the
            answering failed; it raises a `WorkerError` where no child can be started, or the
            question not be prepared: no fault of the text that is judged.
        """
        allowed = self.cpu_seconds if cpu_seconds is None else cpu_seconds
        identity = next(self._identities)
        request = {
            "identity": identity,
            "operation": operation,
            "arguments": arguments,
            "cpu_seconds": allowed,
            "stalled_seconds": self.stalled_seconds,
        }
        question = Question(json.dumps(request), identity, allowed, queue.SimpleQueue())
        with self._lock:
            self._see_to_a_child()
            self._questions.put(question)
        return question

    def _see_to_a_child(self) -> None:
        """Start a child if none waits. An interrupt here may forget that one waits, so that another
        is started, or leave a child that never serves; such a one is not counted."""
        try:
            self._free.get_nowait()
        except queue.Empty:
            if sum(child.serves for child in self._children) < self.size:
                child = _Child(self._questions, self._free, self.stalled_seconds)
                self._children.append(child)
                child.start()

    def ask(self, operation: str, /, **arguments: Any) -> Any:
        """`submit`, and its answer."""
        return self.submit(operation, **arguments).result()

    def map(self, operation: str, many: Iterable[Mapping[str, Any]], /) -> list[Any]:
        """The answers to many questions, asked at once; in the order of the questions."""
        questions = [self.submit(operation, **arguments) for arguments in many]
        return [question.result() for question in questions]

    def processes(self) -> list[int]:
        """The ids of the children that run."""
        with self._lock:
            return [child.pid for child in self._children if child.pid is not None]

    def close(self) -> None:
        """End all children; a question that is still asked raises a `WorkerError`. The pool may be
        used again."""
        with self._lock:
            children, self._children = self._children, []
            self._free = queue.SimpleQueue()
            for _ in children:
                self._questions.put(None)
            self._questions = queue.SimpleQueue()
            for child in children:
                child.end()


class _Child:
    """One child process, and the thread that alone talks to it."""

    def __init__(
        self,
        questions: queue.SimpleQueue[Question | None],
        free: queue.SimpleQueue[None],
        stalled_seconds: float,
    ) -> None:
        self._questions = questions
        self._free = free
        self._stalled_seconds = stalled_seconds
        self._process: subprocess.Popen[str] | None = None
        self._ended = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._serve, daemon=True, name="interlace-verifier")

    def start(self) -> None:
        """Begin to serve."""
        self._thread.start()

    @property
    def serves(self) -> bool:
        """Whether its thread runs."""
        return self._thread.is_alive()

    @property
    def pid(self) -> int | None:
        """The process's id, if it runs."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def end(self) -> None:
        """End the process for good, whatever its thread does."""
        with self._lock:
            self._ended = True
            if self._process is not None:
                self._process.kill()

    def _serve(self) -> None:
        while (question := self._questions.get()) is not None:
            outcome: tuple[Any, BaseException | None]
            try:
                outcome = self._exchange(question), None
            except BaseException as error:
                self._stop()  # whatever broke the exchange, its reply may still come
                outcome = None, error
            self._free.put(None)
            question.outcome.put(outcome)
        self._stop()

    def _exchange(self, question: Question) -> Any:
        """The answer to one question. A child that is ended by others is replaced once."""
        why = ""
        for _ in range(2):
            prepared = self._reply_to(question, send=True)
            if prepared is None:
                why = self._why(question)
                continue
            if "failed" in prepared:
                raise WorkerError(
                    f"The process that judges text cannot prepare this: {prepared['failed']}"
                )
            reply = self._reply_to(question)
            if reply is not None:
                return Refusal(reply["failed"]) if "failed" in reply else reply["value"]
            why = self._why(question)
            if why.startswith("not decided"):
                break
        else:
            if prepared is None:
                raise WorkerError(f"The process that judges text did not start: {why}.")
        return Refusal(why)

    def _reply_to(self, question: Question, send: bool = False) -> dict[str, Any] | None:
        """The next reply to a question, after asking it if need be; None if the child ended."""
        process = self._running() if send else self._process
        if process is None or process.stdin is None or process.stdout is None:
            return None
        if send:
            try:
                process.stdin.write(question.line + "\n")
                process.stdin.flush()
            except BrokenPipeError:  # it ended just now
                return None
        line = process.stdout.readline()
        if not line.endswith("\n"):
            return None
        reply: dict[str, Any] = json.loads(line)
        if reply.pop("identity", None) != question.identity:
            raise WorkerError("The process that judges text answered another question.")
        return reply

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            self._stop()
            with self._lock:
                if self._ended:
                    raise WorkerError("The pool of processes that judge text was closed.")
                self._process = _start()
        return self._process

    def _why(self, question: Question) -> str:
        """Why there is no reply; leaves no process behind."""
        code = self._stop()
        if self._ended:
            raise WorkerError("The pool of processes that judge text was closed.")
        if hasattr(signal, "SIGPROF") and code == -signal.SIGPROF:
            return f"not decided within {question.cpu_seconds:g} s of processor time"
        if code == 1:  # of the watchdog
            return f"not decided within {self._stalled_seconds:g} s"
        return f"the process that decides ended with code {code}"

    def _stop(self) -> int | None:
        """End the process and close its pipes; its exit code."""
        process, self._process = self._process, None
        if process is None:
            return None
        try:
            process.wait(1)  # its pipe closes just before it ends of itself
        except subprocess.TimeoutExpired:
            process.kill()
        code = process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        return code


def _start() -> subprocess.Popen[str]:
    environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    path = [str(Path(__file__).parents[1]), *(place for place in given if os.path.isabs(place))]
    environment |= {
        # The same problems on every machine: some packages iterate over sets of strings.
        "PYTHONHASHSEED": "0",
        "PYTHONPATH": os.pathsep.join(path),
        "PYTHONIOENCODING": "utf-8",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    return subprocess.Popen(
        [*_PROGRAM, str(os.getpid()), str(MEMORY_BYTES)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        text=True,
        encoding="utf-8",
    )


def verifier_pool() -> VerifierPool:
    """The one pool of this process; a forked child gets its own."""
    return _pool_of(os.getpid())


@functools.cache
def _pool_of(pid: int) -> VerifierPool:
    pool = VerifierPool()

    def close() -> None:
        if os.getpid() == pid:  # a forked child must not end its parent's processes
            pool.close()

    atexit.register(close)
    return pool
