"""Which base model blocks belong to: where it came from, and a fingerprint that tells it from
others.

A fingerprint holds the architecture, the sizes, and a few values of every weight: cheap to take,
and enough to notice another model, another revision, or a base that was trained since.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from interlace.attaching import COMPUTE_DTYPES

SIZES = (
    "model_type",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "vocab_size",
)
HASHED_VALUES = 32  # of every weight
SHOWN_WEIGHTS, SHOWN_VALUES = 16, 4  # readable ones, for comparing across data types
ROUNDING = 2.0**-7  # bfloat16 keeps 8 bits; values rounded twice differ by at most this


@dataclass(frozen=True)
class Fingerprint:
    """What tells a base model from another.

    Args:
        architecture: Class of the model.
        parameters: Number of base parameters, tied weights once.
        sizes: Sizes of the configuration.
        dtype: Data type of the weights.
        quantised: Method, if the weights are quantised.
        hashed: Names of the weights that the hash covers; quantised or offloaded ones are left out.
        sha256: Hash over a few values of each of these weights, exact.
        values: Values of a few weights, for comparing across data types.
    """

    architecture: str
    parameters: int
    sizes: dict[str, Any]
    dtype: str
    quantised: str | None
    hashed: int
    sha256: str
    values: dict[str, list[float]]

    def differences(self, other: Fingerprint) -> list[str]:
        """What differs in `other`, each as a readable line; empty when it may be the same base."""
        lines = [
            f"{name}: {mine!r} expected, {theirs!r} found"
            for name, mine, theirs in (
                ("architecture", self.architecture, other.architecture),
                *((k, self.sizes.get(k), other.sizes.get(k)) for k in SIZES),
                ("parameters", self.parameters, other.parameters),
            )
            if mine != theirs
        ]
        if lines:
            return lines
        same_kind = (self.dtype, self.quantised, self.hashed) == (
            other.dtype,
            other.quantised,
            other.hashed,
        )
        if same_kind and self.sha256 == other.sha256:
            return []
        lines = self._differing_values(other, 1e-6 if same_kind else ROUNDING)
        if lines or not same_kind:
            return lines
        return ["weights: the sizes agree, but sampled values differ"]

    def _differing_values(self, other: Fingerprint, tolerance: float) -> list[str]:
        lines = []
        for name in self.values.keys() & other.values.keys():
            pairs = zip(self.values[name], other.values[name], strict=False)
            for mine, theirs in pairs:
                if not math.isclose(mine, theirs, rel_tol=tolerance, abs_tol=1e-6):
                    lines.append(f"weight {name}: {mine:.6g} expected, {theirs:.6g} found")
                    break
        return sorted(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Origin:
    """Where a base model came from.

    Args:
        id: Source as `interlace.load` takes it: a hub id, a folder, a GGUF file or a known name.
            None for a model that was built in memory.
        revision: Commit of a hub id, if known.
        fingerprint: Fingerprint of the weights as loaded, so that saving notices a base trained
            since.
    """

    id: str | None
    revision: str | None = None
    fingerprint: Fingerprint | None = None


def remember_origin(model: PreTrainedModel, name: str, revision: str | None) -> None:
    """Note on a freshly loaded base model where it came from."""
    model.interlace_origin = Origin(name, revision, fingerprint(model))


def origin_of(model: PreTrainedModel) -> Origin:
    """Where the base model came from: as `interlace.load` noted it, else as `from_pretrained` left
    it."""
    origin = getattr(model, "interlace_origin", None)
    if isinstance(origin, Origin):
        return origin
    name = str(getattr(model.config, "_name_or_path", "") or "")
    if name and Path(name).exists():
        return Origin(str(Path(name).resolve()))
    return Origin(name or None)


def fingerprint(model: PreTrainedModel) -> Fingerprint:
    """The fingerprint of the base model inside `model`: without blocks, and without the adapters of
    PEFT."""
    config = model.config.get_text_config(decoder=True)
    extra = _extra_parameters(model)
    weights = {  # under the names that they had before PEFT wrapped layers
        name.replace(".base_layer.", "."): parameter.detach()
        for name, parameter in model.named_parameters()
        if id(parameter) not in extra
    }
    digest = hashlib.sha256()
    samples: dict[str, list[float]] = {}
    hashed = 0
    for name in sorted(weights):
        values = _sample(weights[name])
        if values is None:
            continue
        hashed += 1
        digest.update(f"{name} {list(weights[name].shape)}".encode())
        digest.update(values.view(torch.uint8).numpy().tobytes())
        samples[name] = values.tolist()
    shown = sorted(weights)[:: math.ceil(len(weights) / SHOWN_WEIGHTS)]
    step = HASHED_VALUES // SHOWN_VALUES
    return Fingerprint(
        architecture=type(model).__name__.removeprefix("FSDP"),
        parameters=int(model.num_parameters()) - sum(p.numel() for p in extra.values()),
        sizes={k: getattr(config, k, None) for k in SIZES},
        dtype=str(model.dtype).removeprefix("torch."),
        quantised=_quantisation(model),
        hashed=hashed,
        sha256=digest.hexdigest(),
        values={n: [float(f"{v:.9g}") for v in samples[n][::step]] for n in shown if n in samples},
    )


def _extra_parameters(model: PreTrainedModel) -> dict[int, nn.Parameter]:
    """Parameters by id that are not the base's: blocks, and the adapters inside PEFT's layers."""
    extra: dict[int, nn.Parameter] = {}
    attachment = getattr(model, "interlace_attachment", None)
    for name in attachment.block_names if attachment is not None else ():
        extra |= {id(p): p for p in model.get_submodule(name).parameters()}
    for module in model.modules():
        base = getattr(module, "base_layer", None)
        if isinstance(base, nn.Module) and hasattr(module, "adapter_layer_names"):
            own = {id(p) for p in base.parameters()}
            extra |= {id(p): p for p in module.parameters() if id(p) not in own}
    return extra


def _sample(weight: Tensor) -> Tensor | None:
    """Evenly spaced values of a weight; None where it holds no plain values here."""
    if weight.device.type == "meta" or weight.dtype not in COMPUTE_DTYPES or not weight.numel():
        return None
    flat = full_tensor(weight).reshape(-1)
    count = flat.numel()
    at = torch.arange(HASHED_VALUES, device=flat.device) * (count - 1) // (HASHED_VALUES - 1)
    return flat[at].cpu()


def full_tensor(tensor: Tensor) -> Tensor:
    """The full tensor of one that FSDP has sharded; every process must ask for it."""
    gather = getattr(tensor, "full_tensor", None)
    return gather() if callable(gather) else tensor


def _quantisation(model: PreTrainedModel) -> str | None:
    quantiser = getattr(model, "hf_quantizer", None)
    if quantiser is None:
        return None
    method = quantiser.quantization_config.quant_method
    return str(getattr(method, "value", method))
