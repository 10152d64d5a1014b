"""The folder of a stage: which recipe it is of, and where the next stage's blocks are.

It holds `recipe.yaml` (the recipe with all defaults, for that stage), the trainer's checkpoints and
logs, and in the end `model/`. The same recipe goes on there; another one is refused.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from interlace import __version__
from interlace.errors import ConfigError, RunError
from interlace.files import is_complete, locate
from interlace.locks import LOCK
from interlace.saving.manifest import MANIFEST
from interlace.training.checkpoints import RESULT, held
from interlace.training.recipe import OWN_WARMUP, Recipe, Stage
from interlace.training.sections import OPERATIONAL
from interlace.training.trl_fields import RENAMED

RECIPE = "recipe.yaml"
_CONSTANT = ("constant", "constant_with_warmup")
Note = Callable[[str], object]


def starting_folder(recipe: Recipe, stage: Stage) -> Path | None:
    """The folder of saved blocks (or of a whole model) that a stage starts from; None for the
    recipe's model with fresh blocks.

    Raises:
        ConfigError: if the folder is missing, or the warm-up in it was of other blocks.
    """
    if stage == "warmup" or recipe.blocks == "fresh":
        return None
    if recipe.blocks not in ("auto", OWN_WARMUP):
        folder = Path(recipe.blocks).expanduser()
        if not locate(folder, MANIFEST).exists():
            raise ConfigError(
                f"blocks is auto, warmup, fresh, or a folder that interlace.save wrote; "
                f"{recipe.blocks!r} is none: it has no {MANIFEST}."
            )
        return folder
    folder = recipe.folder("warmup") / RESULT
    if is_complete(folder):
        _check_warmup(recipe)
        return folder
    if recipe.blocks == OWN_WARMUP:
        raise ConfigError(
            f"blocks is warmup, but {folder} holds no finished warm-up. Run `interlace train "
            "warmup` with this recipe first."
        )
    return None


def _check_warmup(recipe: Recipe) -> None:
    """Refuse a warm-up of another model or of other blocks."""
    path = recipe.folder("warmup") / RECIPE
    if not path.exists():
        return
    then, now = _read(path), recipe.resolved("grpo")
    changed = differences({k: then.get(k) for k in ("model", "attach")}, now | {"blocks": None})
    changed = [line for line in changed if line.startswith(("model", "attach"))]
    if changed:
        raise ConfigError(
            f"The warm-up in {path.parent} was another one: {'; '.join(changed)}. Use another "
            "output_dir, `interlace train warmup --restart`, or blocks=fresh."
        )


def prepare_folder(
    recipe: Recipe,
    stage: Stage,
    *,
    restart: bool = False,
    first: bool = True,
    note: Note = warnings.warn,
) -> bool:
    """Make sure that the stage's folder is this recipe's, and write the resolved recipe there.

    Args:
        recipe: the recipe.
        stage: the stage.
        restart: move what is there aside, to the first free `<stage>.before-N`.
        first: whether this process is the one that changes the folder; others only look.
        note: is told where it went.

    Returns:
        Whether something was moved aside, and the folder is a new one.

    Raises:
        RunError: if the folder holds another run, or something else.
    """
    folder = recipe.folder(stage)
    now = recipe.resolved(stage)
    if stage == "grpo":
        start = starting_folder(recipe, stage)
        now["blocks"] = _blocks_word(recipe, start)
    moved = restart and first and _move_aside(folder, note)
    begun = bool(_content(folder) - {RECIPE})
    if (folder / RECIPE).exists() and begun:
        changed = blocking_differences(_read(folder / RECIPE), now, stage)
        if changed:
            raise RunError(
                f"{folder} holds a run of another recipe: {'; '.join(changed)}. Undo that to go on "
                "with it, choose another output_dir, or begin anew with --restart, which moves the "
                "folder aside."
            )
        return moved
    if begun:
        raise RunError(
            f"{folder} is not empty and has no {RECIPE} that says what it is. Choose another "
            "output_dir, or --restart, which moves the folder aside."
        )
    if first:
        _write(folder / RECIPE, now, stage)
    return moved


@contextmanager
def holding(folder: Path) -> Iterator[None]:
    """Keep other runs out of a stage's folder; one of something else is left untouched.

    Raises:
        RunError: if another run is at work there.
    """
    content = _content(folder)
    if content and RECIPE not in content:
        yield  # `prepare_folder` refuses it, or moves it aside
        return
    with held(folder):
        yield


def _content(folder: Path) -> set[str]:
    if not folder.exists():
        return set()
    try:
        return {entry.name for entry in folder.iterdir()} - {LOCK}
    except OSError as error:
        raise RunError(f"The run folder {folder} cannot be read: {error}.") from error


def _blocks_word(recipe: Recipe, start: Path | None) -> str:
    if recipe.blocks not in ("auto", OWN_WARMUP):
        return recipe.blocks
    return "fresh" if start is None else OWN_WARMUP


def blocking_differences(
    then: Mapping[str, Any], now: Mapping[str, Any], stage: Stage
) -> list[str]:
    """What forbids a run to go on: all differences but those of options that change nothing but
    rounding, of where the folder is, and of its length under a constant learning rate."""
    free = {f"{stage}.{name}" for name in OPERATIONAL} | {"output_dir"}
    if now[stage].get("lr_scheduler_type") in _CONSTANT:
        free |= {f"{stage}.max_steps", f"{stage}.num_train_epochs"}
    return [d for d in differences(then, now) if d.partition(":")[0] not in free]


def differences(then: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Keys whose values differ, with both values.

    >>> differences({"a": 1, "b": {"c": 2}}, {"a": 1, "b": {"c": 3}})
    ['b.c: 2 before, 3 now']
    """
    found = []
    for key in dict.fromkeys([*then, *now]):
        before, after = then.get(key), now.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found += differences(before, after, f"{prefix}{key}.")
        elif before != after:
            found.append(f"{prefix}{key}: {before!r} before, {after!r} now")
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise RunError(
            f"{path} cannot be read: {error}. --restart moves its folder aside."
        ) from error
    if not isinstance(values, dict):
        raise RunError(f"{path} is no recipe. --restart moves its folder aside.")
    for section in filter(lambda own: isinstance(own, dict), values.values()):
        for old in RENAMED.keys() & section.keys():  # as version 0.1 wrote it
            section[RENAMED[old]] = section.pop(old)
    return values


def as_yaml(values: Mapping[str, Any], stage: Stage) -> str:
    """A resolved recipe as text."""
    head = (
        f"# interlace {__version__}: this run with all its defaults. A recipe for train {stage}.\n"
    )
    return head + yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True, width=100)


def _write(path: Path, values: Mapping[str, Any], stage: Stage) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.tmp")
        with partial.open("w", encoding="utf-8") as stream:
            stream.write(as_yaml(values, stage))
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    except OSError as error:
        raise RunError(f"The run folder {path.parent} cannot be written: {error}") from error


def _move_aside(folder: Path, note: Note) -> bool:
    if not _content(folder):
        return False
    number = 1
    while (target := folder.with_name(f"{folder.name}.before-{number}")).exists():
        number += 1
    folder.rename(target)
    note(f"What was in {folder} is now in {target}.")
    return True
