"""`interlace info MODEL`: what a model is, what blocks add to it, and the memory at a width."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import TYPE_CHECKING, Any

from interlace.cli.config_file import MODELS
from interlace.coupling.registry import COUPLINGS, DEFAULT_KIND, config_from_dict
from interlace.errors import ConfigError

if TYPE_CHECKING:
    from interlace.coupling.config import CouplingConfig
    from interlace.models.describe import Description, Memory

DTYPES = ("float32", "bfloat16", "float16")
EXAMPLES = """\
examples:
  interlace info Qwen/Qwen2.5-1.5B-Instruct
  interlace info smollm2-135m --share 0.05 --width 16
  interlace info out/ --length 4096 --prompt-length 256
  interlace info gpt2 --config pmatch --layers 2 --json
"""


def build_parser(prog: str) -> argparse.ArgumentParser:
    """The options of `interlace info`."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Describe a model and the blocks that it has or would get. Reads and downloads "
        "configurations only, never weights.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help=MODELS)
    add("--base", help="base model of saved blocks, if not where they say")
    add("--revision", help="branch, tag or commit of a hub id")
    add("--gguf-file", help="which file, where a folder or repository holds GGUF files")
    add("--trust-remote-code", action="store_true", help="run code that comes with the model")
    blocks = parser.add_argument_group("blocks to attach (if MODEL has none)").add_argument
    blocks("--config", choices=tuple(COUPLINGS), help=f"which blocks (default: {DEFAULT_KIND})")
    blocks("--share", type=float, help="new over base parameters, such as 0.05; sets dimensions")
    blocks("--num-heads", type=int, help="query heads (default: 8)")
    blocks("--num-kv-heads", type=int, help="key-value heads (default: 4)")
    blocks("--head-dim", type=int, help="dimension of a head (default: 88)")
    blocks("--layers", type=_layers, help="'all', k for every k-th layer, or a list such as 0,4,8")
    memory = parser.add_argument_group("memory").add_argument
    memory("--width", type=int, default=8, help="rows of a group (default: %(default)s)")
    memory("--length", type=int, default=1024, help="positions of a row (default: %(default)s)")
    memory("--prompt-length", type=int, help="how many of them are the prompt (default: half)")
    memory("--dtype", choices=DTYPES, help="of weights and cache (default: the checkpoint's)")
    add("--json", action="store_true", help="print JSON instead of a table")
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Describe the model and print it."""
    from interlace.models.describe import describe, memory
    from interlace.models.source import resolve

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


def _layers(text: str) -> str | int | list[int]:
    if text == "all":
        return text
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"'all', a number k for every k-th layer, or a list such as 0,4,8; got {text!r}"
        ) from error
    return numbers[0] if "," not in text else numbers


def _block_config(arguments: argparse.Namespace) -> CouplingConfig | None:
    """The blocks that the options ask for; None if they ask for nothing."""
    names = {"share": "parameter_share", "layers": "layers"} | {
        n: n for n in ("num_heads", "num_kv_heads", "head_dim")
    }
    given = {
        field: getattr(arguments, name)
        for name, field in names.items()
        if getattr(arguments, name) is not None
    }
    if not given and arguments.config is None:
        return None
    if "parameter_share" in given and "head_dim" in given:
        raise ConfigError("--share picks the head dimension; leave out --head-dim or --share.")
    return config_from_dict({"kind": arguments.config or DEFAULT_KIND, **given})


def _print(description: Description, needed: Memory, width: int, prompt: int, length: int) -> None:
    from rich.console import Console

    from interlace.terminal import facts, say

    console = Console()
    facts(
        description.id,
        [
            _model_rows(description),
            _block_rows(description),
            _memory_rows(needed, width, prompt, length, description.dtype),
        ],
    ).print(console)
    for note in description.notes:
        say(console, f"Note: {note}", "yellow")


def _model_rows(description: Description) -> dict[str, Any]:
    sizes = description.sizes
    return {
        "base model": None if description.base_id == description.id else description.base_id,
        "architecture": description.architecture,
        "layers": sizes["num_hidden_layers"],
        "hidden size D": sizes["hidden_size"],
        "heads": sizes["num_attention_heads"],
        "key-value heads": sizes["num_key_value_heads"],
        "vocabulary": sizes["vocab_size"],
        "base parameters": description.base_parameters,
    }


def _block_rows(description: Description) -> dict[str, Any]:
    blocks = description.blocks
    layers = blocks.layers if isinstance(blocks.layers, list) else []
    return {
        "blocks": f"{blocks.kind}, {'attached' if description.attached else 'if attached'}",
        "layers with a block": f"{len(layers)} of {description.sizes['num_hidden_layers']}",
        **blocks.facts(),
        "new parameters": description.new_parameters,
        "share": f"{description.share:.2%}",
    }


def _memory_rows(
    needed: Memory, width: int, prompt: int, length: int, dtype: str
) -> dict[str, Any]:
    return {
        "memory at width": f"{width}, prompt {prompt:,} of {length:,} positions, {dtype}",
        "base weights": _size(needed.base_weights),
        "new weights": _size(needed.new_weights),
        "cache, prompt stored once": _size(needed.cache_shared),
        "cache, prompt copied": _size(needed.cache_copied),
    }


def _size(count: int) -> str:
    """Bytes in the unit that keeps the number short.

    >>> _size(3 * 2**20)
    '3.0 MiB'
    """
    value, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"
