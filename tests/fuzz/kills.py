"""Commands that are killed at random moments of their progress, resumed, and compared.

    python tests/fuzz/kills.py FOLDER [--kinds generate,eval] [--kills 30]

Each command runs once to its end; its result is what the others must equal. Then, again and again,
it is killed with SIGKILL once its processes have used a random share of the processor time that the
first run took (so the machine's load does not matter), and the same command is run until it ends;
a third of the resumed runs are killed, too. Every other time only the leading process is killed,
and its children have to notice; else the whole family is. Commands are forks of this process, and
so are the demo's lanes, since imports would take most of their time and most of the kills. Writes a
line of the table in docs/reliability.md for each command, as soon as it is there.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

SEED = 20261201
SECONDS_BETWEEN_LOOKS = 0.005
TICKS = os.sysconf("SC_CLK_TCK")
TIMES = ("seconds", "time", "date", "created", "runtime", "per_second", "started", "elapsed")

RECIPE = """
model: tiny
load: {dtype: float32}
task: tiny-countdown
output_dir: runs
seed: 3
warmup: {problems: 12, samples: 4, groups_per_step: 4, max_steps: 6, max_new_tokens: 40,
  save_steps: 2, learning_rate: 2.0e-3, use_cpu: true, report_to: none}
blocks: fresh
grpo: {prompts_per_rollout: 4, num_generations: 4, width: [2, 4], mini_batches: 2,
  max_steps: 8, max_new_tokens: 40, save_steps: 2, use_cpu: true, report_to: none}
"""


@dataclass(frozen=True)
class Kind:
    """A command to kill.

    Attributes:
        words: Its command line, run in a folder of its own.
        results: Patterns of the files that its result is.
    """

    words: tuple[str, ...]
    results: tuple[str, ...]


GENERATE = "generate --model tiny --input in.jsonl --output out.jsonl --max-new-tokens 40 --width 4"
EVAL = "eval --model tiny-bridge --task tiny-countdown --limit 10 --widths 1,2,4 --batch-rows 12"
KINDS = {
    "generate": Kind(
        (*GENERATE.split(), "--batch-size", "3", "--raw"), ("out.jsonl", "out.jsonl.settings.json")
    ),
    "eval": Kind(
        (*EVAL.split(), "--max-new-tokens", "40", "--timed", "0", "--output", "o"),
        ("o/records.jsonl", "o/result.json", "o/config.json"),
    ),
    "warm-up": Kind(
        ("train", "warmup", "recipe.yaml"), ("runs/warmup/model/*", "**/metrics.jsonl")
    ),
    "GRPO": Kind(("train", "grpo", "recipe.yaml"), ("runs/grpo/model/*", "**/metrics.jsonl")),
    "demo": Kind(
        ("demo", "--quick", "--problems", "6", "--output", "demo"),
        ("demo/**/records.jsonl", "demo/**/result.json"),
    ),
}


def prepare(place: Path) -> None:
    """A fresh folder with what the commands read."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    prompts = ["3 7 8 -> 45 :", "4 9 2 -> 38 :", "7 8 6 -> 62 :", "2 5 4 -> 14 :"] * 3
    lines = [json.dumps({"id": f"p{i}", "prompt": prompt}) for i, prompt in enumerate(prompts)]
    (place / "in.jsonl").write_text("\n".join(lines) + "\n")
    (place / "recipe.yaml").write_text(RECIPE)


