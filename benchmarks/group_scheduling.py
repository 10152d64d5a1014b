"""What does lockstep cost at scale, beside rows on their own? A simulation; no model runs.

Question: with the rules of the vLLM plug-in's scheduler, how many seats stay empty or held, how
many tokens does a step give beside the same rows as requests of one, and what do a straggler cap
and a consensus stop change, for W = 1 to 32 and 64 to 1,024 seats?

Method
- Rules (plugins/vllm, `GroupScheduler`): first come, first served; the group at the head enters
  when W seats and W times the KV blocks up to max_tokens are free, and holds up those behind it; a
  row that ends gives back its seat and its blocks; rows past their prompt come first and give a
  token each; what is left of the step's 2,048 tokens computes prompts, in parts if need be; a row
  past its prompt is held until all its live siblings are. Requests of one follow the same rules, so
  reservation costs them the same. (vLLM without the plug-in reserves nothing, and preempts.)
- All rows of a request arrive at once, and there are always more requests. Every prompt is sampled
  32 times, as 32 / W groups, so all widths do the same work in the same order. A prompt's full
  blocks are computed by its first row alone (prefix cache), but each row reserves all of them. KV
  blocks hold 16 tokens; there are as many as all seats may take ("memory" 1) or half (.5).
- A step is a unit of time, whatever is in it. The first third of the steps is not counted.
- Lengths, recorded: `tokens` of the widest groups in experiments 03 (independent rows) and 01
  (ending rows, coupled); a prompt is a recorded problem, its 32 rows are drawn from that problem's,
  with replacement. They are short, of small models, and end at the recorded max_tokens. Lengths of
  prompts (100, 40, 20 tokens) are round numbers, not recorded.
- Lengths, models (NOT data): log-normal, median 500, sigma .8; Pareto, least 200, alpha 1.3; both
  cut at max_tokens = 4,096; prompts of 200, and of 8,000 (log-normal). Rows of a prompt are alike
  by a normal copula, rho .5.
- Straggler cap: a row is over its group's p95 (numpy's, method "lower") if it is live when that
  many have ended; up to W = 20 that is the last row. "cut": it ends then. "alone": the group's
  answer goes out and the row stays in its seat.
- Consensus stop: the group ends once more than W / 2 rows have ended with one answer. A row gives
  that answer with probability A (.6 or .9), whatever its length or problem, else one of its own.
- "On paper": bytes that one GPU reads in a decode step over its bandwidth; a bound, no measurement.

Usage: python benchmarks/group_scheduling.py [--quick] [--figure docs/assets/scale.png]
Progress goes to stderr; the last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import gzip
import json
import lzma
import sys
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
SAMPLES = 32  # of a prompt, at every width
BLOCK = 16
NEVER = np.iinfo(np.int64).max
Lengths = Callable[[np.random.Generator, int], np.ndarray]  # [prompts, SAMPLES]


@dataclass(frozen=True)
class Workload:
    """Requests: how long prompts and completions are.

    Args:
        draw: Function that draws lengths of completions.
        max_tokens: Number of tokens that a row reserves room for.
        prompt: Number of tokens of a prompt.
    """

    draw: Lengths
    max_tokens: int
    prompt: int


@dataclass(frozen=True)
class Rules:
    """What the scheduler goes by.

    Args:
        width: Number of rows of a group.
        seats: Number of rows that may run.
        memory: Number of KV blocks, as a share of what all seats may take.
        budget: Number of tokens of a step.
        cap: What happens to rows over their group's p95: "none", "cut" or "alone".
        consensus: Whether a group ends once a majority has given one answer.
    """

    width: int
    seats: int
    memory: float = 1.0
    budget: int = 2048
    cap: str = "none"
    consensus: bool = False


@dataclass(eq=False)
class Group:
    """Rows of one request: lengths, prompt tokens to compute, and whether each gives the answer
    that others give, too."""

    lengths: list[int]
    prompts: list[int]
    agrees: list[bool]
    entered: int = 0
    behind: int = 0  # live rows that are not past their prompt
    ended: int = 0
    votes: int = 0
    out: bool = False  # its answer has gone out
    live: dict[int, int] = field(default_factory=dict)  # row by seat


def requests(workload: Workload, width: int, agreement: float, seed: int) -> Iterator[Group]:
    """Groups without end; the same rows in the same order at every width."""
    rng = np.random.default_rng(seed)
    rest = workload.prompt - (workload.prompt - 1) // BLOCK * BLOCK
    prompts = [workload.prompt] + [rest] * (SAMPLES - 1)
    while True:
        lengths = workload.draw(rng, 64)
        agrees = rng.random(lengths.shape) < agreement
        for of_prompt, votes in zip(lengths.tolist(), agrees.tolist(), strict=True):
            for at in range(0, SAMPLES, width):
                part = slice(at, at + width)
                yield Group(of_prompt[part], prompts[part], votes[part])


class Simulation:
    """The scheduler and its rows, step by step."""

    def __init__(self, rules: Rules, workload: Workload, queue: Iterator[Group]) -> None:
        self.rules, self.workload, self.queue = rules, workload, queue
        self.blocks = -(-(workload.prompt + workload.max_tokens) // BLOCK)
        self.room = int(rules.memory * rules.seats * self.blocks)
        self.head = next(queue, None)
        self.free = list(range(rules.seats))
        self.group: list[Group | None] = [None] * rules.seats
        self.prefilling: deque[tuple[Group, int]] = deque()
        self.left = [0] * rules.seats  # prompt tokens to compute
        self.length = np.full(rules.seats, NEVER)
        self.written = np.zeros(rules.seats, dtype=np.int64)
        self.fed = np.zeros(rules.seats, dtype=bool)  # rows that give a token in the next step
        self.now = self.solo = 0
        self.restart()

    def restart(self) -> None:
        """Count anew."""
        self.counts: dict[str, int] = dict.fromkeys(
            ("steps", "tokens", "empty", "held", "written", "solo", "rows", "cut", "unwritten"), 0
        )
        self.times: list[int] = []

    def enter(self) -> None:
        """Let groups in, first come first, while the head fits."""
        while self.head is not None:
            width = len(self.head.lengths)
            taken = (self.rules.seats - len(self.free)) * self.blocks
            if width > len(self.free) or width * self.blocks > self.room - taken:
                return
            group, self.head = self.head, next(self.queue, None)
            group.entered, group.behind = self.now, width
            for row in range(width):
                seat = self.free.pop()
                group.live[seat] = row
                self.group[seat], self.left[seat] = group, group.prompts[row]
                self.length[seat], self.written[seat] = group.lengths[row], 0
                self.prefilling.append((group, seat))

    def step(self) -> None:
        """One step: groups enter, rows past their prompt are fed, then prompts."""
        self.enter()
        decoded = int(self.fed.sum())
        self.written[self.fed] += 1
        first = self.prefill(self.rules.budget - decoded)
        live = self.rules.seats - len(self.free)
        past = live - len(self.prefilling)
        self.now += 1
        for name, count in (
            ("steps", 1),
            ("tokens", decoded + first),
            ("empty", len(self.free)),
            ("held", past - decoded - first),
            ("written", int(self.written.sum())),
            ("solo", self.solo),
        ):
            self.counts[name] += count
        touched = {}
        for seat in np.flatnonzero(self.written >= self.length).tolist():
            group = self.group[seat]
            assert group is not None
            group.votes += group.agrees[group.live[seat]]
            touched[group] = None
            self.leave(group, seat)
        for group in touched:
            self.maybe_end(group)

    def prefill(self, budget: int) -> int:
        """Compute prompts with what is left of the step; returns how many rows got past theirs."""
        first = 0
        while self.prefilling and budget > 0:
            group, seat = self.prefilling[0]
            done = min(budget, self.left[seat])
            budget -= done
            self.left[seat] -= done
            if self.left[seat]:
                break
            self.prefilling.popleft()
            self.written[seat] = 1  # the prompt's last position gives the first token
            first += 1
            self.past_prompt(group)
        return first

    def past_prompt(self, group: Group) -> None:
        group.behind -= 1
        if not group.behind:
            self.fed[list(group.live)] = True
            self.solo += len(group.live) == 1 < self.rules.width

    def leave(self, group: Group, seat: int) -> None:
        """A row ends, and gives back its seat and its blocks."""
        width, was_fed = self.rules.width, not group.behind
        self.solo -= was_fed and len(group.live) == 1 < width
        del group.live[seat]
        self.solo += was_fed and len(group.live) == 1 < width
        group.ended += 1
        self.counts["rows"] += 1
        self.free.append(seat)
        self.group[seat], self.length[seat] = None, NEVER
        self.written[seat], self.fed[seat] = 0, False

    def maybe_end(self, group: Group) -> None:
        """End what the cap or the consensus ends, and note when the answer went out."""
        rules = self.rules
        agreed = rules.consensus and 2 * group.votes > rules.width
        p95 = int(0.95 * (rules.width - 1)) + 1
        over = rules.cap != "none" and group.ended >= p95
        if agreed or (over and rules.cap == "cut"):
            self.cut(group)
        if not group.out and (over or not group.live):
            group.out = True
            self.times.append(self.now - group.entered)

    def cut(self, group: Group) -> None:
        """End all rows that are left."""
        if group.behind:
            self.prefilling = deque(item for item in self.prefilling if item[0] is not group)
        for seat, row in list(group.live.items()):
            self.counts["cut"] += 1
            self.counts["unwritten"] += group.lengths[row] - int(self.written[seat])
            self.leave(group, seat)

    def report(self) -> dict[str, float]:
        """Shares and rates of the steps that were counted."""
        counts, seats = self.counts, self.rules.seats
        seat_steps = counts["steps"] * seats
        live = seat_steps - counts["empty"]
        return {
            "tokens_per_step": counts["tokens"] / counts["steps"],
            "rows_per_1000_steps": 1000 * counts["rows"] / counts["steps"],
            "seats_empty": counts["empty"] / seat_steps,
            "seats_held": counts["held"] / seat_steps,
            "kv_reserved_not_written": 1 - counts["written"] / (live * self.workload.max_tokens),
            "tokens_without_live_sibling": counts["solo"] / max(counts["tokens"], 1),
            "rows_cut": counts["cut"] / max(counts["rows"], 1),
            "tokens_spared": counts["unwritten"] / max(counts["unwritten"] + counts["tokens"], 1),
            "group_steps_median": float(np.median(self.times)) if self.times else float("nan"),
        }


def simulate(
    rules: Rules, workload: Workload, steps: int, agreement: float = 0.0, seed: int = 0
) -> dict[str, float]:
    """Run, count all but the first third of the steps, and report."""
    run = Simulation(rules, workload, requests(workload, rules.width, agreement, seed))
    for step in range(steps):
        if step == steps // 3:
            run.restart()
        run.step()
    return run.report()


# Lengths -----------------------------------------------------------------------------------------


def recorded(path: str) -> Lengths:
    """Lengths of the widest groups of an experiment's records, problem by problem."""
    opened: Any = lzma.open if path.endswith(".xz") else gzip.open
    with opened(ROOT / path, "rt") as file:
        records = [json.loads(line) for line in file]
    width = max(record["width"] for record in records)
    table = np.array([record["tokens"] for record in records if record["width"] == width])

    def draw(rng: np.random.Generator, prompts: int) -> np.ndarray:
        problems = rng.integers(len(table), size=(prompts, 1))
        return table[problems, rng.integers(width, size=(prompts, SAMPLES))]

    return draw


