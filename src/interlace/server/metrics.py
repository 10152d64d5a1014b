"""What `/metrics` tells Prometheus."""

from __future__ import annotations

import time
from collections import deque

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from interlace.engine.types import GroupOutput

_SECONDS = 10.0  # over which tokens a second are counted
_FIRST_TOKEN = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)


class Metrics:
    """Counters of one server; written by its worker and its event loop."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "interlace_requests",
            "Requests by endpoint and status",
            ["endpoint", "status"],
            registry=registry,
        )
        self.in_flight = Gauge(
            "interlace_groups_in_flight", "Groups accepted and not finished", registry=registry
        )
        self.rows_alive = Gauge("interlace_rows_alive", "Rows that are sampled", registry=registry)
        self.queue = Gauge("interlace_groups_waiting", "Groups not begun", registry=registry)
        self.tokens = Counter("interlace_tokens", "Tokens sampled", registry=registry)
        self.prompt_tokens = Counter(
            "interlace_prompt_tokens", "Tokens of prompts, each prompt once", registry=registry
        )
        self.rate = Gauge(
            "interlace_tokens_per_second", f"Over the last {_SECONDS:.0f} s", registry=registry
        )
        self.rate.set_function(self._rate)
        self.first_token = Histogram(
            "interlace_time_to_first_token_seconds",
            "From the request to its first token",
            buckets=_FIRST_TOKEN,
            registry=registry,
        )
        self.steps = Counter(
            "interlace_row_steps", "Rows times steps of finished groups", registry=registry
        )
        self.straggling = Counter(
            "interlace_straggler_row_steps",
            "Of those, steps of rows that had ended before their group",
            registry=registry,
        )
        self.straggler_share = Gauge(
            "interlace_group_straggler_share",
            "Share of row-steps in which a row had ended and its group had not",
            registry=registry,
        )
        self._recent: deque[tuple[float, int]] = deque()
        self._row_steps = self._straggling_steps = 0

    def count_tokens(self, count: int) -> None:
        """Tokens of one step of one group."""
        self.tokens.inc(count)
        now = time.monotonic()
        self._recent.append((now, count))
        while self._recent and self._recent[0][0] < now - _SECONDS:
            self._recent.popleft()

    def count_group(self, group: GroupOutput) -> None:
        """A group that has ended."""
        lengths = [len(completion.token_ids) for completion in group.completions]
        whole = max(lengths) * len(lengths)
        self._row_steps += whole
        self._straggling_steps += whole - sum(lengths)
        self.steps.inc(whole)
        self.straggling.inc(whole - sum(lengths))
        self.straggler_share.set(self._straggling_steps / self._row_steps)

    def _rate(self) -> float:
        since = time.monotonic() - _SECONDS
        return sum(count for moment, count in list(self._recent) if moment >= since) / _SECONDS

    def page(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self.registry)
