"""`interlace train warmup|grpo`: a stage of a recipe, begun or gone on with."""

from interlace.cli.train.command import build_parser, run

__all__ = ["build_parser", "run"]
