"""A training run whose disk fills up: `python -m support.full_disk FOLDER`.

It fills up while a checkpoint is written, then the journal, then the result. A limit on the size
of files stands for the disk, with the signal ignored that would end the process: writers then get
an error from the system, as on a full disk. Afterwards the limit is lifted and the run goes on.
Prints as a line of JSON each how it stopped, and whether its weights are those of a run without an
accident.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import transformers

from interlace.errors import CheckpointError, RunError
from interlace.files import LOCK
from interlace.training.grpo import GRPOTrainer
from support.training import at_step, grpo, metrics, same_bits, weights


def limit(size: int) -> None:
    """No file may grow beyond so many bytes."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))


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


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    transformers.utils.logging.disable_progress_bar()
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    place = Path(sys.argv[1])
    unbroken = grpo(place / "whole", **OPTIONS)
    unbroken.run()
    for kind in ("checkpoint", "journal", "result"):
        stop_and_go_on(place, kind, unbroken)
