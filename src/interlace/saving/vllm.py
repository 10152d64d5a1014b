"""A folder that vLLM serves with the plug-in in plugins/vllm: base model, blocks and tokenizer.

Its configuration names a class of the plug-in's, and says what the blocks are. vLLM reads every
safetensors file of a folder; Hugging Face reads `model.safetensors` or an index, and the folder has
neither, so that nothing loads the base model without its blocks.
"""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path

import safetensors.torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from interlace.attached import Attachment, base_model_of, get_attachment, new_parameters
from interlace.coupling.config import heads_of
from interlace.errors import CheckpointError
from interlace.files import CONFIG, locate, writing
from interlace.saving.checkpoint import write_base

ARCHITECTURE = "InterlaceForCausalLM"
SECTION = "interlace"  # of the configuration
FORMAT = 1  # raised when an older plug-in cannot read what is written here
WEIGHTS = "base"  # the first part of names of files, where Hugging Face has "model"
# Base models whose log-probabilities under vLLM 0.32 are Hugging Face's, with and without blocks.
COMPARED = (
    "Cohere2",
    "GPTNeoX",
    "Gemma2",
    "Gemma3",
    "Glm4",
    "Llama",
    "Mistral",
    "OPT",
    "Olmo2",
    "Phi3",
    "Qwen2",
    "Qwen3",
    "SmolLM3",
    "Starcoder2",
)
CPU_HEAD_DIMS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)  # of vLLM 0.32


def export_for_vllm(
    model: nn.Module,
    folder: str | os.PathLike[str],
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Path:
    """Write `model` and its blocks as a folder that vLLM serves.

    All files change at once; an earlier export in `folder` is replaced.

    Args:
        model: Model with blocks attached, whole and in plain weights.
        folder: Folder to write into, created if needed.
        tokenizer: Tokenizer to write beside it; vLLM's server needs one.

    Returns:
        The folder.

    Raises:
        AttachError: if `model` has no blocks.
        CheckpointError: if vLLM could not carry these blocks or this base, or if the folder holds
            another model.
        OSError: if the files cannot be written.
    """
    base, folder = base_model_of(model), Path(folder)
    attachment = refuse_for_vllm(base)
    _check_target(folder)
    blocks = {name: p.detach().cpu().contiguous() for name, p in new_parameters(base)}
    earlier = {path.name for path in folder.glob("*.safetensors")}
    with writing(folder) as stage:
        write_base(base, stage)
        for path in stage.glob("model*.safetensors"):
            path.rename(stage / path.name.replace("model", WEIGHTS, 1))
        (stage / SAFE_WEIGHTS_INDEX_NAME).unlink(missing_ok=True)
        safetensors.torch.save_file(
            blocks, stage / f"{attachment.config.kind}.safetensors", {"format": "pt"}
        )
        _describe(stage / CONFIG, attachment)
        if tokenizer is not None:
            tokenizer.save_pretrained(stage)
        written = {path.name for path in stage.iterdir()}
    for name in earlier - written:  # of an earlier export: vLLM would read it too
        (folder / name).unlink()
    return folder


def refuse_for_vllm(base: PreTrainedModel) -> Attachment:
    """The blocks of a model that vLLM can carry."""
    attachment = get_attachment(base)
    _check_blocks(attachment)
    _check_base(base)
    return attachment


def is_export(folder: Path) -> bool:
    """Whether a folder is one that `export_for_vllm` wrote."""
    path = locate(folder, CONFIG)
    if not path.is_file():  # a pipe, or a device that never ends
        return False
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(values, dict) and values.get("architectures") == [ARCHITECTURE]


def _describe(path: Path, attachment: Attachment) -> None:
    values = json.loads(path.read_text(encoding="utf-8"))
    base, values["architectures"] = values["architectures"], [ARCHITECTURE]
    values[SECTION] = {
        "format": FORMAT,
        "base": base,
        "blocks": attachment.config.to_dict(),
        "layers": list(attachment.layer_names),
    }
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _check_blocks(attachment: Attachment) -> None:
    coupling, reads = attachment.coupling, attachment.config.reads
    if coupling.seats != ("layer",):
        raise CheckpointError(
            f"vLLM carries couplings that stand after layers, and {coupling.kind} stands at "
            f"{' and '.join(coupling.seats)}. Serve it with `interlace serve`."
        )
    if reads != "position":
        raise CheckpointError(
            "vLLM keeps no keys and values of blocks, so rows there read siblings at their own "
            f"position only, and these blocks read {reads!r}. Serve them with `interlace serve`."
        )


def _check_base(base: PreTrainedModel) -> None:
    name, config = type(base).__name__, base.config.get_text_config(decoder=True)
    adapters = [n for n, m in base.named_modules() if hasattr(m, "adapter_layer_names")]
    if adapters:
        raise CheckpointError(
            f"An export holds plain weights, but {len(adapters)} layers carry PEFT adapters, first "
            f"{adapters[0]}. Merge them first: peft_model.merge_and_unload()."
        )
    if getattr(base, "hf_quantizer", None) is not None:
        raise CheckpointError(
            f"An export holds plain weights, and this {name} is quantised. Load it without "
            "quantization_config."
        )
    if any(hasattr(p, "full_tensor") for p in base.parameters()):
        raise CheckpointError(
            f"This {name} is sharded over several processes. Save it with interlace.save(..., "
            "full=True), and export that."
        )
    if not getattr(base, "_supports_attention_backend", False):
        raise CheckpointError(
            f"vLLM cannot run {name}: it puts its own attention in where Hugging Face's class "
            "says that it may, and this one does not. Serve it with `interlace serve`."
        )
    if getattr(config, "logits_scaling", 1.0) != 1.0:  # compared: log-probabilities off by 5 nats
        raise CheckpointError(
            f"vLLM's backend for Hugging Face's models leaves out the logits_scaling of {name}, "
            "and would sample from other probabilities. Serve it with `interlace serve`."
        )
    if name.removesuffix("ForCausalLM") not in COMPARED:
        warnings.warn(
            f"What vLLM gives for {name} has not been compared with what Hugging Face gives. "
            "Compare a few log-probabilities before you rely on it.",
            stacklevel=3,
        )
    head_dim = heads_of(config)[2]
    if head_dim not in CPU_HEAD_DIMS:
        known = ", ".join(map(str, CPU_HEAD_DIMS))
        warnings.warn(
            f"vLLM on a CPU has no attention for heads of {head_dim} (it has {known}), so only a "
            "GPU can run this export.",
            stacklevel=3,
        )


def _check_target(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"An export is a folder; {folder} is a file. Pass another path.")
    holds_one = locate(folder, CONFIG).exists() or any(folder.glob("*.safetensors"))
    if holds_one and not is_export(folder):
        raise CheckpointError(
            f"{folder} holds a model that is no export, and files of two models in one folder "
            "cannot be told apart. Pass another folder."
        )
