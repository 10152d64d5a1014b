"""The child process of `verifier_pool`: it reads questions, and writes two replies to each.

The first reply says that the question is prepared (imports, data sets), the second has the answer,
reached under the bounds of `verifier_pool`; both carry the question's identity. Operations are
functions of Interlace, named as "module:name": they prepare a question and return what answers it.

No text that a model wrote is ever executed, and while an answer is sought an audit hook refuses
what only the execution of text would need: programs, connections, changes of files, compiled text.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TextIO

Answer = Callable[[], Any]  # what is left of a question once it is prepared

# What SymPy's parser evaluates for a single number or name, which is how math-verify makes numbers.
_LITERAL = re.compile(
    r"from sympy import \*|(?:Integer|Float|Symbol) ?\(\s*'?[\w.]*'?\s*\)|[A-Za-z]\w*"
)

_REFUSED = frozenset(
    (
        *("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "pty.spawn"),
        *("socket.connect", "socket.bind", "socket.sendto", "socket.getaddrinfo"),
        *("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink"),
        *("shutil.rmtree", "shutil.move", "shutil.copyfile"),
    )
)
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def may_compile(caller: str, source: str) -> bool:
    """Whether a module may compile a source while text is judged."""
    if caller == "sympy.parsing.sympy_parser":
        return bool(_LITERAL.fullmatch(source.strip()))
    return is_own_source(caller)


def is_own_source(module: str) -> bool:
    """Whether what a module of reasoning-gym evaluates is what the package itself wrote: its
    bitwise scorer evaluates the problem, never the answer."""
    return not module.startswith("reasoning_gym") or module.endswith("bitwise_arithmetic")


class Guard:
    """Refuses, while text is judged, what only the execution of text would need.

    Attributes:
        armed: Whether text is being judged.
    """

    def __init__(self) -> None:
        self.armed = False

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        """For `sys.addaudithook`."""
        if not self.armed:
            return
        if event in _REFUSED or (event == "open" and self._writes(arguments)):
            raise PermissionError(f"{event} while judging text")
        if event == "compile" and arguments[1] == "<string>":
            caller = sys._getframe(1).f_globals.get("__name__", "")
            source = arguments[0]
            text = source.decode("utf-8", "replace") if isinstance(source, bytes) else str(source)
            if not may_compile(caller, text):
                raise PermissionError(f"{caller} was about to execute text")

    @staticmethod
    def _writes(arguments: tuple[Any, ...]) -> bool:
        flags = arguments[2] if len(arguments) > 2 else 0
        return isinstance(flags, int) and bool(flags & _WRITES)


GUARD = Guard()


def echo(value: Any) -> Answer:
    """The value itself; for tests and examples."""
    return lambda: value


def sleep() -> Answer:
    """Never an answer; for tests."""
    return lambda: time.sleep(1e6)


@contextlib.contextmanager
def _bounds(cpu_seconds: float) -> Iterator[None]:
    """Ends this process at the bound of processor time; guards against execution.

    The timer's signal has no handler, so the system ends the process even in the midst of one long
    multiplication.
    """
    has_timer = hasattr(signal, "setitimer")
    if has_timer:
        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
    GUARD.armed = True
    try:
        yield
    finally:
        GUARD.armed = False
        if has_timer:
            signal.setitimer(signal.ITIMER_PROF, 0)


def _limit_memory(size: int) -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (size, size))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _end_with(parent: int) -> None:
    """Ends this process when its parent is gone, even while it is busy.

    The end of its input would tell, too, but only when it is read next; and not at all where the
    parent has forked, since such a child holds the other end.
    """
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(0)


def _operation(name: str) -> Callable[..., Answer]:
    module, _, function = name.partition(":")
    if not module.startswith("interlace."):
        raise ValueError(f"an operation is a function of Interlace, not {name!r}")
    found: Callable[..., Answer] = getattr(importlib.import_module(module), function)
    return found


def _answer(request: dict[str, Any], out: TextIO) -> None:
    def reply(**values: Any) -> None:
        # One call, so that a process that ends meanwhile leaves no half of a line behind.
        out.write(json.dumps({"identity": request["identity"], **values}) + "\n")
        out.flush()

    try:
        answer = _operation(request["operation"])(**request["arguments"])
    except Exception as error:  # of another package, for the parent to raise
        reply(failed=f"{type(error).__name__}: {error}"[:500])
        return
    reply(prepared=True)
    try:
        with _bounds(request["cpu_seconds"]):
            value = answer()
    except Exception as error:
        reply(failed=f"the checker failed on this answer with {type(error).__name__}")
        if isinstance(error, MemoryError):
            os._exit(0)  # what else failed for want of memory is not known
    else:
        reply(value=value)


def main() -> None:
    """Serves questions from standard input until it closes. Arguments: the parent's id, bytes."""
    parent, memory = map(int, sys.argv[1:3])
    # What other packages print must not get between the replies.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.addaudithook(GUARD.hook)
    _limit_memory(memory)
    if os.name == "posix":
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    for line in sys.stdin:
        request = json.loads(line)
        faulthandler.dump_traceback_later(request["stalled_seconds"], exit=True)
        _answer(request, out)
        faulthandler.cancel_dump_traceback_later()
