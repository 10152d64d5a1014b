"""GGUF files as plain models: dequantised once, and cached as safetensors.

Hugging Face reads GGUF files, but a model loaded from one keeps a quantisation configuration and
refuses `save_pretrained`. So the weights move into a fresh configuration, are written to the
cache, and every load reads that.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from interlace.errors import LoadError, reading, require
from interlace.models.source import DAMAGED, check_sizes

CONVERSION = 1  # raised when a conversion gives other files than before
COMPLETE = "complete.json"
PLAIN_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
# Vocabularies that llama.cpp cuts at single digits before GPT-2's pattern; Hugging Face's reader
# forgets the digits, which changes how "\n\n1." is cut.
DIGIT_VOCABULARIES = {"smollm", "starcoder", "refact", "command-r"}


def converted(path: Path) -> Path:
    """A folder with the file's model and tokenizer as plain Hugging Face files.

    Weights keep the data type of a file of plain floats; quantised ones become float32, which
    holds their values exactly (and takes 4 bytes a parameter on the disk).

    Returns:
        A folder in the cache (see `cache_folder`), keyed by the file's contents.

    Raises:
        LoadError: if the file is not a GGUF file, is truncated, or holds an architecture that
            cannot be converted.
        MissingDependencyError: without the package `gguf`.
    """
    target = _place(path)
    if not _is_complete(target):
        require("gguf", "gguf", "Reading GGUF files")
        _convert(path, target)
    return target


def plain_config(path: Path) -> PretrainedConfig:
    """The Hugging Face configuration that the file's model has once converted; converts nothing.

    Raises:
        LoadError: if the file is not a GGUF file, or of an unknown architecture.
        MissingDependencyError: without the package `gguf`.
    """
    target = _place(path)
    if _is_complete(target):
        return AutoConfig.from_pretrained(target)
    require("gguf", "gguf", "Reading GGUF files")
    config, main_type, _ = _header(path)
    return _note_types(config, main_type)


def cache_folder() -> Path:
    """Where converted models are kept: `$INTERLACE_CACHE`, else `$XDG_CACHE_HOME/interlace`, else
    `~/.cache/interlace`.

    Raises:
        FileNotFoundError: if none of these is set and the user has no home.
    """
    if own := os.environ.get("INTERLACE_CACHE"):
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(shared) if shared else Path.home() / ".cache") / "interlace"
    except RuntimeError as error:  # a user without an entry and without HOME, as in a container
        raise FileNotFoundError("no home folder; set INTERLACE_CACHE") from error


def _place(path: Path) -> Path:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return cache_folder() / "gguf" / f"{digest[:32]}-v{CONVERSION}"


def _is_complete(folder: Path) -> bool:
    try:
        sizes = json.loads((folder / COMPLETE).read_text(encoding="utf-8"))
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


def _convert(path: Path, target: Path) -> None:
    """Write the converted files beside `target`, then rename: a half-written copy is never seen."""
    try:
        stage = target.with_name(f"{target.name}-{os.getpid()}")
        shutil.rmtree(stage, ignore_errors=True)
        stage.mkdir(parents=True)
    except OSError as error:
        raise LoadError(
            f"The cache {target.parent} cannot be written ({error}). Point INTERLACE_CACHE at a "
            "folder that can."
        ) from error
    try:
        _write(path, stage)
        sizes = {f.name: f.stat().st_size for f in stage.iterdir()}
        (stage / COMPLETE).write_text(json.dumps(sizes, indent=1), encoding="utf-8")
        if target.exists() and not _is_complete(target):
            shutil.rmtree(target)
        stage.rename(target)
    except OSError:
        if not _is_complete(target):  # else another process was first
            raise
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _write(path: Path, folder: Path) -> None:
    _, main_type, vocabulary = _header(path)
    extra: dict[str, Any] = {}
    if hasattr(transformers, "GgufConfig"):  # else weights are always dequantised
        extra["quantization_config"] = transformers.GgufConfig(dequantize=True)
    with reading(LoadError, f"{path} cannot be converted", DAMAGED):
        loaded, report = AutoModelForCausalLM.from_pretrained(
            path.parent,
            gguf_file=path.name,
            dtype=PLAIN_TYPES.get(main_type, torch.float32),
            output_loading_info=True,
            **extra,
        )
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    if missing := sorted(report["missing_keys"]):
        raise LoadError(
            f"{path} lacks {len(missing)} weights of a {type(loaded).__name__}, first {missing[0]}."
        )
    _plain(loaded, main_type).save_pretrained(folder)
    if vocabulary in DIGIT_VOCABULARIES:
        _cut_at_digits(tokenizer)
    tokenizer.save_pretrained(folder)


def _plain(loaded: PreTrainedModel, main_type: str) -> PreTrainedModel:
    """The same weights in a model that does not know it was quantised, except by a note."""
    values = loaded.config.to_dict()
    values.pop("quantization_config", None)
    config = _note_types(type(loaded.config)(**values), main_type)
    with torch.device("meta"):
        fresh = type(loaded)(config)
    fresh.load_state_dict(loaded.state_dict(), assign=True)
    fresh.tie_weights()
    fresh.generation_config = loaded.generation_config
    return fresh


def _note_types(config: PretrainedConfig, main_type: str) -> PretrainedConfig:
    config.dtype = PLAIN_TYPES.get(main_type, torch.float32)
    if main_type not in PLAIN_TYPES:
        config.dequantised_from = main_type
    return config


def _header(path: Path) -> tuple[PretrainedConfig, str, str | None]:
    """The file's configuration, GGUF's type of most of its values, and how its vocabulary cuts
    text."""
    from gguf import GGUFReader

    types: Counter[str] = Counter()
    with reading(LoadError, f"{path} is truncated or not a GGUF file", DAMAGED):
        reader = GGUFReader(path)
        for tensor in reader.tensors:
            types[tensor.tensor_type.name] += int(tensor.n_elements)
        field = reader.get_field("tokenizer.ggml.pre")
        vocabulary = None if field is None else str(field.contents())
    with reading(LoadError, f"{path} cannot be converted", DAMAGED):
        config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
        check_sizes(str(path), config.to_dict(), len(reader.tensors), types.total())
    # Norms and biases are always F32: that counts only where there is nothing else.
    quantised = Counter({kind: count for kind, count in types.items() if kind != "F32"})
    return config, quantised.most_common(1)[0][0] if quantised else "F32", vocabulary


def _cut_at_digits(tokenizer: PreTrainedTokenizerBase) -> None:
    backend: Any = tokenizer
    backend.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
