"""Put saved blocks back on their base model, or say what is wrong with them."""

from __future__ import annotations

import hashlib
import os
import warnings
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel

from interlace.attaching import Attachment, attach, new_parameters, not_finite
from interlace.coupling.base import places
from interlace.errors import CheckpointError
from interlace.files import locate
from interlace.layers import Decoder, base_model_of, find_decoder
from interlace.saving.fingerprint import fingerprint
from interlace.saving.manifest import MANIFEST, Manifest

SHOWN = 5  # lines of a list of differences


def attach_saved(
    model: nn.Module, folder: str | os.PathLike[str], *, check_base: bool = True
) -> Attachment:
    """Attach the blocks saved in `folder` to their base model, in place.

    Args:
        model: the base model, already loaded. A failure leaves it as it was.
        folder: what `save` wrote.
        check_base: False lets blocks onto another base of the same sizes (a sibling, a later
            training stage); differing weights are then not an error.

    Raises:
        CheckpointError: if the files are damaged, or belong to another base model.
        AttachError: if `model` has blocks already, or cannot carry any.
    """
    folder = Path(folder)
    manifest = Manifest.read(folder)
    base = base_model_of(model)
    decoder = find_decoder(base)
    if check_base:
        _check_same_base(manifest, base, folder)
    tensors = _read_weights(manifest, folder)
    values = _match(manifest, tensors, base, decoder, folder)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The blocks add")  # who trained them has seen it
        attachment = attach(base, manifest.config, seed=0)
    with torch.no_grad():
        for name, parameter in new_parameters(base):
            parameter.copy_(values[name])
    return attachment


def _check_same_base(manifest: Manifest, base: PreTrainedModel, folder: Path) -> None:
    lines = manifest.base.differences(fingerprint(base))
    if lines:
        at = f" at revision {manifest.base_revision}" if manifest.base_revision else ""
        raise CheckpointError(
            f"The blocks in {folder} belong to another base model than this "
            f"{type(base).__name__}:{_listed(lines)}\nThey were saved from "
            f"{manifest.base_id or 'a model in memory'}{at}. Load that one; if its weights were "
            "trained as well, only a save with full=True can give it back. For a base of the same "
            "sizes, check_base=False attaches the blocks anyway."
        )


def _read_weights(manifest: Manifest, folder: Path) -> dict[str, Tensor]:
    path = locate(folder, manifest.weights_file)
    if not path.is_file():
        raise CheckpointError(
            f"{folder} has a {MANIFEST} but no {manifest.weights_file}: the copy is incomplete."
        )
    data = path.read_bytes()
    if len(data) != manifest.weights_bytes:
        raise CheckpointError(
            f"{path} is truncated or replaced: {manifest.weights_bytes:,} bytes expected, "
            f"{len(data):,} found. Copy or download it again."
        )
    found = hashlib.sha256(data).hexdigest()
    if found != manifest.weights_sha256:
        raise CheckpointError(
            f"{path} was changed after it was saved: sha256 {manifest.weights_sha256[:12]}... "
            f"expected, {found[:12]}... found. Copy or download it again."
        )
    try:
        return safetensors.torch.load(data)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a safetensors file: {error}") from error


def _match(
    manifest: Manifest,
    tensors: dict[str, Tensor],
    base: PreTrainedModel,
    decoder: Decoder,
    folder: Path,
) -> dict[str, Tensor]:
    """The saved tensors under the names they get in this model, all there and of the right
    shape."""
    config = manifest.config
    saved = Attachment(config, manifest.layers)
    spots = places(saved.coupling, config.layer_indices(len(decoder.layers)))
    mine = Attachment(config, tuple(decoder.names[i] for i in spots if i is not None))
    sizes = base.config.get_text_config(decoder=True)
    wanted: dict[str, list[int]] = {}
    named: dict[str, str] = {}  # in this model, to the name in the file
    for spot, path, stored in zip(spots, mine.block_names, saved.block_names, strict=True):
        block = saved.coupling.build(config, sizes, spot, torch.device("meta"))
        for name, parameter in block.named_parameters():
            wanted[f"{stored}.{name}"] = list(parameter.shape)
            named[f"{path}.{name}"] = f"{stored}.{name}"
    problems = [f"missing {n}" for n in wanted if n not in tensors]
    problems += [f"surplus {n}" for n in tensors if n not in wanted]
    problems += [
        f"{n}: {wanted[n]} expected, {list(t.shape)} found"
        for n, t in tensors.items()
        if n in wanted and list(t.shape) != wanted[n]
    ]
    if problems:
        raise CheckpointError(
            f"{folder / manifest.weights_file} does not hold the weights that {MANIFEST} "
            f"describes:{_listed(problems)}"
        )
    values = {name: tensors[stored] for name, stored in named.items()}
    if broken := not_finite(values.items()):
        raise CheckpointError(
            f"{folder / manifest.weights_file} holds numbers that are not finite, first in "
            f"{broken[0]}. A training that diverged leaves such; go back to an earlier save."
        )
    return values


def _listed(lines: list[str]) -> str:
    more = [f"... and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return "".join(f"\n  {line}" for line in lines[:SHOWN] + more)
