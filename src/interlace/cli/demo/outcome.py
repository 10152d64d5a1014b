"""What a demo found: the numbers of its table, and what may be said of them."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from interlace.cli.demo.plan import GROUP, LABELS, SHOWN_WIDTH, WIDTHS, Job, Plan
from interlace.cli.demo.usage import Start, starts_of
from interlace.evaluation.intervals import Estimate
from interlace.evaluation.pairing import paired_difference
from interlace.evaluation.results import ArmResult
from interlace.evaluation.runs import load_run

# Where the package is installed without it, a path alone would lead nowhere.
EXPERIMENT = "experiments/01-countdown in Interlace's repository"


@dataclass(frozen=True)
class Line:
    """One arm at one width.

    Attributes:
        arm: its label.
        width: W; None for a number that holds at every width.
        one: pass@1.
        coverage: any of W rows right; None at width 1.
        majority: maj@W; None at width 1.
        tokens: sampled tokens a problem.
        seconds: processor time of a group alone over RLVR-only's at that width; None without it.
    """

    arm: str
    width: int
    one: Estimate | None
    coverage: Estimate | None
    majority: Estimate | None
    tokens: float
    seconds: float | None


@dataclass(frozen=True)
class Outcome:
    """All that a report says.

    Attributes:
        plan: the demo.
        results: one for each arm, in the order of `LABELS`.
        group: the content of group.json.
        usage: every job, with what each of its starts took.
    """

    plan: Plan
    results: list[ArmResult]
    group: dict[str, Any]
    usage: list[tuple[Job, list[Start]]]

    def result(self, arm: str) -> ArmResult:
        """An arm's, by its key."""
        return next(result for result in self.results if result.arm == LABELS[arm])

    def lines(self) -> list[Line]:
        """The table, arm by arm."""
        return [_line(result, width, self.result("rlvr"))
                for result in self.results for width in WIDTHS]  # fmt: skip

    def gain(self, metric: str, width: int) -> Estimate:
        """Bridge minus RLVR-only, over the same problems."""
        return paired_difference(self.result("rlvr"), self.result("bridge"), metric, width)

    def training_starts(self, arm: str) -> list[list[Start]]:
        """Those of every job of an arm's training."""
        return [
            starts
            for job, starts in self.usage
            if job.arm == arm and job.kind in ("warmup", "grpo")
        ]

    def sentences(self) -> list[str]:
        """The numbers in words; what they show and what not."""
        found = []
        for metric, name in (
            ("pass@1", f"pass@1 at width {SHOWN_WIDTH}"),
            ("maj", f"maj@{SHOWN_WIDTH}"),
            ("coverage", f"coverage at width {SHOWN_WIDTH} (any of the rows right)"),
        ):
            gain = self.gain(metric, SHOWN_WIDTH)
            bridge = self.result("bridge").get(metric, SHOWN_WIDTH).estimate.value
            rlvr = self.result("rlvr").get(metric, SHOWN_WIDTH).estimate.value
            found.append(
                f"{name}: Bridge {100 * bridge:.1f} %, RLVR-only "
                f"{100 * rlvr:.1f} %, difference {_points(gain)}: {_verdict(gain)}."
            )
        alone = self.gain("pass@1", 1)
        found.append(
            f"Alone (width 1) Bridge's rows differ from RLVR-only's by {_points(alone)}: "
            f"{_verdict(alone)}."
        )
        if (self.gain("pass@1", SHOWN_WIDTH).low or 0.0) <= 0:
            more = "More --problems" if self.plan.settings.quick else "More --rollouts"
            found.append(
                f"So this run does not show the gain that {EXPERIMENT} shows. {more}, or another "
                "--seed, may."
            )
        if not self.plan.settings.quick:
            found.append(self._training_cost())
        return found

    def _training_cost(self) -> str:
        """Processor seconds of both arms, over all starts."""
        jobs = {arm: self.training_starts(arm) for arm in ("bridge", "rlvr")}
        if not all(starts for found in jobs.values() for starts in found):
            return "What training took is not known: its entry in usage/ is missing or damaged."
        bridge, rlvr = (
            sum(one.cpu_seconds for starts in found for one in starts) for found in jobs.values()
        )
        more = any(len(starts) > 1 for found in jobs.values() for starts in found)
        again = " It was interrupted; what was done twice since a checkpoint counts twice."
        return (
            f"Training took {bridge:.0f} processor seconds for Bridge, warm-up included, and "
            f"{rlvr:.0f} for RLVR-only, of equally many rollouts.{again if more else ''}"
        )


def read_outcome(plan: Plan) -> Outcome:
    """The outcome of a finished demo."""
    usage = [(job, starts_of(plan, job)) for lane in plan.lanes for job in lane]
    group = json.loads((plan.folder / GROUP).read_text(encoding="utf-8"))
    return Outcome(plan, [_merged(plan, arm) for arm in plan.arms], group, usage)


def _merged(plan: Plan, arm: str) -> ArmResult:
    """An arm's result; widths that two processes shared, together."""
    parts = [load_run(folder) for folder in plan.evaluations(arm)]
    measured = tuple(entry for part in parts for entry in part.measurements)
    return dataclasses.replace(parts[0], measurements=measured)


def _line(result: ArmResult, width: int, beside: ArmResult) -> Line:
    def estimate(metric: str) -> Estimate | None:
        found = result.find(metric, width)
        return None if found is None or (width == 1 and metric != "pass@1") else found.estimate

    own, other = result.find("seconds", width), beside.find("seconds", width)
    ratio = own.estimate.value / other.estimate.value if own and other else None
    return Line(
        arm=result.arm,
        width=width,
        one=estimate("pass@1") if result.coupled or width == 1 else None,
        coverage=estimate("coverage"),
        majority=estimate("maj"),
        tokens=result.get("tokens", width).estimate.value,
        seconds=ratio,
    )


def _points(gain: Estimate) -> str:
    assert gain.low is not None
    assert gain.high is not None
    return f"{100 * gain.value:+.1f} points [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]"


def _verdict(gain: Estimate) -> str:
    assert gain.low is not None
    assert gain.high is not None
    if gain.low > 0:
        return "Bridge is ahead, by more than the choice of problems explains"
    if gain.high < 0:
        return "Bridge is behind, by more than the choice of problems explains"
    return "no clear difference on these problems"
