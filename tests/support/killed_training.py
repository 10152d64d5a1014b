"""Training runs that are killed at their writes, or in the middle of a file, and then run again:
`python -m support.killed_training FOLDER KIND STRIDE`.

Forks, kills and limits itself, so it runs in a process of its own. A first child trains to its end,
which is the run that the others must equal. Then one child is killed at its first write to its
folder and its like runs until it ends; the next at the write after `STRIDE` more, and so on. At
last some children may write only so many bytes to a file, and die in the middle of one. Prints as
JSON how many were killed, and what differed.
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

from interlace.training import responses
from interlace.training.trainer import GroupTrainer
from support.save_faults import in_child, kill_at
from support.training import grpo, metrics, stored_model, warmup


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


def limit_files(size: int) -> None:
    """Have this process die in the middle of the first file that grows larger than `size`."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))


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


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    transformers.utils.logging.disable_progress_bar()
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
