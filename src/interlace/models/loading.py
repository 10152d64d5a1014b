"""`interlace.load`: a model and its tokenizer, with blocks attached where the source has them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from interlace.attaching import COMPUTE_DTYPES
from interlace.errors import LoadError, reading
from interlace.models.gguf import converted
from interlace.models.source import (
    DAMAGED,
    GgufFile,
    HubModel,
    SavedBlocks,
    Source,
    check_entries,
    check_folder_sizes,
    resolve,
    unpickled_message,
)
from interlace.saving.checkpoint import attach_saved
from interlace.saving.fingerprint import remember_origin


def load(
    source: str | os.PathLike[str],
    *,
    base: str | os.PathLike[str] | PreTrainedModel | None = None,
    tokenizer: str | os.PathLike[str] | PreTrainedTokenizerBase | None = None,
    revision: str | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    device_map: str | dict[str, Any] | None = None,
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    gguf_file: str | None = None,
    check_base: bool = True,
    token: str | None = None,
    **options: Any,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model and its tokenizer, in eval mode, blocks attached if the source has them.

    Nothing is unpickled: weights come from safetensors or GGUF files.

    Args:
        source: Source of the model: a hub id, the folder of a Hugging Face model, what
            `interlace.save` wrote (a folder, or the repository it was pushed to), a `.gguf` file,
            "tiny" (see `get_task("tiny-countdown")`), or "smollm2-135m".
        base: Base model for saved blocks, if not the recorded one: anything that `source` may be,
            or a loaded model, which gets the blocks in place.
        tokenizer: Tokenizer instead of the source's own, or a place to load it from.
        revision: Branch, tag or commit of a hub id; saved blocks know that of their base.
        dtype: Data type of the weights, such as "bfloat16". By default the checkpoint's; with saved
            blocks the one they were saved in; float32 for a quantised GGUF file.
        device: Device to load on, such as "cuda:1"; CPU by default.
        device_map: Map of modules to devices, instead of `device`, as for Hugging Face's
            `from_pretrained`.
        attn_implementation: Name of the attention implementation, as for `from_pretrained`.
        trust_remote_code: Whether to run model code that comes with a repository.
        gguf_file: Name of the file, where a folder or repository holds several GGUF files.
        check_base: Whether saved blocks must belong to this base; False lets them onto another of
            the same sizes.
        token: Hub token; without it the one that is logged in.
        **options: Options handed on to `from_pretrained`, such as `quantization_config`.

    Raises:
        LoadError: if the source cannot be found, read or understood.
        CheckpointError: if saved blocks are damaged or belong to another base model.
        MissingDependencyError: if the source needs a package that is not installed.

    >>> import interlace
    >>> model, tokenizer = interlace.load("smollm2-135")
    Traceback (most recent call last):
    interlace.errors.LoadError: There is no model 'smollm2-135'. Did you mean 'smollm2-135m'?
    """
    if not isinstance(source, str | os.PathLike) or not os.fspath(source):
        raise LoadError(f"A model is a name, a path or a hub id, as text; got {source!r:.60}.")
    if device is not None and device_map is not None:
        raise LoadError("device and device_map both say where to load; pass one of them.")
    check_dtype(dtype)
    _check_device(device)
    # Straight to the device where accelerate is there to do it, which the core does without.
    straight = find_spec("accelerate") is not None
    options |= {
        "trust_remote_code": trust_remote_code,
        "token": token,
        "attn_implementation": attn_implementation,
        "device_map": {"": device} if device is not None and straight else device_map,
    }
    with reading(LoadError, f"{os.fspath(source)} cannot be loaded", DAMAGED):
        found = resolve(source, revision=revision, gguf_file=gguf_file, token=token)
        model, words = _load(source, found, base, tokenizer, dtype, check_base, options)
        return (model if straight or device is None else model.to(device)), words


