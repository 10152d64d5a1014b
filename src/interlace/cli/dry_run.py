"""`interlace train ... --dry-run`: what a stage would do and take, without its weights."""

from __future__ import annotations

import os
from textwrap import indent
from typing import TYPE_CHECKING, Any

from rich.console import Console

from interlace.cli.shared import prompt_text
from interlace.errors import ConfigError
from interlace.terminal import facts, in_bytes, printable
from interlace.training.estimate import (
    Subject,
    longest_prompt,
    memory,
    plan,
    probe,
    setting,
    skeleton,
    ways_out,
)
from interlace.training.run import build_task, check_task, starting_folder

if TYPE_CHECKING:
    from interlace.tasks.base import Task
    from interlace.training.recipe import Recipe, Stage

GIB = 2**30
SHOWN = 3  # rewritten groups


def dry_run(
    recipe: Recipe, stage: Stage, processes: int, gibibytes: float | None, sharded: bool
) -> int:
    """Print what a stage would do and take, on devices of so many GiB, or else of this machine."""
    if gibibytes is not None and not gibibytes > 0:
        raise ConfigError(f"--memory is a number of GiB above 0; got {gibibytes}.")
    options = recipe.options(stage)
    task = build_task(recipe, stage)
    check_task(recipe, stage, task)
    model, source = skeleton(recipe, stage)
    on_cpu, available, where = _device(options, gibibytes, processes)
    prompt = longest_prompt(source, task)
    at = setting(options, stage, model, prompt, processes=processes, sharded=sharded, cpu=on_cpu)
    eager = recipe.load.get("attn_implementation") == "eager"
    subject = probe(model, at.group_rows, eager=eager, mixed=at.mixed)
    needed = memory(subject, at)
    start = starting_folder(recipe, stage)
    does = plan(options, stage, len(task))
    facts(
        f"{stage} of {recipe.model}, into {recipe.folder(stage)}",
        [
            does if stage == "warmup" else {**does, "processes": at.processes},
            _parameters(recipe, subject, start, stage),
            _bytes("all the time", needed.fixed),
            _bytes("while sampling", needed.sampling),
            _bytes("while training", needed.training),
        ],
    ).print(Console())
    _print_example(task)
    room, peak = in_bytes(available), in_bytes(needed.peak)
    print(f"\n{where}: {room} for each process; needed at the peak {peak}")
    if stage == "warmup" and options.splice and needed.peak <= available:
        _show_spliced(recipe, task)
    if needed.peak > available:
        ways = "; or ".join(ways_out(subject, at, available, stage))
        raise ConfigError(
            f"This does not fit: about {peak} for each process, and there are {room}. Try {ways}. "
            "If the device is another one, say so with --memory."
        )
    return 0


def _show_spliced(recipe: Recipe, task: Task) -> None:
    """Three rewritten groups, rows side by side. Only this part loads the weights."""
    from rich.table import Table
    from rich.text import Text

    from interlace.engine.engine import Engine
    from interlace.models.loading import load
    from interlace.training.responses import spliced_groups

    model, tokenizer = load(recipe.model, **recipe.load)
    options = recipe.options("warmup")
    options.seed = recipe.seed
    if task.chat and not tokenizer.chat_template:
        task = build_task(recipe, "warmup", chat=False)
    engine = Engine(model, tokenizer, max_rows=options.max_rows)
    example = None
    for example, rows in spliced_groups(engine, task, options, SHOWN):
        table = Table(title=f"Spliced: {example.question}", title_justify="left", show_lines=True)
        cells = []
        for number, row in enumerate(rows, 1):
            table.add_column(f"row {number}", overflow="fold")
            whole = tokenizer.decode(row.ids, skip_special_tokens=True)
            kept = len(tokenizer.decode(row.ids[: row.spliced], skip_special_tokens=True))
            text = Text(whole)
            if row.spliced is not None:
                text.stylize("bold reverse", kept)
            cells.append(text)
        table.add_row(*cells)
        Console().print(table)
    if example is None:
        print(
            "Nothing to splice: in no group of the first problems does a row find an answer while "
            "a sibling still has tries to come. Take easier problems, more samples, or a longer "
            "max_new_tokens."
        )


def _print_example(task: Task) -> None:
    """One prompt as the model gets it, and an answer that the task accepts."""
    example = task[0]
    prompt = prompt_text(task, example)
    print(f"The first prompt:\n\n{printable(indent(prompt, '  '))}")
    accepted = task.reference_text(example)
    if accepted:
        print(f"\nA response that is accepted:\n\n{printable(indent(accepted, '  '))}")


def _device(options: Any, gibibytes: float | None, processes: int) -> tuple[bool, int, str]:
    """Whether it is the CPU; bytes for each process, and what has them."""
    import torch

    from interlace.engine.core import free_bytes

    on_cpu = options.use_cpu or (gibibytes is None and not torch.cuda.is_available())
    if gibibytes is not None:
        return on_cpu, int(gibibytes * GIB), "As --memory says"
    if on_cpu:
        # Processes of one machine share its memory.
        here = max(int(os.environ.get("LOCAL_WORLD_SIZE", processes)), 1)
        return True, free_bytes(torch.device("cpu")) // here, "Free memory of this machine"
    return False, free_bytes(torch.device("cuda")), "Free memory of this GPU"


def _parameters(recipe: Recipe, subject: Subject, start: Any, stage: Stage) -> dict[str, Any]:
    trained = f"{subject.trained_old:,} old, {subject.trained_new:,} new"
    found = {
        "old parameters": subject.old_parameters,
        "new parameters": subject.new_parameters,
        "that train": trained,
    }
    if stage == "grpo":
        found["starts from"] = "fresh blocks" if start is None else str(start)
        if recipe.attach == "none" and start is None:
            found["starts from"] = "the model"
    return found


def _bytes(phase: str, parts: dict[str, int]) -> dict[str, Any]:
    found: dict[str, Any] = {f"memory {phase}": in_bytes(sum(parts.values()))}
    return found | {f"  {name}": in_bytes(value) for name, value in parts.items()}
