"""`interlace export MODEL OUT --to vllm`: a model and its blocks in the form that others serve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from interlace.cli.shared import ModelOptions
from interlace.configuration import Parser
from interlace.errors import ConfigError

if TYPE_CHECKING:
    from argparse import Namespace

EXAMPLES = """\
examples:
  What a training saved, for vLLM with the plug-in interlace-vllm:
    interlace export runs/mine/model served/ --to vllm
    vllm serve served/
  In half the memory:
    interlace export runs/mine/model served/ --to vllm --dtype bfloat16
"""


@dataclass(frozen=True)
class Settings(ModelOptions):
    """Export.

    Args:
        out: Folder to write; an earlier export in it is replaced.
        to: Program that serves it.
        dtype: Type of the weights, such as bfloat16; by default the checkpoint's.
    """

    out: str = ""
    to: Literal["vllm"] = "vllm"
    dtype: str | None = None


def build_parser(prog: str) -> Parser:
    """The options of `interlace export`."""
    parser = Parser(
        prog,
        usage="MODEL OUT [options]",
        description="Write a model and its blocks as a folder that vLLM serves, with the plug-in "
        "of\nplugins/vllm: n choices of a request are one group there, too.",
        examples=EXAMPLES,
        config="to: vllm",
    )
    parser.add_options(Settings, words=["model", "out"])
    return parser


def run(arguments: Namespace) -> None:
    """Load the model, and write the folder."""
    if not arguments.model or not arguments.out:
        raise ConfigError("Say which model, and where to: interlace export MODEL OUT --to vllm.")
    from interlace.saving.vllm import export_for_vllm

    model, tokenizer = Settings(**vars(arguments)).load(dtype=arguments.dtype)
    folder = export_for_vllm(model, arguments.out, tokenizer)
    print(f"{folder} is ready: vllm serve {folder} (with the plug-in interlace-vllm)")
