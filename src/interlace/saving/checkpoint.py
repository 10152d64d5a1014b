"""Save attached blocks, and put them back on their base model.

A folder of saved blocks holds `bridge.safetensors` (or `pmatch.safetensors`), `interlace.json`,
a model card, and perhaps `tokenizer/`; with `full=True` also `base/`, a plain Hugging Face folder,
and an index that says where each weight is, by which `transformers.Trainer` resumes.
The base goes into a folder of its own, so that `from_pretrained` on the outer one cannot load a
model that silently lacks its blocks.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from huggingface_hub import HfApi
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from interlace.attached import (
    Attachment,
    base_model_of,
    get_attachment,
    new_parameters,
    not_finite,
)
from interlace.attaching import Decoder, attach, find_decoder
from interlace.coupling.base import places
from interlace.coupling.registry import COUPLINGS
from interlace.errors import CheckpointError, reading
from interlace.files import CONFIG, locate, writing
from interlace.save_pretrained import WholeSaving
from interlace.saving.fingerprint import Fingerprint, Origin, fingerprint, full_tensor, origin_of
from interlace.saving.manifest import (
    BASE,
    CARD,
    MANIFEST,
    TOKENIZER,
    Manifest,
    may_replace,
    model_card,
)

SHOWN = 5  # lines of a list of differences
INDEX_NOTE = "for transformers.Trainer to resume from; interlace.load gives the model"
# Names the file of the weights in a configuration of Hugging Face's; an unknown ending is an error.
WEIGHTS_KEY = "transformers_weights"
REFUSAL = (
    "this folder is a save of Interlace: a base model and the blocks attached to it, and "
    "from_pretrained would leave these out. Load both with interlace.load(folder)"
)


def save(
    model: nn.Module,
    folder: str | os.PathLike[str],
    *,
    full: bool = False,
    tokenizer: PreTrainedTokenizerBase | None = None,
    push_to: str | None = None,
    private: bool | None = None,
    token: str | None = None,
) -> Path:
    """Write the attached blocks of `model`, and what `interlace.load` needs to find their base.

    All files change at once: a kill or a full disk leaves an earlier save in `folder` as it was.
    Under FSDP every process must call this; the first one writes.

    Args:
        model: Model with blocks attached.
        folder: Folder to write into, created if needed; other files in it stay. An earlier save in
            it is replaced.
        full: Whether to write the base model's weights too, for a base that was trained, or to
            stand alone.
        tokenizer: Tokenizer to save beside it; without it `load` takes the base model's.
        push_to: Repository ("user/name") on the Hugging Face hub to upload the save to, created if
            it does not exist.
        private: Whether a repository created for it is private.
        token: Hub token; without it the one that is logged in.

    Returns:
        The folder.

    Raises:
        AttachError: if `model` has no blocks.
        CheckpointError: if the blocks alone would not give this model back (its base was trained
            since `interlace.load`, or carries adapters), or would replace a full save.
        OSError: if the files cannot be written.

    Examples:
        >>> import tempfile, interlace
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 32}
        >>> heads = {"num_hidden_layers": 2, "num_attention_heads": 2}
        >>> model = LlamaForCausalLM(LlamaConfig(**sizes, **heads))
        >>> _ = interlace.attach(model, interlace.BridgeConfig(parameter_share=0.05))
        >>> folder = interlace.save(model, tempfile.mkdtemp(), full=True)
        >>> sorted(path.name for path in folder.iterdir())[:4]
        ['README.md', 'base', 'bridge.safetensors', 'config.json']
    """
    base, folder = base_model_of(model), Path(folder)
    attachment = get_attachment(base)
    _check_target(folder, full)
    _check_adapters(base, full)
    # Collective under FSDP: every process takes part before all but the first leave.
    origin, found = origin_of(base), fingerprint(base)
    if not full:
        _check_base(origin, found, push_to)
    blocks = {name: full_tensor(p.detach()).cpu().contiguous() for name, p in new_parameters(base)}
    sharded = any(hasattr(p, "full_tensor") for p in base.parameters())
    state = _whole_state(base) if full and sharded else None
    if _rank() == 0:
        data = safetensors.torch.save(blocks, {"format": "pt"})
        manifest = _manifest(base, attachment, origin, found, full, data)
        _write(base, folder, manifest, data, state, tokenizer, push_to)
        if push_to is not None:
            push(folder, push_to, manifest, private=private, token=token)
    if sharded:
        torch.distributed.barrier()
    return folder


def push(
    folder: Path,
    repository: str,
    manifest: Manifest,
    *,
    private: bool | None = None,
    token: str | None = None,
) -> str:
    """Upload a save to a hub repository, in one commit, and nothing else that the folder holds.

    Returns:
        The commit's address.
    """
    api = HfApi(token=token)
    name = api.create_repo(repository, private=private, exist_ok=True).repo_id
    saved = [manifest.weights_file, MANIFEST, CARD, f"{TOKENIZER}/*"]
    saved += [f"{BASE}/*"] if manifest.base_included else []
    weights = [f"{kind}.safetensors" for kind in COUPLINGS]
    commit = api.upload_folder(
        repo_id=name,
        folder_path=folder,
        allow_patterns=saved,
        delete_patterns=[*weights, f"{TOKENIZER}/*", f"{BASE}/*"],  # what an earlier push left
        commit_message=f"Interlace: {manifest.config.kind} blocks",
    )
    return str(commit.commit_url)


def _manifest(
    base: PreTrainedModel,
    attachment: Attachment,
    origin: Origin,
    found: Fingerprint,
    full: bool,
    data: bytes,
) -> Manifest:
    return Manifest(
        config=attachment.config,
        layers=attachment.layer_names,
        hidden_size=base.config.get_text_config(decoder=True).hidden_size,
        new_parameters=sum(p.numel() for _, p in new_parameters(base)),
        weights_bytes=len(data),
        weights_sha256=hashlib.sha256(data).hexdigest(),
        base_id=origin.id,
        base_revision=origin.revision,
        base_included=full,
        base=found,
        dequantised_from=getattr(base.config, "dequantised_from", None),
    )


def _check_target(folder: Path, full: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"A save is a folder; {folder} is a file. Pass another path.")
    written = (BASE, TOKENIZER, CONFIG) if full else (BASE, TOKENIZER)
    taken = [name for name in written if locate(folder, name).exists()]
    if not taken:
        return
    if not locate(folder, MANIFEST).exists():
        raise CheckpointError(
            f"{folder} holds {taken[0]!r}, which no earlier save put there and this one might "
            "replace. Pass another folder."
        )
    if BASE in taken and not full:
        raise CheckpointError(
            f"{folder} holds a full save, base weights included; saving the blocks alone would "
            "throw those weights away. Pass full=True, or another folder."
        )


def _check_adapters(base: PreTrainedModel, full: bool) -> None:
    adapters = [n for n, m in base.named_modules() if hasattr(m, "adapter_layer_names")]
    if adapters and full:
        raise CheckpointError(
            f"A full save writes plain base weights, but {len(adapters)} layers carry PEFT "
            f"adapters, first {adapters[0]}. Merge them (peft_model.merge_and_unload()), or save "
            "the blocks alone and the adapters with peft_model.save_pretrained."
        )
    if adapters:
        warnings.warn(
            "interlace.save writes the blocks, not PEFT's adapters: save those too, with "
            "peft_model.save_pretrained(other_folder).",
            stacklevel=3,
        )


def _check_base(origin: Origin, found: Fingerprint, push_to: str | None) -> None:
    """Refuse to write blocks that would not give the model back."""
    changes = origin.fingerprint.differences(found) if origin.fingerprint else []
    if changes:
        raise CheckpointError(
            f"The base model has changed since it was loaded from {origin.id} ({changes[0]}), so "
            "the blocks alone would not give this model back. Pass full=True to save both."
        )
    if origin.id is None:
        warnings.warn(
            "The base model came from memory, not from a hub id or a folder, so "
            "interlace.load(folder) will ask for it: load(folder, base=...). Pass full=True to "
            "save it along.",
            stacklevel=3,
        )
    elif push_to is not None and Path(origin.id).exists():
        warnings.warn(
            f"The base model is {origin.id} on this machine, so readers of {push_to} cannot "
            "load it. Pass full=True to push it along.",
            stacklevel=3,
        )


def _write(
    base: PreTrainedModel,
    folder: Path,
    manifest: Manifest,
    data: bytes,
    state: dict[str, Tensor] | None,
    tokenizer: PreTrainedTokenizerBase | None,
    push_to: str | None,
) -> None:
    beside = BASE if manifest.base_included else TOKENIZER
    obsolete = {f"{kind}.safetensors" for kind in COUPLINGS} - {manifest.weights_file}
    if beside is BASE or tokenizer is None:
        obsolete.add(TOKENIZER)
    try:
        with writing(folder, remove=obsolete) as stage:
            (stage / manifest.weights_file).write_bytes(data)
            (stage / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
            if may_replace(folder / CARD):
                card = model_card(manifest, push_to or folder.resolve().name)
                (stage / CARD).write_text(card, encoding="utf-8")
            if manifest.base_included:
                write_base(base, stage / BASE, state)
                _write_index(stage, manifest.weights_file)
                # By this `from_pretrained` ends in an error that says what to call.
                refusal = {"model_type": f"interlace: {REFUSAL}", WEIGHTS_KEY: REFUSAL}
                _write_json(stage / CONFIG, refusal)
            if tokenizer is not None:
                tokenizer.save_pretrained(stage / beside)
    except OSError as error:
        error.add_note(f"Nothing in {folder} has changed: an earlier save there is as it was.")
        raise


def write_base(base: PreTrainedModel, folder: Path, state: dict[str, Tensor] | None = None) -> None:
    """Write a model with blocks as a plain Hugging Face folder, without them."""
    # Hugging Face's own save_pretrained, which the attached class refuses, with the blocks out of
    # its sight.
    plain: Any = super(WholeSaving, base)  # type: ignore[misc]
    with _without_blocks(base):
        try:
            plain.save_pretrained(folder, state_dict=state)
        except SafetensorError as error:
            raise OSError(f"The base model's weights cannot be written: {error}") from error


def _write_index(folder: Path, blocks_file: str) -> None:
    """Write which file holds which weight, for Trainer, which puts them into the attached model."""
    plain = folder / BASE / SAFE_WEIGHTS_INDEX_NAME
    if plain.exists():
        shards = json.loads(plain.read_text(encoding="utf-8"))["weight_map"]
    else:
        shards = dict.fromkeys(_names(folder / BASE / SAFE_WEIGHTS_NAME), SAFE_WEIGHTS_NAME)
    weights = {name: f"{BASE}/{shard}" for name, shard in shards.items()}
    weights |= dict.fromkeys(_names(folder / blocks_file), blocks_file)
    # Without the "metadata" of Hugging Face's own index: from_pretrained stops at that, even with a
    # configuration passed to it, and never gives a model that lacks its blocks.
    _write_json(folder / SAFE_WEIGHTS_INDEX_NAME, {"interlace": INDEX_NOTE, "weight_map": weights})


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _names(path: Path) -> list[str]:
    with safe_open(path, "pt") as tensors:
        return list(tensors.keys())


def _whole_state(base: PreTrainedModel) -> dict[str, Tensor]:
    """The base weights of a sharded model, gathered; kept by the first process alone."""
    state = {}
    with _without_blocks(base):
        for name, tensor in base.state_dict().items():
            gathered = full_tensor(tensor)
            if _rank() == 0:
                state[name] = gathered.cpu()
    return state


@contextmanager
def _without_blocks(base: PreTrainedModel) -> Iterator[None]:
    paths = [name.rpartition(".") for name in get_attachment(base).block_names]
    carriers = [(base.get_submodule(carrier), name) for carrier, _, name in paths]
    blocks = [carrier._modules.pop(name) for carrier, name in carriers]
    try:
        yield
    finally:
        for (carrier, name), block in zip(carriers, blocks, strict=True):
            carrier._modules[name] = block


def _rank() -> int:
    ready = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_rank() if ready else 0


def attach_saved(
    model: nn.Module, folder: str | os.PathLike[str], *, check_base: bool = True
) -> Attachment:
    """Attach the blocks saved in `folder` to their base model, in place.

    Args:
        model: Base model, already loaded. A failure leaves it as it was.
        folder: Folder that `save` wrote.
        check_base: Whether the blocks must belong to this base; False lets them onto another of the
            same sizes (a sibling, a later training stage).

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
    with reading(CheckpointError, f"{path} is not a safetensors file", "Copy it again."):
        return safetensors.torch.load(data)


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
        block = saved.coupling.build(config, sizes, spot, device=torch.device("meta"))
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
