"""One thread that owns the engine's core: all clients' requests advance in the same passes.

Whatever wants something of the core puts a command in the worker's inbox; between two steps the
worker carries out what is there. What comes of jobs is handed to the event loop in one call a step.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import logging
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from interlace.engine.core import Event
from interlace.engine.engine import Engine
from interlace.engine.request import Request, encode, make_requests
from interlace.engine.types import EngineStats, GroupOutput, Prompt, SamplingParams
from interlace.server.metrics import Metrics

log = logging.getLogger("interlace.server")

# A job ends if so many tokens, likely ones too, wait for a reader that has taken none for so many
# seconds. The second keeps those who read, but slower than the model samples, up to the bound
# (some 100 MiB), at which each job ends.
MOST_UNREAD, PATIENCE, BOUND = 2**16, 5.0, 2**20


class SlowReaderError(Exception):
    """A client does not read what it asked for."""


@dataclass(eq=False)
class Job:
    """What one HTTP request asks of the engine: one group a prompt, or W groups of one row.

    Args:
        prompts: Prompts, one a group.
        params: Parameters of sampling for each.
        coupled: Whether the rows of a prompt read each other.
        sample_id: Id that tells groups of one prompt apart; None counts them.
        streaming: Whether its steps are wanted, and not only the finished groups.

    Attributes:
        requests: Requests that the worker put into the core.
        mailbox: Events with the index of their request, and at last None or an error.
    """

    prompts: Sequence[Prompt]
    params: SamplingParams
    coupled: bool = True
    sample_id: int | str | None = None
    streaming: bool = False
    requests: list[Request] = field(default_factory=list)
    mailbox: asyncio.Queue[tuple[int, Event] | Exception | None] = field(
        default_factory=asyncio.Queue
    )
    born: float = field(default_factory=time.monotonic)
    began: bool = False
    numbers: dict[int, int] = field(default_factory=dict)  # index of a request by the core's number
    unread: int = 0  # tokens in the mailbox
    read: float = field(default_factory=time.monotonic)  # when something was last taken from it
    ended: bool = False

    @property
    def groups_a_prompt(self) -> int:
        """Requests of the core that answer one prompt."""
        return 1 if self.coupled else self.params.width

    def post(self, item: tuple[int, Event] | Exception | None) -> None:
        """Put into the mailbox what is to be read."""
        self.unread += self._tokens(item)
        self.mailbox.put_nowait(item)

    @property
    def is_ignored(self) -> bool:
        """Whether its reader takes nothing while much waits, or too little."""
        is_waiting = time.monotonic() - self.read > PATIENCE
        return self.unread > (MOST_UNREAD if is_waiting else BOUND)

    async def mail(self) -> AsyncIterator[tuple[int, Event]]:
        """What comes of the job, to its end."""
        while (item := await self.mailbox.get()) is not None:
            if isinstance(item, Exception):
                raise item
            self.unread -= self._tokens(item)
            self.read = time.monotonic()
            yield item

    def _tokens(self, item: tuple[int, Event] | Exception | None) -> int:
        step = item[1].step if isinstance(item, tuple) else None
        return 0 if step is None else sum(step.alive) * (1 + self.params.top_logprobs)


class Worker:
    """The thread, its inbox, and the jobs that it works for; from now on the engine is its own."""

    def __init__(self, engine: Engine, metrics: Metrics) -> None:
        self.engine, self.metrics = engine, metrics
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._jobs: dict[int, Job] = {}  # by the core's number of a request
        self._alive: dict[int, int] = {}  # rows that are sampled, likewise
        metrics.rows_alive.set_function(lambda: sum(list(self._alive.values())))
        metrics.queue.set_function(lambda: len(self._jobs) - len(self._alive))
        self._loop: asyncio.AbstractEventLoop | None = None
        self._refusal: Exception | None = None  # of whatever is still asked
        self._thread = threading.Thread(target=self._run, name="interlace-worker", daemon=True)
        # Texts become ids beside the steps, with a tokenizer of their own: two threads in one
        # fast tokenizer raise "Already borrowed".
        self._encoder = ThreadPoolExecutor(1, thread_name_prefix="interlace-encoder")
        self.tokenizer = copy.deepcopy(engine.tokenizer)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to work; events go to queues of this loop."""
        self._loop = loop
        self._thread.start()

    @property
    def is_working(self) -> bool:
        """Whether the thread is there; without it the server answers nothing."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """End the thread after its present step; what runs is lost."""
        self._inbox.put(None)
        self._thread.join(timeout=30)
        self._encoder.shutdown(wait=False, cancel_futures=True)

    async def submit(
        self,
        job: Job,
        check: Callable[[list[Request]], None],
        change: Callable[[Request], Request],
    ) -> None:
        """Encode a job's prompts and put it into the queue.

        Args:
            job: The job.
            check: Function that raises for requests that the server does not take.
            change: Function that replaces a request once its prompt's tokens are known.

        Raises:
            GenerationError: for prompts or parameters that cannot be carried out.
        """
        loop = asyncio.get_running_loop()
        job.requests = await loop.run_in_executor(self._encoder, self._requests, job)
        check(job.requests)
        job.requests = [change(request) for request in job.requests]
        self._inbox.put(lambda: self._add(job))
        if self._refusal is not None:  # perhaps it looked into its inbox for the last time
            raise self._refusal

    async def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt, which may be longer than the model's context."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._encoder, encode, prompt, 0, self.tokenizer)

    def abort(self, job: Job) -> None:
        """Let go of a job's rows before the next step; of a job that has ended, nothing."""
        self._inbox.put(lambda: self._abort(job))

    def refuse(self, error: Exception) -> None:
        """End all jobs after the present step, and those that still come, with this error."""

        def end() -> None:
            self._refusal = error
            self._fail_all(error)

        self._inbox.put(end)

    async def between_steps(self, act: Callable[[], Any]) -> Any:
        """Carry out something else with the model, in the worker's thread."""
        future: Future[Any] = Future()

        def carry_out() -> None:
            if not future.set_running_or_notify_cancel():
                return  # who asked has gone: a result could not be set, and would fail all jobs
            try:
                future.set_result(act())
            except Exception as error:
                future.set_exception(error)

        self._inbox.put(carry_out)
        return await asyncio.wrap_future(future)

    # In the encoder's thread ----------------------------------------------------------------------

    def _requests(self, job: Job) -> list[Request]:
        """Requests of the core for each prompt, W of one row each where rows are alone."""
        backend, stats, params = self.engine.core.backend, EngineStats(), job.params
        ids = None if job.sample_id is None else [job.sample_id] * len(job.prompts)
        made = make_requests(backend, self.tokenizer, job.prompts, params, ids, stats)
        if job.coupled:
            return made
        single = replace(params, width=1, record_attention=None)
        skips = backend.skips_alone  # then their prompt goes by the blocks, as they do
        return [  # with the same uniforms
            replace(whole, params=single, keys=whole.keys[row : row + 1], alone=skips)
            for whole in made
            for row in range(params.width)
        ]

    # In the worker's thread -----------------------------------------------------------------------

    def _run(self) -> None:
        core = self.engine.core
        core.refresh()
        while True:
            try:
                if not self._take_commands(wait=core.is_idle):
                    return
                if not core.is_idle:
                    self._deliver(core.step())
            except Exception as error:  # a fault of ours: those it hits are told, and others go on
                log.error("A step failed: %s", type(error).__name__)
                log.debug("A step failed", exc_info=error)
                if not self._fail_all(RuntimeError("The step failed.")):
                    self._refuse_for_good()
                    return

    def _take_commands(self, wait: bool) -> bool:
        """Carry out what is in the inbox; False to end."""
        while True:
            try:
                command = self._inbox.get(block=wait)
            except queue.Empty:
                return True
            if command is None:
                return False
            command()
            wait = False

    def _add(self, job: Job) -> None:
        if self._refusal is not None:
            self._hand_over([(job, self._refusal)])
            return
        for index, request in enumerate(job.requests):
            number = self.engine.core.add(request, streaming=True)
            job.numbers[number] = index
            self._jobs[number] = job

    def _abort(self, job: Job) -> None:
        for number in list(job.numbers):
            self._forget(job, number)
            self.engine.core.abort(number)

    def _forget(self, job: Job, number: int) -> None:
        del job.numbers[number], self._jobs[number]
        self._alive.pop(number, None)

    def _fail_all(self, error: Exception) -> bool:
        """Tell all jobs, and let go of them; False if the core cannot even do that."""
        jobs = {id(job): job for job in self._jobs.values()}
        self._hand_over([(job, error) for job in jobs.values()])
        try:
            for job in jobs.values():
                self._abort(job)
        except Exception as fault:
            log.critical("The worker ends: %s", type(fault).__name__)
            return False
        return True

    def _refuse_for_good(self) -> None:
        """Tell those who still come, and who would wait without end, that nobody works here."""
        self._refusal = RuntimeError("The worker has ended.")
        while not self._inbox.empty():
            with contextlib.suppress(Exception):
                command = self._inbox.get()
                if command is not None:
                    command()

    def _deliver(self, events: Sequence[Event]) -> None:
        """Hand the events of a step to the loop, all in one call."""
        mail: list[tuple[Job, tuple[int, Event] | Exception | None]] = []
        for event in events:
            job = self._jobs.get(event.id)
            if job is None:
                continue
            index = job.numbers[event.id]
            self._count(job, event)
            if event.error is not None:
                self._forget(job, event.id)
                self._abort(job)
                mail.append((job, event.error))
                continue
            if event.group is not None or job.streaming:
                mail.append((job, (index, event)))
            if event.group is not None:
                self._forget(job, event.id)
                if not job.numbers:
                    mail.append((job, None))
        if mail:
            self._hand_over(mail)

    def _hand_over(self, mail: list[tuple[Job, Any]]) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._post, mail)

    def _count(self, job: Job, event: Event) -> None:
        if not job.began:
            job.began = True
            self.metrics.first_token.observe(time.monotonic() - job.born)
        if event.step is not None:
            ended = sum(reason is not None for reason in event.step.finish_reasons)
            self._alive[event.id] = sum(event.step.alive) - ended
            self.metrics.count_tokens(sum(event.step.alive))
        if event.group is not None:
            self.metrics.count_group(event.group)

    # In the event loop ----------------------------------------------------------------------------

    def _post(self, mail: list[tuple[Job, Any]]) -> None:
        for job, item in mail:
            if job.ended:
                continue
            if job.is_ignored:
                job.ended, item = True, SlowReaderError("What was sampled was not read.")
                self.abort(job)
            job.post(item)


def assembled(job: Job, groups: dict[int, GroupOutput]) -> list[GroupOutput]:
    """One group a prompt, of groups of single rows where rows were alone."""
    if job.coupled:
        return [groups[index] for index in range(len(job.prompts))]
    width = job.params.width
    whole = []
    for index, prompt in enumerate(job.prompts):
        rows = [groups[index * width + row] for row in range(width)]
        whole.append(
            GroupOutput(
                prompt=prompt,
                prompt_token_ids=rows[0].prompt_token_ids,
                completions=[row.completions[0] for row in rows],
                params=job.params,
                seconds=max(row.seconds for row in rows),
            )
        )
    return whole
