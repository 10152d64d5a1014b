"""`interlace demo`: the whole method in minutes on a laptop, from training to a report.

The folder of a demo holds

plan.json                        what was asked for; another demo is refused
<arm>/warmup                     runs of `interlace train`
evaluation/<name>                runs of `interlace.evaluate`
logs/                            what the two child processes said
report.md, result.json, figures  the outcome

and all of these go on after a kill. This process only looks on: it starts the two children, follows
the files that they write, and shows the outcome.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import interlace
from interlace.cli.demo.work import METRICS, PLAN, Job, Settings, lanes
from interlace.configuration import Parser
from interlace.errors import ConfigError, RunError, WorkerError
from interlace.files import LOCK, locked_folder, move_aside, write_text
from interlace.jsonl import read, read_object

if TYPE_CHECKING:
    from argparse import Namespace

    from rich.console import Console

QUICK_PROBLEMS = 200
INTERRUPTED = 130
SECONDS_BETWEEN_LOOKS, SECONDS_BETWEEN_LINES, SECONDS_TO_END = 1.0, 15.0, 5.0
RECENT = 8  # optimizer steps whose mean is shown
SHOWN_LINES = 200
DEFAULTS = Settings()
ALONE = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false",
         "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "",
         "PYTHONUNBUFFERED": "1"}  # fmt: skip
GREETINGS = (
    "Giving a tiny model, trained with RLVR, blocks that read siblings; then asking both held-out "
    "puzzles: reach a target with three numbers. Two processes, one core each, everything in {}. "
    "Ctrl-C is safe: the same command goes on.",
    "Asking the packaged arms held-out puzzles: reach a target with three numbers. Two processes, "
    "one core each.",
)
EPILOG = """\
what happens:
  1. A tiny model (0.4 M parameters, packaged) was trained with RLVR to reach a target with three
     numbers. It gets Bridge blocks, and the blocks alone are trained, on groups of its responses
     that are rewritten to show how a row reads a sibling's find (recipe blocks-last). As a control,
     all weights of the same model are trained on the same texts, without blocks (SFT).
  2. RLVR-only, the control and Bridge answer the same held-out problems at widths 1 to 16, with 16
     rows a problem at every width.
  3. One group of eight rows is replayed, picked because it shows best how a find spreads; beside it
     the same prompt and the same weights with every row alone.
  4. A report with tables, figures and the group is written; its path is printed.

examples:
  Everything, in some minutes:
    interlace demo
  A look at it without training, at packaged arms:
    interlace demo --quick
  More steps; another seed shows how much is chance:
    interlace demo --steps 300 --output runs/demo-300
    interlace demo --seed 1 --output runs/demo-seed-1