def _load(
    source: str | os.PathLike[str],
    found: Source,
    base: str | os.PathLike[str] | PreTrainedModel | None,
    tokenizer: str | os.PathLike[str] | PreTrainedTokenizerBase | None,
    dtype: str | torch.dtype | None,
    check_base: bool,
    options: dict[str, Any],
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    token = options["token"]
    if not isinstance(found, SavedBlocks):
        if base is not None:
            raise LoadError(
                f"base= is for saved blocks, and {os.fspath(source)} holds none; leave it out."
            )
        folder = as_folder(found)
        model = _load_base(folder, dtype, options)
        return model.eval(), load_tokenizer(tokenizer or folder, options)
    dtype = dtype or found.manifest.base.dtype
    plain = None
    if isinstance(base, PreTrainedModel):
        model = base
    else:
        plain = as_folder(base_of(found, base, token))
        model = _load_base(plain, dtype, options)
    words = load_tokenizer(
        tokenizer or found.own_tokenizer() or plain or _recorded_tokenizer(found, token), options
    )
    attach_saved(model, found.folder, check_base=check_base)
    return model.eval(), words


def base_of(
    saved: SavedBlocks, base: str | os.PathLike[str] | None = None, token: str | None = None
) -> HubModel | GgufFile:
    """Where the base model of saved blocks is: as the caller says, in the save, or as recorded."""
    if base is None:
        if (own := saved.own_base()) is not None:
            return own
        if saved.manifest.base_id is None:
            raise LoadError(
                f"The blocks in {saved.id} were saved from a base model in memory (a "
                f"{saved.manifest.base.architecture} of {saved.manifest.base.parameters:,} "
                "parameters), so pass it: interlace.load(..., base=model), or where it is."
            )
        try:
            found = resolve(
                saved.manifest.base_id, revision=saved.manifest.base_revision, token=token
            )
        except LoadError as error:
            raise LoadError(
                f"The base model of the blocks in {saved.id} cannot be found: {error} If it has "
                "moved, say where with base=."
            ) from error
    else:
        found = resolve(base, token=token)
    if isinstance(found, SavedBlocks):
        own = found.own_base()
        if own is None:
            raise LoadError(
                f"{found.id} holds blocks without their base model, so it cannot be the base of "
                f"{saved.id}. Its own base is {found.manifest.base_id}."
            )
        return own
    return found


def as_folder(source: HubModel | GgufFile) -> HubModel:
    """The same model where `from_pretrained` can read it: a GGUF file is converted."""
    if isinstance(source, HubModel):
        return source
    return HubModel(source.id, str(converted(source.path)))


def _load_base(
    source: HubModel, dtype: str | torch.dtype | None, options: dict[str, Any]
) -> PreTrainedModel:
    """Load a plain model; no weight may be missing from its files."""
    check_folder_sizes(source)
    with reading(LoadError, f"{source.id} cannot be loaded", DAMAGED):
        try:
            model, report = AutoModelForCausalLM.from_pretrained(
                source.location,
                revision=source.revision or "main",
                dtype=dtype or "auto",
                use_safetensors=True,
                output_loading_info=True,
                **{name: value for name, value in options.items() if value is not None},
            )
        except OSError as error:
            if "cannot be loaded with `safetensors`" in str(error):
                raise LoadError(unpickled_message(source.id, ["pytorch_model.bin"])) from error
            raise
    if missing := sorted(report["missing_keys"]):
        raise LoadError(
            f"{source.id} lacks {len(missing)} weights of a {type(model).__name__}, first "
            f"{missing[0]}; they would be random. Load it as the class it was saved as, or from a "
            "complete copy."
        )
    model.config._name_or_path = source.id
    remember_origin(model, source.id, source.revision)
    return model


def _recorded_tokenizer(saved: SavedBlocks, token: str | None) -> HubModel | None:
    """Where the tokenizer is when the caller brought the base model."""
    if saved.manifest.base_id is None and not saved.manifest.base_included:
        return None
    return as_folder(base_of(saved, token=token))


def load_tokenizer(
    chosen: str | os.PathLike[str] | PreTrainedTokenizerBase | HubModel | None,
    options: Mapping[str, Any],
) -> PreTrainedTokenizerBase:
    """A tokenizer as it was chosen, or from where it is."""
    if isinstance(chosen, PreTrainedTokenizerBase):
        return chosen
    if chosen is None:
        raise LoadError(
            "The base model came from memory and no tokenizer was saved, so pass it: "
            "interlace.load(..., tokenizer=tokenizer)."
        )
    if not isinstance(chosen, HubModel):
        chosen = HubModel(os.fspath(chosen), os.fspath(chosen))
    check_entries(Path(chosen.location))
    way_out = "Pass one: interlace.load(..., tokenizer=...)."
    with reading(LoadError, f"{chosen.id} has no tokenizer that can be loaded", way_out):
        return AutoTokenizer.from_pretrained(
            chosen.location,
            revision=chosen.revision or "main",
            trust_remote_code=options.get("trust_remote_code", False),
            token=options.get("token"),
        )


def check_dtype(dtype: str | torch.dtype | None) -> None:
    """Raises LoadError unless a data type is one that weights can have."""
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype in (None, "auto") or found in COMPUTE_DTYPES:
        return
    names = ", ".join(str(known).removeprefix("torch.") for known in COMPUTE_DTYPES)
    raise LoadError(f"dtype is one of {names}, or left out for the checkpoint's; got {dtype!r}.")


def _check_device(device: str | torch.device | None) -> None:
    """Raises LoadError unless torch finds a device here."""
    if device is None:
        return
    with reading(LoadError, f"There is no device {device!r}", "Examples are cpu and cuda:0."):
        asked = torch.device(device)
    here = torch.accelerator.device_count() if asked.type not in ("cpu", "meta") else 0
    kind = torch.accelerator.current_accelerator() if here else None
    if asked.type in ("cpu", "meta") or (
        kind is not None and kind.type == asked.type and (asked.index or 0) < here
    ):
        return
    found = [f"{kind.type}:{index}" for index in range(here)] if kind is not None else []
    raise LoadError(
        f"device is one that torch finds on this machine, {' or '.join(['cpu', *found])}; got "
        f"{str(device)!r}."
    )
