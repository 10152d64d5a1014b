"""The engine's core: requests in, events out, one step after another.

`add` puts a request in the queue, `step` admits what fits or feeds one token of every live row,
`abort` takes a request out; all three at any time, by one thread at a time. The unit of scheduling
is the group. Keys and values, and with them which rows and prompts there are, belong to the
backend; the core keeps what each row has got.

Axes: W width.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import nn

from interlace.engine.backends.hf import HFBackend
from interlace.engine.kv import StoredPrompt
from interlace.engine.request import Request
from interlace.engine.state import (
    Drawing,
    Row,
    RunningGroup,
    Ticket,
    ahead_of,
    draw,
    drawing_of,
    is_out_of_memory,
    needs_host,
)
from interlace.engine.types import EngineStats, GroupOutput, Step
from interlace.errors import GenerationError

_ROWS_ADMITTED = 64  # at once, so that their logits stay small
_CALM = 256  # steps without want of memory after which more rows are tried again
# Of what is free. The rest is for activations and logits, and for the copy by which stores grow.
_SHARE = 0.5
_UNKNOWN = 4 * 2**30  # where the system does not say what is free
_CUDA_ROWS, _CPU_ROWS, _SMALL_ROWS = 256, 64, 512
_LARGE = 2**27  # weights of which 64 rows keep a processor's core busy
_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Limits:
    """What the core may use: bytes for keys and values, and rows in one pass."""

    memory: int
    rows: int


@dataclass(frozen=True)
class Event:
    """What a step brought to one request.

    Attributes:
        id: Number that `add` returned.
        step: Tokens and texts of its rows, where it streams.
        number: Steps of the request before that one.
        group: The group, with the last event of a request that ended well.
        error: Error that ended the request; it alone, unless its whole pass failed.
    """

    id: int
    step: Step | None = None
    group: GroupOutput | None = None
    error: Exception | None = None
    number: int = 0


class EngineCore:
    """Runs requests of any number of callers, all in the same passes.

    Args:
        backend: Backend that computes the model.
        tokenizer: Tokenizer of the model; None if no text is wanted.
        limits: Function that gives the memory and rows it may use; asked whenever work begins.

    Attributes:
        outbox: Events that nobody has taken yet.
    """

    def __init__(self, backend: HFBackend, tokenizer: Any, limits: Callable[[], Limits]) -> None:
        self.backend = backend
        self._tokenizer = tokenizer
        self._ask_limits = limits
        self._limits = Limits(0, 0)
        self._most_rows = 0  # at once, at most the limit; fewer after memory ran out
        self._calm = 0  # decode steps since then
        self.outbox: deque[Event] = deque()
        self._ids = count()
        self._waiting: deque[Ticket] = deque()
        self._running: list[RunningGroup] = []
        self._prompts: dict[bytes, StoredPrompt] = {}  # in the backend, by their requests' keys
        self._outdated: list[StoredPrompt] = []  # of which rows may be left
        self._admission: Generator[None, None, Drawing] | None = None  # that has begun
        self._admitting: list[Ticket] = []  # whom it is for; they wait until its end
        self._rows_come_next = False  # whether the last act was a part of it
        self._is_torn = False  # an interrupt may have left a part of a change, here or there
        self._admits_several = True
        self._executor: ThreadPoolExecutor | None = None

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._waiting and not self._running

    @property
    def numbers(self) -> list[int]:
        """Numbers of the requests that have not ended."""
        running = [group.ticket.id for group in self._running]
        return running + [ticket.id for ticket in self._waiting]

    def refresh(self) -> None:
        """Follow a model that has changed, with all groups that begin from now on."""
        self.backend.refresh()
        self._drop_admission()
        self._outdated += self._prompts.values()
        self._prompts.clear()

    def add(self, request: Request, *, streaming: bool = False) -> int:
        """Put a request in the queue.

        Args:
            request: Request as `make_requests` makes it.
            streaming: Whether events are to hold each step.

        Returns:
            The number by which its events name it.
        """
        if self.is_idle:
            self._limits, self._admits_several = self._ask_limits(), True
            self._most_rows = self._limits.rows
        ticket = Ticket(next(self._ids), request, streaming)
        self._waiting.append(ticket)
        return ticket.id

    def step(self) -> list[Event]:
        """Admit the groups that fit, else feed one token of every live row; what came of it."""
        self.advance()
        events = list(self.outbox)
        self.outbox.clear()
        return events

    def advance(self) -> None:
        """`step`, which leaves its events in the outbox: there no interrupt can lose one.

        It computes in the model's own data types: autocast of the thread that happens to step would
        reach the groups of all others.
        """
        with torch.inference_mode(), torch.autocast(self.backend.device.type, enabled=False):
            self._advance()

    def _advance(self) -> None:
        if self._is_torn:
            self._begin_again()
        began, rows = time.perf_counter(), self._live_rows()
        admitting = self._is_to_admit(rows)
        try:
            drawing = self._go_on_admitting(rows) if admitting else self._decode(rows)
        except Exception as error:
            self._is_torn = True
            if is_out_of_memory(error):
                self._make_room(error, admitting)
            else:
                self._fail_pass(error, admitting)
            self._drop_admission()
            self._is_torn = False
            return
        self._rows_come_next = drawing is None
        if drawing is None:
            calls = _calls(self._admitting)
        else:
            calls = _calls(row.group for row in drawing.tokens)
            self._take(drawing, wait=not rows and not admitting)
        seconds = time.perf_counter() - began
        for stats, _ in calls:
            stats.prefill_seconds += seconds if admitting else 0.0
            stats.decode_seconds += 0.0 if admitting else seconds

    @torch.inference_mode()
    def abort(self, number: int) -> GroupOutput | None:
        """Take a request out, wherever it is.

        Returns:
            The group as it is, if it had begun.
        """
        if self._is_torn:
            return self._abort_torn(number)
        partial = None
        self._is_torn = True
        for ticket in [ticket for ticket in self._waiting if ticket.id == number]:
            self._waiting.remove(ticket)
            if not any(one in self._waiting for one in self._admitting):
                self._drop_admission()  # nobody waits for its prompts any more
            self._tidy()
        for group in [group for group in self._running if group.ticket.id == number]:
            partial = _as_it_is(group)
            self._remove(group)
        self._is_torn = False
        return partial

    def _abort_torn(self, number: int) -> GroupOutput | None:
        """`abort` without the backend, of which nobody knows what it holds."""
        found = [group for group in self._running if group.ticket.id == number]
        partial = _as_it_is(found[0]) if found else None
        for ticket in [ticket for ticket in self._waiting if ticket.id == number]:
            self._waiting.remove(ticket)
        self._running = [group for group in self._running if group not in found]
        if self.is_idle:
            self._tidy()
            self._is_torn = False
        return partial

    # Scheduling -----------------------------------------------------------------------------------

    def _live_rows(self) -> list[Row]:
        """In the order of the backend, so that it need not gather."""
        rows = [row for group in self._running for row in group.rows if row.slot is not None]
        return sorted(rows, key=lambda row: row.slot.place if row.slot else 0)

    def _fits(self, tickets: Sequence[Ticket]) -> bool:
        """Whether these groups can be admitted at once; a group alone always can."""
        maxima = [maximum for ticket in tickets for maximum in ticket.request.maxima]
        new = {t.request.prompt_key: len(t.request.token_ids) for t in tickets}
        lengths = [length for key, length in new.items() if key not in self._prompts]
        live = len(self._live_rows())
        is_alone = not live and len(tickets) == 1
        if live + len(maxima) > self._most_rows and not is_alone:
            return False
        try:
            return self.backend.room(maxima, lengths, self._limits.memory) or is_alone
        except Exception as error:
            if is_out_of_memory(error):  # for the copy by which room is given back
                return is_alone
            raise

    def _is_to_admit(self, rows: list[Row]) -> bool:
        """Whether groups come next: a part of their prefill between two steps of all others."""
        if self._admission is not None:
            return not (rows and self._rows_come_next)
        return bool(self._waiting) and self._fits([self._waiting[0]])

    def _go_on_admitting(self, rows: list[Row]) -> Drawing | None:
        """The next part of an admission, or all of it where no row waits for its end; None before
        that."""
        if self._admission is None:
            self._admission = self._admit()
        try:
            next(self._admission)
            while not rows:
                next(self._admission)
        except StopIteration as end:
            self._admission, self._admitting = None, []
            drawing: Drawing | None = end.value
            return drawing or Drawing()  # nothing where an interrupt has ended it
        return None

    def _drop_admission(self) -> None:
        """Have it begin again."""
        self._admission, self._admitting = None, []

    def _make_room(self, error: Exception, admitting: bool) -> None:
        """Without memory for an act, put the youngest group back and go on with fewer rows."""
        rows = len(self._live_rows())
        running = [g for g in self._running if any(row.slot for row in g.rows)]
        if admitting and not running and self._admits_several and len(self._waiting) > 1:
            self._admits_several = False
            self._note(f"Out of memory at {rows} rows: groups begin one by one.")
            return
        if len(running) <= (0 if admitting else 1):
            failure = GenerationError(
                f"Not enough memory for one group: {error}. Its keys and values take "
                f"{self.backend.nbytes / 2**20:.0f} MiB so far. Use a smaller width, fewer "
                "max_new_tokens, or a shorter prompt."
            )
            failure.__cause__ = error
            self._fail(self._first_to_admit() if admitting else running[0], failure)
            return
        if not admitting:
            self._put_back(running[-1])
        self._most_rows, self._calm = max(1, min(self._most_rows, rows) // 2), 0
        self._note(
            f"Out of memory at {rows} rows: going on with at most {self._most_rows} at once."
        )

    def _note_calm(self) -> None:
        """After many steps for which there was memory, try more rows again."""
        self._calm += 1
        if self._calm == _CALM:
            self._calm, self._admits_several = 0, True
            self._most_rows = min(2 * self._most_rows, self._limits.rows)

    def _first_to_admit(self) -> Ticket:
        wanted = (ticket for ticket in self._admitting if ticket in self._waiting)
        return next(wanted, self._waiting[0])

    def _fail_pass(self, error: Exception, admitting: bool) -> None:
        """An error that no single group of a pass can be blamed for ends all of them."""
        for one in [self._first_to_admit()] if admitting else list(self._running):
            self._fail(one, error)

    def _note(self, remark: str) -> None:
        tickets = [group.ticket for group in self._running] + list(self._waiting)
        for stats, _ in _calls(tickets):
            stats.notes.append(remark)

    def _put_back(self, group: RunningGroup) -> None:
        """Begin a group again later; its uniforms depend on the request alone, so nothing is
        lost."""
        if group.ticket not in self._waiting:
            self._waiting.appendleft(group.ticket)
        self._remove(group)
        group.request.stats.preempted_groups += 1

    def _begin_again(self) -> None:
        """After an interrupt in the middle of a change: nobody knows which rows have got their
        tokens, nor which the backend holds, so all groups that are still wanted begin again."""
        for group in reversed(list(self._running)):
            if group.ticket not in self._waiting:
                self._waiting.appendleft(group.ticket)
            self._running.remove(group)
            group.request.stats.preempted_groups += 1
        self._clear()
        self._is_torn = False

    # Steps ----------------------------------------------------------------------------------------
    # Nothing changes before all tokens of a step are drawn, so that it can be done again.

    def _admit(self) -> Generator[None, None, Drawing]:
        """Prefill prompts, unless they are stored, and draw their rows' first tokens, of several
        groups in one call. Between the parts of it, others may go on."""
        self._admitting = tickets = [self._waiting[0]]
        # It goes first: it shows what a position takes.
        failed = yield from self._prefill([tickets[0].request])
        for ticket in list(self._waiting)[1:]:
            enough = sum(t.request.params.width for t in tickets) >= _ROWS_ADMITTED
            if enough or not self._admits_several or not self._fits([*tickets, ticket]):
                break
            tickets.append(ticket)
        others = [t.request for t in tickets if t.request.prompt_key not in failed]
        failed |= yield from self._prefill(others)
        wanted = [ticket for ticket in tickets if ticket in self._waiting]  # not ended meanwhile
        groups = [RunningGroup(t, self._tokenizer, self._ask, self.backend.mixes) for t in wanted]
        sound = [group for group in groups if group.request.prompt_key not in failed]
        rows = [row for group in sound for row in group.rows]
        drawing = Drawing()
        if rows:
            logits = [self._prompts[g.request.prompt_key].logits[None] for g in sound]
            each = [one.expand(len(g.rows), -1) for one, g in zip(logits, sound, strict=True)]
            all_logits = each[0] if len(each) == 1 else torch.cat(each)
            drawing = draw(rows, all_logits, self.backend.sample)
        drawing.failed |= {
            group: failed[group.request.prompt_key] for group in groups if group not in sound
        }
        self._is_torn = True
        for group in groups:
            self._running.append(group)
            self._waiting.remove(group.ticket)
            if group not in drawing.failed:
                stored = self._prompts[group.request.prompt_key]
                request = group.request
                slots = self.backend.open(stored, request.maxima, request.params.hidden)
                for row, slot in zip(group.rows, slots, strict=True):
                    row.slot = slot
        return drawing

    def _prefill(
        self, requests: Sequence[Request]
    ) -> Generator[None, None, dict[bytes, Exception]]:
        """Compute the prompts that are not stored, once for all groups that answer them; those that
        cannot be, with what they raise.

        Only want of memory is raised; what was computed before it stays.
        """
        missing = list(
            {r.prompt_key: r for r in requests if r.prompt_key not in self._prompts}.values()
        )
        failed: dict[bytes, Exception] = {}
        passes = self.backend.passes([len(request.token_ids) for request in missing])
        while passes:
            together = [missing[place] for place in passes.pop(0)]
            try:
                stored = yield from self.backend.prefill(
                    [request.token_ids for request in together], [r.alone for r in together]
                )
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                if len(together) == 1:
                    failed[together[0].prompt_key] = error
                else:  # each alone, so that only those fail that have to
                    passes = [[missing.index(request)] for request in together] + passes
                continue
            for request, prompt in zip(together, stored, strict=True):
                self._prompts[request.prompt_key] = prompt
                request.stats.prefill_tokens += len(request.token_ids)
            if passes:
                yield
        return failed

    def _decode(self, rows: list[Row]) -> Drawing:
        """Feed every live row's last token, and draw the next ones."""
        if not rows:
            return Drawing()
        groups = list(dict.fromkeys(row.group for row in rows))
        if self.backend.draws:
            by_itself = not any(needs_host(group.request) for group in groups)
            if by_itself or self.backend.is_ahead:
                return self._draw_ahead(rows, by_itself)
        recorded = [g for g in groups if g.is_recorded]
        slots = [row.slot for row in rows if row.slot is not None]
        logits, attention = self.backend.decode(
            [row.tokens[-1] for row in rows], slots, recording=bool(recorded)
        )
        drawing = draw(rows, logits, self.backend.sample)
        weights = None if attention is None else attention.cpu().numpy()
        self._is_torn = True
        self.backend.advance()
        self._note_calm()
        for group in recorded if weights is not None else ():
            assert weights is not None
            group.note_attention(weights, rows, [i for i, r in enumerate(rows) if r.group is group])
        self._count(rows)
        return drawing

    def _draw_ahead(self, rows: list[Row], go_on: bool) -> Drawing:
        """A step of a backend that draws by itself, and perhaps the beginning of the next."""
        of = {row.slot: row for row in rows}
        slots = [row.slot for row in rows if row.slot is not None]
        self._is_torn = True
        have, values = self.backend.draw(slots, lambda slot: ahead_of(of[slot]), go_on)
        self._note_calm()
        drawn = [of[slot] for slot in have]
        self._count(drawn)
        return drawing_of(drawn, values)

    def _count(self, rows: Sequence[Row]) -> None:
        for stats, number in _calls(row.group for row in rows):
            stats.decode_steps += 1
            stats.computed_row_steps += number
            stats.alive_row_steps += number
            stats.peak_cache_bytes = max(stats.peak_cache_bytes, self.backend.nbytes)

    def _take(self, drawing: Drawing, wait: bool) -> None:
        """Give the rows their tokens, and settle what that means: the stream, a settled majority,
        rows and groups that ended. It waits for a majority where nothing else is to be done."""
        for row, drawn in drawing.tokens.items():
            try:
                row.append(drawn)
            except Exception as unreadable:  # of the tokenizer
                drawing.failed.setdefault(row.group, unreadable)
            row.group.request.stats.sampled_tokens += 1
        for group, error in drawing.failed.items():
            self._fail(group, error)
        for group in list(self._running):
            try:
                group.settle(wait)
                self._report(group)
            except Exception as error:  # of a user's function, or of the tokenizer
                self._fail(group, error)
        self._is_torn = False

    def _report(self, group: RunningGroup) -> None:
        name = group.ticket.id
        result = group.result() if group.is_finished else None
        is_told = False
        for number, step, is_last in group.new_steps():
            is_told = is_last
            self.outbox.append(Event(name, step, result if is_last else None, number=number))
        if result is not None:
            if not is_told:
                self.outbox.append(Event(name, group=result))
            self._remove(group)
            return
        self._release([row for row in group.rows if row.finish_reason is not None])

    # What is over ---------------------------------------------------------------------------------

    def _fail(self, what: RunningGroup | Ticket, error: Exception) -> None:
        ticket = what if isinstance(what, Ticket) else what.ticket
        self.outbox.append(Event(ticket.id, error=error))
        if isinstance(what, RunningGroup):
            self._remove(what)
        else:
            self._waiting.remove(what)
            self._tidy()

    def _remove(self, group: RunningGroup) -> None:
        self._running.remove(group)
        self._release(group.rows)
        group.rows.clear()  # each knows its group: what they hold would wait for the collector

    def _release(self, rows: Iterable[Row]) -> None:
        live = [row for row in rows if row.slot is not None]
        for row in sorted(live, key=lambda row: row.slot.place if row.slot else 0, reverse=True):
            slot, row.slot = row.slot, None
            if slot is not None:
                self.backend.release(slot)
        self._tidy()

    def _tidy(self) -> None:
        """Let go of prompts that no row answers, but for those of groups that come next."""
        if self.is_idle:
            self._clear()
            return
        ahead = {t.request.prompt_key for t in [*list(self._waiting)[:1], *self._admitting]}
        for key, prompt in list(self._prompts.items()):
            if prompt.users == 0 and key not in ahead:
                del self._prompts[key]
                self.backend.release(prompt)
        for prompt in [old for old in self._outdated if old.users == 0]:
            self._outdated.remove(prompt)
            self.backend.release(prompt)

    def _clear(self) -> None:
        """Let go of all rows and prompts."""
        self._drop_admission()
        self._prompts.clear()
        self._outdated.clear()
        self.backend.clear()

    def _ask(self, question: Callable[..., bool], *arguments: Any) -> Future[bool]:
        if self._executor is None:
            self._executor = ThreadPoolExecutor(4, thread_name_prefix="interlace-consensus")
        return self._executor.submit(question, *arguments)