After Ctrl-C or a kill the same command goes on where it was. It needs no network, no GPU, and less
than 4 GB of memory.
"""


@dataclass(frozen=True)
class Options:
    """Options.

    Args:
        output: Path of the demo's folder; by default runs/demo, or runs/demo-quick.
        quick: Ask packaged arms instead of training.
        seed: Seed of training and sampling.
        steps: Number of optimizer steps of each training; by default 150.
        problems: Number of held-out problems; by default all 395, with --quick 200.
        restart: Begin anew; the folder's earlier demo, unless at work, is moved aside.
    """

    output: str | None = None
    quick: bool = False
    seed: int = 0
    steps: int | None = None
    problems: int | None = None
    restart: bool = False


def build_parser(prog: str) -> Parser:
    """The options of `interlace demo`."""
    parser = Parser(
        prog,
        usage="[options]",
        description="See the method work, honestly, on a laptop: train, evaluate, look inside a\n"
        "group, read what the numbers mean and what they do not.",
        examples=EPILOG,
        config="steps: 300",
    )
    parser.add_options(Options)
    return parser


def settle(arguments: Namespace) -> tuple[Path, Settings]:
    """The folder and the settings that a command line asks for.

    Raises:
        ConfigError: for a value out of its range, or --steps with --quick.
    """
    quick, steps, problems = arguments.quick, arguments.steps, arguments.problems
    if quick and steps is not None:
        raise ConfigError("--quick trains nothing, so it takes no --steps; drop one of them.")
    steps = DEFAULTS.steps if steps is None else steps
    if problems is None:
        problems = QUICK_PROBLEMS if quick else DEFAULTS.problems
    if steps < 1:
        raise ConfigError(f"--steps is at least 1; got {steps}.")
    if not 2 <= problems <= DEFAULTS.problems:
        raise ConfigError(
            f"--problems is 2 to {DEFAULTS.problems}, all held-out ones; got {problems}."
        )
    if arguments.seed < 0:
        raise ConfigError(f"--seed is a whole number from 0 on; got {arguments.seed}.")
    path = Path(arguments.output or f"runs/demo{'-quick' * quick}").expanduser()
    # The folder that is moved aside needs a name, which "." has only as an absolute path.
    folder = path if path.name.strip(".") else Path(os.path.abspath(path))
    return folder, Settings(quick, arguments.seed, steps, problems)


def run(arguments: Namespace) -> int:
    """Run the demo, or go on with it; the exit status is 130 after Ctrl-C."""
    from rich.console import Console

    folder, settings = settle(arguments)
    return carry_out(folder, settings, Console(), restart=arguments.restart)


def carry_out(folder: Path, settings: Settings, console: Console, *, restart: bool = False) -> int:
    """Run the demo, or go on with it, in a folder.

    Args:
        folder: Folder of the demo.
        settings: Settings of the demo.
        console: Console to show it on.
        restart: Whether an earlier demo there is moved aside.

    Raises:
        RunError: if the folder holds something else, another demo is at work in it, or it cannot
            be written, as on a full disk.
    """
    from interlace.terminal import say

    began = time.monotonic()
    with claimed(folder, settings, restart) as known:
        say(console, f"Going on with the demo in {folder}." if known
            else GREETINGS[settings.quick].format(folder))  # fmt: skip
        try:
            jobs = [job for lane in lanes(settings) for job in lane if not job.is_done(folder)]
            if jobs:
                with watching(console, folder, jobs) as look:
                    run_lanes(folder, look)
            from interlace.cli.demo.outcome import show

            show(folder, settings, console, time.monotonic() - began)
        except KeyboardInterrupt:
            say(console, f"\nInterrupted. What is done is kept in {folder}; the same command goes "
                "on from there.")  # fmt: skip
            return INTERRUPTED
        except BrokenPipeError:  # a reader that has seen enough, such as `head`
            raise
        except OSError as error:
            raise RunError(
                f"The demo could not write or read its files in {folder}: {error}. Make room "
                "there and run the same command again: it goes on from what is done."
            ) from error
    return 0


@contextmanager
def claimed(folder: Path, settings: Settings, restart: bool = False) -> Iterator[bool]:
    """Make the folder this demo's, keep others out of it, and say whether it was before.

    The lock is held before anything moves, so that --restart cannot pull the folder from under a
    demo at work; and only a demo's folder is ever moved.
    """
    busy = RunError(
        f"Another demo is at work in {folder}; wait for it, or choose another --output."
    )
    with ExitStack() as held:
        try:
            found = {path.name for path in folder.iterdir()} if folder.exists() else set()
            if PLAN not in found and found - {LOCK, f".{PLAN}"}:
                raise RunError(
                    f"{folder} is not empty and holds no demo (no {PLAN}), so it is left alone, "
                    "even with --restart. Choose another folder with --output."
                )
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked_folder(folder, busy))
            if restart and (folder / PLAN).exists():
                move_aside(folder)
                folder.mkdir()
                held.enter_context(locked_folder(folder, busy))
            known = _same_plan(folder, settings)
        except OSError as error:
            raise RunError(
                f"The demo needs a folder that it can write to; {folder} is none: {error}. Choose "
                "another folder with --output."
            ) from error
        yield known


def _same_plan(folder: Path, settings: Settings) -> bool:
    """Whether the folder's plan is this one; a folder without a plan gets it."""
    from interlace.evaluation.provenance import differences

    now = {"settings": dataclasses.asdict(settings), "interlace": interlace.__version__}
    path = folder / PLAN
    if not path.exists():
        write_text(path, json.dumps(now, indent=1) + "\n")
        return False
    changed = differences(read_object(path, RunError, "--restart begins anew."), now)
    if changed:
        raise RunError(
            f"{folder} holds another demo: {'; '.join(changed)}. Give the old options to go on "
            "with it, another --output, or --restart, which moves it aside."
        )
    return True


