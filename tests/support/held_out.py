"""A program: held-out pass@1 of models on `tiny-countdown`, without the tests' shape checks, under
which thousands of steps take minutes.

`python -m support.held_out '[["tiny-bridge", 8], ...]' PROBLEMS` prints a number for each model and
width, from eight rows a problem.
"""

from __future__ import annotations

import json
import sys

import torch

import interlace
from interlace.tasks import get_task
from support.processes import run_program

ROWS = 8


def held_out(*models: tuple[str, int], problems: int = 395) -> list[float]:
    """What the program prints."""
    said = run_program("support.held_out", json.dumps(models), str(problems), timeout=600)
    found: list[float] = json.loads(said.splitlines()[-1])
    return found


def main() -> None:
    torch.set_num_threads(1)
    task, found = get_task("tiny-countdown"), []
    for name, width in json.loads(sys.argv[1]):
        examples = [e for e in task[: int(sys.argv[2])] for _ in range(ROWS // width)]
        params = interlace.SamplingParams(width=width, max_new_tokens=40, seed=3)
        engine = interlace.Engine(*interlace.load(name), max_rows=512)
        groups = engine.generate([task.prompt(example) for example in examples], params)
        pairs = zip(examples, groups, strict=True)
        rows = [task.verify(e, text).correct for e, group in pairs for text in group.texts]
        found.append(sum(rows) / len(rows))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
