"""One core for the calls of several threads.

Whoever waits for an event and finds none takes the lock, does one step of the core, and puts what
came of it into the boxes of the calls that it is for. So all groups advance in the same passes, no
thread is needed for it, and a call that nobody reads holds up nobody: its events wait in its box.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from interlace.engine.core import EngineCore, Event
from interlace.engine.state import Request
from interlace.engine.types import GroupOutput
from interlace.errors import GenerationInterrupted

_TURN = 1e-4  # seconds
_LOOK = 0.01  # seconds between looks into the box while another thread steps


class Call:
    """One caller's requests and what has come of them.

    Attributes:
        results: Finished groups by their request's index, until someone takes them out.
    """

    def __init__(self, sharing: SharedCore) -> None:
        self.results: dict[int, GroupOutput] = {}
        self.open: dict[int, int] = {}  # index of each request that has not ended, by its id
        self.box: deque[Event] = deque()
        self.partial: dict[int, GroupOutput] | None = None
        self._sharing = sharing

    @property
    def is_done(self) -> bool:
        """Whether all has been read."""
        return not self.open

    def events(self) -> list[Event]:
        """What has come of the requests since the last call, after at most one step.

        Raises:
            Exception: the error of a request that failed.
        """
        if not self.box:
            self._sharing.advance_for(self)
        events = []
        while self.box:
            event = self.box[0]
            if event.error is not None:
                raise event.error
            if event.group is not None and event.id in self.open:
                self.results[self.open[event.id]] = event.group
                del self.open[event.id]
            self.box.popleft()
            events.append(event)
        return events


class SharedCore:
    """A core with a lock, and the calls that it works for.

    Args:
        core: What only this object's methods may touch from now on.
    """

    def __init__(self, core: EngineCore) -> None:
        self.core = core
        self._lock = threading.Lock()
        self._holder: int | None = None  # the thread that has it
        self._wanting: set[int] = set()  # threads that wait for it
        self._calls: dict[int, Call] = {}  # by the ids of their requests
        self._leaving: deque[int] = deque()  # requests that nobody wants any more

    @contextmanager
    def call(self, requests: Sequence[Request], streaming: bool = False) -> Iterator[Call]:
        """A call from its beginning to its end, however that comes.

        Raises:
            GenerationInterrupted: on Ctrl-C, with what there is.
        """
        call = Call(self)
        try:
            with self._held():
                self.core.refresh()
                for request in requests:
                    number = self.core.add(request, streaming=streaming)
                    call.open[number] = request.index
                    self._calls[number] = call
            yield call
        except KeyboardInterrupt:
            partial = self.take_out(call)
            raise GenerationInterrupted(
                f"Interrupted with {len(partial)} groups unfinished and "
                f"{len(call.open) - len(partial)} not begun; what there is lies in this "
                "exception's `groups`.",
                call.results | partial,
            ) from None
        finally:
            self._leave(call)

    def advance_for(self, call: Call) -> None:
        """Have the core do one step, unless another thread has brought the call an event."""
        with self._held(call) as is_held:
            if is_held and not call.box and call.open:
                self.core.advance()
                self._deliver()

    def take_out(self, call: Call) -> dict[int, GroupOutput]:
        """End a call early: those of its groups that had begun and were not read, as they are, by
        their requests' indices."""
        if call.partial is None and self._holder != threading.get_ident():
            groups = {}
            with self._held():
                self._deliver()
                for event in call.box:  # it ended while another thread stepped
                    if event.group is not None and event.id in call.open:
                        groups[call.open[event.id]] = event.group
                for number, index in call.open.items():
                    group = self.core.abort(number)
                    if group is not None:
                        groups[index] = group
            call.partial = dict(sorted(groups.items()))
        return call.partial or {}

    def _leave(self, call: Call) -> None:
        self._leaving.extend(call.open)
        # A call that the garbage collector ends may do so within a step of this very thread; then
        # the step's end lets go of it.
        if self._leaving and self._holder != threading.get_ident():
            with self._held():
                pass
        for number in list(call.open):
            self._calls.pop(number, None)

    @contextmanager
    def _held(self, call: Call | None = None) -> Iterator[bool]:
        """Hold the core; False where its holder brought `call` an event before it was free.

        The holder may wait long, for a vote that is compared, and have stepped the call before.
        """
        me = threading.get_ident()
        if self._wanting:  # Python's locks take no turns: whoever asks again would get it again
            time.sleep(_TURN)
        self._wanting.add(me)
        try:
            while not self._lock.acquire(timeout=_LOOK):
                if call is not None and call.box:
                    yield False
                    return
            try:
                self._wanting.discard(me)
                self._holder = me
                self._let_go()
                yield True
                self._let_go()
            finally:
                self._holder = None
                self._lock.release()
        finally:
            self._wanting.discard(me)

    def _let_go(self) -> None:
        while self._leaving:
            self.core.abort(self._leaving[0])
            self._calls.pop(self._leaving.popleft(), None)

    def _deliver(self) -> None:
        outbox = self.core.outbox
        while outbox:
            call = self._calls.get(outbox[0].id)
            if call is not None:
                call.box.append(outbox[0])
                if outbox[0].group is not None or outbox[0].error is not None:
                    self._calls.pop(outbox[0].id, None)
            outbox.popleft()
