"""`interlace train warmup|grpo RECIPE`: run a stage of a recipe, or say what it would take."""

from __future__ import annotations

import gc
import os
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from interlace.configuration import Parser
from interlace.errors import ConfigError
from interlace.terminal import Table, printable

if TYPE_CHECKING:
    from argparse import Namespace
    from pathlib import Path

    from interlace.training.recipe import Recipe, Stage

EVALUATED = "eval_width_"
SHOWN = {"pass@1": "a row is right", "coverage": "any is right", "vote": "the vote is right"}

EXAMPLES = """\
examples:
  The warm-up, then GRPO, with the recipe for the packaged tiny model:
    interlace train warmup tiny
    interlace train grpo tiny
  A recipe of your own, some of its options overridden (values as YAML):
    interlace train grpo my.yaml grpo.learning_rate=1e-5 'grpo.width=[1,2,4,8]' output_dir=runs/x
  What it would take, without training:
    interlace train grpo smollm2-135m-gpu --dry-run --memory 80
  The baselines, each the same command with another attach:
    interlace train grpo tiny attach=none output_dir=runs/tiny-rlvr
    interlace train warmup tiny attach.method=pmatch output_dir=runs/tiny-pmatch
  Several processes, on one machine:
    torchrun --nproc-per-node 8 -m interlace.cli.main train grpo my.yaml

The same command goes on where a kill left it. `interlace train warmup --help` and
`interlace train grpo --help` explain the options of the stages.
"""
STAGE_EXAMPLES = {
    "warmup": "interlace train warmup tiny warmup.max_steps=20 output_dir=runs/short",
    "grpo": "interlace train grpo tiny grpo.width=8 grpo.num_generations=16 grpo.baseline=others",
}
# A key of the recipe, written as a flag.
_KEY = re.compile(
    r"--((warmup|grpo|load|attach|task[-_]options)\.|(model|attach|task|blocks|seed|output[-_]dir)\b)"
)
FURTHER = """\
Write these as section.key=value, or as flags. Further options of a section are those of Hugging
Face's TrainingArguments, under the same names.
"""


@dataclass(frozen=True)
class Settings:
    """Options.

    Args:
        stage: Stage to run: the warm-up, or GRPO.
        recipe: Path of a YAML file (also after --config), or name of a recipe that comes along.
        overrides: Keys of the recipe with other values, as section.key=value; the last one wins.
        dry_run: Print steps, tokens and memory, and refuse what cannot fit; weights are loaded only
            to show spliced groups.
        restart: Begin anew; what the stage's folder holds is moved aside, never deleted.
        processes: Number of processes that train, for --dry-run; by default WORLD_SIZE, or 1.
        memory: GiB of each process's device, for --dry-run; by default what this machine has.
        fsdp: Shard the weights over the processes, for --dry-run.
    """

    stage: Literal["warmup", "grpo"] | None = None
    recipe: str = ""
    overrides: tuple[str, ...] = ()
    dry_run: bool = False
    restart: bool = False
    processes: int | None = None
    memory: float | None = None
    fsdp: bool = field(
        default_factory=lambda: os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true")
    )


class _Parser(Parser):
    def parse(self, argv: Sequence[str]) -> Any:
        """As any parser does; --grpo.width 4 is an override, and a stage's help has its options."""
        stages = [word for word in argv if word in STAGE_EXAMPLES]
        if stages and {"-h", "--help"} & set(argv):
            from interlace.training.recipe import declare

            declare(self, stages[:1])
            self.epilog = f"example:\n  {STAGE_EXAMPLES[stages[0]]}\n\n{FURTHER}"
        words, left = [], list(argv)
        while left:
            word = left.pop(0)
            if _KEY.match(word):
                word = word[2:] if "=" in word or not left else f"{word[2:]}={left.pop(0)}"
            words.append(word)
        return super().parse(words)

    def printed(self, found: Any) -> str:
        """The recipe with all defaults."""
        from interlace.training.run import as_yaml

        recipe, stage = _asked(found)
        return as_yaml(recipe.resolved(stage), stage)


