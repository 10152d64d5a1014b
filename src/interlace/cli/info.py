"""`interlace info MODEL`: what a model is, what blocks add to it, and the memory at a width."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from interlace.cli.shared import ModelOptions
from interlace.configuration import Parser
from interlace.coupling.registry import COUPLINGS, DEFAULT_KIND, config_from_dict
from interlace.errors import ConfigError
from interlace.terminal import in_bytes

if TYPE_CHECKING:
    from argparse import Namespace

    from interlace.coupling.config import CouplingConfig
    from interlace.models.describe import Description, Memory

EXAMPLES = """\
examples:
  interlace info Qwen/Qwen2.5-1.5B-Instruct
  interlace info smollm2-135m --share 0.05 --width 16
  interlace info out/ --length 4096 --prompt-length 256
  interlace info gpt2 --kind pmatch --layers 2 --json
"""


@dataclass(frozen=True)
class _Blocks:
    """Blocks to attach, if the model has none.

    Args:
        kind: Kind of the blocks.
        share: Share of new parameters, over those of the base, such as 0.05; sets the dimensions.
        num_heads: Number of query heads.
        num_kv_heads: Number of key-value heads.
        head_dim: Dimension of a head.
        layers: Layers with a block: "all", k for every k-th layer, or a list such as 0,4,8.
    """

    kind: Literal[tuple(COUPLINGS)] | None = None  # type: ignore[valid-type]
    share: float | None = None
    num_heads: int | None = None
    num_kv_heads: int | None = None
    head_dim: int | None = None
    layers: Literal["all"] | int | list[int] | None = None


@dataclass(frozen=True)
class Settings(ModelOptions, _Blocks):
    """Memory, and output.

    Args:
        width: Number of rows of a group.
        length: Number of positions of a row.
        prompt_length: Number of them that are the prompt; by default half.
        dtype: Type of weights and cache; by default the checkpoint's.
        json: Print JSON instead of a table.
    """

    width: int = 8
    length: int = 1024
    prompt_length: int | None = None
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    json: bool = False


class _Parser(Parser):
    def parse(self, argv: Sequence[str]) -> Any:
        """As any parser does; --config named the blocks until version 0.1."""
        for flag, value in itertools.pairwise([*argv, ""]):
            found = re.fullmatch(r"--config(?:=(\w+))?", flag)
            if found and (found[1] or value) in COUPLINGS:
                raise ConfigError(
                    f"--config names a YAML file; the blocks are --kind {found[1] or value} now."
                )
        return super().parse(argv)


def build_parser(prog: str) -> Parser:
    """The options of `interlace info`."""
    parser = _Parser(
        prog,
        usage="MODEL [options]",
        description="Describe a model and the blocks that it has or would get. Reads and downloads "
        "configurations\nonly, never weights.",
        examples=EXAMPLES,
        config="share: 0.05",
    )
    parser.add_options(Settings, words=["model"])
    return parser


def run(arguments: Namespace) -> None:
    """Describe the model and print it."""
    from interlace.models.describe import describe, memory
    from interlace.models.source import resolve

    if not arguments.model:
        raise ConfigError(
            "Say which model: interlace info Qwen/Qwen2.5-1.5B-Instruct, or a folder."
        )
    source = resolve(
        arguments.model, revision=arguments.revision, gguf_file=arguments.gguf_file, weights=False
    )
    description, model = describe(
        source,
        _block_config(arguments),
        base=arguments.base,
        dtype=arguments.dtype,
        trust_remote_code=arguments.trust_remote_code,
    )
    length = arguments.length
    prompt = arguments.prompt_length or max(1, length // 2)
    needed = memory(model, arguments.width, prompt, length)
    if arguments.json:
        sizes = {"width": arguments.width, "prompt_length": prompt, "length": length}
        values = description.to_dict() | {"memory": sizes | dataclasses.asdict(needed)}
        print(json.dumps(values, indent=2))
    else:
        _print(description, needed, arguments.width, prompt, length)


def _block_config(arguments: Namespace) -> CouplingConfig | None:
    """The blocks that the options ask for; None if they ask for nothing."""
    options = [field.name for field in dataclasses.fields(_Blocks) if field.name != "kind"]
    found = {name: getattr(arguments, name) for name in options}
    found["parameter_share"] = found.pop("share")
    given = {name: value for name, value in found.items() if value is not None}
    if not given and arguments.kind is None:
        return None
    if "parameter_share" in given and "head_dim" in given:
        raise ConfigError("--share picks the head dimension; leave out --head-dim or --share.")
    return config_from_dict({"kind": arguments.kind or DEFAULT_KIND, **given})


def _print(description: Description, needed: Memory, width: int, prompt: int, length: int) -> None:
    from rich.console import Console

    from interlace.terminal import facts, say

    console, sizes, blocks = Console(), description.sizes, description.blocks
    carriers = blocks.layers if isinstance(blocks.layers, list) else []
    model = {
        "base model": None if description.base_id == description.id else description.base_id,
        "architecture": description.architecture,
        "layers": sizes["num_hidden_layers"],
        "hidden size D": sizes["hidden_size"],
        "heads": sizes["num_attention_heads"],
        "key-value heads": sizes["num_key_value_heads"],
        "vocabulary": sizes["vocab_size"],
        "base parameters": description.base_parameters,
    }
    added = {
        "blocks": f"{blocks.kind}, {'attached' if description.attached else 'if attached'}",
        "layers with a block": f"{len(carriers)} of {sizes['num_hidden_layers']}",
        **blocks.facts(),
        "new parameters": description.new_parameters,
        "share": f"{description.share:.2%}",
    }
    positions = f"prompt {prompt:,} of {length:,} positions"
    memory = {
        "memory at width": f"{width}, {positions}, {description.dtype}",
        "base weights": in_bytes(needed.base_weights),
        "new weights": in_bytes(needed.new_weights),
        "cache, prompt stored once": in_bytes(needed.cache_shared),
        "cache, prompt copied": in_bytes(needed.cache_copied),
    }
    facts(description.id, [model, added, memory]).print(console)
    for note in description.notes:
        say(console, f"Note: {note}", "yellow")
