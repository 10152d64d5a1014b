"""Training runs that are killed, or whose disk fills up, and then run again. They fork, kill and
limit themselves, so they run in a process of their own.

`python -m support.killed_training FOLDER KIND STRIDE`: a first child trains to its end, which is
the run that the others must equal. Then one child is killed at its first write to its folder and
its like runs until it ends; the next at the write after `STRIDE` more, and so on. At last some
children may write only so many bytes to a file, and die in the middle of one. Prints as JSON how
many were killed, and what differed.

`python -m support.killed_training FOLDER`: the disk fills up while a checkpoint is written, then
the journal, then the result. A limit on the size of files stands for the disk, with the signal
ignored that would end the process: writers then get an error from the system, as on a full disk.
Afterwards the limit is lifted and the run goes on. Prints as a line of JSON each how it stopped,
and whether its weights are those of a run without an accident.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import transformers

from interlace.errors import CheckpointError, RunError
from interlace.files import LOCK
from interlace.training import responses
from interlace.training.grpo import GRPOTrainer
from interlace.training.trainer import GroupTrainer
from support.save_faults import in_child, kill_at
from support.training import at_step, grpo, metrics, same_bits, stored_model, warmup, weights


def trainer(kind: str, folder: Path) -> GroupTrainer:
    """The same arguments give the same run in every process."""
    if kind == "grpo":
        options: dict[str, Any] = {"mini_batches": 2, "passes": 2, "save_steps": 4}
        noisy = {"correctness": 1.0, "support.training:noise": 0.5}
        options |= {"max_steps": 12, "rewards": noisy, "logging_steps": 3}
        return grpo(folder, kl_weight=0.1, **options)
    model = stored_model(folder.parent / "base")
    responses._CHUNK = 3
    return warmup(folder, model, max_steps=5, save_steps=2, samples=20, groups_per_step=2)


def traces(folder: Path) -> dict[str, Any]:
    """What a finished run leaves, but for times."""
    last = max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    names = ["trained.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"]
    files = [last / name for name in names]
    files += [p for p in folder.glob("**/*") if p.suffix in (".safetensors", ".jsonl")]
    found: dict[str, Any] = {str(p.relative_to(folder)): p.read_bytes() for p in files}
    found["metrics.jsonl"] = metrics(folder)
    return found | {"left over": sorted(p.name for p in folder.iterdir())}


def attempt(kind: str, folder: Path, accident: Callable[[], None] | None = None) -> bool:
    """Run in a child; whether it came to its end."""

    def action() -> None:
        try:
            run = trainer(kind, folder)
            if accident is not None:
                accident()
            run.run()
        except BaseException:
            traceback.print_exc()
            os._exit(1)

    return in_child(action)


def limit(size: int) -> None:
    """No file may grow beyond so many bytes."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))


def limit_files(size: int) -> None:
    """Have this process die in the middle of the first file that grows larger than `size`."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    limit(size)


def accidents(folder: Path, stride: int, sizes: list[int]) -> Iterator[Callable[[], None]]:
    """What to try, in this order; endless until a run survives its writes."""
    yield from (partial(limit_files, size) for size in sizes)
    write = 1
    while True:
        yield partial(kill_at, write, folder)
        write += stride


def main(place: Path, kind: str, stride: int) -> None:
    """Kill and resume, and compare."""
    folder = place / "run"
    assert attempt(kind, folder)
    expected = traces(folder)
    largest = max(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    killed, different = 0, []
    for accident in accidents(folder, stride, [600, 9_000, largest - 1]):
        shutil.rmtree(folder)
        if attempt(kind, folder, accident):
            break
        killed += 1
        if not attempt(kind, folder):
            different.append(f"{accident}: the second run failed")
            continue
        found = traces(folder)
        names = expected.keys() | found.keys()
        off = sorted(name for name in names if found.get(name) != expected.get(name))
        different += [f"{accident.func.__name__} {accident.args[0]}: {name}" for name in off]
    print(json.dumps({"killed": killed, "different": different}))


OPTIONS: dict[str, Any] = {"max_steps": 4, "save_steps": 2, "log_completions": 0}


def stop_and_go_on(place: Path, kind: str, whole: GRPOTrainer) -> None:
    """A run that stops while this is written, and the same run again."""
    folder = place / kind
    first = grpo(folder, **OPTIONS)
    if kind == "result":
        first._save_result = lambda place: (limit(20_000), type(first)._save_result(first, place))[
            1
        ]  # type: ignore
    else:
        size = 20_000 if kind == "checkpoint" else 1
        first.add_callback(at_step(4 if kind == "checkpoint" else 3, lambda: limit(size)))
    stopped = ""
    try:
        first.run()
    except (CheckpointError, RunError) as error:
        words = {"The checkpoint of": "checkpoint", "metrics.jsonl": "journal"}
        words |= {"The trained model could": "result"}
        stopped = next(name for word, name in words.items() if word in str(error))
    limit(resource.RLIM_INFINITY)
    left = [
        p.name for p in folder.iterdir() if p.name.startswith((".", "partial")) and p.name != LOCK
    ]
    again = grpo(folder, **OPTIONS)
    again.run()
    ours, theirs = weights(again.model), weights(whole.model)
    same = len(same_bits(ours, theirs)) == len(theirs) and not left
    same = same and metrics(folder) == metrics(place / "whole")
    print(json.dumps({"stopped": stopped, "same": same}))


def fill_disks(place: Path) -> None:
    """Three accidents, each beside a run without one."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    unbroken = grpo(place / "whole", **OPTIONS)
    unbroken.run()
    for kind in ("checkpoint", "journal", "result"):
        stop_and_go_on(place, kind, unbroken)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    transformers.utils.logging.disable_progress_bar()
    if len(sys.argv) == 2:
        fill_disks(Path(sys.argv[1]))
    else:
        main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