def build_parser(prog: str) -> Parser:
    """The options of `interlace train`."""
    parser = _Parser(
        prog,
        usage="{warmup,grpo} RECIPE [section.key=value ...] [options]",
        description="Train Bridge blocks (or P-Match blocks, or the bare model) by a recipe: "
        "first\nthe warm-up on correct responses in groups, then GRPO with verifiable rewards.\n"
        "Writes checkpoints and the trained model into the recipe's output_dir.",
        examples=EXAMPLES,
    )
    parser.aliases["config"] = "recipe"
    parser.add_options(Settings, words=["stage", "recipe", "overrides"])
    return parser


def run(arguments: Namespace) -> int:
    """Run the stage, or with --dry-run say what it would take."""
    processes = arguments.processes
    if processes is None:
        processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes < 1:
        raise ConfigError(f"--processes is at least 1; got {processes}.")
    recipe, stage = _asked(arguments)
    if arguments.dry_run:
        from interlace.cli.dry_run import dry_run

        return dry_run(recipe, stage, processes, arguments.memory, sharded=arguments.fsdp)
    return _train(recipe, stage, arguments)


def _asked(arguments: Namespace) -> tuple[Recipe, Stage]:
    if arguments.stage is None or not arguments.recipe:
        raise ConfigError("Say which stage and recipe: interlace train warmup tiny.")
    from interlace.training.recipe import load_recipe

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    recipe.section(arguments.stage)
    return recipe, arguments.stage


def _train(recipe: Recipe, stage: Stage, arguments: Namespace) -> int:
    from interlace.training.run import train

    folder = train(recipe, stage, restart=arguments.restart, note=_note)
    if _is_first():
        _print_evaluations(recipe.folder(stage))
        print(f"The trained model is in {folder}. Next:\n\n  {_next(recipe, stage, arguments)}")
    _leave_processes()
    return 0


def _leave_processes() -> None:
    """End the process group, and its threads, while the interpreter lives.

    A thread of gloo lets go of a collective's tensors some time after whoever waited for them goes
    on, and takes the interpreter's lock for it. Where the interpreter ends at that moment, C++
    aborts the process, after all its work.
    """
    import torch.distributed as dist

    if dist.is_initialized():
        gc.collect()  # wrapped models hold the group, too
        dist.destroy_process_group()


def _print_evaluations(folder: Path) -> None:
    """What the first and the last evaluation of a run found, side by side, if there were any."""
    from rich.console import Console

    from interlace.jsonl import read

    path = folder / "metrics.jsonl"
    lines = [line for _, line in read(path) if any(key.startswith(EVALUATED) for key in line)]
    if not lines:
        return
    last = lines[-1]
    first = next(line for line in lines if line.keys() >= last.keys())  # a run may change widths
    title = f"Held-out problems, per cent: optimizer step {first['step']} -> {last['step']}"
    rows = []
    for key in last:
        before, _, metric = key.rpartition("/")
        if metric == next(iter(SHOWN)) and before.startswith(EVALUATED):
            cells = [
                f"{100 * first[f'{before}/{name}']:.1f} -> {100 * last[f'{before}/{name}']:.1f}"
                for name in SHOWN
            ]
            rows.append([before.removeprefix(EVALUATED), *cells])
    Table(("width", *SHOWN.values()), rows, title).print(Console())


def _next(recipe: Recipe, stage: Stage, arguments: Namespace) -> str:
    """The command that usually follows."""
    if stage == "warmup" and recipe.grpo is not None:
        words = ["interlace", "train", "grpo", arguments.recipe, *arguments.overrides]
        return shlex.join(words)
    name, options = recipe.task_of(stage)
    words = ["interlace", "eval", "--model", str(recipe.folder(stage) / "model"), "--task", name]
    if options.get("split") == "train":
        words += ["--split", "test"]  # some tasks are taken as a whole unless told otherwise
    words += ["--max-new-tokens", str(recipe.options(stage).max_new_tokens)]
    if widths := recipe.options(stage).eval_widths:
        words += ["--widths", ",".join(map(str, widths))]
    rest = [f"{k}={_text(v)}" for k, v in options.items() if k not in ("split", "data", "size")]
    return shlex.join([*words, *(["--task-options", *rest] if rest else [])])


def _text(value: Any) -> str:
    import json

    return value if isinstance(value, str) else json.dumps(value)


def _is_first() -> bool:
    """Whether this process is the one that prints."""
    return os.environ.get("RANK", "0") == "0"


def _note(text: str) -> None:
    if _is_first():
        print(printable(f"interlace: {text}"), file=sys.stderr)
