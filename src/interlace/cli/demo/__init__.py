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
from interlace.cli.demo.work import HELD_OUT, PLAN, Job, Settings, lanes
from interlace.cli.shared import INTERRUPTED
from interlace.configuration import Parser
from interlace.errors import ConfigError, RunError, WorkerError, differences
from interlace.files import LOCK, locked_folder, move_aside, write_text
from interlace.jsonl import read_object

if TYPE_CHECKING:
    from argparse import Namespace

    from rich.console import Console

SECONDS_BETWEEN_LOOKS = 1.0
SHOWN_LINES = 200
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
class Options(Settings):
    """The demo's folder.

    Args:
        output: Path of the folder; by default runs/demo, or runs/demo-quick.
        restart: Begin anew; the folder's earlier demo, unless at work, is moved aside.
    """

    output: str | None = None
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
    names = {field.name for field in dataclasses.fields(Settings)}
    settings = Settings(**{k: v for k, v in vars(arguments).items() if k in names})
    if settings.quick and settings.steps != Settings.steps:
        raise ConfigError("--quick trains nothing, so it takes no --steps; drop one of them.")
    for name, least in (("steps", 1), ("seed", 0), ("warmup_problems", 1)):
        if getattr(settings, name) < least:
            flag, got = name.replace("_", "-"), getattr(settings, name)
            raise ConfigError(f"--{flag} is a whole number from {least} on; got {got}.")
    if settings.problems is not None and not 2 <= settings.problems <= HELD_OUT:
        raise ConfigError(
            f"--problems is 2 to {HELD_OUT}, all held-out ones; got {settings.problems}."
        )
    path = Path(arguments.output or f"runs/demo{'-quick' * settings.quick}").expanduser()
    # The folder that is moved aside needs a name, which "." has only as an absolute path.
    return path if path.name.strip(".") else Path(os.path.abspath(path)), settings


def run(arguments: Namespace) -> int:
    """Run the demo, or go on with it; the exit status is 130 after Ctrl-C."""
    from rich.console import Console

    folder, settings = settle(arguments)
    return carry_out(folder, settings, Console(), restart=arguments.restart)


def carry_out(folder: Path, settings: Settings, console: Console, *, restart: bool = False) -> int:
    """Run the demo, or go on with it, in a folder; with `restart` an earlier one is moved aside.

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
            run_lanes(folder, settings, console)
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
                f"The demo could not write or read its files in {folder}: {error}. The same "
                "command goes on from what is done."
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


def run_lanes(folder: Path, settings: Settings, console: Console) -> None:
    """Run what is not done of both lanes, each in a process of its own that ends with this one."""
    jobs = [job for lane in lanes(folder, settings) for job in lane if not job.is_done()]
    if not jobs:
        return
    (folder / "logs").mkdir(exist_ok=True)
    # -P: a json.py of the current folder is not the one that is meant.
    program = [sys.executable, "-P", "-c", "from interlace.cli.demo.work import main; main()"]
    with showing_progress(console, jobs) as look, ExitStack() as ends:
        processes = {}
        for lane in (0, 1):
            log = folder / "logs" / f"{lane + 1}.log"
            processes[log] = subprocess.Popen(
                [*program, str(folder), str(lane)],
                stdin=subprocess.PIPE,  # closes with this process, however it ends
                stdout=ends.enter_context(log.open("wb")),
                stderr=subprocess.STDOUT,
                env=os.environ | ALONE,
                start_new_session=True,  # Ctrl-C goes to the parent alone, which ends them
            )
            ends.enter_context(processes[log])
            ends.callback(processes[log].kill)  # jobs survive that
        at_work = True
        while at_work:
            at_work = any(process.poll() is None for process in processes.values())
            for log, process in processes.items():
                if process.poll():
                    raise WorkerError(_failure(log, process.returncode))
            look()
            if at_work:
                time.sleep(SECONDS_BETWEEN_LOOKS)


def _failure(log: Path, status: int) -> str:
    lines = log.read_text("utf-8", "replace").rstrip().split("\n")
    said = "\n".join(f"  {line}" for line in lines[-SHOWN_LINES:] if line) or "  (nothing)"
    how = f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
    how += ", as when memory runs out" if -status == signal.SIGKILL else ""
    return (
        f"Child process {log.stem} ended {how}. What it said:\n\n{said}\n\nWhat was finished is "
        f"kept in {log.parents[1]}. The same command goes on from there; with --restart it begins "
        "anew."
    )


@contextmanager
def showing_progress(console: Console, jobs: Sequence[Job]) -> Iterator[Callable[[], None]]:
    """Yields a function that shows how far the jobs are: by bars on a terminal, elsewhere by a line
    for each job that ends."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    from interlace.terminal import say

    # Drawn when there is something new: drawing ten times a second takes 4 % of a core.
    bars = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=10),
        TaskProgressColumn(),
        console=console,
        disable=not console.is_terminal,
        auto_refresh=False,
    )
    told = set(jobs) if console.is_terminal else set()

    def look() -> None:
        for job, task in tasks.items():
            bars.update(task, completed=job.reached())
            if job not in told and job.is_done():
                told.add(job)
                say(console, f"{job.title}: done")
        bars.refresh()

    with bars:
        tasks = {job: bars.add_task(job.title, total=job.total) for job in jobs}
        yield look
