"""The engine's state while a call runs: which groups wait, which rows are live, one step after
another.

Axes: R live rows, W width, V vocabulary. The unit of scheduling is the group.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interlace.engine.backends.hf import Forward
from interlace.engine.kv import SharedCache
from interlace.engine.sampling import needs_history, sample, uniforms
from interlace.engine.state import Drawn, Request, Row, RunningGroup
from interlace.engine.types import EngineStats, GroupOutput
from interlace.errors import GenerationError
from interlace.rows import Owners

_ROWS_ADMITTED = 64  # at once, so that their logits stay small

# Groups, their rows that are live, and each row's next token.
_Drawing = tuple[list[RunningGroup], list[Row], list[Drawn]]


@dataclass(frozen=True)
class Limits:
    """What a call may use: bytes for keys and values, and rows in one pass."""

    memory: int
    rows: int


class Runner:
    """Runs requests to their end, `advance` by `advance`.

    Attributes:
        results: the finished groups, by their request's index, until someone takes them out.
    """

    def __init__(
        self,
        forward: Forward,
        tokenizer: Any,
        requests: Sequence[Request],
        limits: Limits,
        stats: EngineStats,
        streaming: bool = False,
    ) -> None:
        self.results: dict[int, GroupOutput] = {}
        self._forward = forward
        self._tokenizer = tokenizer
        self._waiting = deque(requests)
        self._running: list[RunningGroup] = []
        self._rows: list[Row] = []  # in the cache's order
        self._cache = SharedCache()
        # Place in the cache and last logits of each stored prompt.
        self._prompts: dict[bytes, tuple[int, Float[Tensor, "1 V"]]] = {}
        self._live: Owners | None = None
        self._limits = limits
        self._stats = stats
        self._streaming = streaming
        self._admits_several = True

    @property
    def is_done(self) -> bool:
        return not self._waiting and not self._running

    @property
    def waiting(self) -> int:
        """Groups that have not begun."""
        return len(self._waiting)

    def partial(self) -> dict[int, GroupOutput]:
        """The groups that are running, as they are, for those who have to stop early."""
        return {group.request.index: group.result() for group in self._running}

    def advance(self) -> list[RunningGroup]:
        """Admit the groups that fit, else feed one token of every live row.

        Returns:
            The groups that got tokens; some may be finished.
        """
        began = time.perf_counter()
        admitting = bool(self._waiting) and self._fits(self._waiting[0])
        try:
            with self._forward.ready():
                groups, rows, drawn = self._admit() if admitting else self._decode()
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            self._make_room(error, admitting)
            return []
        self._finish_step(groups, rows, drawn)
        if admitting:
            self._stats.prefill_seconds += time.perf_counter() - began
        else:
            self._stats.decode_seconds += time.perf_counter() - began
        return groups

    # Scheduling -----------------------------------------------------------------------------------

    @torch.inference_mode()
    def _fits(self, request: Request, admitted: Sequence[RunningGroup] = ()) -> bool:
        """Whether a group can be admitted, after those that are just being so; makes room for it
        where rows and prompts that are gone have left some."""
        cache, memory = self._cache, self._limits.memory
        running = [*self._running, *admitted]
        rows = len(self._rows) + sum(len(g.rows) for g in admitted) + request.params.width
        if running and rows > self._limits.rows:
            return False
        is_stored = request.prompt_key in self._prompts
        lengths = [*cache.prompt_lengths, *([] if is_stored else [len(request.token_ids)])]
        longest = max([group.request.longest for group in running] + [request.longest])
        size = (rows, longest, len(lengths), max(lengths))
        if running and cache.bytes_needed(*size) > memory:
            return False
        if cache.bytes_at_most(*size) > memory:
            cache.trim()
        return True

    def _make_room(self, error: BaseException, admitting: bool) -> None:
        """Without memory for an act, put the youngest group back and go on with fewer rows."""
        rows = len(self._rows)
        if admitting and not self._running and self._admits_several and len(self._waiting) > 1:
            self._admits_several = False
            self._stats.notes.append(f"Out of memory at {rows} rows: groups begin one by one.")
            return
        if len(self._running) <= (0 if admitting else 1):
            raise GenerationError(
                f"Not enough memory for one group: {error}. Its keys and values take "
                f"{self._cache.nbytes / 2**20:.0f} MiB so far. Use a smaller width, fewer "
                "max_new_tokens, or a shorter prompt."
            ) from error
        if not admitting:
            self._put_back(self._running[-1])
        self._limits = Limits(self._limits.memory, max(1, min(self._limits.rows, rows) // 2))
        self._stats.notes.append(
            f"Out of memory at {rows} rows: going on with at most {self._limits.rows} at once."
        )

    def _put_back(self, group: RunningGroup) -> None:
        """Begin a group again later; its uniforms depend on the request alone, so nothing is
        lost."""
        for place in reversed(range(len(self._rows))):
            if self._rows[place].group is group:
                self._drop_row(place)
        self._running.remove(group)
        self._waiting.appendleft(group.request)
        self._stats.preempted_groups += 1

    # Steps ----------------------------------------------------------------------------------------
    # Nothing changes before all tokens of a step are drawn, so that it can be done again.

    def _admit(self) -> _Drawing:
        """Prefill prompts at width 1, unless they are stored, and draw their rows' first tokens, of
        several groups in one call."""
        groups: list[RunningGroup] = []
        places: list[int] = []
        logits: list[Float[Tensor, "W V"]] = []
        for request in self._waiting:
            rows = sum(len(group.rows) for group in groups)
            enough = rows >= _ROWS_ADMITTED or not self._admits_several
            if groups and (enough or not self._fits(request, groups)):
                break
            if request.prompt_key not in self._prompts:
                keys_values, last = self._forward.prefill(request.token_ids)
                place = self._cache.add_prompt(keys_values, len(request.token_ids))
                self._prompts[request.prompt_key] = place, last
                self._stats.prefill_tokens += len(request.token_ids)
            place, last = self._prompts[request.prompt_key]
            groups.append(RunningGroup(request, self._tokenizer, self._streaming))
            places.append(place)
            logits.append(last.expand(request.params.width, -1))
        rows_of_all = [row for group in groups for row in group.rows]
        drawn = _draw(rows_of_all, logits[0] if len(logits) == 1 else torch.cat(logits))
        for group, place in zip(groups, places, strict=True):
            self._running.append(group)
            self._waiting.popleft()
            self._cache.add_rows(place, len(group.rows))
        self._rows += rows_of_all
        self._live = None
        return groups, rows_of_all, drawn

    def _decode(self) -> _Drawing:
        """Feed every live row's last token, and draw the next ones."""
        cache, rows, stats = self._cache, self._rows, self._stats
        if self._live is None:
            self._live = Owners([id(r.group) for r in rows], self._forward.device)
        recording = any(g.request.params.record_attention for g in self._running)
        cache.begin_step(max(row.maximum for row in rows))
        stats.peak_cache_bytes = max(stats.peak_cache_bytes, cache.nbytes)
        logits, attention = self._forward.decode(
            [row.tokens[-1] for row in rows], cache, self._live, recording
        )
        drawn = _draw(rows, logits)
        weights = None if attention is None else attention.cpu().numpy()
        cache.end_step()
        if weights is not None:
            self._note_attention(weights)
        stats.decode_steps += 1
        stats.computed_row_steps += logits.shape[0]
        stats.alive_row_steps += sum(row.finish_reason is None for row in rows)
        return list(self._running), list(rows), drawn

    def _finish_step(
        self, groups: list[RunningGroup], rows: Sequence[Row], drawn: Sequence[Drawn]
    ) -> None:
        """Give the rows their tokens, and settle what that means: the stream, a settled majority,
        rows and groups that ended."""
        tokens: dict[RunningGroup, dict[int, int]] = {group: {} for group in groups}
        for row, each in zip(rows, drawn, strict=True):
            row.append(each)
            tokens[row.group][row.index] = each.token
        self._stats.sampled_tokens += len(rows)
        for group in groups:
            group.end_step(tokens[group])
            if group.is_finished:
                self.results[group.request.index] = group.result()
        for place in reversed(range(len(self._rows))):
            if self._rows[place].finish_reason is not None:
                self._drop_row(place)
        self._running = [group for group in self._running if not group.is_finished]

    @torch.inference_mode()
    def _drop_row(self, place: int) -> None:
        unused = self._cache.remove_row(place)
        self._rows[place] = self._rows[-1]
        self._rows.pop()
        self._live = None
        # A prompt without rows stays stored if the next group is to answer it, too.
        wanted = self._prompts.get(self._waiting[0].prompt_key) if self._waiting else None
        if unused is not None and (wanted is None or wanted[0] != unused):
            moved = self._cache.remove_prompt(unused)
            kept = {k: v for k, v in self._prompts.items() if v[0] != unused}
            self._prompts = {
                k: (unused if place == moved else place, logits)
                for k, (place, logits) in kept.items()
            }

    def _note_attention(self, weights: Float[np.ndarray, "L R R"]) -> None:
        for group in self._running:
            if group.request.params.record_attention is not None:
                places = [i for i, row in enumerate(self._rows) if row.group is group]
                group.note_attention(weights, self._rows, places)


