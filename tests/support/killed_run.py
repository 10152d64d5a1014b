"""`python -m support.killed_run FOLDER KIND RECORDS`: an evaluation that kills itself, with
SIGKILL, when it has recorded that many groups.

Kinds: "float32", "bfloat16", and "by-call", whose tokens depend on which groups share a call of the
engine: what rounding does in low precision on some machines, certain and in the large.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from interlace.batch import Tally
from interlace.engine.engine import Engine
from interlace.engine.types import GroupOutput, SamplingParams
from interlace.evaluation.evaluate import evaluate
from interlace.evaluation.results import ArmResult
from support.number_model import number_engine, number_model, number_tokenizer, sums


class ByCall(Engine):
    """An engine whose tokens depend on the number of prompts in a call."""

    def as_completed(
        self, prompts: Sequence[Any], params: Any = None, **options: Any
    ) -> Iterator[tuple[int, GroupOutput]]:
        """As the engine's."""
        yield from super().as_completed(
            prompts, params.replace(seed=params.seed + len(prompts)), **options
        )


def engine_of(kind: str) -> Engine:
    """An engine of that kind, with Bridge blocks."""
    if kind == "by-call":
        return ByCall(number_model("bridge"), number_tokenizer(), max_rows=12)
    return number_engine("bridge", getattr(torch, kind))


def evaluation(folder: Path, kind: str, kill_after: int = 0) -> ArmResult:
    """The run; the same arguments give the same run in every process."""

    def progress(tally: Tally) -> None:
        if tally.groups == kill_after:
            os.kill(os.getpid(), signal.SIGKILL)

    return evaluate(
        engine_of(kind),
        sums(7),
        [1, 2, 4],
        groups_per_problem=2,
        params=SamplingParams(max_new_tokens=9, seed=3),
        batch_rows=40,
        timed=2,
        output=folder,
        figures=("svg",),
        progress=progress if kill_after else None,
    )


if __name__ == "__main__":
    evaluation(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