def modelled(quantile: Callable[[np.ndarray], np.ndarray], most: int, rho: float = 0.5) -> Lengths:
    """A model of lengths; rows of a prompt are alike by a normal copula."""

    def draw(rng: np.random.Generator, prompts: int) -> np.ndarray:
        of_prompt = rng.standard_normal((prompts, 1))
        z = rho**0.5 * of_prompt + (1 - rho) ** 0.5 * rng.standard_normal((prompts, SAMPLES))
        return np.clip(np.ceil(quantile(z)), 1, most).astype(np.int64)

    return draw


def pareto(z: np.ndarray) -> np.ndarray:
    """Pareto of least 200 and alpha 1.3, at the quantile of a normal z."""
    above = np.vectorize(NormalDist().cdf)(-z)
    return 200 * above ** (-1 / 1.3)


def workloads() -> dict[str, Workload]:
    ending = "experiments/01-countdown/ending-rows/results/seed-0/bridge-mixed/final"
    smol = "experiments/03-smollm2-chain"
    log_normal = modelled(lambda z: 500 * np.exp(0.8 * z), 4096)
    return {
        "recorded: GSM8K, SmolLM2": Workload(recorded(f"{smol}/gsm8k/records.jsonl.gz"), 320, 100),
        "recorded: sums, SmolLM2": Workload(recorded(f"{smol}/two-digit/records.jsonl.gz"), 96, 40),
        "recorded: Countdown, Bridge": Workload(recorded(f"{ending}/records.jsonl.xz"), 40, 20),
        "model: log-normal": Workload(log_normal, 4096, 200),
        "model: Pareto": Workload(modelled(pareto, 4096), 4096, 200),
        "model: log-normal, long prompts": Workload(log_normal, 4096, 8000),
    }


