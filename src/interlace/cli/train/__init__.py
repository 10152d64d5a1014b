"""`interlace train warmup|grpo`: a stage of a recipe, begun or gone on with."""

from interlace.cli.train.command import run
from interlace.cli.train.parser import build_parser

__all__ = ["build_parser", "run"]
