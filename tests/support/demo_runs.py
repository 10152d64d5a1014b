"""A miniature of the demo, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from interlace.cli.demo.work import Settings

MINIATURE = Settings(rollouts=2, problems=4, warmup_problems=8, warmup_steps=2, prompts=4)
RUN = """
import sys
from pathlib import Path
from rich.console import Console
from interlace.cli.demo import carry_out
from interlace.cli.demo.work import Settings
sys.exit(carry_out(Path(sys.argv[1]), Settings(**eval(sys.argv[2])), Console()))
"""


def start(
    folder: Path, settings: Settings = MINIATURE, cwd: Path | None = None
) -> subprocess.Popen[str]:
    """The demo in a process of its own, its output in a pipe."""
    return subprocess.Popen(
        [sys.executable, "-P", "-c", RUN, str(folder), repr(vars(settings))],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=cwd,
    )


def wait_for(condition: object, seconds: float = 300) -> None:
    """Until the callable says yes."""
    until = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < until, "it never came"
        time.sleep(0.05)
