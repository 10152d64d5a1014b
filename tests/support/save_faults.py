"""Saves that are killed or run out of disk at every possible moment: `python -m
support.save_faults FOLDER`.

Runs in a process of its own, because it forks, kills and limits itself. A model whose weights all
have one value is saved first. Then a child saves one with all another value and is killed at its
first write to the folder, the next child at its second, and so on until one finishes; after each,
the folder must load as wholly old or wholly new. Prints the outcomes as JSON.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

import interlace
from interlace.files import is_complete, locate
from interlace.training.checkpoints import save_result
from support.architectures import attach_fresh, build
from support.text import tiny_tokenizer

WRITES = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir"}


@torch.no_grad()
def fill(model: PreTrainedModel, value: float) -> PreTrainedModel:
    """Make every weight `value`."""
    for parameter in model.parameters():
        parameter.fill_(value)
    return model


def held(folder: Path) -> str:
    """Which values the saved base and blocks have."""
    model, _ = interlace.load(folder, tokenizer=tiny_tokenizer())
    return " ".join(sorted({f"{p.unique().item():.0f}" for p in model.parameters()}))


def kill_at(count: int, folder: Path) -> None:
    """Have this process killed at its `count`-th write to `folder`."""
    left = count

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event not in WRITES or str(folder) not in str(arguments[0]):
            return
        if event == "open" and not (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR):
            return
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def in_child(action: Any) -> bool:
    """Run `action` in a fork; whether it came to its end."""
    child = os.fork()
    if child == 0:
        action()
        os._exit(0)
    return os.WIFEXITED(os.waitpid(child, 0)[1])


def kills(model: PreTrainedModel, folder: Path) -> list[str]:
    """What the folder holds after a save that was killed at its first, second, ... write."""
    outcomes: list[str] = []
    value, finished = 1, False
    interlace.save(fill(model, value), folder, full=True)
    while not finished:
        names = {str(value): "old", str(value + 1): "new"}
        fill(model, value + 1)

        def attempt() -> None:
            kill_at(len(outcomes) + 1, folder)
            interlace.save(model, folder, full=True)

        finished = in_child(attempt)
        found = held(folder)
        outcomes.append(names.get(found, found))
        value += 2
        interlace.save(fill(model, value), folder, full=True)
        assert held(folder) == str(value), "a later save does not recover"
        assert not [p for p in folder.iterdir() if p.name.startswith(".")], "rubbish is left"
    return outcomes


def plain_kills(model: PreTrainedModel, folder: Path) -> list[str]:
    """What a folder holds after the result of a run without blocks was killed at its first,
    second, ... write: nothing or the new one, in a new folder; then the old or the new one.

    `is_complete` and `load` must agree each time: a finished run that one of them does not see is
    trained again, or cannot be used.
    """
    outcomes: list[str] = []
    for old in ("nothing", "old"):
        finished, count = False, 0
        while not finished:
            count += 1
            shutil.rmtree(folder, ignore_errors=True)
            if old == "old":
                save_result(fill(model, 1), folder, "all", tiny_tokenizer())
            fill(model, 2)

            def attempt(count: int = count) -> None:
                kill_at(count, folder)
                save_result(model, folder, "all", tiny_tokenizer())

            finished = in_child(attempt)
            if not is_complete(folder):
                assert not locate(folder, "config.json").exists(), "a finished model is not seen"
                outcomes.append("nothing")
                continue
            outcomes.append({"1": "old", "2": "new"}.get(found := held(folder), found))
            interlace.load(folder)  # with its own tokenizer
    return outcomes


def full_disks(model: PreTrainedModel, folder: Path) -> list[list[str]]:
    """Error, note and contents after saves that may write only so many bytes to a file."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    shutil.rmtree(folder, ignore_errors=True)
    interlace.save(fill(model, 1), folder, full=True)
    biggest = max(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    outcomes = []
    for limit in (0, 1000, (folder / "bridge.safetensors").stat().st_size, biggest - 1):
        before = sorted(p.name for p in folder.rglob("*"))
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        error = "none"
        try:
            interlace.save(fill(model, 2), folder, full=True)
        except OSError as raised:
            error = " ".join(raised.__notes__)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        after = sorted(p.name for p in folder.rglob("*"))
        outcomes.append([error, held(folder) if before == after else f"files changed: {after}"])
    return outcomes


def main(folder: Path) -> None:
    warnings.simplefilter("ignore")
    transformers.utils.logging.disable_progress_bar()
    model = attach_fresh(build("llama"))
    print(
        json.dumps(
            {
                "kills": kills(model, folder / "a"),
                "full": full_disks(model, folder / "b"),
                "plain": plain_kills(build("llama"), folder / "c"),
            }
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