# On paper ----------------------------------------------------------------------------------------

# Parameters in billions, layers, hidden size, key-value heads (of 128).
SHAPES = {"1.5B": (1.777, 28, 1536, 2), "8B": (8.030, 32, 4096, 8), "70B": (70.554, 80, 8192, 8)}
BANDWIDTH = {"H100": 3.35e12, "H200": 4.8e12}


def on_paper(rows: int = 64, context: int = 4096) -> list[dict[str, Any]]:
    """Bytes that one GPU holds and reads in a decode step, in bf16, and the time that takes."""
    table = []
    for name, (billions, layers, hidden, kv_heads) in SHAPES.items():
        base, bridge = 2e9 * billions, 2 * layers * hidden * (2112 + 1)
        kv_token = 2 * layers * kv_heads * 128 * 2
        for ranks in (1, 2, 4, 8):
            kv = rows * context * kv_token / min(ranks, kv_heads)
            parts = {"base": base / ranks, "bridge": bridge, "kv": kv}
            total = sum(parts.values())
            entry: dict[str, Any] = {"shape": name, "ranks": ranks, "kv_bytes_a_token": kv_token}
            entry |= {f"{part}_gb": size / 1e9 for part, size in parts.items()}
            entry |= {f"{gpu}_ms": 1e3 * total / speed for gpu, speed in BANDWIDTH.items()}
            table.append(entry | {"total_gb": total / 1e9, "bridge_over": total / (total - bridge)})
    return table


