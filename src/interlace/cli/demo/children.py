"""The demo's worker processes, from the parent's side."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from interlace.errors import WorkerError

LANES = 2
SECONDS_BETWEEN_LOOKS = 0.25
SECONDS_TO_END = 5.0
SHOWN_LINES = 200


class Workers:
    """Runs the lanes, each in a process of its own, which ends when this one does.

    Args:
        folder: the demo's.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "logs"
        self._folder.mkdir(exist_ok=True)
        self._processes: list[subprocess.Popen[bytes]] = []
        self._begins: list[int] = []

    def __enter__(self) -> Workers:
        try:
            for lane in range(LANES):
                self._start(lane)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def wait(self, look: Callable[[], None]) -> None:
        """Until all have ended well, looking after them.

        Args:
            look: called a few times a second.

        Raises:
            WorkerError: with what a process said, if it failed.
        """
        while any(process.poll() is None for process in self._processes):
            self._check()
            look()
            time.sleep(SECONDS_BETWEEN_LOOKS)
        self._check()
        look()

    def _start(self, lane: int) -> None:
        errors = self._errors(lane)
        self._begins.append(errors.stat().st_size if errors.exists() else 0)
        output = self._folder / f"worker-{lane + 1}.log"
        with output.open("ab") as out, errors.open("ab") as err:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "interlace.cli.demo.worker"),
                    *(str(self._folder.parent), str(lane)),
                ],
                stdin=subprocess.PIPE,  # closes with this process, however it ends
                stdout=out,
                stderr=err,
                env=_environment(),
                start_new_session=True,  # Ctrl-C goes to the parent alone, which ends them
            )
        self._processes.append(process)

    def _check(self) -> None:
        for lane, process in enumerate(self._processes):
            if process.poll():
                raise WorkerError(self._failure(lane, process.returncode))

    def _failure(self, lane: int, status: int) -> str:
        path = self._errors(lane)
        with path.open("rb") as stream:
            stream.seek(self._begins[lane])
            lines = stream.read().decode(errors="replace").rstrip().splitlines()
        said = "\n".join(f"  {line}" for line in lines[-SHOWN_LINES:]) or "  (nothing)"
        how = f"with status {status}"
        if status < 0:
            how = f"by {signal.Signals(-status).name}"
            how += ", as when memory runs out" if -status == signal.SIGKILL else ""
        return (
            f"Worker process {lane + 1} ended {how}. What it said:\n\n{said}\n\nWhat was finished "
            f"is kept in {self._folder.parent}, and its logs in {self._folder}. The same command "
            "goes on from there; with --restart it begins anew."
        )

    def _errors(self, lane: int) -> Path:
        return self._folder / f"worker-{lane + 1}.err"

    def _end(self) -> None:
        for process in self._processes:
            if process.stdin is not None:
                process.stdin.close()
        until = time.monotonic() + SECONDS_TO_END
        for process in self._processes:
            try:
                process.wait(max(until - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _environment() -> dict[str, str]:
    """One thread each, no network, no progress bars in the logs."""
    return os.environ | {
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONUNBUFFERED": "1",
    }
