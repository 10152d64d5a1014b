"""What `interlace train` does: read the recipe, then run a stage or say what it would take."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING, Any

from interlace.errors import ConfigError
from interlace.terminal import printable

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from interlace.training.recipe import Recipe, Stage

EVALUATED = "eval_width_"
SHOWN = {"pass@1": "a row is right", "coverage": "any is right", "vote": "the vote is right"}


def run(arguments: argparse.Namespace) -> int:
    """Run the stage, or with --dry-run say what it would take."""
    if arguments.processes < 1:
        raise ConfigError(f"--processes is at least 1; got {arguments.processes}.")
    from interlace.training.recipe import load_recipe

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    stage: Stage = arguments.stage
    recipe.section(stage)
    if arguments.dry_run:
        from interlace.cli.train.dry_run import dry_run

        return dry_run(recipe, stage, arguments.processes, arguments.memory, sharded=arguments.fsdp)
    return _train(recipe, stage, arguments)


def _train(recipe: Recipe, stage: Stage, arguments: argparse.Namespace) -> int:
    from interlace.training.run import train

    folder = train(recipe, stage, restart=arguments.restart, note=_note)
    if _is_first():
        _print_evaluations(recipe.folder(stage))
        print(f"The trained model is in {folder}. Next:\n\n  {_next(recipe, stage, arguments)}")
    return 0


def _print_evaluations(folder: Path) -> None:
    """What the first and the last evaluation of a run found, side by side, if there were any."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from interlace.jsonl import read

    path = folder / "metrics.jsonl"
    lines = [line for _, line in read(path) if any(key.startswith(EVALUATED) for key in line)]
    if not lines:
        return
    first, last = lines[0], lines[-1]
    title = f"Held-out problems, per cent: optimizer step {first['step']} -> {last['step']}"
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    for name in ("width", *SHOWN.values()):
        table.add_column(name, justify="right")
    for key in last:
        before, _, metric = key.rpartition("/")
        if metric == next(iter(SHOWN)) and before.startswith(EVALUATED):
            cells = [
                f"{100 * first[f'{before}/{name}']:.1f} -> {100 * last[f'{before}/{name}']:.1f}"
                for name in SHOWN
            ]
            table.add_row(before.removeprefix(EVALUATED), *cells)
    Console().print(table)


def _next(recipe: Recipe, stage: Stage, arguments: argparse.Namespace) -> str:
    """The command that usually follows."""
    if stage == "warmup" and recipe.grpo is not None:
        words = ["interlace", "train", "grpo", arguments.recipe, *arguments.overrides]
        return shlex.join(words)
    name, options = recipe.task_of(stage)
    words = ["interlace", "eval", "--model", str(_model_folder(recipe, stage)), "--task", name]
    if options.get("split") == "train":
        words += ["--split", "test"]  # some tasks are taken as a whole unless told otherwise
    words += ["--max-new-tokens", str(recipe.options(stage).max_new_tokens)]
    if widths := recipe.options(stage).eval_widths:
        words += ["--widths", ",".join(map(str, widths))]
    rest = [f"{k}={_text(v)}" for k, v in options.items() if k not in ("split", "data", "size")]
    return shlex.join([*words, *(["--task-options", *rest] if rest else [])])


def _model_folder(recipe: Recipe, stage: Stage) -> Path:
    return recipe.folder(stage) / "model"


def _text(value: Any) -> str:
    import json

    return value if isinstance(value, str) else json.dumps(value)


def _is_first() -> bool:
    """Whether this process speaks for all."""
    import os

    return os.environ.get("RANK", "0") == "0"


def _note(text: str) -> None:
    if _is_first():
        print(printable(f"interlace: {text}"), file=sys.stderr)