def start(kind: Kind, place: Path) -> int:
    """The command in a fork that leads a session of its own; its process id."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.setsid()
        os.chdir(place)
        log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        from interlace.cli import demo
        from interlace.cli.main import main

        demo._start = Lane  # type: ignore[assignment]
        status = main(list(kind.words))
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    os._exit(status)


class Lane:
    """A lane of the demo as a fork; as far as the demo needs it, a `subprocess.Popen`.

    Args:
        folder: Folder of the demo.
        lane: Number of the lane.
        log: Path of the file that it writes what it says to.
    """

    def __init__(self, folder: Path, lane: int, log: Path) -> None:
        ours, theirs = os.pipe()[::-1]
        said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        self.returncode: int | None = None
        self.pid = os.fork()
        if not self.pid:
            for ours_too, number in ((theirs, 0), (said, 1), (said, 2)):
                os.dup2(ours_too, number)
            os.closerange(3, 256)  # the other lane's pipe, too, or that would not notice the end
            self._work(str(folder), str(lane))
        os.close(theirs)
        os.close(said)
        self.stdin = os.fdopen(ours, "wb")

    @staticmethod
    def _work(*arguments: str) -> NoReturn:
        from interlace.cli.demo import work

        status = 1
        try:
            os.setsid()
            sys.stdin, sys.argv[1:] = open(0, closefd=False), arguments  # noqa: SIM115
            work.main()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)

    def poll(self) -> int | None:
        """The exit status, or minus the signal, of a process that ended."""
        return self._ended(os.WNOHANG)

    def wait(self, timeout: float | None = None) -> int | None:
        """The same, once it has ended."""
        return self._ended(0)

    def kill(self) -> None:
        """End it."""
        os.kill(self.pid, signal.SIGKILL)

    def _ended(self, how: int) -> int | None:
        if self.returncode is None:
            process, status = os.waitpid(self.pid, how)
            self.returncode = os.waitstatus_to_exitcode(status) if process else None
        return self.returncode


def family(leader: int, known: Iterable[int] = ()) -> dict[int, float]:
    """The processes of a command, each with the processor seconds that it has used.

    Args:
        leader: Number of its first process, which leads a session.
        known: Numbers of processes that were found before: who has lost a parent still belongs.
    """
    found: dict[int, float] = {}
    processes = {}
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            words = Path(entry.path, "stat").read_text().rpartition(")")[2].split()
        except (OSError, ProcessLookupError):
            continue
        if words[0] != "Z":
            processes[int(entry.name)] = words
    ours = {leader, *known}
    for process, words in sorted(processes.items()):  # parents have the lower numbers
        if process in ours or int(words[3]) == leader or int(words[1]) in ours:
            ours.add(process)
            found[process] = (int(words[11]) + int(words[12])) / TICKS
    return found


def run(kind: Kind, place: Path, limit: float | None, whole: bool) -> tuple[float, bool]:
    """Run a command, and kill it once it has used so much processor time.

    Returns:
        The seconds that it used, and whether it was killed.
    """
    child = start(kind, place)
    most: dict[int, float] = {}
    killed = False
    while os.waitpid(child, os.WNOHANG)[0] == 0:
        most |= family(child, most)
        if limit is not None and sum(most.values()) >= limit and not killed:
            killed = True
            for process in family(child, most) if whole else [child]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
        time.sleep(SECONDS_BETWEEN_LOOKS)
    left = time.monotonic() + 120
    while (
        family(child, most) and time.monotonic() < left
    ):  # children have to notice that they are alone
        time.sleep(0.1)
    if family(child, most):
        raise RuntimeError(f"Processes of {kind.words} live on without their leader.")
    return sum(most.values()), killed


def without_times(value: Any) -> Any:
    """A result without what depends on the clock."""
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if not any(t in k for t in TIMES)}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def result(kind: Kind, place: Path) -> dict[str, Any]:
    """The files that a command's result is."""
    found: dict[str, Any] = {}
    for pattern in kind.results:
        for path in sorted(place.glob(pattern)):
            if path.is_file():
                name, data = str(path.relative_to(place)), path.read_bytes()
                if path.suffix == ".jsonl":
                    found[name] = [without_times(json.loads(line)) for line in data.splitlines()]
                elif path.suffix == ".json":
                    found[name] = without_times(json.loads(data))
                else:
                    found[name] = data
    return found


def try_kind(name: str, home: Path, kills: int) -> str:
    """Kill a command so often, and say in a line of a table what came of it."""
    kind, rng = KINDS[name], random.Random(f"{SEED}-{name}")
    place = home / name
    prepare(place)
    seconds, _ = run(kind, place, None, whole=True)
    expected = result(kind, place)
    if not expected:
        raise RuntimeError(f"{name} left no result: {(place / 'log.txt').read_text()[-2000:]}")
    done = runs = equal = 0
    wrong = []
    while done < kills:
        prepare(place)
        runs += 1
        killed, again = True, 0
        while killed:
            limit = rng.random() * seconds if again == 0 or rng.random() < 1 / 3 else None
            _, killed = run(kind, place, limit, whole=rng.random() < 0.5)
            done += killed
            again += 1
        if result(kind, place) == expected:
            equal += 1
        else:
            wrong.append(runs)
            shutil.copytree(place, home / f"{name}-differs-{runs}", dirs_exist_ok=True)
        print(f"{name}: {done} kills, {equal} of {runs} runs equal", file=sys.stderr, flush=True)
    return f"| {name} | {seconds:.1f} s | {done} | {runs} | {equal} | {wrong or 'none'} |"


def load_everything() -> None:
    """Import what the commands need, once: a fork begins with it."""
    import matplotlib.pyplot
    import rich.console
    import scipy.optimize
    import scipy.stats
    import torch

    import interlace.cli.demo.outcome
    import interlace.evaluation
    import interlace.training.trainer
    from interlace.engine.engine import Engine
    from interlace.evaluation.scaling import fit_scaling

    fit_scaling.__kwdefaults__["resamples"] = 20  # a thousand took half of the demo's time
    torch.set_num_threads(1)
    os.environ["INTERLACE_HUGE_PAGES"] = "0"  # else a command starts itself again
    del matplotlib, rich, scipy, interlace, Engine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--kills", type=int, default=30)
    asked = parser.parse_args()
    home = asked.folder.resolve()
    home.mkdir(parents=True, exist_ok=True)
    load_everything()
    print("| command | processor time | kills | runs | equal | different |")
    for name in asked.kinds.split(","):
        line = try_kind(name, home, asked.kills)
        print(line, flush=True)
        with (home / "table.md").open("a") as table:
            table.write(line + "\n")


if __name__ == "__main__":
    main()
