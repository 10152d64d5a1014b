"""Programs in processes of their own, and the modules of experiments, which are scripts.

`python -m support.processes '[["tiny-bridge", 8], ...]' PROBLEMS` prints held-out pass@1 on
`tiny-countdown` for each model and width, from eight rows a problem, without the tests' shape
checks, under which thousands of steps take minutes.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import torch
import torch.distributed as dist

import interlace
from interlace.cli.demo.work import Settings
from interlace.tasks import get_task

TESTS = Path(__file__).parents[1]


def run_program(*arguments: str, timeout: float) -> str:
    """Run `python -m ARGUMENTS` from the tests' folder; its output, or a failure that shows it."""
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=TESTS,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def leave_group() -> None:
    """End a process of several without ending its interpreter: DTensor's caches hold a group even
    where it was destroyed, and a thread of gloo that lets go of a tensor while the interpreter ends
    aborts the process ("terminate called without an active exception")."""
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)


@contextmanager
def script(path: Path) -> Iterator[ModuleType]:
    """A script as a module, which its dataclasses find by name; it may import its neighbours."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(path.parent))
        del sys.modules[spec.name]


ROOT = Path(__file__).parents[2] / "experiments"


@contextmanager
def modules_of(experiment: str, *names: str) -> Iterator[list[ModuleType]]:
    """Modules of an experiment; two experiments may use the same names one after the other."""
    before = set(sys.modules)
    sys.path.insert(0, str(ROOT / experiment))
    try:
        yield [importlib.import_module(name) for name in names]
    finally:
        sys.path.remove(str(ROOT / experiment))
        for name in set(sys.modules) - before:
            file = getattr(sys.modules[name], "__file__", None)
            if file is not None and Path(file).is_relative_to(ROOT):
                del sys.modules[name]


ROWS = 8


def held_out(*models: tuple[str, int], problems: int = 395) -> list[float]:
    """What the program prints."""
    said = run_program("support.processes", json.dumps(models), str(problems), timeout=600)
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


MINIATURE = Settings(steps=2, problems=4, warmup_problems=8)
RUN = """
import sys
from pathlib import Path
from rich.console import Console
from interlace.cli.demo import carry_out
from interlace.cli.demo.work import Settings
sys.exit(carry_out(Path(sys.argv[1]), Settings(**eval(sys.argv[2])), Console()))
"""


@contextmanager
def started_demo(
    folder: Path, settings: Settings = MINIATURE, cwd: Path | None = None
) -> Iterator[subprocess.Popen[str]]:
    """The demo in a process of its own, its output in a pipe; killed at the end, whatever failed,
    or its open pipe would fail a later test."""
    with subprocess.Popen(
        [sys.executable, "-P", "-c", RUN, str(folder), repr(vars(settings))],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=cwd,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for(condition: object, seconds: float = 300) -> None:
    """Until the callable says yes."""
    until = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < until, "it never came"
        time.sleep(0.05)


if __name__ == "__main__":
    main()
