"""The engine: prompts in, groups of interdependent completions out.

One engine for a model with Bridge, with P-Match, or with nothing attached (the independent
baseline). Each prompt is computed and stored once at width 1; its rows advance in lockstep; groups
are admitted as others finish, under a memory budget; rows that finish cost nothing any more.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any
from weakref import WeakValueDictionary

from torch import nn

from interlace.engine.backends import choose_backend
from interlace.engine.core import EngineCore, Event, Limits, budget_for, default_rows
from interlace.engine.request import Request, encode, list_of_prompts, make_requests
from interlace.engine.types import (
    EngineStats,
    GroupOutput,
    Prompt,
    SamplingParams,
    Step,
    whole_number,
)
from interlace.errors import GenerationError, GenerationInterrupted
from interlace.models.loading import load

Progress = Callable[[EngineStats], None]


class Engine:
    """Samples groups of completions from a Hugging Face causal language model.

    Several threads may call one engine, and a stream may be half read when the next call comes:
    all of them share its passes, and each gets what it would get alone.

    Args:
        model: Model, attached or not; it may be one that a trainer is training: weights are
            followed, and its modules are never changed.
        tokenizer: Tokenizer of the model; None if all prompts are token ids and no text is wanted.
        memory_budget: Number of bytes that keys and values may take at most; None computes it from
            the memory that is free when a call begins (half of it). A group that needs more than
            that runs alone.
        max_rows: Number of rows in one pass at most; None is 256 on a GPU, and on the CPU 64, or up
            to 512 for a model of less than 135 million weights. A group wider than that runs alone.
            What does not fit into `memory_budget` waits all the same.
        prefill_chunk: Number of prompt positions computed in one pass.
        backend: Name of what computes the model: "cpu" (weights packed for oneDNN, which take as
            much memory again as the model's linears), "hf" (the model's own forward, anywhere),
            "native" ("cpu" with steps in compiled code), "graph" (a step that a GPU captures, for
            Llama's family), or "auto", "cpu" where it can and else "hf".

    Attributes:
        core: The `EngineCore` under it, for those who call it from one thread of their own instead
            of the methods here, as a server does; call `core.refresh()` first.

    Raises:
        GenerationError: if the model's architecture cannot share a prompt's keys and values, or
            for a limit below 1.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any = None,
        *,
        memory_budget: int | None = None,
        max_rows: int | None = None,
        prefill_chunk: int = 1024,
        backend: str = "auto",
        **unknown: Any,
    ) -> None:
        _refuse(unknown)
        for name, value in (("memory_budget", memory_budget), ("max_rows", max_rows)):
            if value is not None:
                whole_number(name, value, least=1)
        whole_number("prefill_chunk", prefill_chunk, least=1)
        self.model = model
        self.tokenizer = tokenizer
        self._memory_budget = memory_budget
        self._max_rows = max_rows
        self._last = EngineStats()
        self._last_here = threading.local()
        self._backend = choose_backend(backend, model, prefill_chunk)
        self.core = EngineCore(self._backend, tokenizer, self._limits)
        self._sharing = SharedCore(self.core)

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *,
        memory_budget: int | None = None,
        max_rows: int | None = None,
        prefill_chunk: int = 1024,
        backend: str = "auto",
        **options: Any,
    ) -> Engine:
        """An engine for a model that is loaded first, by `interlace.load`.

        Args:
            source: Source of the model: a hub id, a folder, what `interlace.save` wrote, a GGUF
                file, or a packaged model such as "tiny".
            memory_budget: Number of bytes, as for `Engine`.
            max_rows: Number of rows, as for `Engine`.
            prefill_chunk: Number of positions, as for `Engine`.
            backend: Name of the backend, as for `Engine`.
            **options: Options of `interlace.load`, such as `dtype` and `device`.

        Raises:
            LoadError: if the source cannot be found, read or understood.
            GenerationError: as `Engine` does.
        """
        _refuse({name: options.pop(name) for name in ("packed",) if name in options})
        model, tokenizer = load(source, **options)
        return cls(
            model,
            tokenizer,
            memory_budget=memory_budget,
            max_rows=max_rows,
            prefill_chunk=prefill_chunk,
            backend=backend,
        )

    @property
    def stats(self) -> EngineStats:
        """What the last call cost, updated while it runs: of this thread, or of any if this one
        has made none."""
        stats: EngineStats = getattr(self._last_here, "stats", self._last)
        return stats

    def generate(
        self,
        prompts: Iterable[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        sample_ids: Sequence[int | str] | None = None,
        progress: Progress | None = None,
    ) -> list[GroupOutput]:
        """One group for each prompt, in order.

        Args:
            prompts: Texts (verbatim), token ids, or lists of messages (chat template).
            params: Parameters of sampling; one for all or one for each prompt.
            sample_ids: Ids that tell groups of the same prompt apart for their seeds; by default
                the prompt's occurrence in this call (0, 1, ...).
            progress: Function called after each step with the call's statistics.

        Raises:
            GenerationError: for prompts or parameters that cannot be carried out.
            GenerationInterrupted: on Ctrl-C; its `groups` hold every group begun, unfinished rows
                with the finish reason "interrupted".
        """
        requests, stats = self._requests(list_of_prompts(prompts), params, sample_ids)
        self._note_call(stats)
        with self._sharing.call(requests) as call:
            while not call.is_done:
                call.events()
                if progress is not None:
                    progress(stats)
        return [call.results[index] for index in range(len(requests))]

    def as_completed(
        self,
        prompts: Iterable[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        sample_ids: Sequence[int | str] | None = None,
        progress: Progress | None = None,
    ) -> Iterator[tuple[int, GroupOutput]]:
        """The same groups as `generate`, each with its prompt's index, as soon as it is
        finished.

        Args:
            prompts: Prompts as in `generate`, like the other arguments.
            params: Parameters as in `generate`.
            sample_ids: Ids as in `generate`.
            progress: Function as in `generate`.

        Raises:
            GenerationError: as in `generate`, at once.
            GenerationInterrupted: on Ctrl-C; its `groups` hold the groups not handed out yet.
        """
        requests, stats = self._requests(list_of_prompts(prompts), params, sample_ids)
        return self._as_completed(requests, stats, progress)

    def _as_completed(
        self, requests: list[Request], stats: EngineStats, progress: Progress | None
    ) -> Iterator[tuple[int, GroupOutput]]:
        self._note_call(stats)
        with self._sharing.call(requests) as call:
            while not call.is_done:
                call.events()
                for index in list(call.results):
                    yield index, call.results[index]
                    del call.results[index]
                if progress is not None:
                    progress(stats)

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        sample_id: int | str = 0,
    ) -> GroupStream:
        """Step by step through one group: iterate for `Step`s, then read `.group`.

        Args:
            prompt: Text (verbatim), token ids, or list of messages (chat template).
            params: Parameters of sampling.
            sample_id: Id that tells groups of the same prompt apart for their seeds.

        Raises:
            GenerationError: if it cannot be carried out.
        """
        requests, stats = self._requests([prompt], params, [sample_id])
        return GroupStream(self, requests, stats)

    @property
    def chats(self) -> bool:
        """Whether a text can be sent as a user's message: the tokenizer has a chat template."""
        return bool(getattr(self.tokenizer, "chat_template", None))

    def encode(self, prompt: Prompt, index: int = 0) -> list[int]:
        """Token ids of a prompt.

        Args:
            prompt: Text, token ids, or list of messages.
            index: Number of the prompt, for error messages.

        Raises:
            GenerationError: for one that is empty, or that the tokenizer does not take.
        """
        return encode(prompt, index, self.tokenizer)

    def requests(
        self,
        prompts: Iterable[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        sample_ids: Sequence[int | str] | None = None,
    ) -> list[Request]:
        """What `core.add` takes: one request for each prompt, checked.

        What they cost together is in the `stats` of each.

        Args:
            prompts: Prompts as in `generate`, like the other arguments.
            params: Parameters as in `generate`.
            sample_ids: Sample ids as in `generate`.

        Raises:
            GenerationError: as in `generate`.
        """
        return self._requests(list_of_prompts(prompts), params, sample_ids)[0]

    def _requests(
        self,
        prompts: list[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None,
        sample_ids: Sequence[int | str] | None,
    ) -> tuple[list[Request], EngineStats]:
        """The requests of a call, and where they add up what they cost."""
        stats = EngineStats()
        made = make_requests(self._backend, self.tokenizer, prompts, params, sample_ids, stats)
        return made, stats

    def _note_call(self, stats: EngineStats) -> None:
        self._last = self._last_here.stats = stats

    def _limits(self) -> Limits:
        memory, rows = self._memory_budget, self._max_rows
        device = self._backend.device
        return Limits(
            budget_for(device) if memory is None else memory,
            default_rows(self.model, device.type == "cuda") if rows is None else rows,
        )


class GroupStream:
    """The steps of one group as they are sampled.

    While it is not read, nothing is sampled for it, unless other calls of the engine take steps:
    then its group advances with them, and its steps wait to be read. `close` ends it early, as
    `with engine.stream(...) as stream:` does at the block's end.
    """

    def __init__(self, engine: Engine, requests: list[Request], stats: EngineStats) -> None:
        self._kept: list[GroupOutput] = []
        # It must not hold this stream: a stream that is thrown away is to end at once.
        self._steps = _steps(engine, requests, stats, self._kept)

    @property
    def group(self) -> GroupOutput | None:
        """The group as it was when the stream ended; None until then. Rows that were unfinished
        have the finish reason "interrupted"."""
        return self._kept[-1] if self._kept else None

    def __iter__(self) -> Iterator[Step]:
        return self._steps

    def __enter__(self) -> GroupStream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop early, and leave the engine to others."""
        self._steps.close()


def _steps(
    engine: Engine, requests: list[Request], stats: EngineStats, kept: list[GroupOutput]
) -> Generator[Step, None, None]:
    engine._note_call(stats)
    with engine._sharing.call(requests, streaming=True) as call:
        try:
            while not call.is_done:
                for event in call.events():
                    if event.step is not None:
                        yield event.step
        finally:
            kept.extend((call.results | engine._sharing.take_out(call)).values())


def _refuse(unknown: dict[str, Any]) -> None:
    if "packed" in unknown:
        raise GenerationError(
            "packed is now backend: write backend='cpu' for packed=True and backend='hf' for "
            f"packed=False; got packed={unknown['packed']!r}."
        )
    for name in unknown:
        raise GenerationError(
            f"Engine has no option {name!r}. There are memory_budget, max_rows, prefill_chunk and "
            "backend."
        )


_TURN = 1e-4  # seconds
_LOOK = 0.01  # seconds between looks into the box while another thread steps


class Call:
    """One caller's requests and what has come of them.

    Attributes:
        results: Finished groups by their request's index, until someone takes them out.
        is_over: Whether nobody wants any more of it; a call that is gone is over, too.
    """

    def __init__(self, sharing: SharedCore) -> None:
        self.results: dict[int, GroupOutput] = {}
        self.open: dict[int, int] = {}  # index of each request that has not ended, by its id
        self.box: deque[Event] = deque()
        self.partial: dict[int, GroupOutput] | None = None
        self.is_over = False
        self._sharing = sharing
        self._seen: Counter[int] = Counter()  # steps read of each request

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
            # After an interrupt in another thread, a step may have been told twice.
            is_new = event.step is None or event.number == self._seen[event.id]
            if event.step is not None and is_new:
                self._seen[event.id] += 1
            if event.group is not None and event.id in self.open:
                self.results[self.open[event.id]] = event.group
                del self.open[event.id]
            self.box.popleft()
            if is_new:
                events.append(event)
        return events


class SharedCore:
    """A core with a lock, and the calls that it works for.

    Ctrl-C may come between any two instructions of the main thread, and the garbage collector may
    end a stream there. So who holds the core is what the lock says, and which requests are wanted
    is what the calls say that are alive: neither is noted a second time.

    Args:
        core: Core, which only this object's methods may touch from now on.
    """

    def __init__(self, core: EngineCore) -> None:
        self.core = core
        self._lock: Any = threading.RLock()  # only it can say whether this thread has it
        self._wanting: set[int] = set()  # threads that wait for it
        self._calls: WeakValueDictionary[int, Call] = WeakValueDictionary()  # by requests' ids

    @contextmanager
    def call(self, requests: Sequence[Request], streaming: bool = False) -> Iterator[Call]:
        """A call from its beginning to its end, however that comes.

        Raises:
            GenerationInterrupted: on Ctrl-C, with the groups that were begun.
        """
        call = Call(self)
        try:
            with self._held():
                self.core.refresh()
                for request in requests:
                    number = self.core.add(request, streaming=streaming)
                    self._calls[number] = call
                    call.open[number] = request.index
            yield call
        except KeyboardInterrupt:
            self._free()
            partial = self.take_out(call)
            raise GenerationInterrupted(
                f"Interrupted with {len(partial)} groups unfinished and "
                f"{len(call.open) - len(partial)} not begun. This exception's `groups` holds the "
                "others, finished or not.",
                call.results | partial,
            ) from None
        finally:
            call.is_over = True
            # The garbage collector may end a call within a step of this very thread; then that
            # step's end lets go of it.
            if call.open and not self._lock._is_owned():
                with self._held():
                    pass

    def advance_for(self, call: Call) -> None:
        """Have the core do one step, unless another thread has brought the call an event."""
        with self._held(call) as is_held:
            if is_held and not call.box and call.open:
                self.core.advance()
                self._deliver()

    def take_out(self, call: Call) -> dict[int, GroupOutput]:
        """End a call early: those of its groups that had begun and were not read, as they are, by
        their requests' indices."""
        if call.partial is None and not self._lock._is_owned():
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

    @contextmanager
    def _held(self, call: Call | None = None) -> Iterator[bool]:
        """Hold the core; False where its holder brought `call` an event before it was free.

        The holder may wait long, for a vote that is compared, and have stepped the call before.

        Raises:
            GenerationError: within a step of this thread.
        """
        if self._lock._is_owned():
            raise GenerationError(
                "An engine cannot be called from within its own step, where logits processors, "
                "hooks and consensus run: the step would wait for itself. Use a second Engine."
            )
        me = threading.get_ident()
        if self._wanting:  # Python's locks take no turns: whoever asks again would get it again
            time.sleep(_TURN)
        self._wanting.add(me)
        try:
            while not self._lock.acquire(timeout=_LOOK):
                if call is not None and call.box:
                    yield False
                    return
            self._wanting.discard(me)
            self._let_go()
            yield True
            self._let_go()
        finally:
            self._free()
            self._wanting.discard(me)

    def _free(self) -> None:
        """Let go of the core, if this thread has it."""
        while self._lock._is_owned():
            self._lock.release()

    def _let_go(self) -> None:
        """End the requests that nobody wants any more."""
        for number in self.core.numbers:
            call = self._calls.get(number)
            if call is None or call.is_over:
                self.core.abort(number)

    def _deliver(self) -> None:
        outbox = self.core.outbox
        while outbox:
            call = self._calls.get(outbox[0].id)
            if call is not None:
                call.box.append(outbox[0])
                if outbox[0].group is not None or outbox[0].error is not None:
                    self._calls.pop(outbox[0].id, None)
            outbox.popleft()
