"""How far a demo is, read from the files that its jobs write."""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path
from typing import Any

from interlace.cli.demo.plan import Job, Part, Plan

PASS = "pass@1"
RECENT = 8  # rollouts whose mean is shown
ENOUGH = 10  # seconds of work after which the pace is believed


class Follower:
    """Reads what was added to a file of JSON lines, and notices when it is replaced.

    Args:
        path: the file, which need not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None
        self._offset = 0
        self.lines: list[dict[str, Any]] = []
        self.count = 0

    def read(self, keep: bool) -> None:
        """Take in whole new lines; with `keep`, parse them."""
        try:
            with self._path.open("rb") as stream:
                number = self._path.stat().st_ino
                if number != self._file:  # a run that resumes writes its journal anew
                    self._file, self._offset, self.count, self.lines = number, 0, 0, []
                stream.seek(self._offset)
                new = stream.read()
        except OSError:
            return
        whole = new[: new.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.split(b"\n")[:-1]:
            self.count += 1
            if keep:
                self.lines.append(json.loads(line))


class JobProgress:
    """How far one job is.

    Args:
        plan: whose.
        job: the job.
    """

    def __init__(self, plan: Plan, job: Job) -> None:
        self.job = job
        self._plan = plan
        self._followers = [Follower(plan.folder / part.path) for part in job.parts]
        self.done = False
        self.reached = [0] * len(job.parts)

    def read(self) -> None:
        """Look at the files."""
        # The mark of the end first: what it says is older than what the files say.
        self.done = self.done or self._plan.is_done(self.job)
        for index, (part, follower) in enumerate(zip(self.job.parts, self._followers, strict=True)):
            follower.read(keep=part.counts != "line")
            reached = follower.count
            if part.counts == "step":
                reached = max((int(line["step"]) for line in follower.lines), default=0)
            if part.counts == "rollout":
                reached = sum(PASS in line for line in follower.lines)
            self.reached[index] = part.total if self.done else min(reached, part.total)

    @property
    def begun(self) -> bool:
        """Whether there is anything of it."""
        return any(self.reached)

    @property
    def part(self) -> tuple[Part, int]:
        """The part at work and how far it is."""
        pairs = list(zip(self.job.parts, self.reached, strict=True))
        return next((pair for pair in pairs if pair[1] < pair[0].total), pairs[-1])

    @property
    def expected(self) -> float:
        """Seconds that it takes on a free core, by the plan's guess."""
        return sum(part.guess * part.total for part in self.job.parts)

    @property
    def spent(self) -> float:
        """The share of them that is done."""
        pairs = zip(self.job.parts, self.reached, strict=True)
        return sum(part.guess * reached for part, reached in pairs)

    def series(self, name: str) -> list[float]:
        """A metric of training, one value a rollout."""
        if self.job.kind != "grpo":
            return []
        return [float(line[name]) for line in self._followers[0].lines if name in line]

    def recent(self, name: str) -> float | None:
        """The mean of a metric over the latest rollouts."""
        values = self.series(name)[-RECENT:]
        return sum(values) / len(values) if values else None


class Progress:
    """How far all jobs are.

    Args:
        plan: the demo.
    """

    def __init__(self, plan: Plan) -> None:
        self.lanes = [[JobProgress(plan, job) for job in lane] for lane in plan.lanes]
        self.read()
        self._at_first = [sum(job.spent for job in lane) for lane in self.lanes]
        self._started = time.monotonic()

    def read(self) -> None:
        """Look at all files of jobs that are not done."""
        for lane in self.lanes:
            for job in lane:
                if not job.done:
                    job.read()

    @property
    def done(self) -> bool:
        """Whether every job is."""
        return all(job.done for lane in self.lanes for job in lane)

    @property
    def seconds(self) -> float:
        """Since this start."""
        return time.monotonic() - self._started

    @property
    def seconds_left(self) -> float:
        """Until the slower lane ends, at the pace seen since this start."""
        left = 0.0
        for lane, before in zip(self.lanes, self._at_first, strict=True):
            gained = sum(job.spent for job in lane) - before
            # Until there is enough to go by, a free core is assumed.
            pace = self.seconds / gained if gained > ENOUGH else 1.0
            left = max(left, pace * self._rest(lane))
        return left

    @staticmethod
    def _rest(lane: list[JobProgress]) -> float:
        return sum(job.expected - job.spent for job in lane)


def sparkline(values: list[float], points: int = 20, top: float | None = None) -> str:
    """Values as bars, each the mean of its stretch, from 0 to `top` or the largest.

    >>> sparkline([0.0, 0.25, 0.5, 1.0])
    '▁▃▅█'
    """
    bars = "▁▂▃▄▅▆▇█"
    if not values:
        return ""
    count = min(points, len(values))
    edges = [round(i * len(values) / count) for i in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges) if b > a]
    highest = max(means) if top is None else top
    if highest <= 0:
        return bars[0] * len(means)
    places = [min(round(value / highest * (len(bars) - 1)), len(bars) - 1) for value in means]
    return "".join(bars[place] for place in places)
