"""The command line of `interlace train`, and help that explains every option of a stage."""

from __future__ import annotations

import argparse
import os
from typing import Any

EXAMPLES = """\
examples:
  The warm-up, then GRPO, with the recipe for the packaged tiny model:
    interlace train warmup tiny
    interlace train grpo tiny
  A recipe of your own, some of its options overridden (values as YAML):
    interlace train grpo my.yaml grpo.learning_rate=1e-5 'grpo.width=[1,2,4,8]' output_dir=runs/x
  What it would take, without loading weights:
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
_WITH_VALUE = ("--processes", "--memory")


class Parser(argparse.ArgumentParser):
    """As argparse's, with options anywhere between the words, and help for the stage that is
    asked about."""

    stage: str | None = None

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As in argparse."""
        options, words = _options_first(list(args or ()))
        self.stage = words[0] if words and words[0] in STAGE_EXAMPLES else None
        return super().parse_known_args([*options, *words], namespace)

    def format_help(self) -> str:
        """As in argparse; with a stage, its options too."""
        if self.stage is None:
            return super().format_help()
        from interlace.cli.train.options_help import explain

        self.epilog = f"example:\n  {STAGE_EXAMPLES[self.stage]}\n\n{explain(self.stage)}"
        return super().format_help()


def _options_first(arguments: list[str]) -> tuple[list[str], list[str]]:
    options: list[str] = []
    words: list[str] = []
    left = iter(arguments)
    for argument in left:
        if not argument.startswith("-"):
            words.append(argument)
            continue
        options.append(argument)
        if argument in _WITH_VALUE:
            options += [value for value in [next(left, None)] if value is not None]
    return options, words


def build_parser(prog: str) -> argparse.ArgumentParser:
    """The options of `interlace train`."""
    parser = Parser(
        prog=prog,
        usage=f"{prog} {{warmup,grpo}} RECIPE [section.key=value ...] [options]",
        description="Train Bridge blocks (or P-Match blocks, or the bare model) by a recipe: first "
        "the warm-up on\ncorrect responses in groups, then GRPO with verifiable rewards. Writes "
        "checkpoints and the\ntrained model into the recipe's output_dir.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("stage", choices=tuple(STAGE_EXAMPLES), help="the warm-up, or GRPO")
    add("recipe", metavar="RECIPE", help="a YAML file, or the name of one that comes along")
    add(
        "overrides",
        nargs="*",
        metavar="section.key=value",
        help="instead of what the recipe says; the last one wins",
    )
    add(
        "--dry-run",
        action="store_true",
        help="load no weights; print steps, tokens and memory, and refuse what cannot fit",
    )
    add(
        "--restart",
        action="store_true",
        help="begin anew; what the stage's folder holds is moved aside, never deleted",
    )
    add(
        "--processes",
        type=int,
        default=int(os.environ.get("WORLD_SIZE", "1")),
        metavar="N",
        help="with --dry-run: how many processes train (default: WORLD_SIZE, or 1)",
    )
    add(
        "--memory",
        type=float,
        metavar="GIB",
        help="with --dry-run: of the device of each process (default: what this machine has)",
    )
    add(
        "--fsdp",
        action="store_true",
        default=os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in ("1", "true"),
        help="with --dry-run: FSDP shards the weights over the processes",
    )
    return parser
