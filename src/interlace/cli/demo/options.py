"""The command line of `interlace demo`."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

from interlace.errors import ConfigError

# What fits into minutes on two cores; docs/guide/demo.md has the measured times.
ROLLOUTS, QUICK_PROBLEMS = 60, 200
HELD_OUT = 395
PACKAGED_ROLLOUTS = 120  # of the arms that experiments/01-countdown/package.py makes
EPILOG = """\
what happens:
  1. From one tiny model (0.4 M parameters, packaged) two arms are trained side by side, each in a
     process of its own: Bridge (a warm-up of the new weights, then GRPO at widths 1, 2, 4 and 8)
     and RLVR-only (the same GRPO, nothing attached). The puzzle: reach a target with three numbers.
  2. Base, RLVR-only and Bridge answer the same held-out problems at widths 1 to 16, with 16 rows a
     problem at every width.
  3. One group of eight rows is replayed, picked because it shows best how a find spreads; beside it
     the same prompt and the same weights with every row alone.
  4. A report with the table, a figure and the group is written; its path is printed.

examples:
  Everything, in about 4 minutes on two free cores:
    interlace demo
  A look at it without training, in about a minute, at packaged arms (120 rollouts each):
    interlace demo --quick
  Longer training lifts every arm; another seed shows how much is chance:
    interlace demo --rollouts 400 --output runs/demo-400
    interlace demo --seed 1 --output runs/demo-seed-1

After Ctrl-C or a kill the same command goes on where it was. It needs no network, no GPU, and less
than 4 GB of memory.
"""


@dataclass(frozen=True)
class Settings:
    """What decides a demo's outcome.

    Attributes:
        quick: packaged arms instead of training.
        seed: of training and of sampling.
        rollouts: of GRPO, for each arm.
        problems: held-out problems of the evaluation.
        warmup_problems: problems whose responses the warm-up learns from.
        warmup_steps: its optimizer steps.
        prompts: of a rollout.
        timed: problems whose groups are timed alone.
        samples: rows of each problem at every width, in as many groups as they fill.
    """

    quick: bool = False
    seed: int = 0
    rollouts: int = ROLLOUTS
    problems: int = HELD_OUT
    warmup_problems: int = 600
    warmup_steps: int = 150
    prompts: int = 64
    timed: int = 6
    samples: int = 16


def build_parser(prog: str) -> argparse.ArgumentParser:
    """The options of `interlace demo`."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="See the method work, honestly, on a laptop: train, evaluate, look inside a "
        "group, read what\nthe numbers mean and what they do not.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--output", metavar="FOLDER", default=None,
        help="where everything goes (default: runs/demo, or runs/demo-quick)")  # fmt: skip
    add(
        "--quick",
        action="store_true",
        help="use packaged arms, of 120 rollouts, instead of training",
    )
    add("--seed", type=int, default=0, help="of training and sampling (default: 0)")
    add("--rollouts", type=int, default=None, metavar="N",
        help="of GRPO for each arm, 64 prompts x 8 responses and four optimizer steps on them "
        f"(default: {ROLLOUTS})")  # fmt: skip
    add("--problems", type=int, default=None, metavar="N",
        help=f"held-out ones (default: all {HELD_OUT}, with --quick {QUICK_PROBLEMS})")  # fmt: skip
    add("--restart", action="store_true",
        help="begin anew; the folder's earlier demo, unless at work, is moved aside")  # fmt: skip
    return parser


def settle(arguments: argparse.Namespace) -> tuple[Settings, Path]:
    """The settings and the output folder that a command line asks for.

    Raises:
        ConfigError: for a value out of its range, or --rollouts with --quick.
    """
    quick = arguments.quick
    if quick and arguments.rollouts is not None:
        raise ConfigError("--quick trains nothing, so it takes no --rollouts; drop one of them.")
    rollouts = ROLLOUTS if arguments.rollouts is None else arguments.rollouts
    problems = arguments.problems
    if problems is None:
        problems = QUICK_PROBLEMS if quick else HELD_OUT
    if rollouts < 1:
        raise ConfigError(f"--rollouts is at least 1; got {rollouts}.")
    if not 2 <= problems <= HELD_OUT:
        raise ConfigError(f"--problems is 2 to {HELD_OUT}, all held-out ones; got {problems}.")
    if arguments.seed < 0:
        raise ConfigError(f"--seed is a whole number from 0 on; got {arguments.seed}.")
    folder = arguments.output or ("runs/demo-quick" if quick else "runs/demo")
    settings = Settings(quick=quick, seed=arguments.seed, rollouts=rollouts, problems=problems)
    # An absolute path has a name, which the folder that is moved aside needs ("." has none).
    path = Path(folder).expanduser()
    return settings, path if path.name.strip(".") else Path(os.path.abspath(path))
