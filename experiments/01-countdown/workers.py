"""A queue of units over processes of one thread each: progress, time left, nothing done twice."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from units import Config, Places, Unit

POLL, TELL = 1.0, 60.0  # seconds
RUN = Path(__file__).with_name("run.py")
# Seconds a piece of work on one core, until measured: (kind, coupled).
PACE = {
    ("warmup", True): 0.4,
    ("warmup", False): 0.3,
    ("train", True): 0.8,
    ("train", False): 0.6,
    ("attach", True): 1.0,
    ("evaluate", True): 0.006,
    ("evaluate", False): 0.03,
}


@dataclass
class Running:
    """A unit with its process, and the pipe whose end tells it that the queue has ended."""

    unit: Unit
    process: subprocess.Popen[bytes]
    pipe: IO[bytes]
    log: Path
    before: int  # pieces that an earlier process had done
    since: float = field(default_factory=time.monotonic)


class Queue:
    """Carries out units, those first that come first, as soon as what they need is there.

    Args:
        units: In order; what they need is among them.
        config: The settings they follow.
        places: Where their files are.
        workers: Processes at a time.
        tell: What gets a line for every event.
        script: What carries out one unit when it gets `--unit`.
    """

    def __init__(
        self,
        units: Sequence[Unit],
        config: Config,
        places: Places,
        workers: int,
        tell: Callable[[str], None] = print,
        script: Path = RUN,
    ) -> None:
        self.units, self.config, self.places = units, config, places
        self.workers, self.tell, self.script = workers, tell, script
        outcomes = {unit.name: places.outcome(unit) for unit in units}
        self.done = {name for name, outcome in outcomes.items() if outcome is not None}
        self.failed: set[str] = set()
        self.running: list[Running] = []
        self._measured: dict[tuple[str, bool], list[tuple[float, int]]] = {}
        for unit in units:
            outcome = outcomes[unit.name]
            if outcome is not None and not outcome["resumed"]:
                self._measure(unit, outcome["seconds"], unit.size)

    def run(self, minutes: float | None = None) -> bool:
        """Carry out what is not done yet, for so many minutes: what runs then is ended, and goes on
        from its last checkpoint another time.

        Returns:
            Whether all of it was.
        """
        self.tell(f"{len(self.done)} of {len(self.units)} units are done")
        began = told = time.monotonic()
        try:
            while self._begin_some() or self.running:
                time.sleep(POLL)
                if minutes is not None and time.monotonic() - began > 60 * minutes:
                    self.tell(f"{self.status()}; the {minutes:g} minutes are over")
                    break
                ended = [entry for entry in self.running if entry.process.poll() is not None]
                for entry in ended:
                    self._end(entry)
                if ended or time.monotonic() - told > TELL:
                    told = time.monotonic()
                    self.tell(self.status())
        finally:
            for entry in self.running:
                entry.process.terminate()
            for entry in self.running:
                entry.process.wait()
                entry.pipe.close()
        return len(self.done) == len(self.units)

    def status(self) -> str:
        """Where the queue stands, in a line."""
        shown = [
            f"{entry.unit.name} {pieces(self.places, entry.unit) / entry.unit.size:.0%}"
            for entry in self.running
        ]
        return (
            f"{len(self.done)}/{len(self.units)} units, about {_duration(self.seconds_left())} "
            f"left; {', '.join(shown) or 'nothing running'}"
        )

    def seconds_left(self) -> float:
        """Until all is done, at the pace measured so far."""
        total = 0.0
        for unit in self.units:
            if unit.name not in self.done | self.failed:
                left = max(unit.size - pieces(self.places, unit), 0)
                total += left * self._pace(unit)
        return total / self.workers

    def _pace(self, unit: Unit) -> float:
        key = (unit.kind, unit.coupled)
        measured = list(self._measured.get(key, []))
        for entry in self.running:
            done = pieces(self.places, entry.unit) - entry.before
            if (entry.unit.kind, entry.unit.coupled) == key and done > entry.unit.size / 20:
                measured.append((time.monotonic() - entry.since, done))
        if not measured:
            return PACE[key]
        return sum(seconds for seconds, _ in measured) / sum(size for _, size in measured)

    def _measure(self, unit: Unit, seconds: float, size: int) -> None:
        self._measured.setdefault((unit.kind, unit.coupled), []).append((seconds, size))

    def _begin_some(self) -> bool:
        """Fill the free workers; whether anything was begun."""
        begun = {entry.unit.name for entry in self.running} | self.done | self.failed
        ready = [u for u in self.units if u.name not in begun and self.done.issuperset(u.needs)]
        free = ready[: self.workers - len(self.running)]
        for unit in free:
            self.running.append(self._begin(unit))
        return bool(free)

    def _begin(self, unit: Unit) -> Running:
        work = self.places.work(unit.name)
        work.mkdir(parents=True, exist_ok=True)
        job = work / "job.json"
        out = str(self.places.out)
        job.write_text(json.dumps({"unit": asdict(unit), "config": self.config, "out": out}))
        log = work / "log.txt"
        before = pieces(self.places, unit)
        with log.open("ab") as stream:
            process = subprocess.Popen(
                [sys.executable, str(self.script), "--unit", str(job)],
                stdin=subprocess.PIPE,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
            )
        assert process.stdin is not None
        return Running(unit, process, process.stdin, log, before)

    def _end(self, entry: Running) -> None:
        self.running.remove(entry)
        entry.pipe.close()
        seconds = time.monotonic() - entry.since
        if self.places.outcome(entry.unit) is not None and entry.process.returncode == 0:
            self.done.add(entry.unit.name)
            self._measure(entry.unit, seconds, max(entry.unit.size - entry.before, 1))
            self.tell(f"{entry.unit.name} done in {_duration(seconds)}")
            return
        self.failed.add(entry.unit.name)
        tail = "\n".join(entry.log.read_text(errors="replace").splitlines()[-15:])
        self.tell(f"{entry.unit.name} FAILED, see {entry.log}:\n{tail}")


def read_job(path: Path) -> tuple[Unit, Config, Places]:
    """What the queue wrote for a process of its own."""
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    unit = Unit(**{**values["unit"], "needs": tuple(values["unit"]["needs"])})
    return unit, values["config"], Places(Path(values["out"]))


@contextmanager
def only_process(places: Places, unit: Unit) -> Iterator[None]:
    """Hold the unit's lock; wait for the process that has it.

    Of a queue that was killed outright, a unit's process may live a moment longer than the queue
    and its lock. The new one waits for its end.
    """
    folder = places.work(unit.name)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "unit.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def end_with_parent() -> None:
    """End this process when the queue's ends, so that a unit never has two processes."""

    def watch() -> None:
        os.read(0, 1)  # returns when the queue's end of the pipe is closed
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def pieces(places: Places, unit: Unit) -> int:
    """How much of a unit has been done: the lines of a file that grows."""
    path = places.work(unit.name) / unit.lines
    if not path.exists():
        return 0
    with path.open("rb") as file:
        return min(sum(1 for _ in file), unit.size)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"
