"""Many groups in calls of the engine: what is sampled again, what is kept, what is counted."""

from __future__ import annotations

from typing import Any

import pytest

from interlace.batch import Job, Tally, run_groups
from interlace.engine.types import GroupOutput, SamplingParams
from interlace.errors import GenerationError
from support.text import number_engine

PARAMS = SamplingParams(max_new_tokens=5, width=7, seed=2)


class Kept:
    """A store in memory, and what it was given."""

    def __init__(self, tally: Tally, kept: dict[Any, list[str]]) -> None:
        self.tally, self.kept = tally, kept
        self.taken: list[Any] = []
        self.ended = 0

    def has(self, job: Job) -> bool:
        return job.key in self.kept

    def take(self, job: Job, group: GroupOutput) -> None:
        self.taken.append(job.key)
        if not self.has(job):
            self.kept[job.key] = group.texts
            self.tally.keep(job.width, group.num_tokens)

    def end_call(self) -> None:
        self.ended += 1


def calls(prompts: range = range(10, 16)) -> list[list[Job]]:
    """Two calls of three groups; one of width 2, one of width 3."""
    engine = number_engine()
    jobs = [
        Job(f"line {n}", n, 2 if n < 13 else 3, engine.tokenizer(str(n))["input_ids"], 0, n)
        for n in prompts
    ]
    return [jobs[:3], jobs[3:]]


def run(kept: dict[Any, list[str]], work: list[list[Job]]) -> tuple[Kept, list[tuple[int, int]]]:
    tally = Tally(6, 15)
    store, seen = Kept(tally, kept), []
    run_groups(number_engine("bridge"), work, PARAMS, store, tally,
               lambda tally: seen.append((tally.groups, tally.tokens)))  # fmt: skip
    return store, seen


def test_a_call_that_lacks_a_group_is_sampled_whole_and_keeps_what_was_there() -> None:
    whole, seen = run({}, calls())
    assert sorted(whole.taken) == list(range(10, 16))
    assert whole.ended == 2
    assert seen == sorted(seen)
    assert (whole.tally.groups, whole.tally.rows, whole.tally.resumed_rows) == (6, 15, 0)
    assert seen[-1] == (6, whole.tally.kept_tokens)

    before = {key: whole.kept[key] for key in (10, 11, 12, 14)} | {14: ["as it was"]}
    rest, _ = run(dict(before), calls())
    assert sorted(rest.taken) == [13, 14, 15]  # the first call is there; the second as a whole
    assert rest.kept == whole.kept | {14: ["as it was"]}
    assert (rest.tally.resumed_groups, rest.tally.resumed_rows, rest.tally.groups) == (4, 9, 6)

    done, seen = run(dict(whole.kept), calls())
    assert (done.taken, seen) == ([], [])


def test_what_the_engine_refuses_is_named_and_what_came_before_is_kept() -> None:
    work = calls()
    work[1][1] = Job("line 14", 14, 3, [], 0, 14)
    kept: dict[Any, list[str]] = {}
    with pytest.raises(GenerationError, match=r"Sampling for line 13 to line 15 .* failed"):
        run(kept, work)
    assert sorted(kept) == [10, 11, 12]
