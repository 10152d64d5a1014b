"""The model card that goes with saved blocks: what they are, and how to load them."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from interlace.coupling.registry import coupling_class
from interlace.saving.manifest import Manifest

MARK = "<!-- Written by interlace.save. Delete this line to keep your edits. -->"
HUB_NAMES = {"smollm2-135m": "HuggingFaceTB/SmolLM2-135M-Instruct"}


def model_card(manifest: Manifest, name: str) -> str:
    """The text of `README.md`.

    Args:
        manifest: what was saved.
        name: what a reader passes to `interlace.load`: the repository, or the folder.
    """
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
    return f"""---
{yaml.safe_dump(front, sort_keys=False).strip()}
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
