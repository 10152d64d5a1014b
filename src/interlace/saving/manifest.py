"""What a save says of itself: `interlace.json` (what the blocks are, which base model they belong
to, how to tell that they are whole), and the model card that says it to a reader."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interlace import __version__
from interlace.coupling.config import CouplingConfig
from interlace.coupling.registry import config_from_dict, coupling_class
from interlace.errors import CheckpointError, reading
from interlace.files import MANIFEST as MANIFEST
from interlace.files import locate
from interlace.saving.fingerprint import Fingerprint

MARK = "<!-- Written by interlace.save. Delete this line to keep your edits. -->"
HUB_NAMES = {"smollm2-135m": "HuggingFaceTB/SmolLM2-135M-Instruct"}
FORMAT = 1  # raised when older versions of Interlace cannot read what this one writes
BASE, TOKENIZER, CARD = "base", "tokenizer", "README.md"  # entries of the folder beside the weights


@dataclass(frozen=True)
class Manifest:
    """The contents of `interlace.json`.

    Args:
        config: Configuration of the blocks, resolved: explicit dimensions and layers.
        layers: Paths of the layers that carry blocks, in the order of `config.layers`.
        hidden_size: D.
        new_parameters: Number of parameters in all blocks together.
        weights_bytes: Number of bytes of the weights file.
        weights_sha256: Hash of the weights file.
        base_id: Source of the base model, as `interlace.load` takes it; None if it came from
            memory.
        base_revision: Commit of the base model, if known.
        base_included: Whether the folder holds the base model too.
        base: Fingerprint of the base model.
        dequantised_from: GGUF type that the base's weights were dequantised from, if so.
    """

    config: CouplingConfig
    layers: tuple[str, ...]
    hidden_size: int
    new_parameters: int
    weights_bytes: int
    weights_sha256: str
    base_id: str | None
    base_revision: str | None
    base_included: bool
    base: Fingerprint
    dequantised_from: str | None = None

    @property
    def weights_file(self) -> str:
        """The kind's name, such as `bridge.safetensors`."""
        return f"{self.config.kind}.safetensors"

    @property
    def share(self) -> float:
        """New over base parameters."""
        return self.new_parameters / self.base.parameters

    def to_json(self) -> str:
        """The text of `interlace.json`."""
        values = {
            "format": FORMAT,
            "interlace": __version__,
            "blocks": self.config.to_dict(),
            "layers": list(self.layers),
            "hidden_size": self.hidden_size,
            "new_parameters": self.new_parameters,
            "weights": {
                "file": self.weights_file,
                "bytes": self.weights_bytes,
                "sha256": self.weights_sha256,
            },
            "base": {
                "id": self.base_id,
                "revision": self.base_revision,
                "included": self.base_included,
                "dequantised_from": self.dequantised_from,
                "fingerprint": self.base.to_dict(),
            },
        }
        text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
        # One line a list: readers look for names, not for a column of numbers.
        return re.sub(r"\[\n[^\[\]{}]*\]", lambda m: f"[{' '.join(m[0][1:-1].split())}]", text)

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest of a folder of saved blocks."""
        path = locate(folder, MANIFEST)
        if not path.is_file():
            raise CheckpointError(
                f"{folder} holds no {MANIFEST}, so no saved blocks. interlace.save(model, folder) "
                "writes one."
            )
        way_out = (
            "The file was damaged or edited. Restore it from where it was copied, or save the "
            "model again."
        )
        with reading(CheckpointError, f"{path} is not readable JSON", way_out):
            values = json.loads(path.read_text(encoding="utf-8"))
        with reading(CheckpointError, f"{path} does not describe saved blocks", way_out):
            _check_format(values, path)
            return _parse(values, path)


def _check_format(values: Any, path: Path) -> None:
    found = values.get("format") if isinstance(values, dict) else None
    if isinstance(found, bool) or not isinstance(found, int):
        raise CheckpointError(
            f"{path} names no format version ('format': {FORMAT}), so it was not written by "
            "interlace.save."
        )
    if found > FORMAT:
        raise CheckpointError(
            f"{path} has format {found}, written by interlace {values.get('interlace')}; this is "
            f"interlace {__version__}, which reads up to format {FORMAT}. Upgrade it: pip install "
            "--upgrade interlace."
        )


def _parse(values: dict[str, Any], path: Path) -> Manifest:
    def fail(what: str) -> CheckpointError:
        return CheckpointError(
            f"{path}: {what}. The file was damaged or edited; restore it, or save the model again."
        )

    def take(where: dict[str, Any], key: str, *kinds: type) -> Any:
        value = where.get(key)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            wanted = " or ".join(k.__name__ for k in kinds)
            raise fail(f"{key!r} should be {wanted}, found {value!r}")
        return value

    optional = (str, type(None))
    weights, base = take(values, "weights", dict), take(values, "base", dict)
    shot = take(base, "fingerprint", dict)
    blocks, samples = take(values, "blocks", dict), take(shot, "values", dict)
    try:
        config = config_from_dict(blocks)
        samples = {name: [float(x) for x in row] for name, row in samples.items()}
    except (TypeError, ValueError) as error:
        raise fail(f"not readable: {error}") from error
    layers = tuple(str(name) for name in take(values, "layers", list))
    expected = config.layers if "layers" in blocks else []
    if not isinstance(expected, list) or len(layers) != len(expected):
        raise fail(f"'layers' names {len(layers)} layers, 'blocks' {config.layers!r}")
    return Manifest(
        config=config,
        layers=layers,
        hidden_size=take(values, "hidden_size", int),
        new_parameters=take(values, "new_parameters", int),
        weights_bytes=take(weights, "bytes", int),
        weights_sha256=take(weights, "sha256", str),
        base_id=take(base, "id", *optional),
        base_revision=take(base, "revision", *optional),
        base_included=take(base, "included", bool),
        dequantised_from=take(base, "dequantised_from", *optional),
        base=Fingerprint(
            architecture=take(shot, "architecture", str),
            parameters=take(shot, "parameters", int),
            sizes=take(shot, "sizes", dict),
            dtype=take(shot, "dtype", str),
            quantised=take(shot, "quantised", *optional),
            hashed=take(shot, "hashed", int),
            sha256=take(shot, "sha256", str),
            values=samples,
        ),
    )


def model_card(manifest: Manifest, name: str) -> str:
    """The text of `README.md`."""
    base = HUB_NAMES.get(manifest.base_id or "", manifest.base_id)
    on_hub = base is not None and not Path(base).is_absolute()
    front: dict[str, object] = {
        "library_name": "interlace",
        "pipeline_tag": "text-generation",
        "tags": ["interlace", manifest.config.kind, "arxiv:2510.01143"],
    }
    if on_hub:
        front |= {"base_model": base, "base_model_relation": "adapter"}
    config = manifest.config
    facts = {
        "base model": f"`{base}`" if on_hub else manifest.base.architecture,
        "revision": manifest.base_revision,
        "weights": "base model and blocks" if manifest.base_included else "blocks only",
        "base weights": manifest.dequantised_from
        and f"dequantised from {manifest.dequantised_from}",
        "layers with a block": f"{len(manifest.layers)} of "
        f"{manifest.base.sizes.get('num_hidden_layers')}",
        **config.facts(),
        "new parameters": f"{manifest.new_parameters:,} ({manifest.share:.2%} of "
        f"{manifest.base.parameters:,})",
        "data type": manifest.base.dtype,
    }
    rows = "\n".join(f"| {key} | {value} |" for key, value in facts.items() if value)
    arguments = json.dumps(name)
    if manifest.base_id is None and not manifest.base_included:
        arguments += ", base=..."
    lines = "\n".join(f"{key}: {json.dumps(value)}" for key, value in front.items())  # YAML, too
    return f"""---
{lines}
---
{MARK}

# {Path(name).name}

{coupling_class(config.kind).about}

| | |
| --- | --- |
{rows}

```python
import interlace

model, tokenizer = interlace.load({arguments})
inputs = tokenizer("What is 17 + 25?", return_tensors="pt")
outputs = model.generate(**inputs, do_sample=True, num_return_sequences=8)  # one group of 8 rows
```
"""


def may_replace(card: Path) -> bool:
    """Whether a card is one that `interlace.save` wrote and nobody has taken over."""
    return not card.exists() or MARK in card.read_text(encoding="utf-8", errors="replace")
