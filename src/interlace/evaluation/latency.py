"""How long one group takes at a width: sampled alone, so that no other group shares its passes.

In a batch, seconds say how full the batch was; the first problems of a run are sampled once more
for their time, with the same seeds, at every width. Arms are timed at different moments, beside
whatever else a machine does then: on a CPU seconds are those of the processor, all threads
together. A GPU's are on the wall.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from interlace.evaluation.plan import Job
from interlace.evaluation.results import ArmResult, Measurement, estimate_values
from interlace.evaluation.run_folder import Timing

if TYPE_CHECKING:
    from interlace.engine.engine import Engine
    from interlace.engine.types import SamplingParams


def time_groups(
    engine: Engine,
    jobs: Sequence[tuple[Job, list[int]]],
    params: SamplingParams,
    done: Callable[[Timing], None],
) -> None:
    """Sample each group alone.

    Args:
        engine: Samples.
        jobs: Groups with their prompts' token ids.
        params: How; the width is the job's.
        done: Called with each timing.
    """
    on_cpu = next(engine.model.parameters()).device.type == "cpu"
    clock = time.process_time if on_cpu else time.perf_counter
    warm: set[int] = set()
    for job, prompt in jobs:
        own = params.replace(width=job.width)
        if job.width not in warm:  # the first passes at a width also allocate
            engine.generate([prompt], own.replace(max_new_tokens=2))
            warm.add(job.width)
        began = clock()
        engine.generate([prompt], own, sample_ids=[job.sample_id])
        done(Timing(job.example.id, job.width, clock() - began))


def with_latency(result: ArmResult, timings: Sequence[Timing], level: float) -> ArmResult:
    """The result with the seconds of groups that ran alone, where there are any.

    Args:
        result: Result of a run's records.
        timings: Of this run.
        level: Coverage of the intervals.

    Returns:
        The result; the `values` of its seconds are those of the timed problems, in their order.
    """
    if not timings:
        return result
    seconds: dict[int, dict[str, float]] = {}
    for timing in timings:
        seconds.setdefault(timing.width, {})[timing.example_id] = timing.seconds
    measured = []
    for width, by_problem in sorted(seconds.items()):
        timed = [by_problem[name] for name in result.example_ids if name in by_problem]
        values = np.array(timed)
        estimate = estimate_values("seconds", values, level)
        measured.append(Measurement("seconds", width, width, None, estimate, values, width))
    return replace(result, measurements=(*result.measurements, *measured))
