"""The engine: prompts in, groups of interdependent completions out.

One engine for a model with Bridge, with P-Match, or with nothing attached (the independent
baseline). Each prompt is computed and stored once at width 1; its rows advance in lockstep; groups
are admitted as others finish, under a memory budget; rows that finish cost nothing any more.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import Any

from torch import nn

from interlace.engine.backends.hf import Forward
from interlace.engine.core import Limits, Runner
from interlace.engine.memory import budget_for
from interlace.engine.params import whole_number
from interlace.engine.request import list_of_prompts, make_requests
from interlace.engine.state import Request
from interlace.engine.types import EngineStats, GroupOutput, Prompt, SamplingParams, Step
from interlace.errors import GenerationError, GenerationInterrupted

_CPU_ROWS, _CUDA_ROWS = 64, 256

Progress = Callable[[EngineStats], None]


class Engine:
    """Samples groups of completions from a Hugging Face causal language model.

    Args:
        model: the model, attached or not; it may be one that a trainer is training: weights are
            followed, training mode and gradients are left as found.
        tokenizer: its tokenizer; None if all prompts are token ids and no text is wanted.
        memory_budget: the most bytes that keys and values may take; None computes it from the
            memory that is free when a call begins (half of it). A group that needs more than
            that runs alone.
        max_rows: the most rows in one pass; None is 64 on the CPU and 256 on a GPU. A group wider
            than that runs alone.
        prefill_chunk: prompt positions computed in one pass.
        packed: oneDNN-packed weights; None uses them on the CPU. They take as much memory again as
            the model's linears.

    Attributes:
        stats: what the last call cost; updated while it runs.

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
        packed: bool | None = None,
    ) -> None:
        for name, value in (("memory_budget", memory_budget), ("max_rows", max_rows)):
            if value is not None:
                whole_number(name, value, least=1)
        whole_number("prefill_chunk", prefill_chunk, least=1)
        self.model = model
        self.tokenizer = tokenizer
        self.stats = EngineStats()
        self._forward = Forward(model, prefill_chunk, packed)
        self._memory_budget = memory_budget
        self._max_rows = max_rows
        self._lock = threading.Lock()

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
            prompts: texts (verbatim), token ids, or lists of messages (chat template).
            params: how to sample; one for all or one for each prompt.
            sample_ids: what tells groups of the same prompt apart for their seeds; by default the
                prompt's occurrence in this call (0, 1, ...).
            progress: called after each step with the call's statistics.

        Raises:
            GenerationError: for prompts or parameters that cannot be carried out.
            GenerationInterrupted: on Ctrl-C; its `groups` hold what was finished, and what was not
                with the finish reason "interrupted".
        """
        requests = self._requests(list_of_prompts(prompts), params, sample_ids)
        with self._running(requests) as runner:
            while not runner.is_done:
                runner.advance()
                if progress is not None:
                    progress(self.stats)
        return [runner.results[index] for index in range(len(requests))]

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
            prompts: as in `generate`, like the other arguments.
            params: as in `generate`.
            sample_ids: as in `generate`.
            progress: as in `generate`.

        Raises:
            GenerationError: as in `generate`, at once.
            GenerationInterrupted: on Ctrl-C; its `groups` hold what was not handed out yet.
        """
        requests = self._requests(list_of_prompts(prompts), params, sample_ids)
        return self._as_completed(requests, progress)

    def _as_completed(
        self, requests: list[Request], progress: Progress | None
    ) -> Iterator[tuple[int, GroupOutput]]:
        with self._running(requests) as runner:
            while not runner.is_done:
                runner.advance()
                for index in list(runner.results):
                    yield index, runner.results[index]
                    del runner.results[index]
                if progress is not None:
                    progress(self.stats)

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        sample_id: int | str = 0,
    ) -> GroupStream:
        """Step by step through one group: iterate for `Step`s, then read `.group`.

        Args:
            prompt: a text (verbatim), token ids, or a list of messages (chat template).
            params: how to sample.
            sample_id: what tells groups of the same prompt apart for their seeds.

        Raises:
            GenerationError: if it cannot be carried out.
        """
        requests = self._requests([prompt], params, [sample_id])
        return GroupStream(self._running(requests, streaming=True))

    def _requests(
        self,
        prompts: list[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None,
        sample_ids: Sequence[int | str] | None,
    ) -> list[Request]:
        return make_requests(self._forward, self.tokenizer, prompts, params, sample_ids)

    @contextmanager
    def _running(self, requests: list[Request], streaming: bool = False) -> Iterator[Runner]:
        """A call: the engine is taken, and free again when it ends, in whatever way."""
        if not self._lock.acquire(blocking=False):
            raise GenerationError(
                "This engine is in the middle of another call (perhaps a stream that was not read "
                "to its end; close it). One engine runs one call at a time."
            )
        try:
            self._forward.refresh()
            self.stats = EngineStats()
            limits = Limits(self._memory(), self._rows())
            runner = Runner(self._forward, self.tokenizer, requests, limits, self.stats, streaming)
            try:
                yield runner
            except KeyboardInterrupt:
                partial = runner.partial()
                raise GenerationInterrupted(
                    f"Interrupted with {len(partial)} groups unfinished and {runner.waiting} not "
                    "begun; what there is lies in this exception's `groups`.",
                    runner.results | partial,
                ) from None
        finally:
            try:
                self._forward.restore()
            finally:
                self._lock.release()

    def _memory(self) -> int:
        if self._memory_budget is not None:
            return self._memory_budget
        return budget_for(self._forward.device)

    def _rows(self) -> int:
        if self._max_rows is not None:
            return self._max_rows
        return _CUDA_ROWS if self._forward.device.type == "cuda" else _CPU_ROWS


class GroupStream:
    """The steps of one group as they are sampled.

    It holds the engine until it is read to its end or closed; `with engine.stream(...) as stream:`
    closes it.
    """

    def __init__(self, running: AbstractContextManager[Runner]) -> None:
        self._kept: list[GroupOutput] = []
        # It must not hold this stream: a stream that is thrown away is to end at once.
        self._steps = _steps(running, self._kept)

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
        """Stop early and free the engine."""
        self._steps.close()


def _steps(
    running: AbstractContextManager[Runner], kept: list[GroupOutput]
) -> Generator[Step, None, None]:
    with running as runner:
        try:
            while not runner.is_done:
                for group in runner.advance():
                    if group.last_step is not None:
                        yield group.last_step
        finally:
            kept.extend((runner.results | runner.partial()).values())