def _as_it_is(group: RunningGroup) -> GroupOutput | None:
    """What a group has by now; None where its tokenizer cannot say it."""
    try:
        return group.result()
    except Exception:
        return None


def _calls(whose: Iterable[RunningGroup | Ticket]) -> list[tuple[EngineStats, int]]:
    """The statistics of the calls that rows or requests belong to, with the number of those."""
    calls: dict[int, tuple[EngineStats, int]] = {}
    for one in whose:
        stats = one.request.stats
        calls[id(stats)] = stats, calls.get(id(stats), (stats, 0))[1] + 1
    return list(calls.values())


def budget_for(device: torch.device) -> int:
    """Bytes that keys and values may take on a device: half of what is free when a call begins."""
    return int(free_bytes(device) * _SHARE)


def default_rows(model: nn.Module, cuda: bool) -> int:
    """Rows in one pass, of a model that may be on the meta device. A step of a small one is all
    calls, which cost the same for any number of rows; in a large one more rows bring nothing and
    have single groups wait."""
    if cuda:
        return _CUDA_ROWS
    weights = sum(parameter.numel() for parameter in model.parameters())
    return min(max(_CPU_ROWS * _LARGE // max(weights, 1), _CPU_ROWS), _SMALL_ROWS)


def free_bytes(device: torch.device) -> int:
    """Bytes that a device can still give; of the system's memory, within the container's limit
    where there is one."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        free = _UNKNOWN
    try:
        limit = int((_CGROUP / "memory.max").read_text())  # "max" where there is none
        used = int((_CGROUP / "memory.current").read_text())
        stat = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        return max(0, min(free, limit - used + int(stat["inactive_file"])))
    except (OSError, KeyError, ValueError):
        return free
