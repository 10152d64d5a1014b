"""The demo's folder: whose it is, and one command in it at a time.

The lock is held before anything moves, so that --restart cannot pull the folder from under a demo
at work; and only a demo's folder is ever moved.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from interlace.cli.demo.plan import PLAN, Plan, as_json, check_packaged
from interlace.errors import RunError
from interlace.jsonl import read_object
from interlace.locks import LOCK, locked_folder

PARTIAL = "plan.tmp"


@contextmanager
def claimed(plan: Plan, restart: bool = False) -> Iterator[bool]:
    """Make the folder this plan's, keep others out of it, and say whether it was before.

    Args:
        plan: the demo.
        restart: whether an earlier demo there is moved aside.

    Raises:
        ConfigError: for --quick in a build without packaged arms.
        RunError: if the folder holds something else, or another demo is at work in it.
    """
    check_packaged(plan)
    folder = plan.folder
    with ExitStack() as held:
        try:
            _check_content(folder)
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(_locked(folder))
            if restart and (folder / PLAN).exists():
                _move_aside(folder)
                folder.mkdir()
                held.enter_context(_locked(folder))
            known = _write_plan(plan)
        except OSError as error:
            raise RunError(
                f"The demo needs a folder that it can write to; {folder} is none: {error}. Choose "
                "another folder with --output."
            ) from error
        yield known


def _check_content(folder: Path) -> None:
    if not folder.exists():
        return
    found = {path.name for path in folder.iterdir()} - {LOCK, PARTIAL}
    if found and PLAN not in found:
        raise RunError(
            f"{folder} is not empty and holds no demo (no {PLAN}), so it is left alone, with "
            "--restart, too. Choose another folder with --output."
        )


def _locked(folder: Path) -> AbstractContextManager[None]:
    """Refuse a second demo in the same folder at the same time."""
    return locked_folder(
        folder,
        RunError(f"Another demo is at work in {folder}; wait for it, or choose another --output."),
    )


def _write_plan(plan: Plan) -> bool:
    now, path = as_json(plan), plan.folder / PLAN
    if path.exists():
        _check_same(path, now)
        return True
    partial = plan.folder / PARTIAL
    partial.write_text(json.dumps(now, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)
    return False


def _check_same(path: Path, now: dict[str, object]) -> None:
    from interlace.evaluation.provenance import differences

    before = read_object(path, RunError, "--restart begins anew.")
    changed = differences(before, now)
    if changed:
        raise RunError(
            f"{path.parent} holds another demo: {'; '.join(changed)}. Give the old options to go "
            "on with it, another --output, or --restart, which moves it aside."
        )


def _move_aside(folder: Path) -> None:
    number = 1
    while (target := folder.with_name(f"{folder.name}.before-{number}")).exists():
        number += 1
    folder.rename(target)
