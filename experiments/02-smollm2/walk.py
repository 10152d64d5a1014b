"""The walk-through with SmolLM2-135M: warm-up, GRPO, generate, evaluate, by a user's commands.

    make smollm2
    python experiments/02-smollm2/walk.py

What each command prints goes into `<results>/<number>-<name>.txt` (progress bars only to the
terminal), its seconds and processor seconds into `<results>/seconds.json`, and the runs' metrics
beside them; `outcome.md` sums them up. A command that is through is not run again; remove its file
to repeat it. The walk fails if no optimizer step of GRPO had a gradient: it would end just as well,
but nothing would have been trained. What follows `--` is added to both training commands:

    python experiments/02-smollm2/walk.py --work runs/w --results runs/r -- warmup.problems=8
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RECIPE = "smollm2-135m-cpu"
TASK_OPTIONS = ["digits=1", "steps=1"]  # as in the recipe
TOKENS = "24"
GRPO = "2-grpo"
OLD, NEW = "gradient_norm/old", "gradient_norm/new"


@dataclass(frozen=True)
class Step:
    """One command and what it leaves.

    Attributes:
        name: of its files among the results.
        words: the command's arguments.
        kept: files of the run that are copied to the results, by their new names.
    """

    name: str
    words: list[str]
    kept: dict[str, Path]


def steps(options: argparse.Namespace) -> list[Step]:
    """The walk."""
    work = options.work
    run = [*options.overrides, f"output_dir={work}"]
    model, evaluation = work / "grpo" / "model", work / "eval"
    evaluate = ["eval", "--model", str(model), "--task", "chain-arithmetic", "--task-options"]
    evaluate += [*TASK_OPTIONS, "--split", "test", "--limit", str(options.limit)]
    evaluate += ["--widths", options.widths, "--max-new-tokens", TOKENS, "--timed", "0"]
    evaluate += ["--figures", "none", "--output", str(evaluation)]
    generate = ["generate", "--model", str(model), "--width", "4", "--max-new-tokens", TOKENS]
    return [
        Step(
            "1-warmup",
            ["train", "warmup", RECIPE, *run],
            {"warmup-metrics.jsonl": work / "warmup" / "metrics.jsonl"},
        ),
        Step(
            GRPO,
            ["train", "grpo", RECIPE, *run],
            {"grpo-metrics.jsonl": work / "grpo" / "metrics.jsonl"},
        ),
        Step("3-generate", [*generate, "What is 4 + 3?"], {}),
        Step("4-eval", evaluate, {"eval-report.md": evaluation / "report.md"}),
    ]


def take(step: Step, results: Path) -> dict[str, float] | None:
    """Run a command, unless it is through; its seconds."""
    printed = results / f"{step.name}.txt"
    if printed.exists():
        return None
    shown = "$ " + shlex.join(["interlace", *step.words])
    print(shown, flush=True)
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "interlace.cli.main", *step.words],
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    print(done.stdout, flush=True)
    if done.returncode != 0:
        raise SystemExit(f"{step.name} ended with exit status {done.returncode}.")
    for name, path in step.kept.items():
        (results / name).write_text(without_folder(path.read_text(encoding="utf-8")))
    printed.write_text(without_folder(f"{shown}\n{done.stdout}"), encoding="utf-8")
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": round(seconds, 1), "processor_seconds": round(processor, 1)}


def without_folder(text: str) -> str:
    """The text, paths relative to the current folder: results name nobody's machine."""
    return text.replace(f"{Path.cwd()}{os.sep}", "")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def with_gradient(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of a stage's metrics, the optimizer steps that had a gradient."""
    return [entry for entry in entries if entry.get(OLD, 0) > 0 or entry.get(NEW, 0) > 0]


def check_trained(metrics: Path) -> None:
    """Stop the walk if no optimizer step had a gradient.

    Raises:
        SystemExit: then.
    """
    entries = [entry for entry in read_lines(metrics) if NEW in entry]
    if not with_gradient(entries):
        flat = ", ".join(f"{entry.get('groups_without_variance', 1):.0%}" for entry in entries)
        raise SystemExit(
            f"GRPO changed no weight: none of its {len(entries)} optimizer steps had a gradient "
            f"({metrics}). Groups whose advantages are all zero, by step: {flat}. Take more "
            "prompts or rollouts, or other problems, after --, with new folders for --work and "
            "--results."
        )


def norms(entries: list[dict[str, Any]], key: str) -> str:
    """A gradient's norm in each optimizer step."""
    return ", ".join(f"{entry[key]:.3g}" for entry in entries)


def outcome(options: argparse.Namespace, seconds: dict[str, dict[str, float]]) -> str:
    """What the walk showed, as Markdown."""
    found = []
    for path in sorted((options.work / "warmup" / "responses").glob("*.jsonl")):
        found += [len(entry["completions"]) for entry in read_lines(path)]
    losses, rollouts = (
        [entry for entry in read_lines(options.results / f"{name}-metrics.jsonl") if key in entry]
        for name, key in (("warmup", "loss"), ("grpo", "sampled_gap/max"))
    )
    rows = [
        f"| {n} | {s['seconds']:.0f} | {s['processor_seconds']:.0f} |" for n, s in seconds.items()
    ]
    first, last = losses[0]["loss"], losses[-1]["loss"]
    taken = [entry for entry in rollouts if NEW in entry]
    flat = ", ".join(f"{entry['groups_without_variance']:.0%}" for entry in rollouts)
    gap = max(entry["sampled_gap/max"] for entry in rollouts)
    shares = ", ".join(f"{entry['pass@1']:.2f}" for entry in rollouts)
    return "\n".join(
        [
            "| command | seconds | processor seconds |",
            "| --- | --- | --- |",
            *rows,
            "",
            f"- warm-up: {sum(found)} right responses to {len(found)} problems, "
            f"{sum(n >= 2 for n in found)} groups of two or more; loss {first:.3f} in the first "
            f"optimizer step, {last:.3f} in the last; gradient norms of the new weights "
            f"{norms(losses, NEW)}",
            f"- GRPO: share of right rows in each rollout {shares}; largest difference between a "
            f"token's log-probability as sampled and as trained {gap:.1e}",
            f"- GRPO: {len(with_gradient(taken))} of {len(taken)} optimizer steps had a gradient; "
            f"norms of the old weights' {norms(taken, OLD)}, of the new weights' "
            f"{norms(taken, NEW)}; groups whose advantages are all zero {flat}",
            "",
        ]
    )


def main() -> None:
    """Take every step that is not through."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("runs/smollm2-135m-cpu"))
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--limit", type=int, default=20, help="problems of the evaluation")
    parser.add_argument("--widths", default="1,4", help="of the evaluation")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="after --")
    options = parser.parse_args()
    options.results.mkdir(parents=True, exist_ok=True)
    book = options.results / "seconds.json"
    seconds = json.loads(book.read_text()) if book.exists() else {}
    for step in steps(options):
        if (taken := take(step, options.results)) is not None:
            seconds[step.name] = taken
            book.write_text(json.dumps(seconds, indent=2) + "\n")
        if step.name == GRPO:
            check_trained(options.results / "grpo-metrics.jsonl")
    (options.results / "outcome.md").write_text(outcome(options, seconds), encoding="utf-8")


if __name__ == "__main__":
    main()