# All of it ---------------------------------------------------------------------------------------


def cases(quick: bool) -> Iterator[tuple[Rules, float]]:
    """Rules, and the agreement of answers; requests of one come before groups."""
    widths = (1, 8) if quick else (1, 2, 4, 8, 16, 32)
    for seats in (64,) if quick else (64, 128, 256, 512, 1024):
        for width in widths:
            yield Rules(width, seats), 0.0
    seats = 64 if quick else 256
    for width in widths:
        yield Rules(width, seats, memory=0.5), 0.0
        if width > 1:
            yield Rules(width, seats, cap="cut"), 0.0
            yield Rules(width, seats, cap="alone"), 0.0
            for agreement in (0.6, 0.9):
                yield Rules(width, seats, consensus=True), agreement


def run_all(quick: bool) -> list[dict[str, Any]]:
    """Every case of every workload, with its rates beside requests of one in the same memory."""
    table = []
    for name, workload in workloads().items():
        alone: dict[tuple[int, float], dict[str, float]] = {}
        for rules, agreement in cases(quick):
            steps = 1500 if quick else max(6 * workload.max_tokens, 3000)
            print(name, rules, agreement, file=sys.stderr, flush=True)
            found = simulate(rules, workload, steps, agreement)
            beside = alone.setdefault((rules.seats, rules.memory), found)
            for rate in ("tokens_per_step", "rows_per_1000_steps"):
                found[f"{rate}_over_alone"] = found[rate] / beside[rate]
            entry = {"workload": name, "steps": steps, **vars(rules), "agreement": agreement}
            table.append(entry | {key: round(value, 4) for key, value in found.items()})
    return table


def draw(table: list[dict[str, Any]], path: Path) -> None:
    """Throughput by seats, tokens without a live sibling, and what a cap and consensus change."""
    import matplotlib as mpl

    from interlace.evaluation.figures import STYLE, new_figure, width_axis

    model = "model: log-normal"
    plain = [e for e in table if e["memory"] == 1 and e["cap"] == "none" and not e["consensus"]]
    at_256 = [e for e in table if e["seats"] == 256 and e["memory"] == 1]
    panels: list[tuple[str, str, float, dict[str, list[dict[str, Any]]]]] = [
        ("tokens a step, % of rows alone", "tokens_per_step_over_alone", 100, {}),
        ("tokens with no live sibling (%)", "tokens_without_live_sibling", 100, {}),
        ("median steps of a group", "group_steps_median", 1, {}),
    ]
    for e in plain:
        if e["workload"] == model:
            panels[0][3].setdefault(f"{e['seats']:,} seats", []).append(e)
        if e["seats"] == 256 and e["width"] > 1 and "long prompts" not in e["workload"]:
            panels[1][3].setdefault(e["workload"].replace("recorded: ", ""), []).append(e)
    for e in at_256:
        if e["workload"] == model and e["width"] > 1:
            kind = f"consensus, A = {e['agreement']}" if e["consensus"] else f"cap: {e['cap']}"
            panels[2][3].setdefault(kind, []).append(e)
    with mpl.rc_context(STYLE):
        figure, axes = new_figure(len(panels))
        figure.set_figheight(3.2)
        for ax, (title, key, scale, lines) in zip(axes, panels, strict=True):
            for (label, entries), marker in zip(lines.items(), "os^vD", strict=False):
                x = [e["width"] for e in entries]
                ax.plot(x, [scale * e[key] for e in entries], marker=marker, label=label)
            width_axis(ax, sorted({e["width"] for es in lines.values() for e in es}))
            ax.set_title(title)
            ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.25), fontsize=6)
        figure.savefig(path, dpi=200)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="64 seats, W = 1 and 8, few steps")
    parser.add_argument("--figure", type=Path, help="Path of a figure to write; not with --quick")
    args = parser.parse_args()
    if args.quick and args.figure:
        parser.error("a figure needs all cases: leave out --quick or --figure")
    table = run_all(args.quick)
    if args.figure:
        draw(table, args.figure)
    print(json.dumps({"benchmark": "group_scheduling", "runs": table, "on_paper": on_paper()}))


if __name__ == "__main__":
    main()
