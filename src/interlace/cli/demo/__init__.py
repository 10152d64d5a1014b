"""`interlace demo`: the whole method in minutes on a laptop, from training to a report."""

from interlace.cli.demo.command import run
from interlace.cli.demo.options import build_parser

__all__ = ["build_parser", "run"]