def _draw(rows: Sequence[Row], logits: Float[Tensor, "R V"]) -> list[Drawn]:
    """The next token of each row; those that are sampled alike, in one call.

    Raises:
        GenerationError: if a row's logits are not numbers, or leave no token to draw.
    """
    alike: dict[Hashable, list[int]] = {}
    for place, row in enumerate(rows):
        alike.setdefault(row.group.request.sampling_key, []).append(place)
    drawn: dict[int, Drawn] = {}
    for places in alike.values():
        part = logits if len(places) == len(rows) else logits[places]
        drawn.update(zip(places, _draw_alike([rows[p] for p in places], part), strict=True))
    return [drawn[place] for place in range(len(rows))]


def _draw_alike(rows: Sequence[Row], logits: Float[Tensor, "R V"]) -> list[Drawn]:
    request = rows[0].group.request
    histories = None
    if needs_history(request.params):
        histories = [row.group.request.token_ids + row.tokens for row in rows]
    keys = np.array([row.key for row in rows], dtype=np.uint64)
    steps = np.array([len(row.tokens) for row in rows])
    sampled = sample(logits, uniforms(keys, steps), request.params, request.forbidden, histories)
    logprobs, sampled_logprobs = sampled.logprobs.tolist(), sampled.sampled_logprobs.tolist()
    tops: list[list[tuple[int, float]]] | list[None] = [None] * len(rows)
    if sampled.top_tokens is not None and sampled.top_logprobs is not None:
        pairs = zip(sampled.top_tokens.tolist(), sampled.top_logprobs.tolist(), strict=True)
        tops = [list(zip(ids, values, strict=True)) for ids, values in pairs]
    for row, logprob, sampled_logprob in zip(rows, logprobs, sampled_logprobs, strict=True):
        if logprob != logprob or sampled_logprob != sampled_logprob:
            raise _cannot_draw(row, logits_are_numbers=logprob == logprob)
    return list(map(Drawn, sampled.tokens.tolist(), logprobs, sampled_logprobs, tops))


def _cannot_draw(row: Row, logits_are_numbers: bool) -> GenerationError:
    where = f"prompt {row.group.request.index}, row {row.index}, step {len(row.tokens)}"
    if logits_are_numbers:
        return GenerationError(
            f"No token is left to sample at {where}: logits processors and forbidden tokens have "
            "taken all of them. Look at params.logits_processors; PAD and BOS are never sampled "
            "unless they are stop ids."
        )
    return GenerationError(
        f"The model's logits are not numbers (NaN or infinite) at {where}. Look for weights or "
        "activations that overflow; a wider dtype (bfloat16, float32) may help."
    )


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error)
    return "can't allocate memory" in text or "out of memory" in text