def run_lanes(folder: Path, look: Callable[[], None]) -> None:
    """Run both lanes, each in a process of its own, which ends when this one does.

    Args:
        folder: Folder of the demo.
        look: Function to call now and then.

    Raises:
        WorkerError: with what a process said, if it failed.
    """
    (folder / "logs").mkdir(exist_ok=True)
    with ExitStack() as ends:
        processes = []
        for lane in (0, 1):
            processes.append(_start(folder, lane, _log(folder, lane)))
            ends.callback(_end, processes[-1])
        at_work = True
        while at_work:
            at_work = any(process.poll() is None for process in processes)
            for lane, process in enumerate(processes):
                if process.poll():
                    raise WorkerError(_failure(folder, lane, process.returncode))
            look()
            if at_work:
                time.sleep(SECONDS_BETWEEN_LOOKS)


def _log(folder: Path, lane: int) -> Path:
    return folder / "logs" / f"{lane + 1}.log"


def _start(folder: Path, lane: int, log: Path) -> subprocess.Popen[bytes]:
    # -P: a json.py of the current folder is not the one that is meant.
    program = [sys.executable, "-P", "-c", "from interlace.cli.demo.work import main; main()"]
    with log.open("wb") as stream:
        return subprocess.Popen(
            [*program, str(folder), str(lane)],
            stdin=subprocess.PIPE,  # closes with this process, however it ends
            stdout=stream,
            stderr=stream,
            env=os.environ | ALONE,
            start_new_session=True,  # Ctrl-C goes to the parent alone, which ends them
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(SECONDS_TO_END)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _failure(folder: Path, lane: int, status: int) -> str:
    lines = _log(folder, lane).read_text("utf-8", "replace").rstrip().split("\n")
    said = "\n".join(f"  {line}" for line in lines[-SHOWN_LINES:] if line) or "  (nothing)"
    how = f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
    how += ", as when memory runs out" if -status == signal.SIGKILL else ""
    return (
        f"Child process {lane + 1} ended {how}. What it said:\n\n{said}\n\nWhat was finished is "
        f"kept in {folder}. The same command goes on from there; with --restart it begins anew."
    )


@contextmanager
def watching(console: Console, folder: Path, jobs: Sequence[Job]) -> Iterator[Callable[[], None]]:
    """Yields a function that shows how far the jobs are: by bars on a terminal; elsewhere by a line
    for each job that ends, and now and then one for each of the others."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    from interlace.terminal import say

    # Drawn when there is something new: drawing ten times a second takes 4 % of a core.
    bars = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=10),
        TaskProgressColumn(),
        TextColumn("{task.fields[numbers]}", markup=False),
        console=console,
        disable=not console.is_terminal,
        auto_refresh=False,
    )
    said = dict.fromkeys(jobs, time.monotonic())

    def say_line(job: Job, reached: int, numbers: str) -> None:
        if reached == job.total:
            del said[job]
            say(console, f"{job.title}: done")
        elif reached and time.monotonic() - said[job] > SECONDS_BETWEEN_LINES:
            said[job] = time.monotonic()
            say(console, f"{job.title}: {reached} of {job.total}{', ' * bool(numbers)}{numbers}")

    def look() -> None:
        for job, task in tasks.items():
            reached, numbers = job.reached(folder), _numbers(folder, job)
            bars.update(task, completed=reached, numbers=numbers)
            if not console.is_terminal and job in said:
                say_line(job, reached, numbers)
        bars.refresh()

    with bars:
        tasks = {job: bars.add_task(job.title, total=job.total, numbers="") for job in jobs}
        yield look


def _numbers(folder: Path, job: Job) -> str:
    """The latest loss of a training, the mean of some steps."""
    path = folder / job.name / METRICS
    if not path.exists():
        return ""
    losses = [line["loss"] for _, line in read(path, own=True) if "loss" in line][-RECENT:]
    return f"loss {sum(losses) / len(losses):.3f}" if losses else ""
